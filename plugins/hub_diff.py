"""Diff pruning: a sparse difference of every weight, whose places are learned too.

    h = (W + D) x,    D = z * w,    z = min(1, max(0, s (r - l) + l)),
    s = sigmoid(log u - log(1 - u) + a),    u uniform in (0, 1)

`*` is by element. Guo, Rush and Kim, 2021, "Parameter-Efficient Transfer Learning with Diff
Pruning", section 3, https://arxiv.org/abs/2012.07463. The gates z are hard-concrete: they are
exactly zero or one with some probability, and the penalty lambda sum sigmoid(a - log(-l / r)), the
expected number that are not zero, closes them (section 3.1). Structured, a second gate for each
whole weight or bias multiplies those of its elements (section 3.3). Then the elements of D that are
largest by amount are kept, `density` of all, the others are zero for good, and what is left learns
on (section 3.2). While serving, u is one half.

w starts at zero and a at 5, so a new adapter changes nothing and nearly every gate is open.

What differs from the paper: one optimizer trains w and the gates, so that a = 5 + `gate_speed` g,
where g is what it moves; both phases are one run, divided at `prune_at`; which parameters there are
is as for full fine-tuning.

Parameters: `density` times the weights that are reached, at rest and published; while training, two
for each of those weights.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import nn

import hub

LOW, HIGH = -1.5, 1.5  # l and r: how far the gates are stretched beyond 0 and 1
START = 5.0  # a of a new adapter
# A gate that was decided: what training still moves it by leaves it shut or open.
DECIDED = 1e4


@dataclass(frozen=True)
class DiffConfig(hub.DifferenceConfig):
    """What a diff pruning is made of, besides what every difference has.

    density: the share of the weights that may differ in the end, above 0 to 1.
    penalty: lambda, what an open gate costs.
    structured: a second gate for each whole weight or bias.
    prune_at: the share of the steps after which the places are fixed, 0 to 1.
    gate_speed: how much faster than w the gates move.
    """

    density: float = 0.005
    penalty: float = 1.25e-7
    structured: bool = True
    prune_at: float = 0.5
    gate_speed: float = 500.0

    def __post_init__(self) -> None:
        if not 0 < self.density <= 1:
            raise hub.ConfigError(f"diff: density is {self.density!r}; it must be in (0, 1]")
        if not 0 <= self.prune_at <= 1:
            raise hub.ConfigError(f"diff: prune_at is {self.prune_at!r}; it must be in [0, 1]")
        if not (self.penalty >= 0 and math.isfinite(self.penalty)):
            raise hub.ConfigError(
                f"diff: penalty is {self.penalty!r}; it must be a finite number from 0"
            )
        if not (self.gate_speed >= 1 and math.isfinite(self.gate_speed)):
            raise hub.ConfigError(
                f"diff: gate_speed is {self.gate_speed!r}; it must be a finite number from 1"
            )


class Gated(nn.Module):
    """The difference of one weight or bias."""

    def __init__(self, shape: tuple[int, ...], config: DiffConfig) -> None:
        super().__init__()
        self.speed = config.gate_speed
        self.w = nn.Parameter(torch.zeros(shape))
        self.gate = nn.Parameter(torch.zeros(shape))
        if config.structured:
            self.group = nn.Parameter(torch.zeros(1))

    def forward(self) -> torch.Tensor:
        """D."""
        return self.draw(noisy=self.training)

    def draw(self, *, noisy: bool) -> torch.Tensor:
        """D, with gates as chance has it, or without chance."""
        D: torch.Tensor = self.w
        for a in self.list_gates():
            D = D * open_gates(a, noisy=noisy)
        return D

    def list_gates(self) -> list[torch.Tensor]:
        """a of every element, and of the whole."""
        gates = [self.gate, self.group] if "group" in self._parameters else [self.gate]
        return [START + self.speed * g for g in gates]

    def count_open(self) -> torch.Tensor:
        """The expected number of gates that are not zero."""
        return torch.stack(
            [torch.sigmoid(a - math.log(-LOW / HIGH)).sum() for a in self.list_gates()]
        ).sum()

    @property
    def decided(self) -> bool:
        """Whether the places are fixed."""
        return is_decided(self.gate)

    @torch.no_grad()
    def decide(self, kept: torch.Tensor) -> None:
        """Keep D where `kept`, and let it be zero for good elsewhere."""
        self.w.copy_(torch.where(kept, self.draw(noisy=False), 0))
        self.gate.copy_(torch.where(kept, DECIDED, -DECIDED))
        if "group" in self._parameters:
            self.group.fill_(DECIDED)


class Diff(hub.DifferenceMethod[DiffConfig]):
    """The method as the hub knows it."""

    name = "diff"
    paper = "Guo et al., 2021, Parameter-Efficient Transfer Learning with Diff Pruning, https://arxiv.org/abs/2012.07463"
    config = DiffConfig
    peft_type = "DIFF"

    def make_values(self, shape: tuple[int, ...], config: DiffConfig) -> nn.Module:
        """No difference yet, and its gates open."""
        return Gated(shape, config)

    def join_config(self, configs: Sequence[DiffConfig]) -> DiffConfig:
        """Without what only mattered while places were sought; at most all places of all parts."""
        density = min(1.0, sum(config.density for config in configs))
        sought = DiffConfig(density=density)
        return super().join_config([replace(sought, exclude=c.exclude) for c in configs])

    def combine(
        self,
        configs: Sequence[DiffConfig],
        tensors: Sequence[Mapping[str, torch.Tensor]],
        rule: hub.Rule,
    ) -> tuple[DiffConfig, Mapping[str, torch.Tensor]]:
        """D of every part; where the result is zero it stays so."""
        parts = zip(configs, tensors, strict=True)
        config, mixed = super().combine(configs, [read_differences(*p) for p in parts], rule)
        decided: dict[str, torch.Tensor] = {}
        for name, D in mixed.items():
            decided |= decide(name, D, structured=config.structured)
        return config, decided

    def write_tensors(
        self, config: DiffConfig, tensors: Mapping[str, torch.Tensor]
    ) -> Mapping[str, torch.Tensor]:
        """Of differences whose places are fixed: the places and the values alone."""
        written = dict(tensors)
        for name, gate in tensors.items():
            start = name.removesuffix("gate")
            if not name.endswith(".gate") and name != "gate":
                continue
            if f"{start}w" not in tensors or not is_decided(gate):
                continue
            places = (gate.detach().flatten() > 0).nonzero().flatten()
            narrow = gate.numel() <= torch.iinfo(torch.int32).max
            written |= {
                f"{start}places": places.to(torch.int32 if narrow else torch.int64),
                f"{start}values": tensors[f"{start}w"].detach().flatten()[places],
                f"{start}shape": torch.tensor(gate.shape),
            }
            for part in ("w", "gate", "group"):
                written.pop(f"{start}{part}", None)
        return written


def read_differences(
    config: DiffConfig, tensors: Mapping[str, torch.Tensor]
) -> dict[str, torch.Tensor]:
    """D of every weight and bias by the beginning of its tensors' names."""
    found = {}
    for name, w in tensors.items():
        if name != "w" and not name.endswith(".w"):
            continue
        start = name.removesuffix("w")
        with torch.device("meta"):
            values = Gated(tuple(w.shape), config)
        own = {part: tensors[start + part] for part in values.state_dict()}
        values.load_state_dict(own, assign=True)
        found[start] = values.draw(noisy=False).detach()
    return found


