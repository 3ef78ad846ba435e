"""Lineage: what an adapter says that it came from, in its `hub.json`.

    parents   the references of the adapters that it was made from, or trained within
    digests   of those that are versions, the content by the reference

A reference means a version of one registry; its content digest tells in any which version that is.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from hub.adapter import Adapter
    from hub_registry import Version


def read_parents(lineage: Mapping[str, Any]) -> dict[str, str | None]:
    """The parents by reference, with the content digest of those that were versions. What is not
    written as parents are is left out: a `hub.json` may be anyone's."""
    references, digests = lineage.get("parents"), lineage.get("digests")
    if not isinstance(references, list):
        return {}
    known = digests if isinstance(digests, dict) else {}
    return {text: known.get(text) for text in references if isinstance(text, str)}


def add_parents(lineage: Mapping[str, Any], parents: Iterable[Adapter | Version]) -> dict[str, Any]:
    """The lineage with these among the parents, where they have a name."""
    found = read_parents(lineage)
    for parent in parents:
        if parent.reference is not None and found.get(parent.reference) is None:
            found[parent.reference] = parent.digest
    if not found:
        return dict(lineage)
    digests = {reference: digest for reference, digest in found.items() if digest is not None}
    said = {"parents": list(found), **({"digests": digests} if digests else {})}
    return {**forget_parents(lineage), **said}


def forget_parents(lineage: Mapping[str, Any]) -> dict[str, Any]:
    """The lineage without its parents."""
    return {name: said for name, said in lineage.items() if name not in ("parents", "digests")}
