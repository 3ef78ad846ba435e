"""Shifting: whether a row of a model is the same when it starts later, behind padding.

Rows with differently many virtual tokens start at different places. That has a meaning only where
what is padded has no part in the rest, and where positions count from the first token that is not:
by the mask, or because they are told.
"""

from __future__ import annotations

import inspect
from typing import Any, Literal

import torch
from torch import Tensor, nn

from hub.errors import AttachError
from hub.sites.tracing import keep_state, list_words, make_inputs

PADDED = 2

Numbering = Literal["mask", "positions"]


def find_shift(model: nn.Module, half: str = "") -> Numbering:
    """How `model`, or its encoder or decoder, is to be told where a row starts: by the mask alone,
    or by its positions too. Two or three tiny forwards, which leave the model as it was.

    Raises AttachError where neither makes a row the same behind padding.
    """
    ids_name, mask_name = "input_ids", "attention_mask"
    if half == "decoder":
        ids_name, mask_name = f"decoder_{ids_name}", f"decoder_{mask_name}"
    names = inspect.signature(model.forward).parameters
    inputs = next(make_inputs(model))
    if ids_name in inputs and mask_name in names:
        ids = inputs[ids_name]
        if ids.is_meta:  # there are no values to compare, and nearly every model can
            return "mask"
        mask = torch.ones_like(ids)
        padding = torch.full_like(ids[:, :PADDED], list_words(model)[0])
        shifted = {
            **inputs,
            ids_name: torch.cat([padding, ids], dim=1),
            mask_name: torch.cat([torch.zeros_like(padding), mask], dim=1),
        }
        with keep_state(model), torch.no_grad():
            expected = read_result(model(**{**inputs, mask_name: mask}), ids.shape[1])
            if is_same(expected, read_result(model(**shifted), ids.shape[1])):
                return "mask"
            if not half and "position_ids" in names:
                positions = shifted[mask_name].cumsum(1).sub(1).clamp(min=0)
                told = read_result(model(**shifted, position_ids=positions), ids.shape[1])
                if is_same(expected, told):
                    return "positions"
    raise AttachError(
        f"rows of {type(model).__name__} can't have differently many virtual positions in front: "
        "what is padded has a part in the rest of a row; give them equally many, or batch them "
        "apart"
    )


def read_result(output: Any, length: int) -> Tensor:
    """What a model says of the last `length` positions, or of a row."""
    first: Tensor = output[0]
    return first[:, -length:] if first.dim() > 2 else first


def is_same(one: Tensor, other: Tensor) -> bool:
    """Whether two results differ by no more than rounding does."""
    return one.shape == other.shape and torch.allclose(one, other, rtol=1e-3, atol=1e-4)
