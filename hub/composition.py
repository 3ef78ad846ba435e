"""Compositions: values that say which adapters act together, and how.

A composition is a tree. Its inner nodes are operators, its leaves adapters, references to them, or
None, the bare base. It is a value: equal to another with equal parts and settings, hashable, and
printed as what `parse_composition` reads again.
"""

from __future__ import annotations

import json
import math
import re
from collections.abc import Callable, Hashable, Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar, Union

from hub.adapter import Adapter
from hub.errors import AttachError

if TYPE_CHECKING:
    from torch import nn

Leaf = Adapter | str | None
Part = Union["Operator", Leaf]
GivenPart = Part | Path

NONE = "none"
PLAIN = re.compile(r'[^\s(),;"]+')  # a reference that is printed without quotes


class Operator:
    """What the operators have in common: parts, settings, and being a value.

    An adapter object is equal to itself only, a reference to the same text. Raises AttachError on
    what is no part.
    """

    name: ClassVar[str]

    def __init__(
        self, parts: Sequence[GivenPart], settings: Sequence[float | Adapter | str] = ()
    ) -> None:
        if not parts:
            raise AttachError(f"a {self.name} needs at least one part")
        self._parts = tuple(check_part(self.name, part) for part in parts)
        self._settings = tuple(settings)
        self._hash = hash((self.name, self._settings, self._parts))  # the parts' are known already

    @property
    def parts(self) -> tuple[Part, ...]:
        """What it is made of."""
        return self._parts

    @property
    def settings(self) -> tuple[float | Adapter | str, ...]:
        """What it is told beside its parts, as it is printed."""
        return self._settings

    def rebuild(self, parts: Sequence[GivenPart]) -> Operator:
        """The same operator over other parts, as many as it has."""
        raise NotImplementedError

    def leaves(self) -> Iterator[Leaf]:
        """Its leaves, from left to right; what a fuse is led by comes after its parts."""
        return (node for node in walk(self) if not isinstance(node, Operator))

    def __eq__(self, other: object) -> bool:
        if not isinstance(other, Operator):
            return NotImplemented
        if self._hash != other._hash:
            return False
        # Node by node, not part by part: trees may be deeper than Python likes to recurse.
        return list(map(read_node, walk(self))) == list(map(read_node, walk(other)))

    def __hash__(self) -> int:
        return self._hash

    def __reduce__(self) -> Any:
        return make, (self.name, self.parts, self.settings)

    def __repr__(self) -> str:
        return "".join(print_nodes(self))


class Stack(Operator):
    """Adapters one on top of the other: each sees what the ones before it left.

    The order of effects where several act: first what acts on a projection, in the order of the
    stack, then what acts on the branch that it ends, in the order of the stack.
    """

    name = "stack"

    def __init__(self, *parts: GivenPart) -> None:
        super().__init__(parts)

    def rebuild(self, parts: Sequence[GivenPart]) -> Stack:
        """The same over other parts."""
        return Stack(*parts)


class Parallel(Operator):
    """The batch once for each part: the rows with the first part, then the rows with the second."""

    name = "parallel"

    def __init__(self, *parts: GivenPart) -> None:
        super().__init__(parts)

    def rebuild(self, parts: Sequence[GivenPart]) -> Parallel:
        """The same over other parts."""
        return Parallel(*parts)


class BatchSplit(Operator):
    """Each row of the batch its own part. Which row has which is no part of the value: it is said
    when attaching, and with `Attachment.route`."""

    name = "batchsplit"

    def __init__(self, *parts: GivenPart) -> None:
        super().__init__(parts)

    def rebuild(self, parts: Sequence[GivenPart]) -> BatchSplit:
        """The same over other parts."""
        return BatchSplit(*parts)


class Split(Operator):
    """Each part of the sequence its own adapter.

    at: where the next part begins, one position less than there are parts, rising. Counted are a
        row's own tokens from 0, so neither padding on the left nor virtual tokens; what stands
        before them belongs to the first part.
    """

    name = "split"

    def __init__(self, *parts: GivenPart, at: int | Sequence[int]) -> None:
        given = at if isinstance(at, Sequence) and not isinstance(at, str) else [at]
        if not all(isinstance(p, int) and not isinstance(p, bool) and p > 0 for p in given):
            raise AttachError(f"split's at is {at!r}; give positions, whole numbers from 1")
        self.at = tuple(given)
        if list(self.at) != sorted(set(self.at)):
            raise AttachError(f"split's at is {at!r}; give the positions in rising order")
        if len(self.at) != len(parts) - 1:
            raise AttachError(
                f"split has {len(parts)} parts and {len(self.at)} positions; it needs one between "
                "each two parts: hub.Split(a, b, at=64)"
            )
        super().__init__(parts, self.at)

    def rebuild(self, parts: Sequence[GivenPart]) -> Split:
        """The same over other parts."""
        return Split(*parts, at=self.at)


class Average(Operator):
    """A weighted mean of what the parts give at each site: the weights are divided by their sum.

    weights: one for each part, of any sign; all equal when left out.
    """

    name = "average"

    def __init__(self, *parts: GivenPart, weights: Sequence[float] | None = None) -> None:
        given = [1.0] * len(parts) if weights is None else list(weights)
        if len(given) != len(parts):
            raise AttachError(f"average has {len(parts)} parts and {len(given)} weights")
        if not all(isinstance(w, int | float) and math.isfinite(w) for w in given):
            raise AttachError(f"average's weights are {weights!r}; give finite numbers")
        self.weights = tuple(map(float, given))
        if parts and not math.isfinite(1 / (math.fsum(self.weights) or math.nan)):
            raise AttachError(
                f"average's weights {weights!r} add up to 0, so they make no mean; "
                "hub.combine takes them as they are"
            )
        super().__init__(parts, () if set(self.weights) == {1.0} else self.weights)

    @property
    def shares(self) -> tuple[float, ...]:
        """The weights divided by their sum."""
        total = math.fsum(self.weights)
        return tuple(weight / total for weight in self.weights)

    def rebuild(self, parts: Sequence[GivenPart]) -> Average:
        """The same over other parts."""
        return Average(*parts, weights=self.weights)


