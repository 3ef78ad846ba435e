"""Cutting: taking virtual positions off what a model gives."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from torch import Tensor

from hub.attachment.frames import Frame
from hub.attachment.placing import take_tokens


def cut_output(output: Any, frame: Frame) -> Any:
    """What a model gives, without the positions in front."""
    if isinstance(output, Mapping):
        if not frame.inserted and not any("attentions" in name for name in output):
            return output  # what decoding gives, as it is
        return type(output)(**{name: cut_value(output[name], frame, name) for name in output})
    if isinstance(output, Tensor):
        return cut_value(output, frame)
    return tuple(cut_value(value, frame) for value in output)


def cut_value(value: Any, frame: Frame, name: str = "") -> Any:
    """One output: a tensor, or a tuple with one for each layer."""
    if isinstance(value, tuple | list):
        return type(value)(cut_value(item, frame, name) for item in value)
    if not isinstance(value, Tensor) or not value.is_floating_point():
        return value
    if name == "cross_attentions":  # over the encoder's positions, (rows, heads, asked, encoded)
        return value[..., frame.inserted :, :]
    total = frame.inserted + frame.length
    if value.dim() == 4 and ("attentions" in name or value.shape[-2:] == (total, total)):
        behind = frame.cached - frame.inserted
        value = value[..., behind:] if frame.inserted else value[..., frame.cached :]
        if not frame.inserted:
            return value
        value = take_tokens(value, frame.order, frame.inserted, 2)
        return take_tokens(value, frame.order, frame.inserted, 3)
    if frame.inserted and name == "router_logits" and len(value) == frame.rows * total:
        rows = value.view(frame.rows, total, -1)
        return take_tokens(rows, frame.order, frame.inserted).flatten(0, 1)
    by_token = value.dim() > 2 or name in ("start_logits", "end_logits")
    if frame.inserted and by_token and value.shape[:2] == (frame.rows, total):
        return take_tokens(value, frame.order, frame.inserted)
    return value
