"""IA3: learned vectors that scale the keys, the values and the feed-forward's inner activation.

    k' = l_k * k,    v' = l_v * v,    h' = W_out (l_ff * f(W_in x))

Liu et al., 2022, "Few-Shot Parameter-Efficient Fine-Tuning is Better and Cheaper than In-Context
Learning", section 3.3, https://arxiv.org/abs/2205.05638. `*` is by element; the vectors start at
one, so a new adapter changes nothing.

What differs from the paper: where a base makes keys and values in one projection together with the
queries, as GPT-2 does, all that the projection gives is scaled, as in peft.

Parameters: out_features for each projection whose output is scaled, in_features for each whose
input is; d_k + d_v + d_ff a layer, and d_k + d_v more for a decoder's cross-attention.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import nn

import hub

OUTPUTS = frozenset({"key", "value"})
VECTOR = ".ia3_l"  # what the name of every tensor ends with


@dataclass(frozen=True)
class IA3Config:
    """What an IA3 adapter is made of.

    targets: where it acts. When left out: keys and values, or the projection that makes them
        together with the queries, and the feed-forward's last projection. Else "attention",
        "feedforward", "all", a regular expression that a module's whole path matches, or names that
        its path ends with.
    feedforward: those of them whose input is scaled, as a regular expression or as ends of their
        paths; when left out, each feed-forward's last projection.
    exclude: paths to leave out, as a regular expression or as names.
    fan_in_fan_out: the layers keep their weight as (in, out), like GPT-2's; found, not chosen.
    """

    targets: str | tuple[str, ...] | None = None
    feedforward: str | tuple[str, ...] | None = None
    exclude: str | tuple[str, ...] = ()
    fan_in_fan_out: bool = False


class Scale(nn.Module):
    """The vector on what a projection gives."""

    def __init__(self, d: int) -> None:
        super().__init__()
        self.ia3_l = nn.Parameter(torch.ones(d, 1))

    def forward(self, x: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
        """y, what the projection gives: (..., d) -> (..., d). x, what went in, is not used."""
        l = self._parameters["ia3_l"]  # noqa: E741
        assert l is not None
        scaled = y * l.view(-1)
        return scaled if scaled.dtype == y.dtype else scaled.to(y.dtype)


class InputScale(nn.Module):
    """The vector on what goes into a projection."""

    def __init__(self, d: int) -> None:
        super().__init__()
        self.ia3_l = nn.Parameter(torch.ones(1, d))

    def before(self, x: torch.Tensor) -> torch.Tensor:
        """x, what goes into the projection: (..., d) -> (..., d)."""
        l = self._parameters["ia3_l"]  # noqa: E741
        assert l is not None
        scaled = x * l.view(-1)
        return scaled if scaled.dtype == x.dtype else scaled.to(x.dtype)


class ScaleRows(nn.Module):
    """The vectors at one projection for rows that have different ones, or stacks, or none.

    A vector for each row is gathered once, and kept; what learns is read at each call.
    """

    def __init__(self, chains: Sequence[Sequence[nn.Module]], rows: Sequence[int]) -> None:
        super().__init__()
        # In tuples, or torch would take the modules for children.
        self.chains = tuple(tuple(chain) for chain in chains)
        self.rows = list(rows)
        self.like = next((chain[0],) for chain in self.chains if chain)
        self.kept: hub.Kept[torch.Tensor] = hub.Kept(m for chain in chains for m in chain)
        self.kept.keep(self.gather)

    def gather(self) -> torch.Tensor:
        """(rows, 1, d): the product of a stack's vectors, ones where there are none."""
        one = torch.ones_like(next(self.like[0].parameters())).view(-1)
        table = []
        for chain in self.chains:
            l = one  # noqa: E741
            for module in chain:
                l = l * next(module.parameters()).view(-1)  # noqa: E741
            table.append(l)
        return torch.stack(table)[self.rows].unsqueeze(1)

    def before(self, x: torch.Tensor) -> torch.Tensor:
        """x, what goes into the projection: (rows, n, d) -> (rows, n, d)."""
        scaled = x * self.kept.read(self.gather, decoding=x.shape[1] == 1)
        return scaled if scaled.dtype == x.dtype else scaled.to(x.dtype)

    def forward(self, x: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
        """y, what the projection gives: (rows, n, d) -> (rows, n, d)."""
        return self.before(y)


class IA3(hub.Method[IA3Config]):
    """The method as the hub knows it."""

    name = "ia3"
    paper = "Liu et al., 2022, Few-Shot Parameter-Efficient Fine-Tuning, https://arxiv.org/abs/2205.05638"
    config = IA3Config
    peft_type = "IA3"

    def choose_sites(self, sites: Sequence[hub.Site], config: IA3Config) -> Sequence[hub.Site]:
        """The projections that `targets` names, or those that the paper scales."""
        chosen = choose_by_role(sites) if config.targets is None else None
        targets = config.targets if chosen is None else tuple(site.path for site in chosen)
        chosen = hub.choose_targets("ia3", sites, targets or (), exclude=config.exclude)
        for site in chosen:
            if site.role == "embedding":
                raise hub.ConfigError(
                    f"ia3: targets names {site.path}, an embedding; ia3 scales what a linear layer "
                    "takes or gives"
                )
        if config.feedforward and not any(is_feedforward(site, config) for site in chosen):
            raise hub.ConfigError(
                f"ia3: feedforward={config.feedforward!r} matches none of the {len(chosen)} "
                f"modules chosen, such as {chosen[0].path}"
            )
        return chosen

    def build(self, site: hub.Site, config: IA3Config) -> nn.Module:
        """The vector of one projection, all ones."""
        if is_feedforward(site, config):
            return InputScale(site.in_features)
        return Scale(site.out_features)

    def settle_config(self, config: IA3Config, sites: Sequence[hub.Site]) -> IA3Config:
        """Name the modules by their whole paths, which mean the same to us and to peft."""
        return replace(
            config,
            targets=tuple(site.path for site in sites),
            feedforward=tuple(site.path for site in sites if is_feedforward(site, config)),
            exclude=(),
            fan_in_fan_out=all(site.transposed for site in sites),
        )

    def weight_delta(self, module: nn.Module, weight: torch.Tensor) -> torch.Tensor:
        """(l - 1) * W, by rows for a vector on the output, by columns for one on the input."""
        assert isinstance(module, Scale | InputScale)
        return weight * (module.ia3_l.float() - 1)

    def bias_delta(self, module: nn.Module, bias: torch.Tensor) -> torch.Tensor | None:
        """(l - 1) * b for a vector on the output."""
        return bias * (module.ia3_l.float().view(-1) - 1) if isinstance(module, Scale) else None

    def neutral(self, config: IA3Config, name: str) -> float:
        """Ones scale nothing."""
        return 1.0

    def combine(
        self,
        configs: Sequence[IA3Config],
        tensors: Sequence[Mapping[str, torch.Tensor]],
        rule: hub.Rule,
    ) -> tuple[IA3Config, Mapping[str, torch.Tensor]]:
        """The vectors of all parts, where one has none its ones; the projections, and which of
        them are scaled at the input, go by those."""
        vectors = {name: t for part in tensors for name, t in part.items()}
        inputs = [name for name, t in vectors.items() if len(t) == 1 < t.shape[1]]
        ones = {name: torch.ones_like(t) for name, t in vectors.items()}
        joined = replace(
            configs[0],
            targets=tuple(sorted(name.removesuffix(VECTOR) for name in vectors)),
            feedforward=tuple(sorted(name.removesuffix(VECTOR) for name in inputs)),
            exclude=(),
            fan_in_fan_out=all(config.fan_in_fan_out for config in configs),
        )
        return super().combine([joined], [{**ones, **part} for part in tensors], rule)

    def write_config(self, config: IA3Config) -> dict[str, Any]:
        """The fields of peft's IA3Config."""
        return {
            "target_modules": listed(config.targets),
            "feedforward_modules": listed(config.feedforward),
            "exclude_modules": listed(config.exclude) or None,
            "fan_in_fan_out": config.fan_in_fan_out,
            "init_ia3_weights": True,
        }

    def read_config(self, fields: Mapping[str, Any]) -> IA3Config:
        """What peft's fields mean. Raises ConfigError."""
        known = dict(fields)
        options = {
            ours: known.pop(theirs)
            for ours, theirs in PEFT_NAMES.items()
            if known.get(theirs) is not None
        }
        if options.get("targets") == "all-linear":
            options["targets"] = "all"
        known.pop("init_ia3_weights", None)  # where a training started is no part of its result
        hub.drop_neutral(known, frozenset())
        return self.make_config(**options)


PEFT_NAMES = {
    "targets": "target_modules",
    "feedforward": "feedforward_modules",
    "exclude": "exclude_modules",
    "fan_in_fan_out": "fan_in_fan_out",
}


def choose_by_role(sites: Sequence[hub.Site]) -> list[hub.Site]:
    """Keys, values and the feed-forwards' last projections. Raises ConfigError where none is."""
    projections = [site for site in sites if site.kind == "projection"]
    beside: dict[str, set[str]] = {}
    for site in projections:
        beside.setdefault(site.path.rpartition(".")[0], set()).add(site.role)
    chosen = [
        site
        for site in projections
        if site.role in ("out", *OUTPUTS)
        or (site.role == "qkv" and not beside[site.path.rpartition(".")[0]] >= OUTPUTS)
    ]
    if not chosen:
        raise hub.ConfigError(
            "ia3: this base has no keys, no values and no feed-forward to scale; name projections "
            "with targets"
        )
    return chosen


def is_feedforward(site: hub.Site, config: IA3Config) -> bool:
    """Whether a projection's input is scaled and not its output. peft takes a name for the end of a
    path, whole word or not."""
    names = config.feedforward
    if names is None:
        return site.role == "out"
    if not isinstance(names, str):
        return any(site.path.endswith(name) for name in names)
    try:
        return re.fullmatch(names, site.path) is not None
    except re.error as error:
        raise hub.ConfigError(f"ia3: {names!r} is no regular expression: {error}") from error


def listed(value: str | tuple[str, ...] | None) -> str | list[str] | None:
    """As JSON keeps it."""
    return list(value) if isinstance(value, tuple) else value


@hub.hookimpl
def hub_method() -> hub.Method[IA3Config]:
    """IA3."""
    return IA3()


@hub.hookimpl
def hub_compose(
    chains: Sequence[Sequence[nn.Module]], rows: Sequence[int] | None
) -> nn.Module | None:
    """Rows with different vectors are one product."""
    kinds = {type(module) for chain in chains for module in chain}
    return None if rows is None or len(kinds) > 1 else ScaleRows(chains, rows)