class Fuse(Operator):
    """AdapterFusion (Pfeiffer et al., 2021, https://arxiv.org/abs/2005.00247): at each site a
    trained attention chooses among what the parts give.

    by: the adapter that holds the attention, of the method ``fusion``, or a reference to it. A
        trained head of its own answers; those of the parts do not.
    """

    name = "fuse"

    def __init__(self, *parts: GivenPart, by: Adapter | str | Path) -> None:
        attention = check_part(self.name, by)
        if not isinstance(attention, Adapter | str):
            raise AttachError(
                f"fuse's by is {by!r}; give the adapter that holds the trained attention"
            )
        self.by = attention
        super().__init__(parts, (attention,))

    @classmethod
    def create(cls, model: nn.Module, *parts: GivenPart, **options: Any) -> Fuse:
        """A fuse with a new, untrained attention in `by`, for parts that act on `model`.

        options: those of the method, see `hub methods fusion`. Raises what `hub.attach` does.
        """
        from hub.attachment.admission import resolve_composition
        from hub.attachment.fitting import list_places

        if not parts:
            raise AttachError("a fuse needs at least one part")
        resolved = resolve_composition(Stack(*parts))
        assert isinstance(resolved, Stack)
        sites = list_places(model, [a for a in resolved.leaves() if isinstance(a, Adapter)])
        return cls(*resolved.parts, by=Adapter.create("fusion", model, sites=sites, **options))

    def rebuild(self, parts: Sequence[GivenPart]) -> Fuse:
        """The same over other parts."""
        return Fuse(*parts, by=self.by)


OPERATORS: dict[str, Callable[..., Operator]] = {
    kind.name: kind for kind in (Stack, Parallel, BatchSplit, Split, Average, Fuse)
}


def make(name: str, parts: Sequence[GivenPart], settings: Sequence[Any] = ()) -> Operator:
    """An operator by its name, over parts, with its settings. Raises AttachError."""
    kind = OPERATORS[name]
    if kind is Split:
        return Split(*parts, at=settings)
    if kind is Fuse:
        return Fuse(*parts, by=settings[0])
    return Average(*parts, weights=settings or None) if kind is Average else kind(*parts)


def check_part(name: str, part: Any) -> Part:
    """A part as it is kept: a Path as the text that names its folder. Raises AttachError."""
    if isinstance(part, Path):
        text = str(part)
        return text if text.startswith((".", "/", "~")) else f"./{text}"
    if part is None or isinstance(part, Adapter | Operator):
        return part
    if isinstance(part, str) and part:
        return part
    raise AttachError(
        f"a {name} is made of adapters, references, None and operators, not {part!r}; "
        "write hub.Stack('de@2', adapter)"
    )


def list_children(node: Part) -> tuple[Part, ...]:
    """The parts of an operator, and what a fuse is led by."""
    if not isinstance(node, Operator):
        return ()
    return (*node.parts, node.by) if isinstance(node, Fuse) else node.parts


def walk(tree: Part) -> Iterator[Part]:
    """Every node, an operator before its parts."""
    left = [tree]
    while left:
        node = left.pop()
        yield node
        left += reversed(list_children(node))


def read_node(node: Part) -> Hashable:
    """What a node is apart from its parts; in the order of `walk` a tree is made of these."""
    if not isinstance(node, Operator):
        return node
    return type(node), len(node.parts), node.settings


def replace_leaves(tree: Part, replace: Callable[[Leaf], Part]) -> Part:
    """The same tree with every leaf as `replace` gives it."""
    done: list[Part] = []
    for node in reversed(list(walk(tree))):
        if not isinstance(node, Operator):
            done.append(replace(node))
            continue
        count = len(list_children(node))
        children = [done.pop() for _ in range(count)]
        if isinstance(node, Fuse):
            by = children.pop()
            if not isinstance(by, Adapter | str):
                raise AttachError(f"what leads a fuse is one adapter, and {node.by} is {by}")
            node = Fuse(*node.parts, by=by)
        done.append(node.rebuild(children))
    return done[0]


def print_nodes(tree: Part) -> Iterator[str]:
    """The pieces of what a tree prints as."""
    left: list[Part | tuple[str]] = [tree]  # a tuple holds text that is printed as it is
    while left:
        node = left.pop()
        if isinstance(node, tuple):
            yield node[0]
        elif not isinstance(node, Operator):
            yield print_leaf(node)
        else:
            yield f"{node.name}("
            told = ", ".join(print_leaf(item) for item in node.settings)
            left.append((f"; {told})" if told else ")",))
            for number, part in reversed(list(enumerate(node.parts))):
                left += [part, (", ",)] if number else [part]


def print_leaf(leaf: Leaf | float) -> str:
    """A leaf, or a setting, as it is printed: in quotes where it would read as something else."""
    if leaf is None:
        return NONE
    if isinstance(leaf, Adapter):
        return f"<{leaf.method}>" if leaf.reference is None else print_leaf(leaf.reference)
    if not isinstance(leaf, str):
        return repr(leaf)
    return leaf if PLAIN.fullmatch(leaf) and leaf != NONE else json.dumps(leaf, ensure_ascii=False)
