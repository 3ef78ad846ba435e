"""Routing: which row of a batch has which part of a composition.

A composition with rows of its own (`BatchSplit`, `Parallel`) stands for several without. Each of
these is a route, and has a number; a table says which row takes which. An operator around a
`BatchSplit` is spread over its parts, so that stack(c, batchsplit(a, b)) has the two routes
stack(c, a) and stack(c, b), and two of them side by side have a route for each pair.
"""

from __future__ import annotations

import itertools
import math
import operator
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from hub.adapter import Adapter
from hub.composition import BatchSplit, Fuse, Leaf, Operator, Parallel, Part, Stack, fold, walk
from hub.errors import AttachError
from hub.printing import print_leaf

MOST = 4096  # routes of one composition; each is a tree of its own
DEEPEST = 100  # operators inside each other; each takes 3 of the 1,000 calls that Python nests

Rows = int | Part | Sequence[int | Part]
"""Of a table: one route for every row, or each row's; a route by its number or as what it is, and
None for the bare base."""


@dataclass(frozen=True)
class Table:
    """What each row has.

    lines: the compositions that some row has, without rows of their own, each once.
    rows: for each row its place among the lines; None where every row has the first. A batch of m
        times as many rows has each row's m times in turn, as beams do.
    copies: how often the batch is repeated for a `Parallel`; `rows` counts the copies' rows too.
    count: how many rows the batch was said to have; None where nothing was said.
    """

    lines: tuple[Part, ...]
    rows: tuple[int, ...] | None = None
    copies: int = 1
    count: int | None = None


class Routing:
    """The routes of an attachment by their numbers. A number stays what it is until the route is
    taken out; a route that comes in gets the lowest number that is free.

    loaded: what was loaded for a reference, by that.
    """

    def __init__(self, composition: Part, loaded: Mapping[str, Part] | None = None) -> None:
        self.routes: dict[int, Part] = dict(enumerate(expand(composition, BatchSplit)))
        self.loaded = {} if loaded is None else loaded
        self.splits = any(isinstance(node, BatchSplit) for node in walk(composition))
        self.lines = {number: list_copies(route) for number, route in self.routes.items()}
        self._tables: dict[int, Table] = {}  # of one route for every row

    def add(self, composition: Part) -> int:
        """The number of a new route. Raises AttachError where it would be several."""
        routes = expand(composition, BatchSplit)
        if len(routes) > 1:
            raise AttachError(
                f"{show(composition)} has {len(routes)} parts for rows to choose from; add them "
                "one by one"
            )
        number = next(n for n in itertools.count() if n not in self.routes)
        self.routes[number], self.lines[number] = routes[0], list_copies(routes[0])
        return number

    def remove(self, number: int) -> None:
        """Take a route out; its number is free again."""
        del self.routes[number], self.lines[number]
        self._tables.pop(number, None)

    def find(self, wanted: int | Part) -> int | None:
        """The number of a route, which is given so, or as what it is; None for the bare base.
        Raises AttachError."""
        if wanted is None:
            return None
        if hasattr(wanted, "__index__") and not isinstance(wanted, bool):
            if operator.index(wanted) in self.routes:
                return operator.index(wanted)
        elif isinstance(wanted, str | Adapter | Operator):
            meant = self.loaded.get(wanted, wanted) if isinstance(wanted, str) else wanted
            for number, route in self.routes.items():
                if route == meant:
                    return number
            named = [n for n, route in self.routes.items() if wanted in read_names(route)]
            if len(named) == 1:
                return named[0]
            if named:
                raise AttachError(
                    f"{wanted!r} may be any of {', '.join(map(str, named))}; route by number"
                )
        there = ", ".join(f"{number} {show(route)}" for number, route in self.routes.items())
        raise AttachError(f"no part {show(wanted)} is here to route to; there are {there}")

    def begin(self) -> Table:
        """The table where nothing was said of rows. Raises AttachError where something must be."""
        if self.splits:
            there = ", ".join(f"{n} {show(route)}" for n, route in self.routes.items())
            raise AttachError(
                f"each row has a part of its own here; say which, rows=[...], of {there}"
            )
        return self.lay(next(iter(self.routes)))

    def lay(self, rows: Rows) -> Table:
        """The table for these rows. Raises AttachError."""
        known = self._tables.get(rows) if type(rows) is int else None
        if known is not None:
            return known
        given: Any = rows
        if hasattr(given, "tolist"):  # a tensor or an array, of one number too
            rows = given.tolist()
        if rows is None or isinstance(rows, int | str | Operator | Adapter):
            number = self.find(rows)
            if number is None:
                return self._fill([None], None)
            if number not in self._tables:
                self._tables[number] = self._fill([number], None)
            return self._tables[number]
        if not isinstance(rows, Iterable) or isinstance(rows, Mapping):
            raise AttachError(f"rows is {rows!r}; give each row's part, such as [0, 1, None]")
        wanted = list(rows)
        if not wanted:
            raise AttachError("rows is empty; give each row's part, such as [0, 1, None]")
        return self._fill([self.find(item) for item in wanted], len(wanted))

    def _fill(self, numbers: Sequence[int | None], count: int | None) -> Table:
        bare: tuple[Part, ...] = (None,)
        each = [bare if number is None else self.lines[number] for number in numbers]
        copies = settle_copies(each)
        picked = [
            lines[copy] if len(lines) > 1 else lines[0] for copy in range(copies) for lines in each
        ]
        places: dict[Any, int] = {}
        rows = tuple([places.setdefault(line, len(places)) for line in picked])
        uniform = len(places) == 1
        return Table(tuple(places), None if uniform else rows, copies, count)


