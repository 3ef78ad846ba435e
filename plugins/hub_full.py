"""Full fine-tuning: the adapter is the difference of every weight.

    h = (W + D) x + b + db

for every projection, embedding and norm that the base has, its head too. D and db start at zero, so
a new adapter changes nothing, and a step of plain gradient descent on them is that step on the
base's own weights: D has the gradient of W.

The baseline that every other method is compared with; there is no paper to name for it.

What differs from training the base itself: the base stays as it is, so the difference can be taken
off, published and stacked; weight decay draws the weights to the base's and not to zero; parameters
of other kinds of module (a convolution, a state space's own) stay as they are, and a line is logged
that counts them.

Parameters: as many as the weights that are reached; those that several modules share count once.
"""

from __future__ import annotations

import copy
import logging
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn
from torch.nn import functional as F

import hub

log = logging.getLogger("hub")
NAMED = 3


@dataclass(frozen=True)
class FullConfig:
    """What a full fine-tuning leaves out.

    exclude: the modules whose weights stay, as a regular expression that a whole path matches, or
        as names that a path ends with.
    """

    exclude: str | tuple[str, ...] = ()


class Whole(nn.Module):
    """What all the sites have in common: the differences of weights that several modules share.

    sites: all of them.
    """

    def __init__(self, sites: Sequence[hub.Site]) -> None:
        super().__init__()
        self.sites = tuple(sites)
        self.names: dict[str, str] = {}
        self.told = False
        for site in sites:
            if site.tied is not None and site.tied not in self.names:
                shape = (site.out_features, site.in_features)
                name = self.names[site.tied] = f"tied_{len(self.names)}"
                rows = shape[::-1] if site.transposed else shape
                self.register_parameter(name, nn.Parameter(torch.zeros(rows)))


class Difference(nn.Module):
    """The difference of one module's weight and bias.

    The weight is (out_features, in_features); an embedding's (vocabulary, d), as it keeps its own;
    a norm's (d,).
    """

    def __init__(self, site: hub.Site, shape: tuple[int, ...], whole: Whole) -> None:
        super().__init__()
        self.whole = whole
        self.tied = whole.names.get(site.tied) if site.tied is not None else None
        if self.tied is None:
            self.weight = nn.Parameter(torch.zeros(shape))
        self.bias = nn.Parameter(torch.zeros(site.out_features)) if site.bias else None

    @property
    def change(self) -> torch.Tensor:
        """D, wherever it is kept."""
        holder, name = (self, "weight") if self.tied is None else (self.whole, self.tied)
        change = holder._parameters[name]
        assert change is not None
        return change


