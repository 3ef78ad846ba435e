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

from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import nn

import hub


@dataclass(frozen=True)
class HoulsbyConfig(hub.BottleneckConfig):
    """What a Houlsby adapter is made of, besides what every bottleneck has.

    layers: the layers that get adapters, counted from 0, or a slice as text: "6:" leaves the six
        lower ones out, which matter least (section 3.6 of the paper); all when left out.
    layer_norms: train the layers' norms too, as the paper does.
    cross_attention: act after a decoder's cross-attention too.
    """

    method: ClassVar[str] = "houlsby"

    layer_norms: bool = False
    cross_attention: bool = False


class Sequential(hub.Bottleneck):
    """The adapter of one branch."""

    def __init__(self, d: int, config: HoulsbyConfig) -> None:
        super().__init__(d, config)
        for linear in (self.down, self.up):
            nn.init.trunc_normal_(linear.weight, std=1e-2, a=-2e-2, b=2e-2)

    def forward(self, x: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
        """y, what the branch gives: (..., d) -> (..., d). x, what went in, is not used."""
        return y + self.squeeze(y).to(y.dtype)


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
        width = {site.in_features for site in branches}
        norms = [
            site
            for site in sites
            if site.kind == "norm"
            and config.layer_norms
            and site.block is not None
            and site.in_features in width
        ]
        asked = set(config.choose_layers([*branches, *norms]))
        return [
            site
            for site in sites
            if site in asked and (config.cross_attention or site.role != "cross-attention")
        ]

    def settle_config(self, config: HoulsbyConfig, sites: Sequence[hub.Site]) -> HoulsbyConfig:
        """Name the layers by number where a slice did."""
        return config.settle_layers(sites)

    def build(self, site: hub.Site, config: HoulsbyConfig) -> nn.Module:
        """A bottleneck for a branch, a change for a norm."""
        d = site.out_features
        return NormChange(d) if site.kind == "norm" else Sequential(d, config)

    def neutral(self, config: HoulsbyConfig, name: str) -> float:
        """Without weights a bottleneck adds nothing."""
        return 0.0


@hub.hookimpl
def hub_method() -> hub.Method[HoulsbyConfig]:
    """Houlsby's adapters."""
    return Houlsby()


@hub.hookimpl
def hub_compose(
    chains: Sequence[Sequence[nn.Module]], rows: Sequence[int] | None
) -> nn.Module | None:
    """Rows with different bottlenecks are batched products."""
    return hub.Bottleneck.join(chains, rows)
