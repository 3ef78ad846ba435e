"""Blueprints: what a method builds for a configuration, to be copied for each adapter that has it.

That is the same each time but for its values, and those come from the adapter. Building one module
takes torch longer than copying ten.
"""

from __future__ import annotations

import copy
import dataclasses
import enum
import types
from collections import OrderedDict
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, TypeVar

import torch
from torch import nn

from hub.adapter import lies_in
from hub.building import Hollow, Modules, build_modules
from hub.sites import Site

CONFIGS, MODELS = 8, 4  # whose blueprints are kept
T = TypeVar("T")
CONTAINERS = (dict, OrderedDict, list, set)
TABLES = ("_parameters", "_buffers", "_modules")
CONSTANTS: tuple[type, ...] = (
    *(type(None), bool, int, float, complex, str, bytes, type),
    *(torch.dtype, torch.device, enum.Enum),
)


@dataclass(frozen=True)
class Piece:
    """A module of a blueprint.

    path: that of its site; empty where it is shared.
    parameters, buffers: their names, each with the name that the adapter has it by.
    empty, filled: the attributes that a copy must have for itself, most of them torch's own.
    """

    path: str
    module: nn.Module
    parameters: tuple[tuple[str, str], ...]
    buffers: tuple[tuple[str, str], ...]
    empty: tuple[tuple[str, type], ...]
    filled: tuple[str, ...]

    @classmethod
    def of(cls, path: str, start: str, module: nn.Module) -> Piece:
        """That of a module whose tensors' names begin with `start`."""
        parameters, buffers = (
            tuple((name, start + name) for name, tensor in table.items() if tensor is not None)
            for table in (module._parameters, module._buffers)
        )
        held = {name: value for name, value in vars(module).items() if type(value) in CONTAINERS}
        empty = tuple((name, type(value)) for name, value in held.items() if not value)
        filled = tuple(name for name, value in held.items() if value)
        return cls(path, module, parameters, buffers, empty, filled)

    def copy(self, *, training: bool) -> nn.Module:
        """A module like it, with the same tensors and children."""
        kind = type(self.module)
        twin: nn.Module = kind.__new__(kind)
        table, own = vars(twin), vars(self.module)
        table.update(own)
        for name, container in self.empty:
            table[name] = container()
        for name in self.filled:
            table[name] = own[name].copy()
        table["training"] = training
        return twin


class Blueprint:
    """What a method builds for a configuration, at the sites that it chooses, without values.

    shapes: of every tensor that an adapter must have, by name.
    copied: whether copies can be made; where not, it is good for one adapter.
    """

    def __init__(self, method: Any, sites: Sequence[Site], config: Any) -> None:
        with Hollow():
            self.built = build_modules(method, method.choose_sites(sites, config), config)
        self.shapes = {name: tuple(t.shape) for name, t in self.built.tensors().items()}
        self.pieces = [Piece.of(*found) for found in self.built.walk()]
        self._answers: dict[Any, dict[Site, Any]] = {}
        modules = [piece.module for piece in self.pieces]
        self.copied = len(set(modules)) == len(modules) and all(map(is_plain, modules))

    def ask(self, question: Callable[[Site, nn.Module], T]) -> Mapping[Site, T]:
        """The answer to a question about each site's module. It is asked once: what a module is,
        apart from its values, its copies are too."""
        if question not in self._answers:
            answers = {site: question(site, module) for site, module in self.built.sites.items()}
            self._answers[question] = answers
        return self._answers[question]

    def make(self, *, training: bool) -> tuple[Modules, list[tuple[Piece, nn.Module]]]:
        """Modules that are nobody else's, without values; and each of them with its piece."""
        if not self.copied:
            return self.built, [(piece, piece.module.train(training)) for piece in self.pieces]
        made = [(piece, piece.copy(training=training)) for piece in self.pieces]
        twins: dict[nn.Module | None, Any] = {piece.module: twin for piece, twin in made}
        twins[None] = None
        for _, twin in made:
            for name, child in twin._modules.items():
                twin._modules[name] = twins[child]
        sites = {site: twins[module] for site, module in self.built.sites.items()}
        return Modules(sites, twins[self.built.shared]), made


class Blueprints:
    """Those of the configurations that a model met last.

    sites: where methods can act on the model.
    """

    def __init__(self, sites: tuple[Site, ...]) -> None:
        self.sites = sites
        self._kept: list[tuple[Any, Blueprint]] = []

    def find(self, method: Any, config: Any, heads: tuple[str, ...] = ()) -> Blueprint:
        """That of a configuration, at sites outside of `heads`. Raises what the method raises."""
        key = method, config, heads
        for entry in self._kept:
            if entry[0] == key:
                self._kept = [entry, *(other for other in self._kept if other is not entry)]
                return entry[1]
        sites = [site for site in self.sites if not lies_in(site.path, heads)]
        config = copy.deepcopy(config)  # a table in it may be changed later
        blueprint = Blueprint(method, sites, config)
        if blueprint.copied:
            self._kept = [((method, config, heads), blueprint), *self._kept[: CONFIGS - 1]]
        return blueprint


_kept: list[Blueprints] = []


def keep_blueprints(sites: tuple[Site, ...]) -> Blueprints:
    """The blueprints for a model's sites, as `find_sites` gives them: the same ones for another
    attachment, and for another model that is alike."""
    found = next((kept for kept in _kept if kept.sites is sites), None) or Blueprints(sites)
    _kept[:] = [found, *(kept for kept in _kept[:MODELS] if kept is not found)][:MODELS]
    return found


def is_plain(module: nn.Module) -> bool:
    """Whether a copy that shares what can't change is as good as another one that was built: what
    a module holds beside its tensors and children are constants, or containers of them."""
    if any("__slots__" in vars(kind) for kind in type(module).__mro__[:-1]):
        return False
    if type(module).train is not nn.Module.train:
        return False  # it sets more than the flag
    tensors = (*module._parameters.values(), *module._buffers.values())
    if not all(type(tensor) in (nn.Parameter, torch.Tensor, type(None)) for tensor in tensors):
        return False
    return all(holds_constants(v) for name, v in vars(module).items() if name not in TABLES)


def holds_constants(value: Any) -> bool:
    """Whether a value is a constant or a container of constants."""
    if type(value) not in CONTAINERS:
        return is_constant(value)
    return all(map(is_constant, value)) and (
        not isinstance(value, dict) or all(map(is_constant, value.values()))
    )


def is_constant(value: Any) -> bool:
    """Whether nothing about a value can change, and it is part of no module."""
    if isinstance(value, tuple | frozenset):
        return all(map(is_constant, value))
    if isinstance(value, types.FunctionType):
        return value.__closure__ is None
    if isinstance(value, types.BuiltinFunctionType):
        return value.__self__ is None or isinstance(value.__self__, types.ModuleType | type)
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        frozen: bool = value.__dataclass_params__.frozen  # type: ignore[attr-defined]
        return frozen and all(map(holds_constants, vars(value).values()))
    return isinstance(value, CONSTANTS)
