"""Methods that each break one promise, and one that breaks none."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn
from torch.nn import functional as F

import hub


@dataclass(frozen=True)
class Config:
    """role: the projections to act on. scale: how strongly."""

    role: str = "value"
    scale: float = 1.0


class Shift(nn.Module):
    """y + s v: a learned vector."""

    def __init__(self, site: hub.Site, config: Config) -> None:
        super().__init__()
        self.scale = config.scale
        self.shift = nn.Parameter(torch.zeros(site.out_features))

    def forward(self, x: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
        return y + self.scale * self.shift.to(y.dtype)


class Healthy(hub.Method[Config]):
    name = "healthy"
    paper = "none"
    config = Config
    layer: type[nn.Module] = Shift

    def choose_sites(self, sites: Sequence[hub.Site], config: Config) -> Sequence[hub.Site]:
        chosen = [s for s in sites if s.kind == "projection" and s.role == config.role]
        if not chosen:
            raise hub.ConfigError(f"{self.name}: no projection of role {config.role}")
        return chosen

    def build(self, site: hub.Site, config: Config) -> nn.Module:
        return self.layer(site, config)


class Idle(Shift):
    """Acts in the first layer alone."""

    def __init__(self, site: hub.Site, config: Config) -> None:
        super().__init__(site, config)
        self.block = site.block

    def forward(self, x: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
        return y if self.block else super().forward(x, y)


class Restless(Shift):
    def forward(self, x: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
        return super().forward(x, y + 0.01 * torch.randn_like(y))


class Forgetful(Shift):
    """Draws a tensor when it first runs and keeps it out of its state."""

    def forward(self, x: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
        if not hasattr(self, "drawn"):
            self.drawn = torch.randn(y.shape[-1])
        return super().forward(x, y + self.drawn.to(y.dtype) * self.shift.to(y.dtype))


class Mixing(Shift):
    def forward(self, x: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
        return super().forward(x, y + self.shift * y.mean(dim=0, keepdim=True))


class Averaging(Shift):
    """Looks at every position, those of the padding among them."""

    def forward(self, x: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
        return super().forward(x, y + self.shift * y.mean(dim=1, keepdim=True))


class Counting(Shift):
    """Takes a position's place in this call for its place in the text."""

    def forward(self, x: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
        return y + torch.arange(y.shape[1])[:, None] * self.shift


class Changing(Shift):
    """Another one at every call."""

    calls = 0

    def forward(self, x: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
        self.calls += 1
        return y + self.calls * self.shift


class Uncast(Shift):
    def forward(self, x: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
        return y + self.shift.double()


class Stuck(Shift):
    """Two factors, both zero: neither ever gets a gradient."""

    def __init__(self, site: hub.Site, config: Config) -> None:
        super().__init__(site, config)
        self.other = nn.Parameter(torch.zeros(site.out_features))

    def forward(self, x: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
        return y + (self.shift * self.other).to(y.dtype)


class Widening(Shift):
    def forward(self, x: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
        return torch.cat([y, y[..., :1] + self.shift.sum().to(y.dtype)], dim=-1)


class Deaf(Shift):
    """Takes no notice of what an adapter before it did."""

    weight: torch.Tensor

    def forward(self, x: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
        return F.linear(x, self.weight) + self.shift.to(y.dtype)


class Deafened(Healthy):
    name = "deaf"
    layer = Deaf

    def bind(self, module: nn.Module, site: hub.Site, base: hub.Base) -> None:
        object.__setattr__(module, "weight", base.read_weight())


class Editing(Healthy):
    """Changes the base when it is attached."""

    name = "editing"

    def bind(self, module: nn.Module, site: hub.Site, base: hub.Base) -> None:
        weight: Any = base.module.weight
        weight.data.mul_(1.5)


class Merging(Healthy):
    """Says that its effect is a change of the weight, and it is none."""

    name = "merging"

    def weight_delta(self, module: nn.Module, weight: torch.Tensor) -> torch.Tensor:
        return torch.full_like(weight, 0.1)


class Scaled(nn.Module):
    """y * (1 + s (v - 1)): a learned vector that starts at one."""

    def __init__(self, site: hub.Site, config: Config) -> None:
        super().__init__()
        self.strength = config.scale
        self.scale = nn.Parameter(torch.ones(site.out_features))

    def forward(self, x: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
        return y * (1 + self.strength * (self.scale.to(y.dtype) - 1))


class Skewed(Healthy):
    """Says that zeros change nothing, and it is ones."""

    name = "skewed"
    layer = Scaled

    def neutral(self, config: Config, name: str) -> float:
        return 0.0


class Hasty(Healthy):
    """Takes the first of several for all of them."""

    name = "hasty"

    def combine(
        self,
        configs: Sequence[Config],
        tensors: Sequence[Mapping[str, torch.Tensor]],
        rule: hub.Rule,
    ) -> tuple[Config, Mapping[str, torch.Tensor]]:
        return configs[0], {name: tensor.clone() for name, tensor in tensors[0].items()}


class Greedy(Healthy):
    """Combines in place."""

    name = "greedy"

    def combine(
        self,
        configs: Sequence[Config],
        tensors: Sequence[Mapping[str, torch.Tensor]],
        rule: hub.Rule,
    ) -> tuple[Config, Mapping[str, torch.Tensor]]:
        mixed = {}
        for name, tensor in tensors[0].items():
            mixed[name] = rule.mix([part[name] for part in tensors], rule.weights)
            tensor.copy_(mixed[name])
        return configs[0], mixed


class Rounding(Healthy):
    """Writes other values than it has."""

    name = "rounding"

    def write_tensors(
        self, config: Config, tensors: Mapping[str, torch.Tensor]
    ) -> Mapping[str, torch.Tensor]:
        return {name: tensor.half().float() for name, tensor in tensors.items()}


class Careless(Healthy):
    """Leaves a field out of its files."""

    name = "careless"

    def write_config(self, config: Config) -> dict[str, Any]:
        return {"role": config.role}


class Empty(Healthy):
    """Acts nowhere, and says nothing."""

    name = "empty"

    def choose_sites(self, sites: Sequence[hub.Site], config: Config) -> Sequence[hub.Site]:
        return []


def make_plugin(method: hub.Method[Any]) -> Any:
    """What an entry point names: an object with the one hook."""

    class Plugin:
        @hub.hookimpl
        def hub_method(self) -> hub.Method[Any]:
            return method

    return Plugin()


def make_method(layer: type[nn.Module]) -> hub.Method[Any]:
    """The healthy method with another module."""
    name = layer.__name__.lower()
    kind: type[Healthy] = type(name, (Healthy,), {"name": name, "layer": layer})
    return kind()


METHODS: list[hub.Method[Any]] = [
    *(
        kind()
        for kind in (
            Healthy, Deafened, Editing, Merging, Skewed, Hasty, Greedy, Rounding, Careless, Empty,
        )
    ),
    *map(
        make_method,
        (
            Idle, Restless, Forgetful, Mixing, Averaging, Counting, Changing, Uncast,
            Stuck, Widening,
        ),
    ),
]  # fmt: skip
globals().update({f"plugin_{method.name}": make_plugin(method) for method in METHODS})
