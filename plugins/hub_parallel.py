"""Parallel adapters: a scaled bottleneck beside the feed-forward.

    y + s (W_up f(W_down x + b_down) + b_up),    W_down: (m, d), W_up: (d, m)

y is what the feed-forward adds to the residual stream x.

He et al., 2022, "Towards a Unified View of Parameter-Efficient Transfer Learning", section 3.3,
https://arxiv.org/abs/2110.04366. W_up and the biases start at zero, so a new adapter
changes nothing; W_down starts Kaiming-uniform.

What differs from the paper: where a norm comes first in the layer, which the paper does not treat,
x is the stream before that norm, as in the library `adapters`.

Parameters: 2 m d + d + m for each feed-forward.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import nn

import hub


@dataclass(frozen=True)
class ParallelConfig(hub.BottleneckConfig):
    """What a parallel adapter is made of, besides what every bottleneck has.

    scale: s, how much of the bottleneck is added.
    """

    method: ClassVar[str] = "parallel"

    reduction_factor: float = 2
    activation: str = "relu"
    scale: float = 4.0

    def __post_init__(self) -> None:
        super().__post_init__()
        if not math.isfinite(self.scale) or self.scale == 0:
            raise hub.ConfigError(
                f"parallel: scale is {self.scale!r}; it must be a finite number other than 0"
            )


class Parallel(hub.Bottleneck):
    """The adapter of one feed-forward."""

    reads_stream = True

    def __init__(self, d: int, config: ParallelConfig) -> None:
        super().__init__(d, config)
        self.scale = config.scale
        nn.init.kaiming_uniform_(self.down.weight, a=math.sqrt(5))
        nn.init.zeros_(self.up.weight)

    def forward(self, x: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
        """x, the stream, and y, what the branch adds to it: (..., d) -> (..., d)."""
        return torch.add(y, self.squeeze(x).to(y.dtype), alpha=self.scale)


class ParallelAdapter(hub.Method[ParallelConfig]):
    """The method as the hub knows it."""

    name = "parallel"
    paper = "He et al., 2022, Towards a Unified View of Parameter-Efficient Transfer Learning, https://arxiv.org/abs/2110.04366"
    config = ParallelConfig
    peft_type = "PARALLEL"

    def choose_sites(self, sites: Sequence[hub.Site], config: ParallelConfig) -> Sequence[hub.Site]:
        """The feed-forward of every layer asked for."""
        return config.choose_feedforwards(sites)

    def settle_config(self, config: ParallelConfig, sites: Sequence[hub.Site]) -> ParallelConfig:
        """Name the layers by number where a slice did."""
        return config.settle_layers(sites)

    def build(self, site: hub.Site, config: ParallelConfig) -> nn.Module:
        """A bottleneck without effect yet."""
        return Parallel(site.out_features, config)

    def neutral(self, config: ParallelConfig, name: str) -> float:
        """Without weights a bottleneck adds nothing."""
        return 0.0


@hub.hookimpl
def hub_method() -> hub.Method[ParallelConfig]:
    """Parallel adapters."""
    return ParallelAdapter()


@hub.hookimpl
def hub_compose(
    chains: Sequence[Sequence[nn.Module]], rows: Sequence[int] | None
) -> nn.Module | None:
    """Rows with different bottlenecks are batched products."""
    return hub.Bottleneck.join(chains, rows)
