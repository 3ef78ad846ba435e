"""Batches whose rows have parts of every kind, and the same rows each in a run of its own."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from functools import cache
from typing import Any

import torch
from torch import Tensor

import hub
from hub.composition import Part
from hub.errors import ConfigError
from tests.snapshots import shake_adapter
from tests.tiny import build_tiny

OPTIONS: dict[str, dict[str, Any]] = {
    "lora": dict(r=3),
    "ia3": {},
    "houlsby": dict(size=4),
    "prefix": dict(tokens=2),
    "prompt": dict(tokens=3),
    "pfeiffer": dict(size=4),
    "parallel": dict(size=4),
    "bitfit": {},
    "ptuning": dict(tokens=4),
    "llama_adapter": dict(tokens=2),
    "full": {},
    "diff": {},
}
CLOSE = 1e-4  # of the largest value


@dataclass(frozen=True)
class Batch:
    """A model and a part for each row of a batch.

    parts: what each row has, by what it is called.
    """

    model: Any
    parts: Mapping[str, Part]

    @property
    def composition(self) -> hub.BatchSplit:
        """Rows may have any of the parts."""
        return hub.BatchSplit(*self.parts.values())

    @property
    def rows(self) -> list[int]:
        """Each row the next part."""
        return list(range(len(self.parts)))

    def attach(self, rows: Sequence[int] | None = None, **options: Any) -> hub.Attachment:
        """Attach it, each row its own part unless said otherwise."""
        options = {"trainable": False, **options}
        return hub.attach(self.model, self.composition, rows=rows or self.rows, **options)

    def only(self, *names: str) -> Batch:
        """The same with these parts alone."""
        return Batch(self.model, {name: self.parts[name] for name in names})

    def without(self, *names: str) -> Batch:
        """The same without these parts."""
        return self.only(*(name for name in self.parts if name not in names))


def attach_alone(model: Any, part: Part, **options: Any) -> AbstractContextManager[Any]:
    """One part on all rows; nothing where it is the bare base."""
    options = {"trainable": False, **options}
    if part is None:
        return nullcontext()
    assert not isinstance(part, str)
    return hub.attach(model, part, **options)


@cache
def build_batch(kind: str, task: str | None = None) -> Batch:
    """A row of every method that has a meaning there, of none, and of stacks of several. The model
    must stay as it is."""
    return make_batch(build_tiny(kind, task))


def make_batch(model: Any) -> Batch:
    """The same on a model of one's own."""
    adapters: dict[str, hub.Adapter] = {}
    for seed, (method, options) in enumerate(OPTIONS.items()):
        if model.config.model_type == "t5" and method in ("full", "diff"):
            continue  # test_rows.py says why
        try:
            adapter = hub.Adapter.create(method, model, **options)
        except ConfigError:
            continue
        adapters[method] = shake_adapter(adapter, seed=seed, scale=0.1)
    parts: dict[str, Part] = {**adapters, "none": None}
    names = [name for name in ("lora", "houlsby", "prefix", "prompt") if name in adapters]
    parts["stack"] = hub.Stack(*(adapters[name] for name in names))
    parts["average"] = hub.Average(adapters["ia3"], adapters["lora"], None, weights=[2, -1, 1])
    return Batch(model, parts)


def make_rows(batch: Batch, *, length: int = 6, padding: str | None = None) -> dict[str, Tensor]:
    """Token ids for every row, padded by 0, 1, 2, 3, 0, ... on one side."""
    generator = torch.Generator().manual_seed(5)
    count = len(batch.parts)
    ids = torch.randint(5, 90, (count, length), generator=generator)
    mask = torch.ones_like(ids)
    for row in range(count):
        hidden = slice(0, row % 4) if padding == "left" else slice(length - row % 4, length)
        if padding is not None:
            ids[row, hidden], mask[row, hidden] = 0, 0
    inputs = {"input_ids": ids, "attention_mask": mask}
    if batch.model.config.is_encoder_decoder:
        inputs["decoder_input_ids"] = torch.randint(5, 90, (count, 5), generator=generator)
    return inputs


def pick(inputs: Mapping[str, Any], *rows: int) -> dict[str, Any]:
    """Some rows."""
    return {
        name: value[list(rows)] if isinstance(value, Tensor) else value
        for name, value in inputs.items()
    }


def measure(found: Tensor, expected: Tensor) -> float:
    """How far apart, as a share of the largest value."""
    assert found.shape == expected.shape
    return float((found - expected).abs().max() / expected.abs().max())
