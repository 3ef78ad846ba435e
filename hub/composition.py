"""Compositions: values that say which adapters act together, and how.

A composition is a tree. Its inner nodes are operators, its leaves adapters, references to them, or
None, the bare base. It is a value: equal to another with equal parts and settings, hashable, and
printed as what `parse_composition` reads again.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Hashable, Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar, TypeVar, Union

from hub.adapter import Adapter
from hub.errors import AttachError
from hub.weights import DESCRIBED, find_shares, is_weight

if TYPE_CHECKING:
    from torch import nn

Leaf = Adapter | str | None
Part = Union["Operator", Leaf]
GivenPart = Part | Path
Leader = Adapter | str
Setting = float | Leader
T = TypeVar("T")


class Operator:
    """What the operators have in common: parts, settings, and being a value.

    An adapter object is equal to itself only, a reference to the same text. Raises AttachError on
    what is no part.
    """

    name: ClassVar[str]

    def __init__(self, *parts: GivenPart) -> None:
        self._keep(parts)

    def _keep(self, parts: Sequence[GivenPart], settings: Sequence[Setting] = ()) -> None:
        if not parts:
            raise AttachError(f"{self.name} needs at least one part")
        self._parts = tuple(check_part(self.name, part) for part in parts)
        self._settings: tuple[Any, ...] = tuple(settings)
        self._hash = hash((self.name, self._settings, self._parts))  # the parts' are known already

    @classmethod
    def make(cls, parts: Sequence[GivenPart], settings: Sequence[Setting] = ()) -> Operator:
        """One of these parts, told its settings as `settings` has them, or as they are printed.
        Raises AttachError."""
        if settings:
            raise AttachError(f"{cls.name} has no settings, and there is {settings[0]!r}")
        return cls(*parts)

    @property
    def parts(self) -> tuple[Part, ...]:
        """What it is made of."""
        return self._parts

    @property
    def settings(self) -> tuple[Setting, ...]:
        """What it is told beside its parts, as it is printed."""
        return self._settings

    @property
    def children(self) -> tuple[Part, ...]:
        """Its parts, and what a fuse is led by."""
        return (*self._parts, *(told for told in self._settings if isinstance(told, Leader)))

    def rebuild(self, children: Sequence[GivenPart]) -> Operator:
        """The same operator over other children; over other parts alone, led as before."""
        count = len(self._parts)
        return self.make(children[:count], children[count:] or self._settings)  # type: ignore[arg-type]

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
        return self.make, (self.parts, self.settings)

    def __deepcopy__(self, memo: dict[int, Any]) -> Part:
        return replace_leaves(self, lambda leaf: copy.deepcopy(leaf, memo))

    def __repr__(self) -> str:
        from hub.printing import print_nodes

        return "".join(print_nodes(self))


class Stack(Operator):
    """Adapters one on top of the other: each sees what the ones before it left.

    The order of effects where several act: first what acts on a projection, in the order of the
    stack, then what acts on the branch that it ends, in the order of the stack.
    """

    name = "stack"


class Parallel(Operator):
    """The batch once for each part: the rows with the first part, then the rows with the second."""

    name = "parallel"


class BatchSplit(Operator):
    """Each row of the batch its own part. Which row has which is no part of the value: it is said
    when attaching, and with `Attachment.route`."""

    name = "batchsplit"


class Split(Operator):
    """Each part of the sequence its own adapter.

    at: where the next part begins, one position less than there are parts, rising. Counted are a
        row's own tokens from 0, so neither padding on the left nor virtual tokens; what stands
        before them belongs to the first part.
    """

    name = "split"

    def __init__(self, *parts: GivenPart, at: int | Sequence[int]) -> None:
        given = tuple(read_plain(at))
        if not all(isinstance(p, int) and not isinstance(p, bool) and p > 0 for p in given):
            raise AttachError(f"split's at is {at!r}; give positions, whole numbers from 1")
        if list(given) != sorted(set(given)):
            raise AttachError(f"split's at is {at!r}; give the positions in rising order")
        if len(given) != len(parts) - 1:
            raise AttachError(
                f"split has {len(parts)} parts and {len(given)} positions; it needs one between "
                "each two parts: hub.Split(a, b, at=64)"
            )
        self._keep(parts, given)

    @classmethod
    def make(cls, parts: Sequence[GivenPart], settings: Sequence[Setting] = ()) -> Split:
        """One of these parts, which change at these positions."""
        return cls(*parts, at=read_numbers(cls.name, settings, int))

    @property
    def at(self) -> tuple[int, ...]:
        """Where the next part begins, for each but the first."""
        return self._settings


class Average(Operator):
    """A weighted mean of what the parts give at each site: the weights are divided by their sum.

    weights: one for each part, of any sign; all equal when left out.
    """

    name = "average"

    def __init__(self, *parts: GivenPart, weights: Sequence[float] | None = None) -> None:
        given = [1.0] * len(parts) if weights is None else read_plain(weights)
        if len(given) != len(parts):
            raise AttachError(f"average has {len(parts)} parts and {len(given)} weights")
        if not all(map(is_weight, given)):
            raise AttachError(f"average's weights are {weights!r}; give {DESCRIBED}")
        if parts and find_shares(given) is None:
            raise AttachError(
                f"average's weights {weights!r} add up to 0, so they make no mean; "
                "hub.combine takes them as they are"
            )
        self._keep(parts, () if set(given) == {1} else tuple(map(float, given)))

    @classmethod
    def make(cls, parts: Sequence[GivenPart], settings: Sequence[Setting] = ()) -> Average:
        """One of these parts, by these weights."""
        return cls(*parts, weights=read_numbers(cls.name, settings, float) or None)

    @property
    def weights(self) -> tuple[float, ...]:
        """One for each part."""
        return self._settings or (1.0,) * len(self._parts)

    @property
    def shares(self) -> tuple[float, ...]:
        """The weights divided by their sum."""
        return find_shares(self.weights) or ()


class Fuse(Operator):
    """AdapterFusion (Pfeiffer et al., 2021, https://arxiv.org/abs/2005.00247): at each site a
    trained attention chooses among what the parts give.

    by: the adapter that holds the attention, of the method ``fusion``, or a reference to it. A
        trained head of its own answers; those of the parts do not.
    """

    name = "fuse"

    def __init__(self, *parts: GivenPart, by: Adapter | str | Path) -> None:
        leader = check_part(self.name, by)
        if not isinstance(leader, Leader):
            raise AttachError(
                f"a fuse is led by one adapter, and not by {by!r}; give the one that holds the "
                "trained attention"
            )
        self._keep(parts, (leader,))

    @classmethod
    def make(cls, parts: Sequence[GivenPart], settings: Sequence[Setting] = ()) -> Fuse:
        """One of these parts, led by this."""
        if len(settings) != 1:
            raise AttachError("a fuse is written with what leads it: fuse(a, b; fusion@1)")
        return cls(*parts, by=settings[0])  # type: ignore[arg-type]

    @classmethod
    def create(cls, model: nn.Module, *parts: GivenPart, **options: Any) -> Fuse:
        """A fuse with a new, untrained attention in `by`, for parts that act on `model`.

        options: those of the method, see `hub methods fusion`. Raises what `hub.attach` does.
        """
        from hub.attachment.admission import resolve_composition
        from hub.attachment.fitting import list_places

        if not parts:
            raise AttachError("fuse needs at least one part")
        resolved = resolve_composition(Stack(*parts))
        assert isinstance(resolved, Stack)
        sites = list_places(model, [a for a in resolved.leaves() if isinstance(a, Adapter)])
        if not sites:
            raise AttachError("a fuse chooses among what its parts do, and none of these does any")
        return cls(*resolved.parts, by=Adapter.create("fusion", model, sites=sites, **options))

    @property
    def by(self) -> Adapter | str:
        """What holds the attention."""
        leader: Adapter | str = self._settings[0]
        return leader


MAKE_FUSE = "hub.Fuse.create(model, a, b), or hub train --method fusion --within 'fuse(a, b; new)'"

OPERATORS: dict[str, type[Operator]] = {
    kind.name: kind for kind in (Stack, Parallel, BatchSplit, Split, Average, Fuse)
}


def is_written(text: str) -> bool:
    """Whether a text is a composition: it begins as one, and no reference does."""
    name, opened, _ = text.partition("(")
    return bool(opened) and name.strip() in OPERATORS


def check_part(name: str, part: Any) -> Part:
    """A part as it is kept: a Path as the text that names its folder. Raises AttachError."""
    if isinstance(part, Path):
        text = str(part)
        return text if text.startswith((".", "/", "~")) else f"./{text}"
    if part is None or isinstance(part, Adapter | Operator):
        return part
    if isinstance(part, str) and part:
        return part
    if isinstance(part, list | tuple):
        raise AttachError(f"{name} is given its parts one by one; unpack the {type(part).__name__}")
    raise AttachError(
        f"{name} is made of adapters, references, None and operators, not of a "
        f"{type(part).__name__}; write hub.Stack('de@2', adapter)"
    )


def read_plain(values: Any) -> list[Any]:
    """Numbers as Python's own, of a list, a tensor or an array of them, or of one."""
    values = values.tolist() if hasattr(values, "tolist") else values
    if isinstance(values, str | Mapping) or not isinstance(values, Iterable):
        return [values]
    return [value.tolist() if hasattr(value, "tolist") else value for value in values]


def read_numbers(name: str, settings: Sequence[Any], kind: type[T]) -> list[T]:
    """Settings that are numbers, or the text of some. Raises AttachError."""
    try:
        return [kind(item) for item in settings]  # type: ignore[call-arg]
    except ValueError:
        told = ", ".join(map(str, settings))
        raise AttachError(f"{name} is told numbers, and {told!r} is no list of them") from None


def walk(tree: Part) -> Iterator[Part]:
    """Every node, an operator before its children."""
    left = [tree]
    while left:
        node = left.pop()
        yield node
        left += reversed(node.children) if isinstance(node, Operator) else ()


def read_node(node: Part) -> Hashable:
    """What a node is apart from its parts; in the order of `walk` a tree is made of these."""
    if not isinstance(node, Operator):
        return node
    return type(node), len(node.parts), node.settings


def fold(tree: Part, leaf: Callable[[Leaf], T], join: Callable[[Operator, list[T]], T]) -> T:
    """What becomes of a tree from its leaves up, the last one first: of a leaf what `leaf` makes of
    it, of an operator what `join` makes of it and of what became of its children. No tree is too
    deep."""
    done: list[T] = []
    for node in reversed(list(walk(tree))):
        if isinstance(node, Operator):
            done.append(join(node, [done.pop() for _ in node.children]))
        else:
            done.append(leaf(node))
    return done[0]


def replace_leaves(tree: Part, replace: Callable[[Leaf], Part]) -> Part:
    """The same tree with every leaf as `replace` gives it. Raises AttachError where no adapter
    would lead a fuse."""
    return fold(tree, replace, lambda node, children: node.rebuild(children))
