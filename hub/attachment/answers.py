"""Answers: an adapter's trained head in front of the base's own."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._pytree import tree_map

from hub.attachment.effects import Switch, walk_tensors
from hub.attachment.mixing import count_each
from hub.errors import AttachError


class HeadHook:
    """A forward hook: a trained head answers in place of the base's, or each row's own.

    A head that learns is in float32 over a base in half precision.

    heads: those that rows have; None for the base's own.
    rows: for each row its head's number; None where all have the first.
    """

    def __init__(self, switch: Switch, path: str) -> None:
        self.switch = switch
        self.path = path
        self.heads: tuple[nn.Module | None, ...] = (None,)
        self.rows: tuple[int, ...] | None = None
        self.hung = False

    def lay(self, heads: Sequence[nn.Module | None], rows: Sequence[int] | None) -> None:
        """Let these answer from now on."""
        self.heads, self.rows = tuple(heads), None if rows is None else tuple(rows)

    def __call__(
        self, module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any], output: Any
    ) -> Any:
        if not self.switch.on:
            return None
        if self.rows is None:
            head = self.heads[0]
            return None if head is None else answer(head, args, kwargs, output)
        size = len(next(walk_tensors([output])))
        rows = torch.tensor(self.rows).repeat_interleave(count_each(size, len(self.rows)))
        parts, places = [], []
        for number, head in enumerate(self.heads):
            index = (rows == number).nonzero().flatten()
            if not len(index):
                continue
            own = take_rows((args, kwargs, output), index, size)
            parts.append(own[2] if head is None else answer(head, *own))
            places.append(index)
        if not all(isinstance(part, Tensor) for part in parts):
            raise AttachError(
                f"{self.path} answers with more than one tensor, so rows can't have heads of their "
                "own; attach one at a time"
            )
        order = torch.cat(places).argsort()
        return torch.cat(parts)[order.to(parts[0].device)]


def answer(head: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any], output: Any) -> Any:
    """What a head says instead of `output`, in its precision."""
    dtype = next(head.parameters()).dtype
    if not dtype.is_floating_point:
        return head(*args, **kwargs)
    given = {tensor.dtype for tensor in walk_tensors(output) if tensor.is_floating_point()}
    said = head(*cast_floating(args, dtype), **cast_floating(kwargs, dtype))
    return cast_floating(said, given.pop()) if len(given) == 1 else said


def take_rows(values: Any, index: Tensor, size: int) -> Any:
    """The same with those rows of every tensor that has `size` rows."""

    def take(value: Any) -> Any:
        there = isinstance(value, Tensor) and value.dim() and len(value) == size
        return value.index_select(0, index.to(value.device)) if there else value

    return tree_map(take, values)


def cast_floating(value: Any, dtype: torch.dtype) -> Any:
    """The same with its floating tensors in another precision, wherever in it they are."""
    if isinstance(value, torch.Tensor):
        return value.to(dtype) if value.is_floating_point() else value
    if type(value) in (tuple, list):
        return type(value)(cast_floating(item, dtype) for item in value)
    if isinstance(value, dict) and value:
        items = {name: cast_floating(item, dtype) for name, item in value.items()}
        return items if type(value) is dict else type(value)(**items)
    return value
