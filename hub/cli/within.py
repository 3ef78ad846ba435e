"""Where the adapter that `hub train` makes stands: the composition of its option `--within`."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from hub.cli.composing import read_composition
from hub.errors import AttachError
from hub.references import is_place, load

if TYPE_CHECKING:
    from hub.adapter import Adapter
    from hub.composition import Leaf, Operator, Part
    from hub.registration import Registry

NEW = "new"
FUSION = "fusion"  # what leads a fuse


@dataclass(frozen=True)
class Within:
    """A composition with a place for the adapter that is to be trained.

    tree: with the version that each reference means, and `new` for the place.
    parents: these versions, each once.
    """

    tree: Operator
    parents: tuple[str, ...]

    def show(self, reference: str | None) -> str:
        """The composition with what was trained as this version, or `new` where it is none."""
        from hub.composition import replace_leaves

        name = reference or NEW
        return str(replace_leaves(self.tree, lambda leaf: name if leaf == NEW else leaf))

    def create(
        self, method: str, model: Any, options: Mapping[str, Any]
    ) -> tuple[Adapter, Operator]:
        """The new adapter, and the composition with it and the others loaded, each once.

        Raises what `hub.load` and `hub.Adapter.create` raise.
        """
        from hub.adapter import Adapter
        from hub.composition import Fuse, Operator, replace_leaves, walk

        found: dict[Leaf, Adapter | Operator] = {}

        def fetch(leaf: Leaf) -> Part:
            if isinstance(leaf, str) and leaf != NEW and leaf not in found:
                found[leaf] = load(leaf)
            return found.get(leaf, leaf)

        loaded = replace_leaves(self.tree, fetch)
        fuses = [node for node in walk(loaded) if isinstance(node, Fuse) and node.by == NEW]
        if fuses:
            adapter: Any = Fuse.create(model, *fuses[0].parts, **options).by
        else:
            adapter = Adapter.create(method, model, **options)
        tree = replace_leaves(loaded, lambda leaf: adapter if leaf == NEW else leaf)
        assert isinstance(tree, Operator)
        return adapter, tree


def read_within(text: str, method: str, registry: Registry) -> Within:
    """The composition that a user writes, for an adapter of this method.

    Raises AttachError where it has no place for it, and UnknownReference and BadName.
    """
    from hub.composition import Fuse, Operator, replace_leaves, walk

    tree = read_composition(text)
    if NEW not in tree.leaves():
        raise AttachError(
            f"--within {text!r} does not say where the new adapter stands; write {NEW} in its "
            f"place, such as stack(de@2, {NEW})"
        )
    leads = any(isinstance(node, Fuse) and node.by == NEW for node in walk(tree))
    if leads and method != FUSION:
        raise AttachError(
            f"--within {text!r}: what leads a fuse is of the method {FUSION}; train it with "
            f"--method {FUSION}, or write {NEW} among the parts"
        )
    if method == FUSION and not leads:
        raise AttachError(f"--within {text!r}: a {FUSION} leads a fuse; write fuse(a, b; {NEW})")
    pins: dict[Leaf, str] = {}
    for leaf in tree.leaves():
        if isinstance(leaf, str) and leaf != NEW and not is_place(leaf):
            pins[leaf] = registry.get(leaf).reference
    pinned = replace_leaves(tree, lambda leaf: pins.get(leaf, leaf))
    assert isinstance(pinned, Operator)
    return Within(pinned, tuple(dict.fromkeys(pins.values())))