class Projection(Difference):
    """Of a linear layer, or of one expert."""

    def __init__(self, site: hub.Site, whole: Whole) -> None:
        super().__init__(site, (site.out_features, site.in_features), whole)
        # A weight that is kept as (in, out) is shared as it is kept.
        self.turned = site.transposed and self.tied is not None

    def forward(self, x: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
        """x: (..., in_features), y: (..., out_features) -> (..., out_features)."""
        D = self.change.T if self.turned else self.change
        x = x if x.dtype == D.dtype else x.to(D.dtype)
        return y + F.linear(x, D, self.bias).to(y.dtype)


class OwnForward(Difference):
    """Of an embedding or a norm, which compute in ways of their own: scaled, shifted by one.

    Whatever they do, they are affine in their parameters: f(W + D) = f(W) + f(D) - f(0), where f is
    the base's own forward.
    """

    def __init__(self, site: hub.Site, whole: Whole) -> None:
        shape = (site.in_features, site.out_features)
        super().__init__(site, shape if site.kind == "projection" else shape[:1], whole)
        self.own: tuple[Callable[[torch.Tensor], torch.Tensor], ...] = ()

    def forward(self, x: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
        """x: token ids or (..., d), y: (..., d) -> (..., d)."""
        if x.is_floating_point() and x.dtype != self.change.dtype:
            x = x.to(self.change.dtype)
        change = self.own[0](x)
        for without in self.own[1:]:
            change = change - without(x)
        return y + change.to(y.dtype)

    def bind(self, module: nn.Module) -> None:
        """Take over the forward of the base's module."""
        given = {"bias" if name == "bias" else "weight": name for name in module._parameters}
        changes = {given["weight"]: self.change}
        if self.bias is not None:
            changes[given["bias"]] = self.bias
        self.own = (ForwardWith(module, changes),)
        # Gemma's norms weigh with 1 + W, so they give something where W is zero.
        zeros = {name: torch.zeros_like(change) for name, change in changes.items()}
        if self.change.dim() == 1:
            ramp = torch.linspace(-1, 1, self.change.numel()).to(self.change)
            without = ForwardWith(module, zeros)
            if without(ramp[None]).any():
                self.own = (*self.own, without)


class ForwardWith:
    """A module's own forward with other parameters and none of its hooks."""

    def __init__(self, module: nn.Module, parameters: dict[str, Any]) -> None:
        self.twin = copy.copy(module)
        self.twin.__dict__["_parameters"] = {**module._parameters, **parameters}

    def __call__(self, x: torch.Tensor) -> torch.Tensor:
        result: torch.Tensor = type(self.twin).forward(self.twin, x)
        return result


class Full(hub.Method[FullConfig]):
    """The method as the hub knows it."""

    name = "full"
    paper = "none; every weight of the base, the baseline of the other methods"
    config = FullConfig
    peft_type = "FULL"

    def choose_sites(self, sites: Sequence[hub.Site], config: FullConfig) -> Sequence[hub.Site]:
        """Every projection, embedding and norm that is not excluded."""
        there = [site for site in sites if site.kind in ("projection", "norm")]
        chosen = [site for site in there if not is_named(site.path, config.exclude)]
        if not chosen:
            raise hub.ConfigError(
                f"full: exclude={config.exclude!r} leaves none of the {len(there)} modules"
            )
        return chosen

    def build_shared(self, sites: Sequence[hub.Site], config: FullConfig) -> Whole:
        """The differences of shared weights."""
        return Whole(sites)

    def build(
        self, site: hub.Site, config: FullConfig, shared: nn.Module | None = None
    ) -> nn.Module:
        """No difference yet."""
        assert isinstance(shared, Whole)
        if site.kind == "norm" or site.role == "embedding":
            return OwnForward(site, shared)
        return Projection(site, shared)

    def start(self, module: nn.Module, site: hub.Site, config: FullConfig, base: hub.Base) -> None:
        """Say once which parameters of the base stay as they are."""
        assert isinstance(module, Difference)
        if not module.whole.told:
            module.whole.told = True
            left = list_unreached(base.model, module.whole.sites)
            if left:
                more = f" and {len(left) - NAMED} more" if len(left) > NAMED else ""
                log.warning(
                    f"full: {len(left)} parameters of the base are reached by no site and stay as "
                    f"they are: {', '.join(left[:NAMED])}{more}"
                )

    def bind(self, module: nn.Module, site: hub.Site, base: hub.Base) -> None:
        """Give the difference of an embedding or a norm the base's way to use it."""
        if isinstance(module, OwnForward):
            module.bind(base.module)

    def weight_delta(self, module: nn.Module, weight: torch.Tensor) -> torch.Tensor:
        """D."""
        assert isinstance(module, Difference)
        change = module.change.float()
        return change if change.shape == weight.shape else change.T

    def bias_delta(self, module: nn.Module, bias: torch.Tensor) -> torch.Tensor | None:
        """db."""
        assert isinstance(module, Difference)
        return None if module.bias is None else module.bias.float()


def is_named(path: str, names: str | tuple[str, ...]) -> bool:
    """Whether `exclude` names a path. Raises ConfigError on what is no regular expression."""
    if not isinstance(names, str):
        return any(path == name or path.endswith(f".{name}") for name in names)
    try:
        return bool(names) and re.fullmatch(names, path) is not None
    except re.error as error:
        raise hub.ConfigError(f"full: {names!r} is no regular expression: {error}") from error


def list_unreached(model: Any, sites: Sequence[hub.Site]) -> list[str]:
    """The names of the base's parameters that belong to no site; a task's head learns anyhow."""
    reached = set()
    for site in sites:
        owner = model.get_submodule(site.owner)
        names = list(owner._parameters) if site.part is None else [site.part[0]]
        if site.part is not None and site.bias:
            names.append(f"{site.part[0]}_bias")
        reached |= {id(getattr(owner, name)) for name in names}
    backbone = getattr(model, "base_model", model)
    headed = backbone is not model and model.get_output_embeddings() is None
    start = f"{model.base_model_prefix}." if headed else ""
    return [
        name
        for name, parameter in model.named_parameters()
        if name.startswith(start) and id(parameter) not in reached
    ]


@hub.hookimpl
def hub_method() -> hub.Method[FullConfig]:
    """Full fine-tuning."""
    return Full()
