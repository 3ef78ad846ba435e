"""Stacked experts: many projections that one parameter holds, and no module runs.

transformers keeps the experts of most mixtures in two parameters of one module, (experts, ...),
and computes them by a function that its `ExpertsInterface` gives out. The module says how they are
laid out: it is one that `use_experts_implementation` decorated.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from torch import nn

FLAGS = ("has_gate", "has_bias", "has_post_expert_norm", "is_transposed", "is_concatenated")


@dataclass(frozen=True, slots=True)
class Stacked:
    """One parameter of a module of experts: its name, the role of its projections, their sizes, and
    how many there are."""

    name: str
    role: str
    in_features: int
    out_features: int
    count: int


def is_experts(module: nn.Module) -> bool:
    """Whether `module` keeps its experts stacked and asks transformers how to compute them."""
    return all(hasattr(module, flag) for flag in FLAGS)


def list_stacked(module: Any) -> list[Stacked]:
    """The parameters of experts in `module`, in the order in which they act.

    A gate and what it gates are one projection, as in the parameter: its role is in.
    """
    if not is_experts(module):
        return []
    found = []
    for name, role in (
        ("gate_up_proj" if module.has_gate else "up_proj", "in"),
        ("down_proj", "out"),
    ):
        weight = getattr(module, name, None)
        if not isinstance(weight, nn.Parameter) or weight.dim() != 3:
            return []
        if not weight.is_floating_point():
            return []
        count, rows, columns = weight.shape
        sizes = (rows, columns) if module.is_transposed else (columns, rows)
        found.append(Stacked(name, role, *sizes, count))
    return found
