"""Linear layers and embeddings: which modules they are, and their sizes."""

import sys
from typing import Any

from torch import nn


def is_linear(module: nn.Module) -> bool:
    """Whether `module` is an `nn.Linear`, or built on it, or the Conv1D of transformers."""
    return isinstance(module, nn.Linear) or is_transposed(module)


def has_sizes(module: nn.Module) -> bool:
    """Whether `module` is a linear layer or an embedding."""
    return is_linear(module) or isinstance(module, nn.Embedding)


def is_transposed(module: nn.Module) -> bool:
    """Whether `module` is the Conv1D of transformers, which keeps its weight as (in, out)."""
    # No such layer exists before its module was imported, and importing transformers costs seconds.
    conv1d = getattr(sys.modules.get("transformers.pytorch_utils"), "Conv1D", None)
    return conv1d is not None and isinstance(module, conv1d)


def get_sizes(module: nn.Module) -> tuple[int, int]:
    """in_features, out_features of a linear layer; vocabulary, width of an embedding."""
    if isinstance(module, nn.Linear):
        return module.in_features, module.out_features
    weight: Any = module.weight
    return weight.shape[0], weight.shape[1]


def has_bias(module: nn.Module) -> bool:
    """Whether `module` adds a bias of its own."""
    return isinstance(getattr(module, "bias", None), nn.Parameter)
