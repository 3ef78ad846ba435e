"""Binding: which base a version is made for, and whether several are made for one."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from itertools import combinations
from typing import TYPE_CHECKING, Any

from hub.errors import BaseMismatch
from hub_registry import BaseIdentity, compare

if TYPE_CHECKING:
    from torch import nn

    from hub.adapter import Adapter

UNKNOWN = "unknown"  # the architecture and precision of a base that nothing is known of


def check_bases(parts: Iterable[tuple[str, BaseIdentity | None]]) -> list[str]:
    """Hold the bases of adapters, given with what to call them, against each other; what is worth
    a note. Raises BaseMismatch where two of them are different."""
    notes: list[str] = []
    known: dict[str, tuple[str, BaseIdentity]] = {}
    for label, base in parts:
        if base is None or base.architecture == UNKNOWN:
            notes.append(
                f"{label} does not say which base it was made for, so that could not be verified"
            )
        else:
            known.setdefault(base.digest, (label, base))
    # Each with each: what one of them can't tell of the two others may differ between these.
    for (one, expected), (other, found) in combinations(known.values(), 2):
        comparison = compare(expected, found)
        why = "; ".join(comparison.reasons)
        if comparison.verdict == "different":
            raise BaseMismatch(
                f"{one} was made for {expected.label} and {other} for {found.label}, which is "
                f"another base: {why}; take adapters of one base"
            )
        if comparison.verdict == "unverified":
            notes.append(f"{one} and {other} may be for different bases: {why}")
    return notes


def settle_base(
    adapter: Adapter, name: str, base: nn.Module | BaseIdentity | None
) -> BaseIdentity | None:
    """The identity that the adapter has, else that of `base`. Raises BaseMismatch where the two
    are known and different."""
    from hub.identity import identify_base

    if base is None:
        return adapter.base
    given = base if isinstance(base, BaseIdentity) else identify_base(base)
    if adapter.base is None:
        return given
    comparison = compare(adapter.base, given)
    if comparison.verdict == "different":
        raise BaseMismatch(
            f"{name} was made for {adapter.base.label}, and {given.label} was given as its base: "
            f"{'; '.join(comparison.reasons)}; leave the base out, its files say it"
        )
    return adapter.base


def guess_base(files: Mapping[str, bytes]) -> BaseIdentity:
    """The identity of a base of which no more is known than the name in peft's configuration."""
    from hub.files import CONFIG

    config: dict[str, Any] = json.loads(files[CONFIG])
    repo, revision = config.get("base_model_name_or_path"), config.get("revision")
    return BaseIdentity(
        architecture=UNKNOWN,
        precision=UNKNOWN,
        repo=repo if isinstance(repo, str) and repo else None,
        revision=revision if isinstance(revision, str) and revision else None,
    )
