"""Shifting: whether a row of a model is the same when it has padding before it, or behind it.

Rows with differently many virtual tokens are of different lengths. That has a meaning only where
what is padded has no part in the rest. Before a row, positions must count from the first token that
is not padding: by the mask, by the id of the padding, or because they are told. Behind it a row
can't go on from a cache, and may not be where a head looks for its last token.
"""

from __future__ import annotations

import inspect
import math
from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import Tensor, nn

from hub.errors import AttachError
from hub.sites.tracing import keep_state, list_words, make_inputs

PADDED = 7  # odd, so that what takes positions by twos or more is seen to


@dataclass(frozen=True)
class Shift:
    """How the rows of a model can be of different lengths.

    by: what tells it where a row is: the mask alone, the id of its padding too, or its positions.
    behind: whether the padding must come behind a row.
    """

    by: Literal["mask", "ids", "positions"] = "mask"
    behind: bool = False


def find_shift(model: nn.Module, half: str = "") -> Shift:
    """How rows of `model`, or of its encoder or decoder, can be of different lengths. A few tiny
    forwards, which leave the model as it was.

    Raises AttachError where they can't.
    """
    ids_name, mask_name = "input_ids", "attention_mask"
    if half == "decoder":
        ids_name, mask_name = f"decoder_{ids_name}", f"decoder_{mask_name}"
    names = inspect.signature(model.forward).parameters
    inputs = next(make_inputs(model))
    behind = half == "encoder"
    if ids_name in inputs and mask_name in names:
        ids = inputs[ids_name]
        if ids.is_meta:  # there are no values to compare, and nearly every model can
            return Shift(behind=behind)
        ways = [Shift("mask", behind), Shift("ids", behind)]
        if not half and "position_ids" in names:
            ways.append(Shift("positions"))
        can_generate = getattr(model, "can_generate", None)
        if not behind and not (can_generate is not None and can_generate()):
            ways += [Shift("mask", behind=True), Shift("ids", behind=True)]
        own = torch.ones_like(ids)
        with keep_state(model), torch.no_grad():
            expected = model(**{**inputs, mask_name: own})
            for way in ways:
                word = choose_padding(model) if way.by == "ids" else choose_word(model)
                mask = pad(own, 0, way)
                padded = {**inputs, ids_name: pad(ids, word, way), mask_name: mask}
                if way.by == "positions":
                    padded["position_ids"] = mask.cumsum(1).sub(1).clamp(min=0)
                start = 0 if way.behind else PADDED
                found = read_result(model(**padded), slice(start, start + ids.shape[1]), half)
                if is_same(read_result(expected, slice(0, ids.shape[1]), half), found):
                    return way
    raise AttachError(
        f"rows of {type(model).__name__} can't have differently many virtual positions in front: "
        "what is padded has a part in the rest of a row; give them equally many, or batch them "
        "apart"
    )


def pad(value: Tensor, word: int, way: Shift) -> Tensor:
    """Rows of a value for each token, padded with another one."""
    padding = value.new_full((len(value), PADDED), word)
    return torch.cat([value, padding] if way.behind else [padding, value], dim=1)


def choose_word(model: nn.Module) -> int:
    """The id of a token that means nothing special to `model`, for placeholders.

    From the middle: the lowest ids are special even where no configuration says so.
    """
    words = list_words(model)
    return words[len(words) // 2]


def choose_padding(model: nn.Module) -> int:
    """The id of what `model` is padded with; any where it has none."""
    config: Any = getattr(model, "config", None)
    known = getattr(config, "pad_token_id", None)
    return known if isinstance(known, int) and known >= 0 else choose_word(model)


def read_result(output: Any, tokens: slice, half: str = "") -> Tensor:
    """What a model says of these positions, or of a row; of what is encoded, what its encoder
    does."""
    result = getattr(output, "encoder_last_hidden_state", None) if half == "encoder" else None
    result = output[0] if result is None else result
    said: Tensor = result[:, tokens] if result.dim() > 2 else result
    return said


def is_same(one: Tensor, other: Tensor) -> bool:
    """Whether two results differ by no more than rounding does, which is the more the coarser
    their precision and the more layers they come from."""
    if one.shape != other.shape:
        return False
    apart, scale = (value.float().square().mean().sqrt() for value in (one - other, one))
    return bool(apart <= 0.5 * math.sqrt(torch.finfo(one.dtype).eps) * scale)
