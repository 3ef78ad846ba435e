"""Fitting an adapter to a model: live modules at its sites, filled with its tensors, all checked.

Nothing here touches the model, so that what does not fit leaves it as it was.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import chain

import torch
from torch import nn

from hub.adapter import Adapter, lies_in
from hub.attachment.nodes import Kind, changes_input, changes_output, extends
from hub.bases import Base
from hub.blueprints import Blueprint, Blueprints, Piece
from hub.building import Modules, name_tensors, walk_owners
from hub.discovery import installed_methods
from hub.errors import AttachError, MethodError
from hub.heads import copy_head
from hub.method import Method
from hub.sites import Site, find_sites

NAMED = 3


@dataclass(frozen=True)
class Fit:
    """An adapter, ready for one model.

    built: the live modules at its sites, in the model's order, and what they share.
    kinds: what the module at each site does there.
    heads: the live head for each path where the adapter carries one that answers.
    learns: whether its parameters are trained while attached.
    """

    adapter: Adapter
    learns: bool
    built: Modules
    kinds: Mapping[Site, Kind]
    heads: dict[str, nn.Module]

    @property
    def sites(self) -> dict[Site, nn.Module]:
        """The live module at each site."""
        return self.built.sites

    @property
    def leads(self) -> bool:
        """Whether it chooses among what the parts of a fuse give, and does nothing alone."""
        return installed_methods().get(self.adapter.method).leads

    def owners(self) -> Iterator[tuple[str, nn.Module]]:
        """Every live module that may hold tensors, and what their names begin with."""
        yield from self.built.owners()
        for path, head in self.heads.items():
            yield from walk_owners(f"{path}.", head, set())

    def parameters(self) -> Iterable[nn.Parameter]:
        """The live parameters, each once."""
        owners = (owner for _, owner in self.owners())
        return {
            id(p): p for owner in owners for p in owner._parameters.values() if p is not None
        }.values()


def fit_adapter(
    adapter: Adapter,
    model: nn.Module,
    blueprints: Blueprints,
    *,
    learns: bool,
    answers: bool = True,
) -> Fit:
    """Make the live modules of `adapter` for `model`, by its blueprints.

    answers: whether a trained head of its own is to answer. One that is not, as that of a fuse's
        part, is left out, and may be for another model.

    A learning adapter's own parameters are used, in float32, so that training changes the adapter.
    A serving one gets parameters of the precision of the module it acts on, that share the
    adapter's memory where no conversion is needed.

    Raises AttachError where names or shapes don't fit this model, ConfigError where the
    configuration does not, MethodError where the method's plugin is at fault.
    """
    method = installed_methods().get(adapter.method)
    blueprint = blueprints.find(method, adapter.config, adapter.heads)
    carried = adapter.heads if answers else ()
    heads = {path: copy_head(model, path).train(model.training) for path in carried}
    owners = [
        (path, *found)
        for path, head in heads.items()
        for found in walk_owners(f"{path}.", head, set())
    ]
    own = name_tensors((start, owner) for _, start, owner in owners)
    expected = blueprint.shapes | {name: tuple(t.shape) for name, t in own.items()}
    check_names(adapter, expected, () if answers else adapter.heads)
    built, made = blueprint.make(training=model.training)
    made += [(Piece.of(*owner), owner[2]) for owner in owners]
    path, place = "", find_place(model, "")
    for piece, module in made:
        if piece.path != path:
            path, place = piece.path, find_place(model, piece.path)
        if piece.parameters or piece.buffers:
            fill_module(module, piece, adapter, place, learns=learns)
    if type(method).bind is not Method.bind:
        for site, module in built.sites.items():
            method.bind(module, site, Base(model, site.owner, site.part))
    return Fit(adapter, learns, built, blueprint.ask(Kind.of), heads)


def check_names(
    adapter: Adapter, expected: Mapping[str, tuple[int, ...]], left_out: tuple[str, ...] = ()
) -> None:
    """Raise AttachError unless the adapter has exactly the tensors that the model calls for,
    apart from those in the heads that are left out."""
    found = adapter.tensors
    if left_out:
        found = {name: tensor for name, tensor in found.items() if not lies_in(name, left_out)}
    alike = found.keys() == expected.keys()
    if alike and all(found[name].shape == shape for name, shape in expected.items()):
        return
    missing = [name for name in expected if name not in found]
    extra = [name for name in found if name not in expected]
    wrong = [
        f"{name} {tuple(found[name].shape)} instead of {shape}"
        for name, shape in expected.items()
        if name in found and tuple(found[name].shape) != shape
    ]
    faults = []
    if missing:
        faults.append(f"lacks {name_some(missing)}")
    if extra:
        faults.append(f"has {name_some(extra)} with no place in it")
    if wrong:
        faults.append(f"has {name_some(wrong)}")
    if faults:
        raise AttachError(
            f"adapter {adapter.label} does not fit this model: of the {len(expected)} tensors that "
            f"its configuration calls for here, it {'; it '.join(faults)}; load the class of "
            "model that it was trained on, or fetch the adapter anew"
        )


def fill_module(
    module: nn.Module,
    piece: Piece,
    adapter: Adapter,
    place: tuple[torch.device, torch.dtype],
    *,
    learns: bool,
) -> None:
    """Put the adapter's tensors into one live module, which is like `piece`."""
    device, dtype = place
    for name, key in piece.parameters:
        parameter = adapter.tensors[key]
        if learns:
            parameter.data = parameter.data.to(device=device, dtype=torch.float32)
            parameter.requires_grad_(True)
        else:
            value: torch.Tensor = parameter
            if value.dtype != dtype or value.device != device:
                value = value.detach().to(device=device, dtype=dtype)
            parameter = nn.Parameter(value, requires_grad=False)
        module._parameters[name] = parameter
    for name, key in piece.buffers:
        if key not in adapter.tensors:
            raise MethodError(
                f"method {adapter.method!r} keeps the buffer {name!r} out of its state, so a "
                "loaded adapter can't fill it; make it persistent, or compute it in forward"
            )
        module._buffers[name] = adapter.tensors[key].detach().to(device)


