"""Substitutes: how a layer whose weight is quantized computes while adapters are merged into it.

A quantized weight can't take a small change: rounded to the same few levels again, most of it would
be lost. So the layer's own weight stays as it is, and while merged its forward is replaced by one
that computes with the sum, kept in the model's precision beside it.
"""

from __future__ import annotations

import logging
from collections.abc import Sequence
from typing import Any

import torch
from torch import nn
from torch.nn import functional as F
from torch.utils.hooks import RemovableHandle

from hub.errors import AttachError

log = logging.getLogger("hub")


class Substitute:
    """The forward of a linear layer with another weight; a plain object, so no child of the layer.

    weight: (out_features, in_features). The bias is the layer's own.
    """

    def __init__(self, module: nn.Module, weight: torch.Tensor) -> None:
        self.module = module
        self.weight = weight

    def __call__(self, x: torch.Tensor) -> torch.Tensor:
        """x: (..., in_features) -> (..., out_features), in the precision of x."""
        own: Any = self.module.weight
        if self.weight.device != own.device:  # the model was moved
            self.weight = self.weight.to(own.device)
        bias: Any = self.module.bias
        bias = None if bias is None else bias.to(self.weight.dtype)
        y = F.linear(x.to(self.weight.device, self.weight.dtype), self.weight, bias)
        return y.to(x.dtype)


def announce_substitutes(substitutes: Sequence[Substitute]) -> list[RemovableHandle]:
    """Say what they cost, and keep their layers from being saved as if they held the sum."""
    if not substitutes:
        return []
    weights = [substitute.weight for substitute in substitutes]
    log.warning(
        "merged into %d quantized layers: while merged each is kept in %s too, %s bytes together",
        len(weights),
        str(weights[0].dtype).removeprefix("torch."),
        f"{sum(weight.nbytes for weight in weights):,}",
    )
    modules: list[Any] = [substitute.module for substitute in substitutes]
    return [module.register_state_dict_pre_hook(refuse_saving) for module in modules]


def refuse_saving(module: nn.Module, prefix: str, keep_vars: bool) -> None:
    """A hook of the layer's state_dict. Raises AttachError."""
    raise AttachError(
        f"{prefix.rstrip('.')}: an adapter is merged beside its quantized weight, so the model's "
        "files would not have it; save the adapter, or merge it into the base loaded unquantized "
        "and save that"
    )
