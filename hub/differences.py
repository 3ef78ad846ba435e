"""Differences of weights: what the methods that may change every weight of a base share.

    h = (W + D) x + b + db

for every projection, embedding and norm, where D and db are what a method makes of its parameters.
"""

from __future__ import annotations

import copy
import logging
import re
from abc import abstractmethod
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, TypeVar

import torch
from torch import nn
from torch.nn import functional as F

from hub.bases import Base
from hub.errors import ConfigError
from hub.method import Method
from hub.sites import Site

log = logging.getLogger("hub")
NAMED = 3


@dataclass(frozen=True)
class DifferenceConfig:
    """What such a method leaves out, for its configuration to build on.

    exclude: the modules whose weights stay, as a regular expression that a whole path matches, or
        as names that a path ends with.
    """

    exclude: str | tuple[str, ...] = ()


C = TypeVar("C", bound=DifferenceConfig)
Make = Callable[[tuple[int, ...]], nn.Module]


class Shared(nn.Module):
    """What all the sites have in common: the differences of weights that several modules hold.

    sites: all of them.
    """

    def __init__(self, sites: Sequence[Site], make: Make) -> None:
        super().__init__()
        self.sites = tuple(sites)
        self.told = False
        self.names: dict[str, str] = {}
        for site in sites:
            if site.tied is not None and site.tied not in self.names:
                rows, columns = site.out_features, site.in_features
                name = self.names[site.tied] = f"tied_{len(self.names)}"
                self.add_module(name, make((columns, rows) if site.transposed else (rows, columns)))


class Difference(nn.Module):
    """The difference of one module's weight and bias.

    weight() is D, (out_features, in_features); an embedding's is (vocabulary, d), as it keeps its
    own, a norm's (d,), and one that other modules share is as they keep it. bias() is db.
    """

    def __init__(self, site: Site, shape: tuple[int, ...], shared: Shared, make: Make) -> None:
        super().__init__()
        self.shared = shared
        tied = None if site.tied is None else shared.names[site.tied]
        self.weight = make(shape) if tied is None else shared.get_submodule(tied)
        self.bias = make((site.out_features,)) if site.bias else None


