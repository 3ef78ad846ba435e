"""What may be attached: the adapters that a composition names, which of them learn, and what
keeps them off this model or away from each other."""

from __future__ import annotations

import logging
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from torch import nn

from hub.adapter import Adapter, lies_in
from hub.attachment.fitting import Fit
from hub.composition import Stack
from hub.errors import AttachError
from hub.identity import verify_base
from hub.references import load

log = logging.getLogger("hub")

Composition = Adapter | str | Path | Stack
Trainable = bool | Adapter | str | Iterable[Adapter | str] | None


def resolve_composition(composition: Any) -> list[Adapter]:
    """The adapters of a composition, loaded, in the order in which they act. Raises AttachError."""
    leaves = composition.leaves() if isinstance(composition, Stack) else [composition]
    adapters = []
    for leaf in leaves:
        if not isinstance(leaf, Adapter | str | Path):
            raise AttachError(
                f"a {type(leaf).__name__} can't be attached; give an adapter, a reference such as "
                "'sst2@3', or hub.Stack(...) of them"
            )
        adapters.append(leaf if isinstance(leaf, Adapter) else load(leaf))
    return adapters


def choose_learners(adapters: list[Adapter], trainable: Trainable) -> list[Adapter]:
    """Those that learn. Raises AttachError where `trainable` names one that is not attached, or
    where one would learn in two places."""
    if trainable is None:
        chosen = [a for a in adapters if a.fresh]
    elif isinstance(trainable, bool):
        chosen = list(adapters) if trainable else []
    else:
        chosen = []
        for name in [trainable] if isinstance(trainable, str | Adapter) else trainable:
            found = [a for a in adapters if a is name or name == a.label]
            if not found:
                raise AttachError(
                    f"trainable names {name!r}, attached are {', '.join(a.label for a in adapters)}"
                )
            chosen += found
    for adapter in chosen:
        if sum(other is adapter for other in adapters) > 1:
            raise AttachError(
                f"adapter {adapter.label} is in the stack twice and can't learn in two places; "
                "attach it with trainable=False, or once"
            )
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


def check_conflicts(fits: list[Fit]) -> None:
    """Raise AttachError where two adapters bring a trained head, or one acts inside another's."""
    owners = [fit.adapter.label for fit in fits if fit.heads]
    if len(owners) > 1:
        raise AttachError(
            f"{' and '.join(owners)} each bring a trained head, and a model answers with one; "
            "attach them one at a time"
        )
    heads = tuple(path for fit in fits for path in fit.heads)
    for fit in fits:
        for site in fit.sites:
            if lies_in(site.path, heads):
                raise AttachError(
                    f"{fit.adapter.label} acts at {site.path}, where {owners[0]} brings a trained "
                    "module of its own that stands in front of it; attach them one at a time"
                )