def decide(start: str, D: torch.Tensor, *, structured: bool) -> dict[str, torch.Tensor]:
    """The tensors of a difference whose places are fixed where it is not zero."""
    gate = torch.where(D != 0, DECIDED, -DECIDED)
    group = {f"{start}group": torch.full((1,), DECIDED)} if structured else {}
    return {f"{start}w": D, f"{start}gate": gate, **group}


def open_gates(a: torch.Tensor, *, noisy: bool) -> torch.Tensor:
    """z: hard-concrete (section 3.1); without noise, u is one half."""
    if noisy:
        u = torch.rand_like(a).clamp(1e-4, 1 - 1e-4)
        a = a + torch.log(u) - torch.log1p(-u)
    return (torch.sigmoid(a) * (HIGH - LOW) + LOW).clamp(0, 1)


def is_decided(gate: torch.Tensor) -> bool:
    """Whether every gate was shut or opened for good."""
    return bool((gate.detach().abs() > DECIDED / 2).all())


def list_values(modules: Iterable[nn.Module]) -> Iterator[Gated]:
    """Every difference, a shared one once."""
    known: set[nn.Module] = set()
    for module in modules:
        for part in module.modules():
            if isinstance(part, Gated) and part not in known:
                known.add(part)
                yield part


@torch.no_grad()
def prune(values: Sequence[Gated], density: float) -> None:
    """Fix the places: the largest elements of all differences together, `density` of them."""
    amounts = torch.cat([part.draw(noisy=False).abs().flatten().cpu() for part in values])
    kept = torch.zeros(amounts.numel(), dtype=torch.bool)
    kept[amounts.topk(max(1, round(amounts.numel() * density))).indices] = True
    start = 0
    for part in values:
        chosen = kept[start : start + part.w.numel()]
        part.decide(chosen.view(part.w.shape).to(part.w.device))
        start += part.w.numel()