def expand(tree: Part, kind: type[Operator]) -> list[Part]:
    """The compositions without `kind` that one with it stands for, in the order of its parts.
    Raises AttachError where they are too many."""
    if not isinstance(tree, Operator):
        return [tree]

    def join(node: Operator, options: list[list[Part]]) -> list[Part]:
        if isinstance(node, kind):
            return [option for part in options for option in part]
        total = math.prod(map(len, options))
        if total > MOST:
            raise AttachError(
                f"{show(node)} stands for {total:,} combinations; put one {kind.name} around the "
                "combinations that rows have"
            )
        return [node.rebuild(chosen) for chosen in itertools.product(*options)]

    def read(leaf: Leaf) -> list[Part]:
        return [leaf]

    return fold(tree, read, join)


def list_copies(route: Part) -> tuple[Part, ...]:
    """What each copy of the batch has, in a plain form: one line where it is not repeated. Raises
    AttachError where one is too deep to run."""
    lines = tuple(flatten(line) for line in expand(route, Parallel))
    for line in lines:
        depth = measure_depth(line)
        if depth > DEEPEST:
            raise AttachError(
                f"{show(line)} has {depth:,} averages, splits and fuses one inside the other, and "
                f"at most {DEEPEST} can run; an average of averages can be written as one"
            )
    return lines


def settle_copies(lines: Iterable[tuple[Part, ...]]) -> int:
    """How often the batch is repeated. Raises AttachError where rows would be differently often."""
    counts = {len(copies) for copies in lines} - {1}
    if len(counts) > 1:
        raise AttachError(
            f"the batch would be {' and '.join(map(str, sorted(counts)))} times as large for "
            "different rows; give every parallel as many parts"
        )
    return counts.pop() if counts else 1


def flatten(line: Part) -> Part:
    """The same without stacks directly in stacks, or of one part, or with nothing in them."""
    if not isinstance(line, Operator):
        return line

    def join(node: Operator, children: list[list[Part]]) -> list[Part]:
        if isinstance(node, Stack):
            return [part for inner in children for part in inner]
        return [node.rebuild([stack(inner) for inner in children])]

    def read(leaf: Leaf) -> list[Part]:
        return [] if leaf is None else [leaf]

    return stack(fold(line, read, join))


def stack(parts: list[Part]) -> Part:
    """These one on top of the other; one alone as it is, and the bare base for nothing."""
    if len(parts) < 2:
        return parts[0] if parts else None
    return Stack(*parts)


def measure_depth(line: Part) -> int:
    """How many operators stand one inside the other at most, stacks apart: a stack is one chain
    with what is around it."""
    return fold(line, lambda leaf: 0, lambda node, depths: max(depths) + (type(node) is not Stack))


def list_adapters(trees: Iterable[Part]) -> list[Adapter]:
    """The adapters in these, each once, in the order in which they stand."""
    nodes = itertools.chain.from_iterable(map(walk, trees))
    return list(dict.fromkeys(node for node in nodes if isinstance(node, Adapter)))


def list_answering(line: Part) -> list[Adapter]:
    """The adapters of a line whose trained heads answer: a fuse answers with its own."""
    found: dict[Adapter, None] = {}
    left = [line]
    while left:
        node = left.pop()
        if isinstance(node, Operator):
            left += [node.by] if isinstance(node, Fuse) else reversed(node.parts)
        elif isinstance(node, Adapter):
            found[node] = None
    return list(found)


def read_names(part: Part) -> tuple[str, ...]:
    """What a part is called."""
    if isinstance(part, Adapter):
        return (part.label,)
    return (repr(part),) if isinstance(part, Operator) else ()


def show(part: Any) -> str:
    """A part as it is printed in an error, shortened."""
    text = repr(part) if isinstance(part, Operator | int) else print_leaf(part)
    return text if len(text) <= 60 else f"{text[:57]}..."
