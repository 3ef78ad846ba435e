"""`torch.compile` with rows that are routed: a compiled model sees every change of its table."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

import pytest
import torch
from torch import Tensor

import hub
from hub.composition import Part
from tests.composition.batches import CLOSE, OPTIONS, attach_alone, measure
from tests.snapshots import shake_adapter
from tests.tiny import build_tiny

IDS = torch.randint(5, 90, (1, 5), generator=torch.Generator().manual_seed(8))


class Compiled:
    """A model of one layer, compiled, and what each part gives without."""

    def __init__(self) -> None:
        self.model = build_tiny("llama", num_hidden_layers=1)
        self.whole: Any = torch.compile(self.model, backend="eager")
        self.alone: dict[Part, Tensor] = {}

    def make(self, method: str, seed: int = 1) -> hub.Adapter:
        """An adapter with values that matter."""
        adapter = hub.Adapter.create(method, self.model, **OPTIONS[method])
        shaken: hub.Adapter = shake_adapter(adapter, seed=seed, scale=0.3)
        return shaken

    def learn(self, *parts: Part) -> None:
        """Run each part alone."""
        for part in parts:
            with attach_alone(self.model, part), torch.no_grad():
                self.alone[part] = self.model(input_ids=IDS, use_cache=False).logits[0]

    def require(self, parts: Sequence[Part]) -> None:
        """Each row of the compiled model gives what its part gives alone."""
        with torch.no_grad():
            found = self.whole(input_ids=IDS.repeat(len(parts), 1), use_cache=False).logits
        for logits, part in zip(found, parts, strict=True):
            assert measure(logits, self.alone[part]) < CLOSE


@pytest.fixture
def compiled() -> Iterator[Compiled]:
    torch.compiler.reset()
    yield Compiled()
    torch.compiler.reset()


def count_graphs() -> int:
    return int(torch._dynamo.utils.counters["stats"]["unique_graphs"])


def test_a_compiled_model_follows_route_add_and_remove(compiled: Compiled) -> None:
    lora, other, houlsby = (
        compiled.make("lora"),
        compiled.make("lora", seed=2),
        compiled.make("houlsby"),
    )
    compiled.learn(lora, other, houlsby, None)
    compiled.require([None, None])
    with hub.attach(
        compiled.model, hub.BatchSplit(lora, other), rows=[0, 1], trainable=False
    ) as attachment:
        compiled.require([lora, other])
        graphs = count_graphs()
        attachment.route([1, 0])
        compiled.require([other, lora])
        attachment.route([1, 1, 0])
        compiled.require([other, other, lora])
        assert count_graphs() <= graphs + 1  # another number of rows
        number = attachment.add(houlsby)
        compiled.require([other, other, lora])
        attachment.route([number, 0])
        compiled.require([houlsby, lora])
        with attachment.disabled():
            compiled.require([None, None])
        attachment.route(number)
        compiled.require([houlsby, houlsby])
        attachment.route([0, None])
        attachment.remove(number)
        compiled.require([lora, None])
    compiled.require([None, None])


def test_a_compiled_model_follows_rows_with_virtual_tokens(compiled: Compiled) -> None:
    prompt, prefix = compiled.make("prompt"), compiled.make("prefix")
    compiled.learn(prompt, prefix, None)
    with hub.attach(
        compiled.model, hub.BatchSplit(prompt, prefix), rows=[0, 1], trainable=False
    ) as attachment:
        compiled.require([prompt, prefix])
        attachment.route([1, None])
        compiled.require([prefix, None])
        attachment.route([0, 0])
        compiled.require([prompt, prompt])
    compiled.require([None])


@pytest.mark.parametrize("operator", ["average", "split", "parallel"])
def test_operators_give_the_same_when_compiled(compiled: Compiled, operator: str) -> None:
    lora, ia3 = compiled.make("lora"), compiled.make("ia3")
    tree = {
        "average": hub.Average(lora, ia3, weights=[3, -1]),
        "split": hub.Split(lora, ia3, at=2),
        "parallel": hub.Parallel(lora, ia3),
    }[operator]
    with hub.attach(compiled.model, tree, trainable=False), torch.no_grad():
        expected = compiled.model(input_ids=IDS, use_cache=False).logits
        found = compiled.whole(input_ids=IDS, use_cache=False).logits
    assert measure(found, expected) < CLOSE


def test_more_tables_than_graphs_are_kept_are_still_followed(
    compiled: Compiled,
) -> None:
    """Beyond torch's limit a model runs uncompiled, and right."""
    parts = [compiled.make(method) for method in ("lora", "ia3", "houlsby", "parallel")]
    compiled.learn(*parts)
    attached = hub.attach(compiled.model, hub.BatchSplit(*parts), rows=[0, 1], trainable=False)
    with torch._dynamo.config.patch(recompile_limit=2), attached as attachment:
        for rows in ([0, 1], [0, 2], [0, 3], [1, 2], [2, 3]):
            attachment.route(rows)
            compiled.require([parts[row] for row in rows])
