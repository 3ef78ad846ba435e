"""Bottlenecks: what the methods that put a small network beside or behind a branch share."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import ClassVar, Self

import torch
from torch import nn
from torch.nn import functional as F

from hub.errors import ConfigError
from hub.sites import Site

ACTIVATIONS: dict[str, Callable[[torch.Tensor], torch.Tensor]] = {
    "gelu": F.gelu,
    "relu": F.relu,
    "silu": F.silu,
    "swish": F.silu,
    "tanh": torch.tanh,
}


@dataclass(frozen=True)
class BottleneckConfig:
    """The options of a bottleneck, for a method's configuration to build on.

    method: the method's name, which errors begin with.
    size: m, the bottleneck's width; d / reduction_factor when left out, at least 1.
    reduction_factor: d / m.
    activation: f; gelu, relu, silu (also called swish) or tanh.
    layers: the layers that get adapters, counted from 0, or a slice as text: "6:" leaves the six
        lower ones out; all when left out.

    Raises ConfigError on what can't be.
    """

    method: ClassVar[str]

    size: int | None = None
    reduction_factor: float = 16
    activation: str = "gelu"
    layers: tuple[int, ...] | str | None = None

    def __post_init__(self) -> None:
        if self.size is not None and (not isinstance(self.size, int) or self.size < 1):
            raise ConfigError(f"{self.method}: size is {self.size!r}; it is a whole number from 1")
        if not 0 < self.reduction_factor < math.inf:
            raise ConfigError(
                f"{self.method}: reduction_factor is {self.reduction_factor!r}; it must be above 0 "
                "and finite"
            )
        if self.activation not in ACTIVATIONS:
            raise ConfigError(
                f"{self.method}: activation is {self.activation!r}; choose from "
                f"{', '.join(ACTIVATIONS)}"
            )

    def width(self, d: int) -> int:
        """m for a branch of width d."""
        return max(1, int(d // self.reduction_factor)) if self.size is None else self.size

    def choose_layers(self, sites: Sequence[Site]) -> list[Site]:
        """Those of `sites` that are in the layers asked for. Raises ConfigError."""
        asked = self.layers
        if asked is None:
            return list(sites)
        there = {site.block for site in sites if site.block is not None}
        last = max(there, default=-1)
        if isinstance(asked, str):
            try:
                bounds = [int(part) if part else None for part in asked.split(":")]
                chosen = set(range(last + 1)[slice(*bounds)] if ":" in asked else map(int, [asked]))
            except (ValueError, TypeError) as error:
                raise ConfigError(
                    f"{self.method}: layers is {asked!r}; give numbers, or a slice such as '6:'"
                ) from error
        else:
            chosen = set(asked)
        if not chosen or not chosen <= there:
            raise ConfigError(
                f"{self.method}: layers is {asked!r}, this base has layers 0 to {last}; choose "
                "among them"
            )
        return [site for site in sites if site.block in chosen]

    def choose_feedforwards(self, sites: Sequence[Site]) -> list[Site]:
        """The feed-forward branches in the layers asked for, for a module that reads the stream
        beside them. Raises ConfigError where there is none, or no way to the stream."""
        branches = [site for site in sites if site.kind == "branch" and site.role == "feedforward"]
        if not branches:
            raise ConfigError(f"{self.method}: this base has no feed-forward branch to act on")
        for site in branches:
            if site.stream is None:
                raise ConfigError(
                    f"{self.method}: the residual stream that {site.path} is added to can't be "
                    "reached in this base; houlsby needs no stream"
                )
        return self.choose_layers(branches)

    def settle_layers(self, sites: Sequence[Site]) -> Self:
        """The same with the layers by number where a slice named them."""
        if not isinstance(self.layers, str):
            return self
        blocks = {site.block for site in sites if site.block is not None}
        return replace(self, layers=tuple(sorted(blocks)))


class Bottleneck(nn.Module):
    """W_up f(W_down x + b_down) + b_up,    W_down: (m, d), W_up: (d, m).

    A method's own module builds on it, sets the first values and says what is added to what.
    """

    def __init__(self, d: int, config: BottleneckConfig) -> None:
        super().__init__()
        m = config.width(d)
        self.activation = ACTIVATIONS[config.activation]
        self.down = nn.Linear(d, m)
        self.up = nn.Linear(m, d)
        nn.init.zeros_(self.down.bias)
        nn.init.zeros_(self.up.bias)

    def squeeze(self, x: torch.Tensor) -> torch.Tensor:
        """(..., d) -> (..., d), in the precision of the weights."""
        h = x if x.dtype == self.down.weight.dtype else x.to(self.down.weight.dtype)
        h = self.activation(F.linear(h, self.down.weight, self.down.bias))
        return F.linear(h, self.up.weight, self.up.bias)
