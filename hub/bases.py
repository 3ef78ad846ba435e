"""The base as a method sees it at one site: the weights to start from, or to compute with."""

from __future__ import annotations

from typing import Any

import torch
from torch import nn

from hub.errors import AttachError


class Base:
    """What a method may ask of the base model at one site.

    It is a plain object, so that a module which keeps it does not take the base's parameters for
    its own.

    model: the base model. module: the one that the site belongs to.
    """

    def __init__(self, model: nn.Module, path: str) -> None:
        self.model = model
        self.path = path

    @property
    def module(self) -> nn.Module:
        """The module at the site."""
        return self.model.get_submodule(self.path)

    def read_weight(self, path: str | None = None) -> torch.Tensor:
        """The weight of the site's projection, or of the one at `path`: (out_features,
        in_features), an embedding's (vocabulary, d_model); floating, without a gradient.

        A quantized weight is dequantized at every call, which takes the memory of one layer.
        Raises AttachError where the module has none.
        """
        return read_weight(self.model, self.path if path is None else path)


def read_weight(model: nn.Module, path: str) -> torch.Tensor:
    """See `Base.read_weight`."""
    module = model.get_submodule(path)
    weight: Any = getattr(module, "weight", None)
    if not isinstance(weight, torch.Tensor):
        raise AttachError(f"{path} is a {type(module).__name__}, which has no weight to read")
    if not weight.is_floating_point():
        raise AttachError(f"{path}: its weight is quantized and can't be read")
    return weight.detach().T if type(module).__name__ == "Conv1D" else weight.detach()
