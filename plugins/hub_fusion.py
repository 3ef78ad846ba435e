"""AdapterFusion: a trained attention that chooses among what several adapters give.

Pfeiffer et al., 2021, AdapterFusion: Non-Destructive Task Composition for Transfer Learning,
https://arxiv.org/abs/2005.00247, section 3.2.

With y what a site gives without the parts and z_n what part n makes of it, u_n = z_n - y::

    s = softmax over n of (Q y + b_q) . (K u_n + b_k)
    y becomes y + V sum over n of s_n u_n

Q, K, V are (d, d), d the width of y. A new V is the identity, and a run's penalty keeps it near
that: 0.01 |V - I|^2 for each site. With `value=False` there is no V (the paper's ablation), and
with `size` m Q and K are (m, d), which spares memory where d is large.

It acts wherever a part acts, on what goes into a site's module too, and only inside
``hub.Fuse(a, b, by=adapter)``; `hub.Fuse.create` makes one.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn

import hub

PLACES = ("input", "output")


@dataclass(frozen=True)
class FusionConfig:
    """What a fusion is made of.

    sites: where it acts: ``{place} {kind} {path}`` for each, place being input or output;
        `hub.Fuse.create` names those where its parts act.
    size: m, rows of Q and K; d when left out.
    value: whether there is a V.
    dropout: the share of scores s that is left out in training.
    penalty: how much |V - I|^2 adds to the loss.
    """

    sites: tuple[str, ...] = ()
    size: int | None = None
    value: bool = True
    dropout: float = 0.0
    penalty: float = 0.01

    def __post_init__(self) -> None:
        if self.size is not None and self.size < 1:
            raise hub.ConfigError(f"fusion: size is {self.size!r}; it is a whole number from 1")
        if not 0 <= self.dropout < 1:
            raise hub.ConfigError(f"fusion: dropout is {self.dropout!r}; it must be in [0, 1)")
        if not self.penalty >= 0:
            raise hub.ConfigError(f"fusion: penalty is {self.penalty!r}; it is a number from 0")
        for name in self.sites:
            if len(name.split(" ")) != 3 or name.split(" ")[0] not in PLACES:
                raise hub.ConfigError(
                    f"fusion: sites names {name!r}; each is 'output branch PATH' or the like"
                )


class Choice(nn.Module):
    """The attention at one place of a site, for vectors of width d."""

    def __init__(self, d: int, config: FusionConfig) -> None:
        super().__init__()
        m = config.size or d
        self.dropout = config.dropout
        self.query = nn.Linear(d, m)
        self.key = nn.Linear(d, m)
        self.value = nn.Linear(d, d, bias=False) if config.value else None
        for linear in (self.query, self.key):
            nn.init.normal_(linear.weight, std=0.02)
            nn.init.zeros_(linear.bias)
        if self.value is not None:
            nn.init.eye_(self.value.weight)

    def forward(self, y: torch.Tensor, parts: Sequence[torch.Tensor]) -> torch.Tensor:
        """y and each of parts: (..., d) -> (..., d)."""
        dtype = self.query.weight.dtype
        u = torch.stack([part - y for part in parts], dim=-2).to(dtype)  # (..., n, d)
        q = self.query(y.to(dtype)).unsqueeze(-2)
        s = (q * self.key(u)).sum(-1)
        if self.dropout:
            s = nn.functional.dropout(s, self.dropout, self.training)
        o = (s.softmax(-1).unsqueeze(-1) * u).sum(-2)
        if self.value is not None:
            o = self.value(o)
        return torch.add(y, o.to(y.dtype))


class Fusion(nn.Module):
    """The attentions at one site: on what goes in, on what comes out, or both.

    places: which of them.
    """

    def __init__(self, site: hub.Site, places: Mapping[str, int], config: FusionConfig) -> None:
        super().__init__()
        for place, d in places.items():
            # The kind is in the name, for a branch and a projection may have one path.
            self.add_module(f"{site.kind}_{place}", Choice(d, config))
        self.places = {place: f"{site.kind}_{place}" for place in places}

    def fuse(self, y: torch.Tensor, parts: Sequence[torch.Tensor]) -> torch.Tensor:
        """What comes out of the site, (..., d), from what did without the parts and with each."""
        fused: torch.Tensor = self._modules[self.places["output"]](y, parts)  # type: ignore[misc]
        return fused

    def fuse_inputs(self, x: torch.Tensor, parts: Sequence[torch.Tensor]) -> torch.Tensor:
        """What goes into the site's module, (..., d), likewise."""
        fused: torch.Tensor = self._modules[self.places["input"]](x, parts)  # type: ignore[misc]
        return fused


class AdapterFusion(hub.Method[FusionConfig]):
    """The method as the hub knows it."""

    name = "fusion"
    paper = "Pfeiffer et al., 2021, AdapterFusion, https://arxiv.org/abs/2005.00247"
    config = FusionConfig
    leads = True

    def choose_sites(self, sites: Sequence[hub.Site], config: FusionConfig) -> Sequence[hub.Site]:
        """Those that the configuration names. Raises ConfigError where one is not there."""
        if not config.sites:
            raise hub.ConfigError(
                "fusion: a fusion is made for its parts; make it with hub.Fuse.create(model, a, "
                "b), or hub train --within 'fuse(a, b; new)'"
            )
        named = {tuple(name.split(" ")[1:]) for name in config.sites}
        chosen = [site for site in sites if (site.kind, site.path) in named]
        missing = named - {(site.kind, site.path) for site in chosen}
        if missing:
            raise hub.ConfigError(f"fusion: this base has no {' '.join(sorted(missing)[0])}")
        return chosen

    def build(self, site: hub.Site, config: FusionConfig) -> nn.Module:
        """The attentions at one site: a new one weighs the parts nearly alike."""
        places = {
            place: site.in_features if place == "input" else count_outputs(site)
            for place in PLACES
            if f"{place} {site.kind} {site.path}" in config.sites
        }
        return Fusion(site, places, config)


def count_outputs(site: hub.Site) -> int:
    """d, the width of the vectors that a site gives; an attention's are those of one head."""
    return site.out_features // site.heads if site.kind == "attention" else site.out_features


@hub.hookimpl
def hub_method() -> hub.Method[Any]:
    """Register the method."""
    return AdapterFusion()


@hub.hookimpl
def hub_train(
    adapter: hub.Adapter, modules: Mapping[hub.Site, nn.Module], steps: int
) -> hub.Training | None:
    """Keep V near the identity."""
    weight = adapter.config.penalty
    choices = [m for module in modules.values() for m in module.modules() if isinstance(m, Choice)]
    values = [choice.value.weight for choice in choices if choice.value is not None]
    if not weight or not values:
        return None

    def measure() -> torch.Tensor:
        total = [(V - torch.eye(len(V), device=V.device)).square().sum() for V in values]
        return torch.mul(torch.stack(total).sum(), weight)

    return hub.Training(penalty=measure)
