"""Keeping: what is made of parameters, used again for as long as they stay what they are."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from contextlib import nullcontext
from operator import attrgetter
from typing import Any, Generic, TypeVar

import torch
from torch import Tensor, nn

T = TypeVar("T")
Stamp = list[list[int]]
Place = tuple[torch.device, torch.dtype]

# So many modules are asked each time: their parameters lie far apart in memory, and asking all of
# many takes one part in twenty of a small model's time for one token (benchmarks/mixed.py).
FEW = 4

read_version = attrgetter("_version")
read_learning = attrgetter("requires_grad")


class Kept(Generic[T]):
    """Something made of the parameters of `modules`: made again when one is not what it was.

    That is so after a change in place (an optimizer's step, `load_state_dict`), after other memory
    was put under one (an assignment to its `.data`), after `to` brought them elsewhere, and while
    one learns. A change in place through `.data` leaves no trace in torch, so it is not seen; nor
    is, in a compiled model, one that leaves precision and device, before it runs uncompiled.

    Made outside of inference mode and autocast, so it may be used inside and outside of both.
    Threads may share one. A copy, as of a whole model, makes its own.
    """

    def __init__(self, modules: Iterable[nn.Module]) -> None:
        self.modules = tuple(dict.fromkeys(modules))
        self.parameters = collect_parameters(self.modules)
        self._turn = 0
        owner = next(module for module in self.modules[0].modules() if module._parameters)
        # Where torch replaces parameters, it replaces all; so one is asked for whether it is there.
        self._table, self._name = owner._parameters, next(iter(owner._parameters))
        self._made: tuple[Stamp, Place, T] | None = None

    @property
    def value(self) -> T | None:
        """What is kept at present; None where nothing is."""
        made = self._made
        return None if made is None else made[2]

    def read(self, make: Callable[[], T], *, decoding: bool = False) -> T:
        """What was kept; else what `make` gives, which is kept where no parameter learns.

        decoding: for one token of each row, where time counts. Of many modules one is asked in each
            call then, so that a change counts at the latest after as many tokens as there are
            modules, and at once in any other forward.
        """
        made = self._made  # read once: another thread may make its own
        if torch.compiler.is_compiling():  # where versions can't be asked
            return made[2] if made is not None and made[1] == self._find_place() else make()
        parameters = self._find_parameters()
        if torch.is_grad_enabled() and any_learns(parameters):
            self._made = None
            return make()
        if made is not None and decoding and len(parameters) > FEW:
            turn = self._turn = (self._turn + 1) % len(parameters)
            if made[0][turn : turn + 1] == read_stamp(parameters[turn : turn + 1]):
                return made[2]
        if made is None or made[0] != read_stamp(parameters):
            made = self._make(make)
        return make() if made is None else made[2]

    def keep(self, make: Callable[[], T]) -> None:
        """Make it at once where no parameter learns, so that a compiled graph finds it."""
        self._make(make)

    def take(self) -> T | None:
        """What was kept, to be kept no longer; None where a parameter is not what it was."""
        made, self._made = self._made, None
        if made is None or made[0] != read_stamp(self._find_parameters()):
            return None
        return made[2]

    def _make(self, make: Callable[[], T]) -> tuple[Stamp, Place, T] | None:
        parameters = self._find_parameters()
        stamp = None if any_learns(parameters) else read_stamp(parameters)
        made = None
        if stamp is not None:
            place = self._find_place()
            with torch.inference_mode(mode=False), torch.no_grad(), leave_autocast(place[0]):
                made = stamp, place, make()
        self._made = made
        return made

    def _find_parameters(self) -> tuple[tuple[nn.Parameter, ...], ...]:
        if self._table[self._name] is not self.parameters[0][0]:
            self.parameters = collect_parameters(self.modules)
        return self.parameters

    def _find_place(self) -> Place:
        first = self._table[self._name]
        assert first is not None
        return first.device, first.dtype

    def __getstate__(self) -> dict[str, Any]:
        return {**vars(self), "_made": None}


def collect_parameters(modules: Iterable[nn.Module]) -> tuple[tuple[nn.Parameter, ...], ...]:
    """Those of each module."""
    return tuple(tuple(module.parameters()) for module in modules)


def any_learns(parameters: Iterable[tuple[nn.Parameter, ...]]) -> bool:
    """Whether one of them has a gradient."""
    return any(any(map(read_learning, own)) for own in parameters)


def read_stamp(parameters: Iterable[tuple[nn.Parameter, ...]]) -> Stamp | None:
    """Numbers for each module that are others after a change; None for what was made in inference
    mode, whose changes are not counted."""
    try:
        return [[*map(read_version, own), *map(Tensor.data_ptr, own)] for own in parameters]
    except RuntimeError:
        return None


def leave_autocast(device: torch.device) -> Any:
    """A context without autocast."""
    if not torch.amp.is_autocast_available(device.type):
        return nullcontext()
    return torch.autocast(device.type, enabled=False)
