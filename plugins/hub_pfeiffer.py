"""Pfeiffer's adapters: one bottleneck a layer, behind the feed-forward.

    s = n(x + y),    a(y) = y + W_up f(W_down s + b_down) + b_up,    W_down: (m, d), W_up: (d, m)

x is the residual stream, y what the feed-forward adds to it, n the norm that comes after the sum,
as in BERT; where norms come first, as in GPT-2, there is none and s = x + y. The layer's stream
becomes n(x + a(y)).

Pfeiffer et al., 2021, "AdapterFusion: Non-Destructive Task Composition for Transfer Learning",
https://arxiv.org/abs/2005.00247; also the adapters of MAD-X
(Pfeiffer et al., 2020, https://arxiv.org/abs/2005.00052), without the invertible ones. W_down
and W_up start as a normal of standard deviation 0.02 and the biases at zero, as in BERT, so that a
new adapter changes little.

What differs from the paper: layers whose norm comes first, which it does not treat, are adapted as
the library `adapters` does.

Parameters: 2 m d + d + m for each feed-forward.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import nn

import hub


@dataclass(frozen=True)
class PfeifferConfig(hub.BottleneckConfig):
    """What a Pfeiffer adapter is made of: what every bottleneck has."""

    method: ClassVar[str] = "pfeiffer"

    activation: str = "relu"


class Sequential(hub.Bottleneck):
    """The adapter of one feed-forward."""

    reads_stream = True

    def __init__(self, d: int, config: PfeifferConfig) -> None:
        super().__init__(d, config)
        # In a tuple, or torch would take the base's norm for a part of the adapter.
        self.norm: tuple[nn.Module, ...] = ()
        for linear in (self.down, self.up):
            nn.init.normal_(linear.weight, std=0.02)

    def forward(self, x: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
        """x, the stream, and y, what the branch adds to it: (..., d) -> (..., d)."""
        s = x + y
        for norm in self.norm:
            s = norm(s)
        return y + self.squeeze(s).to(y.dtype)


class Pfeiffer(hub.Method[PfeifferConfig]):
    """The method as the hub knows it."""

    name = "pfeiffer"
    paper = "Pfeiffer et al., 2021, AdapterFusion, https://arxiv.org/abs/2005.00247"
    config = PfeifferConfig
    peft_type = "PFEIFFER"

    def choose_sites(self, sites: Sequence[hub.Site], config: PfeifferConfig) -> Sequence[hub.Site]:
        """The feed-forward of every layer asked for."""
        return config.choose_feedforwards(sites)

    def settle_config(self, config: PfeifferConfig, sites: Sequence[hub.Site]) -> PfeifferConfig:
        """Name the layers by number where a slice did."""
        return config.settle_layers(sites)

    def build(self, site: hub.Site, config: PfeifferConfig) -> nn.Module:
        """A bottleneck, nearly without effect."""
        return Sequential(site.out_features, config)

    def bind(self, module: nn.Module, site: hub.Site, base: hub.Base) -> None:
        """Give the bottleneck the norm that it reads the stream through."""
        assert isinstance(module, Sequential)
        module.norm = () if site.norm is None else (base.model.get_submodule(site.norm),)

    def neutral(self, config: PfeifferConfig, name: str) -> float:
        """Without weights a bottleneck adds nothing."""
        return 0.0


@hub.hookimpl
def hub_method() -> hub.Method[PfeifferConfig]:
    """Pfeiffer's adapters."""
    return Pfeiffer()


@hub.hookimpl
def hub_compose(
    chains: Sequence[Sequence[nn.Module]], rows: Sequence[int] | None
) -> nn.Module | None:
    """Rows with different bottlenecks are batched products."""
    return hub.Bottleneck.join(chains, rows)
