"""Houlsby's adapters: a bottleneck at the end of every branch, before the skip connection.

    a(y) = y + W_up f(W_down y + b_down) + b_up,    W_down: (m, d), W_up: (d, m)

Houlsby et al., 2019, "Parameter-Efficient Transfer Learning for NLP", section 2.1 and figure 2,
https://arxiv.org/abs/1902.00751. The layer's stream becomes x + a(branch(x)). The weights start as
a normal of standard deviation 1e-2, cut at two of them, and the biases at zero, so that a new
adapter is nearly the identity (section 3.6).

What differs from the paper: the decoder's cross-attention, which the paper's encoder does not
have, is left out unless asked for, as in `adapters`; a layer's own norms, which the paper trains
too, are an option, kept as a change on top of the base's: n(x) (1 + scale) + shift.

Parameters: 2 m d + d + m for each branch, two branches a layer; 2 d for each norm.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

import torch
from torch import nn
from torch.nn import functional as F

import hub

ACTIVATIONS: dict[str, Callable[[torch.Tensor], torch.Tensor]] = {
    "gelu": F.gelu,
    "relu": F.relu,
    "silu": F.silu,
    "swish": F.silu,
    "tanh": torch.tanh,
}


@dataclass(frozen=True)
class HoulsbyConfig:
    """What a Houlsby adapter is made of.

    size: m, the bottleneck's width; d / reduction_factor when left out, at least 1.
    reduction_factor: d / m.
    activation: f; gelu, relu, silu (also called swish) or tanh.
    layers: the layers that get adapters, counted from 0, or a slice as text: "6:" leaves the six
        lower ones out (section 3.6 of the paper: they matter least); all when left out.
    layer_norms: train the layers' norms too, as the paper does.
    cross_attention: act after a decoder's cross-attention too.
    """

    size: int | None = None
    reduction_factor: float = 16
    activation: str = "gelu"
    layers: tuple[int, ...] | str | None = None
    layer_norms: bool = False
    cross_attention: bool = False

    def __post_init__(self) -> None:
        if self.size is not None and (not isinstance(self.size, int) or self.size < 1):
            raise hub.ConfigError(f"houlsby: size is {self.size!r}; it is a whole number from 1")
        if not self.reduction_factor > 0:
            raise hub.ConfigError(
                f"houlsby: reduction_factor is {self.reduction_factor!r}; it must be above 0"
            )
        if self.activation not in ACTIVATIONS:
            raise hub.ConfigError(
                f"houlsby: activation is {self.activation!r}; choose from {', '.join(ACTIVATIONS)}"
            )

    def bottleneck(self, d: int) -> int:
        """m for a branch of width d."""
        return max(1, int(d // self.reduction_factor)) if self.size is None else self.size


class Bottleneck(nn.Module):
    """The adapter of one branch."""

    def __init__(self, d: int, m: int, activation: str) -> None:
        super().__init__()
        self.activation = ACTIVATIONS[activation]
        self.down = nn.Linear(d, m)
        self.up = nn.Linear(m, d)
        for linear in (self.down, self.up):
            nn.init.trunc_normal_(linear.weight, std=1e-2, a=-2e-2, b=2e-2)
            nn.init.zeros_(linear.bias)

    def forward(self, x: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
        """y, what the branch gives: (..., d) -> (..., d). x, what went in, is not used."""
        h = y if y.dtype == self.down.weight.dtype else y.to(self.down.weight.dtype)
        h = self.activation(F.linear(h, self.down.weight, self.down.bias))
        return y + F.linear(h, self.up.weight, self.up.bias).to(y.dtype)


class NormChange(nn.Module):
    """A trained change of one of the layer's norms."""

    def __init__(self, d: int) -> None:
        super().__init__()
        self.scale = nn.Parameter(torch.zeros(d))
        self.shift = nn.Parameter(torch.zeros(d))

    def forward(self, x: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
        """y, what the base's norm gives: (..., d) -> (..., d). x, what went in, is not used."""
        return (y * (1 + self.scale) + self.shift).to(y.dtype)


class Houlsby(hub.Method[HoulsbyConfig]):
    """The method as the hub knows it."""

    name = "houlsby"
    paper = "Houlsby et al., 2019, Parameter-Efficient Transfer Learning for NLP, https://arxiv.org/abs/1902.00751"
    config = HoulsbyConfig
    peft_type = "HOULSBY"

    def choose_sites(self, sites: Sequence[hub.Site], config: HoulsbyConfig) -> Sequence[hub.Site]:
        """Both branches of every layer asked for, and its norms where they are to be trained."""
        branches = [site for site in sites if site.kind == "branch"]
        if not branches:
            raise hub.ConfigError("houlsby: this base has no residual branch to act on")
        layers = choose_layers(config.layers, {s.block for s in branches if s.block is not None})
        width = {site.in_features for site in branches}
        return [
            site
            for site in sites
            if (layers is None or site.block in layers)
            and (
                (
                    site.kind == "branch"
                    and (config.cross_attention or site.role != "cross-attention")
                )
                or (
                    site.kind == "norm"
                    and config.layer_norms
                    and site.block is not None
                    and site.in_features in width
                )
            )
        ]

    def settle_config(self, config: HoulsbyConfig, sites: Sequence[hub.Site]) -> HoulsbyConfig:
        """Name the layers by number where a slice did."""
        if not isinstance(config.layers, str):
            return config
        blocks = {site.block for site in sites if site.block is not None}
        return replace(config, layers=tuple(sorted(blocks)))

    def build(self, site: hub.Site, config: HoulsbyConfig) -> nn.Module:
        """A bottleneck for a branch, a change for a norm."""
        d = site.out_features
        if site.kind == "norm":
            return NormChange(d)
        return Bottleneck(d, config.bottleneck(d), config.activation)


def choose_layers(asked: tuple[int, ...] | str | None, there: set[int]) -> set[int] | None:
    """The layers that `asked` means among those `there`; None for all. Raises ConfigError."""
    if asked is None:
        return None
    last = max(there, default=-1)
    if isinstance(asked, str):
        try:
            bounds = [int(part) if part else None for part in asked.split(":")]
            chosen = set(range(last + 1)[slice(*bounds)] if ":" in asked else map(int, [asked]))
        except (ValueError, TypeError) as error:
            raise hub.ConfigError(
                f"houlsby: layers is {asked!r}; give numbers, or a slice such as '6:'"
            ) from error
    else:
        chosen = set(asked)
    if not chosen or not chosen <= there:
        raise hub.ConfigError(
            f"houlsby: layers is {asked!r}, this base has layers 0 to {last}; choose among them"
        )
    return chosen


@hub.hookimpl
def hub_method() -> hub.Method[HoulsbyConfig]:
    """Houlsby's adapters."""
    return Houlsby()
