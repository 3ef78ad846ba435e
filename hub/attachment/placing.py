"""Placing: where in a row virtual tokens come. In front of its tokens, behind its padding.

Then a row's virtual tokens are as far from its tokens as if it were alone, whatever it is padded to
on the left.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn


def find_order(
    mask: Tensor | None, count: int, moving: int | Tensor, empty: Tensor | None = None
) -> Tensor | None:
    """What of `count` virtual tokens, followed by a row's own positions, comes at each place:
    (rows, count + seq). None where they stay as they are, since nothing is padded on the left.

    mask: (rows, seq), zero for padding.
    moving: how many virtual tokens, the last ones, come behind the padding; of each row, (rows, 1),
        or of all.
    empty: how many of the first places each row leaves empty, (rows, 1), where these are to come at
        the end.
    """
    if mask is None or not count:
        return None
    # A compiled graph can't ask about values, and arranges every batch.
    if empty is None and not torch.compiler.is_compiling() and bool(mask[:, 0].all()):
        return None
    padding = (mask.cumsum(1) == 0).sum(1, keepdim=True)
    place = torch.arange(count + mask.shape[1], device=mask.device).expand(len(mask), -1)
    if empty is not None:
        place = (place + empty) % place.shape[1]
    first = count - moving
    behind = torch.where(place < first + padding + moving, place - padding, place)
    order = torch.where(place < first + padding, place + moving, behind)
    return torch.where(place < first, place, order)


def arrange(value: Tensor, order: Tensor | None, axis: int = 1) -> Tensor:
    """Virtual tokens and a row's own positions, as they lie along `axis`, in their order; rows are
    the first axis."""
    if order is None:
        return value
    shape = [len(order)] + [1] * (value.dim() - 1)
    shape[axis] = order.shape[1]
    wanted = list(value.shape)
    wanted[axis] = order.shape[1]
    return value.gather(axis, order.view(shape).expand(wanted))


def take_tokens(value: Tensor, order: Tensor | None, count: int, axis: int = 1) -> Tensor:
    """A row's own positions out of `value`, without `count` virtual ones; contiguous, as what a
    model gives mostly is."""
    if order is None:
        return value.narrow(axis, count, value.shape[axis] - count).contiguous()
    return arrange(value, order.argsort(1)[:, count:], axis)


def find_places(order: Tensor | None, count: int, tokens: Tensor) -> Tensor:
    """At which place each row has one of its own positions; tokens: (rows,), which; what is none of
    them stays so."""
    moved = tokens + count
    if order is None:
        return moved
    known = (tokens >= 0) & (moved < order.shape[1])
    places = order.argsort(1).gather(1, torch.where(known, moved, 0).unsqueeze(1)).squeeze(1)
    return torch.where(known, places, moved)


def line_up(
    tables: Sequence[Tensor], count: int, owner: Tensor | None, behind: Tensor | None = None
) -> Tensor:
    """Tables of (n, width) at the end of `count` places, one for each row: (rows, count, width).

    owner: which table each row has; None for the one that there is, (1, count, width).
    behind: how many places each table leaves free at the end; None for none.
    """
    if len(tables) == 1:
        return tables[0].unsqueeze(0)
    free = [0] * len(tables) if behind is None else behind.tolist()
    padded = [
        nn.functional.pad(table, (0, 0, count - len(table) - after, after))
        for table, after in zip(tables, free, strict=True)
    ]
    return torch.stack(padded)[owner]
