"""Answers: an adapter's trained head in front of the base's own."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._pytree import tree_map

from hub.adapter import Adapter
from hub.attachment.effects import Switch, walk_tensors
from hub.attachment.fitting import Fit
from hub.attachment.mixing import count_each
from hub.attachment.routing import show
from hub.composition import Average, Fuse, Leaf, Operator, Part, Split, fold
from hub.errors import AttachError


@dataclass(frozen=True, eq=False)
class MeanHead:
    """The weighted mean of what several answer; None is the base's own head."""

    heads: tuple[Head, ...]
    shares: tuple[float, ...]


Head = nn.Module | MeanHead | None
"""What answers at the path of a head; None for the base's own."""


def find_head(line: Part, path: str, fits: Mapping[Adapter, Fit]) -> Head:
    """What answers at a path for a composition without rows of its own. Raises AttachError where
    two would, or one at a part of the sequence."""

    def read(leaf: Leaf) -> Head:
        return fits[leaf].heads.get(path) if isinstance(leaf, Adapter) else None

    def join(node: Operator, children: list[Head]) -> Head:
        if isinstance(node, Fuse):
            return children[-1]
        if all(child is children[0] for child in children):
            return children[0]
        if isinstance(node, Average):
            return MeanHead(tuple(children), node.shares)
        brought = [child for child in children if child is not None]
        if isinstance(node, Split):
            raise AttachError(
                f"{show(node)} has no meaning: {name_owners(node, path, fits)} brings a trained "
                "head, which answers for the whole sequence; stack it with the split"
            )
        if any(child is not brought[0] for child in brought):
            raise AttachError(
                f"{name_owners(node, path, fits)} each bring a trained head, and a model answers "
                "with one; attach them one at a time, each for rows of its own, or averaged, or "
                "make one without: hub.Adapter.create(..., head=False)"
            )
        return brought[0]

    return fold(line, read, join)


def name_owners(node: Operator, path: str, fits: Mapping[Adapter, Fit]) -> str:
    """The adapters below an operator that bring a head to a path."""
    owners = (leaf for leaf in node.leaves() if isinstance(leaf, Adapter))
    return " and ".join(dict.fromkeys(a.label for a in owners if path in fits[a].heads))


def list_heads(head: Head) -> Iterator[nn.Module | None]:
    """Those that a head is the mean of, or itself."""
    left = [head]
    while left:
        head = left.pop()
        if isinstance(head, MeanHead):
            left += reversed(head.heads)
        else:
            yield head


def average_heads(head: Head, own: nn.Module, path: str) -> dict[str, Tensor]:
    """The parameters of the one head that answers as `head` does, over the base's own. Raises
    AttachError where the mean of what several answer is that of no one."""
    if not isinstance(head, MeanHead):
        return {name: tensor.data for name, tensor in (head or own).named_parameters()}
    if not isinstance(own, nn.Linear):
        raise AttachError(
            f"a mean of the trained heads at {path} is no change of weights, so can't merge; "
            "serve it attached"
        )
    parts = [average_heads(part, own, path) for part in head.heads]
    shares = list(zip(parts, head.shares, strict=True))
    return {name: sum_tensors(part[name].float() * w for part, w in shares) for name in parts[0]}


def sum_tensors(values: Iterable[Tensor]) -> Tensor:
    """All of them."""
    return torch.stack(list(values)).sum(0)


class HeadHook:
    """A forward hook: a trained head answers in place of the base's, or each row's own.

    A head that learns is in float32 over a base in half precision.

    heads: those that rows have; None for the base's own.
    rows: for each row its head's number; None where all have the first.
    """

    def __init__(self, switch: Switch, path: str) -> None:
        self.switch = switch
        self.path = path
        self.heads: tuple[Head, ...] = (None,)
        self.rows: tuple[int, ...] | None = None
        self.hung = False

    def lay(self, heads: Sequence[Head], rows: Sequence[int] | None) -> None:
        """Let these answer from now on."""
        self.heads, self.rows = tuple(heads), None if rows is None else tuple(rows)

    def __call__(
        self, module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any], output: Any
    ) -> Any:
        if not self.switch.on:
            return None
        if self.rows is None:
            head = self.heads[0]
            return None if head is None else self._answer(head, args, kwargs, output)
        size = len(next(walk_tensors([output])))
        rows = torch.tensor(self.rows).repeat_interleave(count_each(size, len(self.rows)))
        parts, places = [], []
        for number, head in enumerate(self.heads):
            index = (rows == number).nonzero().flatten()
            if not len(index):
                continue
            own = take_rows((args, kwargs, output), index, size)
            parts.append(self._answer(head, *own))
            places.append(index)
        self._check(parts)
        order = torch.cat(places).argsort()
        return torch.cat(parts)[order.to(parts[0].device)]

    def _answer(
        self, head: Head, args: tuple[Any, ...], kwargs: dict[str, Any], output: Any
    ) -> Any:
        if head is None:
            return output
        if isinstance(head, nn.Module):
            return answer(head, args, kwargs, output)
        said = [self._answer(part, args, kwargs, output) for part in head.heads]
        self._check(said)
        shares = zip(said, head.shares, strict=True)
        return sum_tensors(value * share for value, share in shares).to(output.dtype)

    def _check(self, answers: Sequence[Any]) -> None:
        if not all(isinstance(value, Tensor) for value in answers):
            raise AttachError(
                f"{self.path} answers with more than one tensor, so several heads can't answer "
                "together; attach one at a time"
            )


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
