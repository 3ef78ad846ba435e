"""Pinning: a composition that is to be registered, its leaves found as versions of a registry."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch

from hub.adapter import Adapter
from hub.composition import Fuse, Leaf, Operator, replace_leaves, walk
from hub.recipes.recipe import PartEntry, Recipe
from hub.references import is_place
from hub_registry import BadName, RegistryError, UnknownReference, Version

if TYPE_CHECKING:
    from hub.registration import Registry


def pin_composition(
    registry: Registry, tree: Operator, task: str | None
) -> tuple[Recipe, list[Version]]:
    """A composition's recipe, and its parts in the order of their first place.

    Raises RegistryError for a leaf that is no version of this registry, UnknownReference, BadName.
    """
    found: dict[Leaf, Version] = {}
    for leaf in tree.leaves():
        if leaf is not None and leaf not in found:
            found[leaf] = find_part(registry, leaf)
    if not found:
        raise RegistryError(f"{tree} has no adapter in it; the bare base needs no version")
    for node in walk(tree):
        if isinstance(node, Fuse) and found[node.by].kind != "adapter":
            raise RegistryError(
                f"{found[node.by].reference} is a composition and leads a fuse, which one adapter "
                "does: the one that holds the trained attention"
            )
    parts = {version.reference: version for version in found.values()}
    numbers = {reference: str(number) for number, reference in enumerate(parts, 1)}
    numbered = replace_leaves(
        tree, lambda leaf: None if leaf is None else numbers[found[leaf].reference]
    )
    entries = tuple(PartEntry(version.digest) for version in parts.values())
    return Recipe(str(numbered), entries, task), list(parts.values())


def find_part(registry: Registry, leaf: Adapter | str) -> Version:
    """The version that a leaf is. Raises RegistryError, UnknownReference, BadName."""
    if isinstance(leaf, Adapter):
        return find_adapter(registry, leaf)
    if leaf.startswith("hf://"):
        repo = leaf.removeprefix("hf://")
        raise RegistryError(
            f"{leaf} is at a remote, and a registered composition is made of versions; get it with "
            f"`hub pull {repo}` and name what it is then"
        )
    if is_place(leaf):
        raise RegistryError(
            f"{leaf} is a folder, and a registered composition is made of versions; add it with "
            f"`hub import {leaf} --name NAME` and name what it is then"
        )
    return registry.get(leaf)


def find_adapter(registry: Registry, adapter: Adapter) -> Version:
    """The version that an adapter is. Raises RegistryError where it is none."""
    version = None
    if adapter.reference is not None and not is_place(adapter.reference):
        try:
            version = registry.get(adapter.reference)
        except (UnknownReference, BadName):
            version = None
    if version is None:
        raise RegistryError(
            f"{adapter!r} is no version of this registry; register it first: "
            f"registry.add(adapter, name={adapter.method!r})"
        )
    kept = registry.load(version)
    if not isinstance(kept, Adapter) or not equals(adapter, kept):
        raise RegistryError(
            f"{adapter!r} is not what {version.reference} is in this registry; register it first: "
            f"registry.add(adapter, name={version.adapter!r})"
        )
    return version


def equals(one: Adapter, other: Adapter) -> bool:
    """Whether two adapters are of one content: a folder's label may name something else here, and
    an adapter may have learned since it was registered."""
    return (
        (one.method, one.config, one.heads) == (other.method, other.config, other.heads)
        and one.tensors.keys() == other.tensors.keys()
        and all(
            tensor.shape == other.tensors[name].shape
            and torch.equal(tensor.detach().cpu().float(), other.tensors[name].detach().float())
            for name, tensor in one.tensors.items()
        )
    )