class LinearDifference(Difference):
    """Of a linear layer, or of one expert."""

    def __init__(self, site: Site, shared: Shared, make: Make) -> None:
        super().__init__(site, (site.out_features, site.in_features), shared, make)
        self.turned = site.transposed and site.tied is not None

    def forward(self, x: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
        """x: (..., in_features), y: (..., out_features) -> (..., out_features)."""
        D = self.weight()
        D = D.T if self.turned else D
        x = x if x.dtype == D.dtype else x.to(D.dtype)
        return y + F.linear(x, D, None if self.bias is None else self.bias()).to(y.dtype)


class OwnDifference(Difference):
    """Of an embedding or a norm, which compute in ways of their own: scaled, shifted by one.

    Whatever they do, they are affine in their parameters: f(W + D) = f(W) + f(D) - f(0), where f is
    the base's own forward.
    """

    def __init__(self, site: Site, shared: Shared, make: Make) -> None:
        shape = (site.in_features, site.out_features)
        super().__init__(site, shape if site.kind == "projection" else shape[:1], shared, make)
        self.own: tuple[OwnForward, ...] = ()
        self.shifted = False

    def forward(self, x: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
        """x: token ids or (..., d), y: (..., d) -> (..., d)."""
        D, db = self.weight(), None if self.bias is None else self.bias()
        if x.is_floating_point() and x.dtype != D.dtype:
            x = x.to(D.dtype)
        (own,) = self.own
        change = own(x, D, db)
        if self.shifted:
            change = change - own(x, *zeros_like(D, db))
        return y + change.to(y.dtype)

    def bind(self, module: nn.Module, name: str | None) -> None:
        """Take over the forward of the base's module, which gets its input by this name."""
        self.own = (OwnForward(module, name),)
        D, db = self.weight(), None if self.bias is None else self.bias()
        # Gemma's norms weigh with 1 + W, so they give something where W is zero.
        if D.dim() == 1:
            ramp = torch.linspace(-1, 1, D.numel()).to(D)
            self.shifted = bool(self.own[0](ramp[None], *zeros_like(D, db)).any())


class OwnForward:
    """A module's own forward with other parameters and none of its hooks.

    name: the keyword that its input comes by, where it does.
    """

    def __init__(self, module: nn.Module, name: str | None = None) -> None:
        self.module = module
        # What else an embedding takes, such as the shape of all, says which rows; those are known.
        embedding = isinstance(module, nn.Embedding) and name is not None
        self.kind = nn.Embedding if embedding else type(module)
        self.scale = getattr(module, "embed_scale", None) if embedding else None
        self.names = {"bias" if name == "bias" else "weight": name for name in module._parameters}

    def __call__(
        self, x: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor | None
    ) -> torch.Tensor:
        twin = copy.copy(self.module)
        given: dict[str, Any] = {self.names["weight"]: weight}
        if bias is not None:
            given[self.names["bias"]] = bias
        twin.__dict__["_parameters"] = {**self.module._parameters, **given}
        result: torch.Tensor = self.kind.forward(twin, x)
        return result if self.scale is None else result * self.scale


def zeros_like(
    D: torch.Tensor, db: torch.Tensor | None
) -> tuple[torch.Tensor, torch.Tensor | None]:
    return torch.zeros_like(D), None if db is None else torch.zeros_like(db)


class DifferenceMethod(Method[C]):
    """A method whose adapter is a difference of the base's weights, of all that sites reach.

    A weight that several modules share has one difference. `make_values` says what the parameters
    are; all else is here.
    """

    config: type[C]

    @abstractmethod
    def make_values(self, shape: tuple[int, ...], config: C) -> nn.Module:
        """A module that, called without arguments, gives a tensor of this shape: D, or db."""

    def choose_sites(self, sites: Sequence[Site], config: C) -> Sequence[Site]:
        """Every projection, embedding and norm that is not excluded."""
        there = [site for site in sites if site.kind in ("projection", "norm")]
        chosen = [site for site in there if not self._excludes(site.path, config.exclude)]
        if not chosen:
            raise ConfigError(
                f"{self.name}: exclude={config.exclude!r} leaves none of the {len(there)} "
                "modules; leave out less"
            )
        if config.exclude and len(chosen) == len(there):
            raise ConfigError(
                f"{self.name}: exclude={config.exclude!r} matches none of the {len(there)} "
                f"modules, such as {there[0].path}"
            )
        return chosen

    def build_shared(self, sites: Sequence[Site], config: C) -> Shared:
        """The differences of shared weights."""
        return Shared(sites, lambda shape: self.make_values(shape, config))

    def build(self, site: Site, config: C, shared: nn.Module | None = None) -> nn.Module:
        """No difference yet."""
        assert isinstance(shared, Shared)
        own = site.kind == "norm" or site.role == "embedding"
        kind = OwnDifference if own else LinearDifference
        return kind(site, shared, lambda shape: self.make_values(shape, config))

    def start(self, module: nn.Module, site: Site, config: C, base: Base) -> None:
        """Say once which parameters of the base stay as they are."""
        assert isinstance(module, Difference)
        if module.shared.told:
            return
        module.shared.told = True
        left = list_unreached(base.model, module.shared.sites)
        if left:
            more = f" and {len(left) - NAMED} more" if len(left) > NAMED else ""
            log.warning(
                f"{self.name}: {len(left)} parameters of the base are reached by no site and stay "
                f"as they are: {', '.join(left[:NAMED])}{more}"
            )

    def bind(self, module: nn.Module, site: Site, base: Base) -> None:
        """Give the difference of an embedding or a norm the base's way to use it."""
        if isinstance(module, OwnDifference):
            module.bind(base.module, site.input_name)

    def weight_delta(self, module: nn.Module, weight: torch.Tensor) -> torch.Tensor:
        """D."""
        assert isinstance(module, Difference)
        D: torch.Tensor = module.weight().float()
        turned = isinstance(module, OwnDifference) or getattr(module, "turned", False)
        return D.T if turned and D.dim() == 2 else D

    def bias_delta(self, module: nn.Module, bias: torch.Tensor) -> torch.Tensor | None:
        """db."""
        assert isinstance(module, Difference)
        return None if module.bias is None else module.bias().float()

    def neutral(self, config: C, name: str) -> float:
        """No difference."""
        return 0.0

    def _excludes(self, path: str, names: str | tuple[str, ...]) -> bool:
        if not isinstance(names, str):
            return any(path == name or path.endswith(f".{name}") for name in names)
        try:
            return bool(names) and re.fullmatch(names, path) is not None
        except re.error as error:
            raise ConfigError(
                f"{self.name}: {names!r} is no regular expression: {error}"
            ) from error


def list_unreached(model: Any, sites: Sequence[Site]) -> list[str]:
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
