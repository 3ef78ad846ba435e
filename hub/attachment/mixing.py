"""Mixing: rows of one batch that have different chains at a site."""

from __future__ import annotations

import threading
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from hub.attachment.nodes import WHOLE, Chain, Node, Slice, run_after, run_before
from hub.errors import AttachError

_running = threading.local()


class RowsNode(Node):
    """Each row its own chain: the rows with one chain together, one chain after the other.

    rows: for each row its chain's number. A batch of m times as many has each row's m times in
        turn, as beams do; so has an axis of rows that holds the positions too.
    axis: that of the rows.
    """

    def __init__(self, chains: Sequence[Chain], rows: Sequence[int], axis: int) -> None:
        super().__init__(chains)
        self.rows = tuple(rows)
        self.axis = axis
        self._kept: tuple[Any, Groups] | None = None

    def before(self, x: Tensor, given: Slice = WHOLE) -> Tensor:
        """Each row's own input."""
        return self._spread([x], given, lambda chain, x, inner: run_before(chain, x, inner))

    def forward(self, x: Tensor, y: Tensor, given: Slice = WHOLE) -> Tensor:
        """Each row's own output."""
        return self._spread([align(x, y), y], given, run_after)

    def _spread(self, values: list[Tensor], given: Slice, run: Any) -> Tensor:
        axis = self.axis if given.tokens is None else 0
        if given.tokens is None:
            values = [widen(value, axis, len(self.rows)) for value in values]
        groups = self._group(values[-1], axis, given)
        parts = []
        for chain, index, owners in groups.parts:
            own = [value.index_select(axis, index) for value in values]
            stream = None if given.stream is None else given.stream.index_select(axis, index)
            tokens = None if given.tokens is None else given.tokens[index]
            inner = Slice(stream, None if tokens is not None else index, tokens, given.total)
            with narrow_rows(owners):
                parts.append(run(chain, *own, inner) if chain else own[-1])
        whole = torch.cat(parts, dim=axis)
        return whole if groups.order is None else whole.index_select(axis, groups.order)

    def _group(self, value: Tensor, axis: int, given: Slice) -> Groups:
        """Which chain has which places along the axis; kept for the next batch of the shape."""
        size, device = value.shape[axis], value.device
        inside: Tensor | None = getattr(_running, "inside", None)
        if given.tokens is not None:
            return self._divide(given.tokens // count_each(given.total, len(self.rows)))
        if inside is not None:
            return self._divide(inside)
        kept = self._kept  # read once: another thread may keep its own
        if kept is None or kept[0] != (size, device):
            each = count_each(size, len(self.rows))
            with torch.inference_mode(mode=False):  # or a later batch could not learn with them
                groups = self._divide(torch.arange(size, device=device) // each)
            kept = self._kept = (size, device), groups
        return kept[1]

    def _divide(self, owners: Tensor) -> Groups:
        """The places by their rows, (k,)."""
        chosen = torch.tensor(self.rows, device=owners.device)[owners]
        return Groups.make(self.chains, chosen, owners)


@dataclass(frozen=True)
class Groups:
    """The places along an axis by what acts there.

    parts: each chain, its places, (k,), and the row that each of them belongs to, (k,).
    order: what brings the parts, one after the other, into order; None where they are.
    """

    parts: tuple[tuple[Chain, Tensor, Tensor], ...]
    order: Tensor | None

    @classmethod
    def make(cls, chains: Sequence[Chain], chosen: Tensor, owners: Tensor) -> Groups:
        """From the number of the chain at each place, and the place's row."""
        parts = []
        for number, chain in enumerate(chains):
            index = (chosen == number).nonzero().flatten()
            if len(index):
                parts.append((chain, index, owners[index]))
        found = torch.cat([index for _, index, _ in parts])
        rising = bool((found.diff() > 0).all())
        return cls(tuple(parts), None if rising else found.argsort())


@contextmanager
def narrow_rows(owners: Tensor) -> Iterator[None]:
    """Let it be known that what runs inside, of the base too, sees these rows alone."""
    before = getattr(_running, "inside", None)
    _running.inside = owners
    try:
        yield
    finally:
        _running.inside = before


class JoinedNode(Node):
    """A method's own fast way for rows with different adapters of it, where rows come first.

    module: what the plugin made; its forward takes (rows, n, in_features) and (rows, n,
        out_features).
    apart: does the same one chain after the other, where a part of the rows is there.
    """

    def __init__(self, module: Any, apart: RowsNode) -> None:
        super().__init__(apart.chains)
        self.module = module
        self.apart = apart
        self.rows = len(apart.rows)

    def before(self, x: Tensor, given: Slice = WHOLE) -> Tensor:
        """Each row's own input."""
        if given.tokens is not None or getattr(_running, "inside", None) is not None:
            return self.apart.before(x, given)
        changed: Tensor = self.module.before(self._line_up(x))
        return changed.reshape(widen(x, 0, self.rows).shape)

    def forward(self, x: Tensor, y: Tensor, given: Slice = WHOLE) -> Tensor:
        """Each row's own output."""
        if given.tokens is not None or getattr(_running, "inside", None) is not None:
            return self.apart.forward(x, y, given)
        if self.reads_stream and given.stream is not None:
            x = given.stream
        if y.dim() == 3 and len(y) == self.rows:
            changed: Tensor = self.module.forward(x, y)
            return changed
        changed = self.module.forward(self._line_up(x), self._line_up(y))
        return changed.reshape(widen(y, 0, self.rows).shape)

    def _line_up(self, value: Tensor) -> Tensor:
        """(rows, n, width), whatever the site's own shape."""
        value = widen(value, 0, self.rows)
        count_each(len(value), self.rows)
        return value.reshape(self.rows, -1, value.shape[-1])


def say_rows(rows: int) -> None:
    """Let it be known how many rows the forward that begins in this thread has."""
    _running.rows = rows


def align(x: Tensor, y: Tensor) -> Tensor:
    """x with its vectors laid out as those of y, where a site's module lays them out flat."""
    if x.dim() == y.dim() or not x.is_floating_point():
        return x
    lead = y.shape[:-1]
    return x.reshape(*lead, x.shape[-1]) if x[..., 0].numel() == lead.numel() else x


def widen(value: Tensor, axis: int, rows: int) -> Tensor:
    """The same for every row, where there is one for all of them, as positions have."""
    if value.shape[axis] != 1 or rows == 1:
        return value
    shape = list(value.shape)
    shape[axis] = getattr(_running, "rows", rows)
    return value.expand(shape)


def count_each(size: int, rows: int) -> int:
    """How many of `size` each of `rows` has. Raises AttachError where the batch is another."""
    if size % rows:
        raise AttachError(
            f"the batch has {size} rows, and {rows} were said what they have; route(rows) says it "
            "for the next batch"
        )
    return size // rows