@hub.hookimpl
def hub_method() -> hub.Method[DiffConfig]:
    """Diff pruning."""
    return Diff()


@hub.hookimpl
def hub_train(
    adapter: hub.Adapter, modules: Mapping[hub.Site, nn.Module], steps: int
) -> hub.Training:
    """The penalty on open gates, and the pruning when its step has come."""
    config: DiffConfig = adapter.config
    values = list(list_values(modules.values()))
    if values[0].decided:
        return hub.Training()
    end = min(steps, max(1, round(config.prune_at * steps)))

    def penalty() -> torch.Tensor:
        return config.penalty * torch.stack([part.count_open() for part in values]).sum()

    def after_step(step: int) -> None:
        if step == end:
            prune(values, config.density)

    return hub.Training(penalty, after_step, result_from=end)


@hub.hookimpl
def hub_load(
    config: Mapping[str, Any], tensors: Mapping[str, torch.Tensor]
) -> tuple[Mapping[str, Any], Mapping[str, torch.Tensor]]:
    """Put the values where they belong. Raises ConfigError where that is nowhere."""
    loaded = dict(tensors)
    structured = bool(config.get("structured", True))
    for name in tensors:
        start, _, last = name.rpartition(".")
        parts = {part: f"{start}.{part}" for part in ("places", "values", "shape")}
        if last != "places" or not all(part in tensors for part in parts.values()):
            continue
        places, values, shape = (loaded.pop(part).detach() for part in parts.values())
        size = int(shape.prod())
        apart = bool((places[1:] > places[:-1]).all())
        inside = not places.numel() or (int(places[0]) >= 0 and int(places[-1]) < size)
        if places.shape != values.shape or not apart or not inside:
            raise hub.ConfigError(
                f"diff: {start} has {values.numel()} values at {places.numel()} places, which are "
                f"not that many different ones among {size}, in order; fetch the adapter anew"
            )
        w, gate = torch.zeros(size), torch.full((size,), -DECIDED)
        w[places.long()] = values.float()
        gate[places.long()] = DECIDED
        loaded |= {f"{start}.w": w.view(*shape), f"{start}.gate": gate.view(*shape)}
        if structured:
            loaded[f"{start}.group"] = torch.full((1,), DECIDED)
    return config, loaded
