"""Tiny base models whose weights follow from their names, the same in every library version."""

import hashlib
from collections.abc import Mapping
from typing import Any

import torch
import transformers
from torch import nn


def draw_values(name: str, shape: torch.Size) -> torch.Tensor:
    """Float32 values for the parameter `name`, uniform in [-0.3, 0.3), from its name alone.

    No random generator, so that no version of torch has a say. A norm's weight (one dimension,
    name ending in "weight") is one more.
    """
    stream = hashlib.shake_128(name.encode()).digest(4 * shape.numel())
    whole = torch.frombuffer(bytearray(stream), dtype=torch.int32).to(torch.float64)
    values = (whole / 2**31 * 0.3).to(torch.float32).reshape(shape)
    return values + 1 if len(shape) == 1 and name.endswith("weight") else values


def build_model(case: Mapping[str, Any]) -> nn.Module:
    """The model of `case`, in eval mode.

    `case` holds its class ("model"), its configuration's class ("config_class") and the
    configuration's arguments ("config").
    """
    config = getattr(transformers, case["config_class"])(**case["config"])
    model: nn.Module = getattr(transformers, case["model"])(config).eval()
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            parameter.copy_(draw_values(name, parameter.shape))
    return model
