"""Crossing: from an encoder with virtual tokens to the decoder that looks at them."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn

from hub.attachment.arguments import list_parameters
from hub.attachment.fronts import Front
from hub.attachment.placing import take_tokens
from hub.errors import AttachError


class Crossing:
    """The hooks on a whole encoder-decoder model whose encoder has a front: what the decoder sees
    of it has more positions than the encoder was given tokens."""

    def __init__(self, front: Front, model: nn.Module) -> None:
        self.front = front
        self.parameters = list_parameters(model)

    def enter(
        self, module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]
    ) -> tuple[tuple[Any, ...], dict[str, Any]] | None:
        """The forward pre-hook: widen the mask of what is encoded. Raises AttachError where that
        lacks the virtual tokens."""
        layout = self.front.layout
        if not self.front.switch.on or not layout.count:
            return None
        kwargs = {**dict(zip(self.parameters, args, strict=False)), **kwargs}
        mask, encoded = kwargs.get("attention_mask"), kwargs.get("encoder_outputs")
        given = encoded[0] if encoded is not None else kwargs.get("input_ids")
        if mask is None and layout.uneven is not None and given is not None:
            length = given.shape[1] - (layout.count if encoded is not None else 0)
            mask = torch.ones(len(given), length, dtype=torch.long, device=given.device)
        if mask is not None:
            length = mask.shape[1]
            there = length + layout.count if encoded is None else encoded[0].shape[1]
            if there == length:
                raise AttachError(
                    f"encoder_outputs has {there} positions for the {length} of attention_mask, "
                    f"and the adapters' {layout.count} virtual tokens belong in front; encode "
                    "while they act, and give the mask of the tokens alone"
                )
            if there == length + layout.count:
                owner = layout.find_owner(len(mask), mask.device)
                kwargs["attention_mask"] = layout.spread_mask(mask, owner)
        return (), kwargs

    def leave(
        self, module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any], output: Any
    ) -> Any:
        """The forward hook: what the model says of its encoder is about the tokens given."""
        layout, count = self.front.layout, self.front.layout.count
        if not self.front.switch.on or not count or not isinstance(output, Mapping):
            return None
        mask = kwargs.get("attention_mask")
        order = None
        if mask is not None and mask.shape[1] > count:
            owner = layout.find_owner(len(mask), mask.device)
            order = layout.find_order(mask, owner, spread=True)
        changed = {}
        for name, value in output.items():
            if value is not None and (name == "cross_attentions" or name.startswith("encoder_")):
                parts = [value] if isinstance(value, Tensor) else value
                parts = tuple(cut_encoded(part, order, count, name) for part in parts)
                value = parts[0] if isinstance(value, Tensor) else parts
            changed[name] = value
        return type(output)(**changed)


def cut_encoded(value: Tensor, order: Tensor | None, count: int, name: str) -> Tensor:
    """What is said of an encoder's positions, without the first `count`."""
    if name != "cross_attentions":
        value = take_tokens(value, order, count, 2 if value.dim() == 4 else 1)
    return take_tokens(value, order, count, 3) if value.dim() == 4 else value
