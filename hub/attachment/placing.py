"""Placing: where in a row virtual tokens come. In front of its tokens, behind its padding.

Then a row's virtual tokens are as far from its tokens as if it were alone, whatever it is padded to
on the left.
"""

from __future__ import annotations

import torch
from torch import Tensor


def find_order(mask: Tensor | None, count: int) -> Tensor | None:
    """What of `count` virtual tokens, followed by a row's own positions, comes at each place:
    (rows, count + seq). None where they stay as they are, since nothing is padded on the left.

    mask: (rows, seq), zero for padding.
    """
    if mask is None or not count:
        return None
    # A compiled graph can't ask about values, and arranges every batch.
    if not torch.compiler.is_compiling() and bool(mask[:, 0].all()):
        return None
    padding = (mask.cumsum(1) == 0).sum(1, keepdim=True)
    place = torch.arange(count + mask.shape[1], device=mask.device).expand(len(mask), -1)
    behind = torch.where(place < padding + count, place - padding, place)
    return torch.where(place < padding, place + count, behind)


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
