"""Repeating: a batch once for each part of a `Parallel`, and the rows that a table speaks of."""

from __future__ import annotations

import inspect
import threading
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._pytree import tree_map

from hub.attachment.arguments import list_parameters
from hub.attachment.caches import find_cache, is_filled
from hub.attachment.effects import Switch, walk_tensors
from hub.attachment.mixing import count_each, say_rows
from hub.attachment.repeated import begin_repeated, end_repeated
from hub.errors import AttachError

_repeated = threading.local()


class Repeater:
    """Two hooks on the whole model. Before all others, `enter` checks that the batch has as many
    rows as the table speaks of, and repeats it; what goes on from a cache has its rows already.
    `leave`, called after a failure too, says that the forward is over."""

    def __init__(self, switch: Switch, model: nn.Module) -> None:
        self.switch = switch
        self.parameters = list_parameters(model)

    def enter(
        self, module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]
    ) -> tuple[tuple[Any, ...], dict[str, Any]] | None:
        """The forward pre-hook. Raises AttachError."""
        table = self.switch.table
        if not self.switch.on or table is None or (table.count is None and table.copies == 1):
            return None
        if table.copies > 1:
            begin_repeated()
        kwargs = {**dict(zip(self.parameters, args, strict=False)), **kwargs}
        rows = count_rows(kwargs, module)
        if rows is None:
            if table.copies == 1:
                return None
            raise AttachError(
                f"{type(module).__name__} was given nothing with a row for each part of a "
                "batch, which a parallel repeats"
            )
        inside = getattr(_repeated, "inside", False) or bool(is_filled(find_cache(kwargs)))
        copies = 1 if inside else table.copies
        if table.count is not None:
            count_each(rows * copies, table.count * table.copies)
        say_rows(rows * copies)
        return None if copies == 1 else ((), repeat(kwargs, rows, copies))

    def leave(self, *_: Any) -> None:
        """The forward hook."""
        table = self.switch.table
        if self.switch.on and table is not None and table.copies > 1:
            end_repeated()


class Generator:
    """The model's `generate` while a batch is repeated: the prompts are repeated before it begins,
    so that it gives a row for each."""

    def __init__(self, switch: Switch, model: nn.Module) -> None:
        self.switch = switch
        self.model = model

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        """What the class's own `generate` gives for the repeated batch. Raises AttachError where
        there is none."""
        generate = type(self.model).generate  # type: ignore[attr-defined]
        table = self.switch.table
        if not self.switch.on or table is None or table.copies == 1:
            return generate(self.model, *args, **kwargs)
        names = tuple(inspect.signature(generate).parameters)[1:]
        kwargs = {**dict(zip(names, args, strict=False)), **kwargs}
        rows = count_rows(kwargs, self.model)
        if rows is None:
            raise AttachError("generate was given no prompts, which a parallel repeats")
        begin_repeated()  # an encoder is called by itself
        try:
            with _say_repeated():
                return generate(self.model, **repeat(kwargs, rows, table.copies))
        finally:
            end_repeated()


BATCHES = ("inputs", "input_ids", "inputs_embeds", "decoder_input_ids", "decoder_inputs_embeds")
UNBATCHED = ("logits_to_keep", "cache_position")


def count_rows(values: Mapping[str, Any], model: nn.Module) -> int | None:
    """How many rows a batch has; None where nothing tells."""
    for name in (*BATCHES, getattr(model, "main_input_name", ""), "encoder_outputs"):
        for value in walk_tensors(values.get(name)):
            return len(value)
    rest = (value for name, value in values.items() if name not in UNBATCHED)
    return next((len(v) for v in rest if isinstance(v, Tensor) and v.dim() > 1), None)


def repeat(values: Mapping[str, Any], rows: int, copies: int) -> dict[str, Any]:
    """The same with every tensor that has so many rows repeated, all rows and then all again."""

    def again(value: Any, axis: int = 0) -> Any:
        there = isinstance(value, Tensor) and value.dim() > axis and value.shape[axis] == rows
        return torch.cat([value] * copies, dim=axis) if there else value

    repeated = {}
    for name, value in values.items():
        if name in UNBATCHED or name.startswith("past_") or name.endswith("head_mask"):
            repeated[name] = value
        elif name == "position_ids" and isinstance(value, Tensor):
            repeated[name] = again(value, max(value.dim() - 2, 0))  # some have one for each axis
        else:
            repeated[name] = tree_map(again, value)
    return repeated


@contextmanager
def _say_repeated() -> Iterator[None]:
    _repeated.inside = True
    try:
        yield
    finally:
        _repeated.inside = False
