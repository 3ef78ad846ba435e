"""Where the adapter that `hub train` makes stands: the composition of its option `--within`."""

from __future__ import annotations

from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING, Any

from hub.cli import models
from hub.cli.composing import read_composition
from hub.cli.output import notify
from hub.errors import AttachError
from hub.references import is_place

if TYPE_CHECKING:
    from hub.adapter import Adapter
    from hub.composition import Leaf, Operator
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

    @cached_property
    def loaded(self) -> Operator:
        """The composition with the others loaded, each once. Raises what `hub.load` raises."""
        from hub.attachment.admission import resolve_composition

        return resolve_composition(self.tree, {NEW: NEW})  # type: ignore[return-value]

    def count_classes(self) -> int | None:
        """How many classes the trained heads of the others answer with; None where none does."""
        counts = [models.count_classes(adapter, "classification") for adapter in self._find_heads()]
        return next((count for count in counts if count is not None), None)

    def create(
        self, method: str, model: Any, options: Mapping[str, Any]
    ) -> tuple[Adapter, Operator]:
        """The new adapter, and the composition with it. It is made without a trained head where
        that could not answer beside those of the others, which is said.

        Raises what `loaded` and `hub.Adapter.create` raise.
        """
        from hub.adapter import Adapter
        from hub.composition import Fuse, walk

        head = self._has_head(method, model)
        if not head:
            owners = [adapter.label for adapter in self._find_heads()]
            notify(
                f"the new adapter is made without a trained head: {' and '.join(owners)} "
                f"answer{'s' if len(owners) == 1 else ''}"
            )
        fuses = [node for node in walk(self.loaded) if isinstance(node, Fuse) and node.by == NEW]
        if fuses:
            adapter: Any = Fuse.create(model, *fuses[0].parts, head=head, **options).by
        else:
            adapter = Adapter.create(method, model, head=head, **options)
        return adapter, self._fill(adapter)

    def _has_head(self, method: str, model: Any) -> bool:
        """Whether the new adapter is to have a head of its own, where the model has one."""
        from hub.adapter import Adapter
        from hub.attachment.admission import check_meaning
        from hub.attachment.routing import list_answering
        from hub.heads import find_heads

        heads = find_heads(model)
        if not heads or not self._find_heads():
            return True
        planned, plain = (Adapter(method, None, {}, heads=paths) for paths in (heads, ()))
        if planned not in list_answering(self._fill(planned)):
            return False
        try:
            check_meaning(self._fill(planned))
        except AttachError:
            with suppress(AttachError):
                check_meaning(self._fill(plain))
                return False
        return True  # what is wrong all the same is said when it is attached

    def _find_heads(self) -> list[Adapter]:
        """Those of the others whose trained heads answer."""
        from hub.attachment.routing import list_answering

        return [adapter for adapter in list_answering(self.loaded) if adapter.heads]

    def _fill(self, adapter: Adapter) -> Operator:
        from hub.composition import replace_leaves

        return replace_leaves(  # type: ignore[return-value]
            self.loaded, lambda leaf: adapter if leaf == NEW else leaf
        )


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