def find_place(model: nn.Module, path: str) -> tuple[torch.device, torch.dtype]:
    """Where the module that `path` is or lies in computes and in what precision: its weights', or
    its parents'."""
    holders = [model]
    for name in path.split("."):
        child = holders[-1]._modules.get(name)
        if child is None:
            break
        holders.append(child)
    for holder in reversed(holders):
        for parameter in chain(holder._parameters.values(), holder.parameters()):
            if parameter is not None and parameter.is_floating_point():
                return parameter.device, parameter.dtype
    return torch.device("cpu"), torch.float32


def name_some(names: Sequence[str]) -> str:
    """The first few of many, and how many more."""
    more = len(names) - NAMED
    return ", ".join(names[:NAMED]) + (f" and {more} more" if more > 0 else "")


def list_places(model: nn.Module, adapters: Iterable[Adapter]) -> list[str]:
    """Where adapters act on a model: ``{input or output} {kind} {path}`` of each site, once.

    Raises AttachError where one puts virtual tokens in front, and ConfigError where one does not
    fit.
    """
    places: dict[str, None] = {}
    for adapter in adapters:
        method = installed_methods().get(adapter.method)
        sites = [site for site in find_sites(model) if not lies_in(site.path, adapter.heads)]
        for site, module in Blueprint(method, sites, adapter.config).built.sites.items():
            if extends(module):
                raise AttachError(
                    f"{adapter.label} puts virtual tokens in front, and a fuse chooses among what "
                    "comes out of the layers; stack it with the fuse instead"
                )
            if hasattr(module, "fuse"):
                continue  # it acts where its parts do
            acts = {"input": changes_input(module), "output": changes_output(module)}
            places |= {f"{place} {site.kind} {site.path}": None for place in acts if acts[place]}
    return list(places)
