"""What is done to the tensors of several adapters, value by value.

Every tensor here is a difference from what changes nothing, in float32. None of them is changed,
and no result shares memory with one.

    linear    sum_t w_t d_t         Ilharco et al., 2023, "Editing Models with Task Arithmetic",
                                    https://arxiv.org/abs/2212.04089
    ties      `keep_largest`, then `merge_by_sign`: Yadav et al., 2023, "TIES-Merging: Resolving
              Interference When Merging Models", section 4, https://arxiv.org/abs/2306.01708
    dare      `keep_some`: Yu et al., 2024, "Language Models are Super Mario: Absorbing Abilities
              from Homologous Models as a Free Lunch", https://arxiv.org/abs/2311.03099
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

import torch

Majority = Literal["total", "frequency"]


def keep_largest(d: torch.Tensor, density: float) -> torch.Tensor:
    """The values that are largest by amount, `density` of all and at least one; zero elsewhere."""
    if density == 1:
        return d
    flat = d.reshape(-1)
    count = max(1, int(density * flat.numel()))
    places = flat.abs().topk(count, sorted=False).indices
    kept = torch.zeros_like(flat)
    kept[places] = flat[places]
    return kept.view(d.shape)


def keep_some(d: torch.Tensor, density: float, generator: torch.Generator) -> torch.Tensor:
    """Each value with the probability `density`, and divided by it, so that d is what is to be
    expected; zero elsewhere.

    generator: of the CPU, so that a seed means the same on every device.
    """
    if density == 1:
        return d
    kept = torch.rand(d.shape, generator=generator) < density
    return (d / density).mul_(kept.to(d.device))


def add_weighted(ds: Sequence[torch.Tensor], weights: Sequence[float]) -> torch.Tensor:
    """sum_t w_t d_t."""
    total = ds[0] * weights[0]
    for d, weight in zip(ds[1:], weights[1:], strict=True):
        total.add_(d, alpha=weight)
    return total


def merge_by_sign(
    ds: Sequence[torch.Tensor], weights: Sequence[float], majority: Majority
) -> torch.Tensor:
    """At each place the mean of those w_t d_t that have the elected sign.

    majority: what elects it, the sum of all w_t d_t ("total") or that of their signs
        ("frequency"; where as many are for one as for the other, their sum). Where that is zero,
        so is the mean.
    """
    votes = [d * weight for d, weight in zip(ds, weights, strict=True)]
    elected = add_up(votes)
    if majority == "frequency":
        count = add_up([vote.sign() for vote in votes])
        elected = torch.where(count == 0, elected, count)
    elected = elected.sign()
    total, agreeing = torch.zeros_like(elected), torch.zeros_like(elected)
    for vote in votes:
        agrees = vote * elected > 0
        total.addcmul_(vote, agrees)
        agreeing.add_(agrees)
    return total.div_(agreeing.clamp_(min=1))


def add_up(ds: Sequence[torch.Tensor]) -> torch.Tensor:
    """sum_t d_t."""
    return add_weighted(ds, [1.0] * len(ds))
