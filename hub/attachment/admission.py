"""What may be attached: the adapters that a composition names, which of them learn, and what
keeps them off this model or away from each other."""

from __future__ import annotations

import logging
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from torch import nn

from hub.adapter import Adapter, lies_in
from hub.attachment.answers import find_head
from hub.attachment.fitting import Fit
from hub.attachment.routing import expand, list_adapters, list_answering, list_copies
from hub.building import Modules
from hub.composition import (
    MAKE_FUSE,
    BatchSplit,
    Fuse,
    Leaf,
    Operator,
    Part,
    check_part,
    replace_leaves,
    walk,
)
from hub.errors import AttachError
from hub.identity import verify_base
from hub.recipes.pinning import equals
from hub.references import load

log = logging.getLogger("hub")

Composition = Adapter | str | Path | Operator
Trainable = bool | Adapter | str | Iterable[Adapter | str] | None


def resolve_composition(composition: Any, loaded: dict[str, Part] | None = None) -> Part:
    """The composition with every reference loaded, and every version that is named by several, or
    is a part of what they name, there once. Raises AttachError.

    loaded: what is there already, by the reference that it was loaded by; it grows.
    """
    loaded = {} if loaded is None else loaded
    versions: dict[str | None, Adapter] = {}

    def resolve(leaf: Leaf) -> Part:
        if not isinstance(leaf, str):
            return leaf
        if leaf not in loaded:
            if not versions:
                versions.update((a.reference, a) for a in list_adapters(loaded.values()))
            loaded[leaf] = replace_leaves(load(leaf), share)
        return loaded[leaf]

    def share(leaf: Leaf) -> Part:
        if not isinstance(leaf, Adapter) or leaf.reference is None:
            return leaf
        known = versions.setdefault(leaf.reference, leaf)
        # A folder may say of other content that it is this version, and what is there may have
        # learned.
        return known if known is leaf or equals(known, leaf) else leaf

    if isinstance(composition, Path):
        composition = check_part("composition", composition)
    if not isinstance(composition, Adapter | str | Operator):
        raise AttachError(
            f"a {type(composition).__name__} can't be attached; give an adapter, a reference such "
            "as 'sst2@3', or hub.Stack(...) of them"
        )
    return replace_leaves(composition, resolve)


def choose_learners(adapters: list[Adapter], trainable: Trainable) -> list[Adapter]:
    """Those that learn. Raises AttachError where `trainable` names one that is not attached."""
    if trainable is None:
        return [a for a in adapters if a.fresh]
    if isinstance(trainable, bool):
        return list(adapters) if trainable else []
    chosen = []
    for name in [trainable] if isinstance(trainable, str | Adapter) else trainable:
        found = [a for a in adapters if a is name or name == a.label]
        if not found:
            raise AttachError(
                f"trainable names {name!r}, attached are {', '.join(a.label for a in adapters)}"
            )
        chosen += found
    return chosen


def check_bases(
    adapters: list[Adapter], model: nn.Module, allow_other_base: bool
) -> tuple[str, ...]:
    """Hold the model against each adapter's base; what is worth a note. Raises BaseMismatch."""
    notes = []
    for adapter in adapters:
        who = f"adapter {adapter.label}"
        if adapter.base is None:
            note = f"{who} does not say which base it was made for, so this could not be verified"
        else:
            note = verify_base(adapter.base, model, who=who, allow_other=allow_other_base)
        if note:
            log.warning(note)
            notes.append(note)
    return tuple(notes)


def check_leaders(line: Part, fits: Mapping[Adapter, Fit]) -> None:
    """Raise AttachError where what leads a fuse holds no attention, or what does leads none."""
    operators = [node for node in walk(line) if isinstance(node, Operator)]
    for part in (line, *(part for node in operators for part in node.parts)):
        if isinstance(part, Adapter) and fits[part].leads:
            raise AttachError(
                f"{part.label} chooses among what others give and does nothing alone; put it with "
                "the parts that it was made for, hub.Fuse(a, b, by=...), or hub compose "
                f"'fuse(a, b; {part.label})'"
            )
    for node in operators:
        if isinstance(node, Fuse) and isinstance(node.by, Adapter) and not fits[node.by].leads:
            raise AttachError(
                f"{node.by.label} is {node.by.method} and leads no fuse; make what does with "
                f"{MAKE_FUSE}"
            )


def check_meaning(composition: Part) -> None:
    """Raise AttachError where a composition can be attached to no model, whichever row has which
    part. Of its adapters the method, the heads and the labels are looked at, and no tensor."""
    for route in expand(composition, BatchSplit):
        for line in list_copies(route):
            answering = list_answering(line)
            check_conflicts(
                line,
                {
                    adapter: outline_fit(adapter, answers=adapter in answering)
                    for adapter in list_adapters([line])
                },
            )


def outline_fit(adapter: Adapter, *, answers: bool) -> Fit:
    """An adapter as it would be on a model, without what it has there: sites and values."""
    heads = adapter.heads if answers else ()
    return Fit(adapter, False, Modules({}, None), {}, {path: nn.Identity() for path in heads})


def check_conflicts(line: Part, fits: Mapping[Adapter, Fit]) -> None:
    """Raise AttachError where two trained heads would answer for one row, one adapter acts inside
    another's, or leads a fuse and can't, or can do nothing else."""
    check_leaders(line, fits)
    for adapter in list_answering(line):
        if adapter.heads and not fits[adapter].heads:
            raise AttachError(
                f"{adapter.label} is here as a part of a fuse, without its trained head, and would "
                "answer with it; detach, and attach both together"
            )
    there = [fits[adapter] for adapter in list_adapters([line])]
    owners = [adapter.label for adapter in list_answering(line) if fits[adapter].heads]
    silent = [fit.adapter.label for fit in there if fit.adapter.heads]
    for path in {path for fit in there for path in fit.heads}:
        find_head(line, path, fits)
    check_labels([adapter for adapter in list_answering(line) if fits[adapter].heads])
    if silent and not owners:
        raise AttachError(
            f"{' and '.join(silent)} bring a trained head, and what fuses them has none to answer "
            f"with instead; make it on a model that has the head, with {MAKE_FUSE}"
        )
    heads = tuple(path for fit in there for path in fit.heads)
    for fit in there if heads else ():
        for site in fit.sites:
            if lies_in(site.path, heads):
                raise AttachError(
                    f"{fit.adapter.label} acts at {site.path}, where {owners[0]} brings a trained "
                    "module of its own that stands in front of it; attach them one at a time"
                )


def check_labels(answering: list[Adapter]) -> None:
    """Raise AttachError where a mean would be of answers that mean different things."""
    said = [(a, a.lineage["labels"]) for a in answering if "labels" in a.lineage]
    for adapter, labels in said:
        if list(labels) != list(said[0][1]):
            raise AttachError(
                f"{said[0][0].label} answers with {', '.join(map(str, said[0][1]))} and "
                f"{adapter.label} with {', '.join(map(str, labels))}, so a mean of their answers "
                "has no meaning"
            )
