"""Repeating: a batch once for each part of a `Parallel`, and the rows that a table speaks of."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from torch import Tensor, nn

from hub.attachment.arguments import list_parameters
from hub.attachment.caches import find_cache, is_filled
from hub.attachment.effects import Switch
from hub.attachment.mixing import count_each, say_rows

_repeated = threading.local()


class Repeater:
    """A forward pre-hook on the whole model, before all others: checks that the batch has as many
    rows as the table speaks of, and repeats it. What goes on from a cache has its rows already."""

    def __init__(self, switch: Switch, model: nn.Module) -> None:
        self.switch = switch
        self.parameters = list_parameters(model)

    def __call__(
        self, module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]
    ) -> tuple[tuple[Any, ...], dict[str, Any]] | None:
        table = self.switch.table
        if not self.switch.on or table is None or (table.count is None and table.copies == 1):
            return None
        kwargs = {**dict(zip(self.parameters, args, strict=False)), **kwargs}
        tensors = (kwargs.get(name) for name in ("input_ids", "inputs_embeds", "decoder_input_ids"))
        given = next((value for value in tensors if value is not None), None)
        if given is None:
            return None
        inside = getattr(_repeated, "inside", False) or bool(is_filled(find_cache(kwargs)))
        copies = 1 if inside else table.copies
        rows = len(given) * copies
        if table.count is not None:
            count_each(rows, table.count * table.copies)
        say_rows(rows)
        if copies == 1:
            return None
        return (), repeat(kwargs, len(given), copies)


class Generator:
    """The model's `generate` while a batch is repeated: the prompts are repeated before it begins,
    so that it gives a row for each."""

    def __init__(self, switch: Switch, model: nn.Module) -> None:
        self.switch = switch
        self.model = model

    def __call__(self, inputs: Any = None, *args: Any, **kwargs: Any) -> Any:
        """What the class's own `generate` gives for the repeated batch."""
        generate = type(self.model).generate  # type: ignore[attr-defined]
        table = self.switch.table
        if not self.switch.on or table is None or table.copies == 1:
            return generate(self.model, inputs, *args, **kwargs)
        names = ("input_ids", "inputs_embeds")
        tensors = [inputs, *(kwargs.get(name) for name in names)]
        given = next(value for value in tensors if isinstance(value, Tensor))
        again = {"inputs": inputs, **kwargs}
        again = repeat(again, len(given), table.copies)
        with _say_repeated():
            return generate(self.model, again.pop("inputs"), *args, **again)


def repeat(values: dict[str, Any], rows: int, copies: int) -> dict[str, Any]:
    """The same with every tensor that has so many rows repeated, all rows and then all again."""
    return {
        name: value.repeat(copies, *[1] * (value.dim() - 1))
        if isinstance(value, Tensor) and value.dim() and len(value) == rows
        else value
        for name, value in values.items()
    }


@contextmanager
def _say_repeated() -> Iterator[None]:
    _repeated.inside = True
    try:
        yield
    finally:
        _repeated.inside = False
