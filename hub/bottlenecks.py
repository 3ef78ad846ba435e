"""Bottlenecks: what the methods that put a small network beside or behind a branch share."""

from __future__ import annotations

import copy
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any, ClassVar, Self

import torch
from torch import nn
from torch.nn import functional as F

from hub.errors import ConfigError
from hub.keeping import Kept
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

    @staticmethod
    def join(chains: Sequence[Sequence[nn.Module]], rows: Sequence[int] | None) -> nn.Module | None:
        """Those of rows that have different ones, or none, as two batched products, for a plugin's
        `hub_compose`. None where they have no one form: stacks, other widths, other functions."""
        return join_bottlenecks(chains, rows)


def join_bottlenecks(
    chains: Sequence[Sequence[nn.Module]], rows: Sequence[int] | None
) -> nn.Module | None:
    """See `Bottleneck.join`."""
    layers = [module for chain in chains for module in chain]
    first = layers[0]
    if rows is None or not isinstance(first, Bottleneck) or any(len(c) > 1 for c in chains):
        return None
    if any(describe_form(layer) != describe_form(first) for layer in layers):
        return None
    joined = copy.copy(first)
    squeezes = SqueezeRows([chain[0] if chain else None for chain in chains], rows, first)
    vars(joined)["squeeze"] = squeezes
    return joined


def describe_form(module: nn.Module) -> Any:
    """What two bottlenecks have in common that can go as one, but for their values."""
    if not isinstance(module, Bottleneck):
        return None
    own = {name: value for name, value in vars(module).items() if not name.startswith("_")}
    own.pop("training", None)
    return type(module), module.down.weight.shape, repr(sorted(own.items(), key=lambda i: i[0]))


class SqueezeRows:
    """`Bottleneck.squeeze` for rows that have different ones; nothing for rows that have none.

    The weights of all rows are gathered once, and kept; what learns is read at each call.
    """

    def __init__(
        self, layers: Sequence[nn.Module | None], rows: Sequence[int], like: Bottleneck
    ) -> None:
        self.layers = tuple(layers)
        self.rows = list(rows)
        self.like = like
        self.kept: Kept[list[torch.Tensor]] = Kept(layer for layer in layers if layer is not None)
        self.kept.keep(self.gather)

    def __call__(self, x: torch.Tensor) -> torch.Tensor:
        """(rows, n, d) -> (rows, n, d), in the precision of the weights."""
        down, down_bias, up, up_bias = self.kept.read(self.gather, decoding=x.shape[1] == 1)
        h = torch.baddbmm(down_bias, x.to(down.dtype), down)
        return torch.baddbmm(up_bias, self.like.activation(h), up)

    def gather(self) -> list[torch.Tensor]:
        """Of each row what goes down, (rows, d, m), and up, (rows, m, d), with their biases."""
        gathered = []
        for linear in ("down", "up"):
            like = getattr(self.like, linear)
            own = [getattr(layer, linear) if layer is not None else None for layer in self.layers]
            none = torch.zeros_like(like.weight), torch.zeros_like(like.bias)
            weights = torch.stack([none[0] if own_ is None else own_.weight for own_ in own])
            biases = torch.stack([none[1] if own_ is None else own_.bias for own_ in own])
            gathered += [weights[self.rows].transpose(1, 2), biases[self.rows].unsqueeze(1)]
        return gathered
