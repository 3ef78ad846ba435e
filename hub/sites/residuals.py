"""Residual adds: where a layer adds what it computed to the stream that it computed it from.

An add is residual where one operand was computed from the other and was just returned by a module.
The module that returned it last is where a method can act on it.
"""

from collections import defaultdict
from collections.abc import Iterator
from dataclasses import dataclass, replace

from hub.sites.dataflow import Flow
from hub.sites.layers import find_item
from hub.sites.tracing import Trace


@dataclass(frozen=True, slots=True)
class Branch:
    """What the module at `path` adds to a residual stream, `element` of the tuple that it returns.

    Nodes: `node` is the value, `start` where its computation leaves the stream, `origin` where that
    stream begins, `total` the sum, `skip` what it is added to. `moment` is when the module
    returned it.
    """

    path: str
    element: int | None
    moment: int
    node: int
    start: int
    origin: int
    total: int
    skip: int


@dataclass(frozen=True, slots=True)
class _Return:
    path: str
    element: int | None
    moment: int
    inner: str | None  # the module that returned the same value just before


@dataclass(frozen=True, slots=True)
class _Part:
    total: int
    node: int
    start: int


def find_branches(trace: Trace, lists: frozenset[str]) -> list[Branch]:
    """The branches of a traced forward, in order, those of a shared layer once for every time it
    runs. `lists` are the paths of the model's module lists."""
    # Gates are followed only where nothing is plainly added (hyper-connections): gated sums are
    # everywhere inside an attention or a state space.
    return _Search(trace, lists).run() or _Search(trace, lists, gated=True).run()


class _Search:
    def __init__(self, trace: Trace, lists: frozenset[str], gated: bool = False) -> None:
        self.gated = gated
        self.flow: Flow = trace.flow
        self.lists = lists
        self.returns: dict[int, list[_Return]] = defaultdict(list)
        self.nodes_of: dict[tuple[str, int | None], list[tuple[int, str | None]]] = defaultdict(
            list
        )
        for call in trace.calls:
            for element, node in call.returned:
                before = self.returns[node]
                inner = before[-1].path if before else None
                before.append(_Return(call.path, element, call.moment, inner))
                self.nodes_of[call.path, element].append((node, inner))
        self.adds = [
            place for place, node in enumerate(self.flow.nodes) if node.operation in ("add", "add_")
        ]
        self.adds = [place for place in self.adds if self._may_be_residual(place)]
        marked = set(self.adds)
        for place in self.adds:
            for operand in self.flow.nodes[place].parents:
                marked.update(self._walk(operand))
        self.ancestors, self.bits = self.flow.find_ancestors(marked)
        self.skips: dict[int, int] = {}  # the sum of a residual add -> the stream that went into it

    def run(self) -> list[Branch]:
        parts = [part for place in self.adds for part in self._split(place)]
        used = {node for part in parts for node in self._walk(part.node)}
        chosen = {}
        for part in parts:
            site = self._choose(part, used)
            if site is not None:
                chosen[part] = site
        kept = self._drop_inner(chosen)
        origins: dict[int, int] = {}
        branches = []
        for part, site in kept.items():
            origin = origins.setdefault(part.total, self._find_origin(part.start, origins))
            branches.append(
                Branch(
                    site.path,
                    site.element,
                    site.moment,
                    part.node,
                    part.start,
                    origin,
                    part.total,
                    self.skips[part.total],
                )
            )
        return branches

    def _may_be_residual(self, place: int) -> bool:
        node = self.flow.nodes[place]
        operands = [self.flow.nodes[parent] for parent in node.parents]
        return (
            len(operands) == 2
            and len(node.shape) >= 2
            and all(
                operand.shape == node.shape and operand.floating and operand.varies
                for operand in operands
            )
        )

    def _walk(self, node: int | None) -> Iterator[int]:
        while node is not None:
            yield node
            node = self.flow.find_source(node, self.gated)

    def _walk_stream(self, node: int) -> Iterator[int]:
        """The values that `node` is the same stream as: itself, before a cast or a scaling, and
        before every residual add that it came straight out of."""
        for place in self._walk(node):
            yield place
            if place in self.skips:
                yield from self._walk_stream(self.skips[place])

    def _comes_from(self, node: int, ancestor: int) -> bool:
        return bool(self.ancestors[node] & self.bits.get(ancestor, 0))

    def _split(self, place: int) -> list[_Part]:
        """What is added to the stream at `place`; nothing where the add is not a residual one."""
        left, right = self.flow.nodes[place].parents
        for skip, other in ((left, right), (right, left)):
            stream = list(self._walk_stream(skip))
            parts = []
            for node in self._find_returned(other, place):
                start = next((s for s in stream if self._comes_from(node, s)), None)
                if start is not None:
                    parts.append(_Part(place, node, start))
            if parts:
                self.skips[place] = skip
                return parts
        return []

    def _find_returned(self, node: int, before: int) -> Iterator[int]:
        """The values returned by modules that `node` is, or is a sum of."""
        if any(site.moment <= before for site in self.returns[node]):
            yield node
            return
        source = self.flow.find_source(node, self.gated)
        if source is not None:
            yield from self._find_returned(source, before)
        elif self.flow.nodes[node].operation in ("add", "add_", "sub"):
            for operand in self.flow.nodes[node].parents:
                if self.flow.nodes[operand].varies:
                    yield from self._find_returned(operand, before)

    def _choose(self, part: _Part, used: set[int]) -> _Return | None:
        """The outermost module that returned the branch and never returns anything else: a dropout
        that several places share is passed over for the module before it."""
        for node in self._walk(part.node):
            for site in reversed(self.returns[node]):
                if site.moment <= part.total and all(
                    other in used and inner == site.inner
                    for other, inner in self.nodes_of[site.path, site.element]
                ):
                    return site
        return None

    def _drop_inner(self, chosen: dict[_Part, _Return]) -> dict[_Part, _Return]:
        """The parts without adds inside a branch (between experts, inside an attention) and without
        skips around several layers; a branch that goes on from another starts after it."""
        pairs = [
            (inner, outer)
            for outer in chosen
            for inner in chosen
            if inner.total < outer.total
            and self._comes_from(inner.total, outer.start)
            and (inner.total == outer.node or self._comes_from(outer.node, inner.total))
        ]
        wide = {
            outer
            for inner, outer in pairs
            if (layer := find_item(chosen[inner].path, self.lists)) is not None
            and (layer == chosen[outer].path or layer != find_item(chosen[outer].path, self.lists))
        }
        dropped = wide | {
            inner
            for inner, outer in pairs
            if outer not in wide and chosen[inner].path.startswith(chosen[outer].path + ".")
        }
        starts = {outer: outer.start for outer in chosen}
        for inner, outer in pairs:
            if inner not in dropped:
                starts[outer] = max(starts[outer], inner.total)
        return {
            replace(part, start=starts[part]): site
            for part, site in chosen.items()
            if part not in dropped
        }

    def _find_origin(self, start: int, origins: dict[int, int]) -> int:
        for total in reversed(origins):
            if start == total or self._comes_from(start, total):
                return origins[total]
        return start
