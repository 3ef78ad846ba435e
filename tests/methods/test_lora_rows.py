"""Rows with different LoRA: one product of batches, and the same as each row alone."""

from __future__ import annotations

from typing import Any

import pytest
import torch

import hub
from hub.attachment.mixing import JoinedNode
from tests.snapshots import shake_adapter
from tests.tiny import build_tiny

IDS = torch.randint(5, 90, (6, 7), generator=torch.Generator().manual_seed(0))


def make_adapters(model: Any) -> list[Any]:
    """Other ranks, scalings and modules."""
    options: list[dict[str, Any]] = [
        {"r": 2},
        {"r": 4, "alpha": 1, "rslora": True},
        {"r": 3, "targets": "attention"},
        {"r": 2, "rank_pattern": {"q_proj": 5}},
    ]
    return [
        shake_adapter(hub.Adapter.create("lora", model, **more), seed=seed)
        for seed, more in enumerate(options)
    ]


def compute(model: Any, ids: torch.Tensor) -> torch.Tensor:
    logits: torch.Tensor = model(input_ids=ids).logits
    return logits


def list_joined(model: Any) -> list[Any]:
    """What acts at the model's projections by LoRA's own fast way."""
    hooks = [hook for m in model.modules() for hook in m._forward_hooks.values()]
    nodes = [node for hook in hooks for node in getattr(hook, "chain", ())]
    return [node.module for node in nodes if isinstance(node, JoinedNode)]


@pytest.fixture
def model() -> Any:
    return build_tiny("llama")


@torch.no_grad()
def expect(model: Any, parts: list[Any], rows: list[int | None]) -> torch.Tensor:
    """Each row by itself."""
    outputs = []
    for ids, row in zip(IDS[: len(rows)], rows, strict=True):
        if row is None:
            outputs.append(compute(model, ids[None]))
            continue
        with hub.attach(model, parts[row], trainable=False):
            outputs.append(compute(model, ids[None]))
    return torch.cat(outputs)


def test_rows_that_change_are_each_what_they_are_alone(model: Any) -> None:
    adapters = make_adapters(model)
    parts = [*adapters, hub.Stack(adapters[0], adapters[3])]
    tables: list[list[int | None]] = [
        [0, 1, 2, 3, 4, None],
        [0, 1, 2, 3, 0, None],
        [0, 1, 2, 3, 4, None],
        [None, 0, 0, 0, 0, 2],
        [3, 3, 3, 3, 3, 3],
        [4, 3, 2, 1, 0, 0],
        [1, 2],
    ]
    expected = [expect(model, parts, rows) for rows in tables]
    with hub.attach(model, hub.BatchSplit(*parts), rows=tables[0], trainable=False) as attachment:
        for turn in range(2):
            for rows, wanted in zip(tables, expected, strict=True):
                attachment.route(rows)
                assert bool(list_joined(model)) == (len(set(rows)) > 1)
                with torch.inference_mode(mode=bool(turn)), torch.no_grad():
                    found = compute(model, IDS[: len(rows)])
                torch.testing.assert_close(found, wanted, rtol=1e-4, atol=1e-5)


def test_copies_are_taken_over_where_rows_stay(model: Any) -> None:
    adapters = [shake_adapter(hub.Adapter.create("lora", model, r=18), seed=s) for s in range(4)]
    first, second = [0, 1, 2, 3], [0, 1, 3, 2]
    expected = expect(model, adapters, [*second])
    with hub.attach(model, hub.BatchSplit(*adapters), rows=first, trainable=False) as attachment:
        before = [(module, module.kept.value) for module in list_joined(model)]
        attachment.route(second)
        for (old, kept), new in zip(before, list_joined(model), strict=True):
            assert new is not old
            assert all(one is other for one, other in zip(kept, new.kept.value, strict=True))
            assert old.kept.value is None
        with torch.no_grad():
            torch.testing.assert_close(compute(model, IDS[:4]), expected, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("r", [2, 18], ids=["few", "many"])
@pytest.mark.parametrize("length", [1, 7])
def test_short_and_long_rows(model: Any, r: int, length: int) -> None:
    adapters = [shake_adapter(hub.Adapter.create("lora", model, r=r), seed=s) for s in range(4)]
    ids = IDS[:4, :length]
    with torch.no_grad():
        expected = []
        for row, adapter in enumerate(adapters):
            with hub.attach(model, adapter, trainable=False):
                expected.append(compute(model, ids[row : row + 1]))
        rows = [0, 1, 2, 3]
        with hub.attach(model, hub.BatchSplit(*adapters), rows=rows, trainable=False):
            found = compute(model, ids)
            twice = compute(model, ids.repeat_interleave(2, dim=0))
    torch.testing.assert_close(found, torch.cat(expected), rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(twice[::2], found, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("r", [2, 18], ids=["few", "many"])
def test_batches_learn_what_their_rows_learn_alone(model: Any, r: int) -> None:
    adapters = make_adapters(model)
    adapters[0] = shake_adapter(hub.Adapter.create("lora", model, r=r))
    rows = [0, 1, 2, 3, 1, 0]
    alone: dict[Any, torch.Tensor] = {}
    for ids, row in zip(IDS, rows, strict=True):
        with hub.attach(model, adapters[row], trainable=True) as attachment:
            compute(model, ids[None]).square().sum().backward()
            for parameter in attachment.parameters():
                assert parameter.grad is not None
                alone[parameter] = alone.get(parameter, 0) + parameter.grad
                parameter.grad = None
    composition = hub.BatchSplit(*adapters)
    with hub.attach(model, composition, rows=rows, trainable=True) as attachment:
        assert list_joined(model)
        compute(model, IDS).square().sum().backward()
        found = {parameter: parameter.grad for parameter in attachment.parameters()}
    assert found.keys() == alone.keys()
    for parameter, gradient in found.items():
        torch.testing.assert_close(gradient, alone[parameter], rtol=1e-3, atol=1e-4)


def test_what_was_changed_while_learning_counts_at_once(model: Any) -> None:
    adapters = make_adapters(model)
    with hub.attach(model, hub.BatchSplit(*adapters), rows=[0, 1], trainable=True):
        before = compute(model, IDS[:2])
        with torch.no_grad():
            for tensor in adapters[1].tensors.values():
                tensor.mul_(2)
        after = compute(model, IDS[:2])
    assert torch.equal(before[0], after[0])
    assert not torch.equal(before[1], after[1])


@pytest.mark.parametrize("options", [{"dora": True}, {"dropout": 0.5}], ids=["dora", "dropout"])
def test_the_slow_way_is_there_for_the_rest(model: Any, options: dict[str, Any]) -> None:
    adapters = [
        shake_adapter(hub.Adapter.create("lora", model, r=2, **options), seed=s) for s in range(2)
    ]
    expected = expect(model, adapters, [0, 1])
    learns = "dropout" in options
    with hub.attach(model, hub.BatchSplit(*adapters), rows=[0, 1], trainable=learns):
        assert not list_joined(model)
        with torch.no_grad():
            found = compute(model, IDS[:2])
    torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-5)


def test_half_precision_rows(model: Any) -> None:
    adapters = make_adapters(model)
    model.to(torch.bfloat16)
    rows = [0, 1, 2, 3]
    expected = expect(model, adapters, [0, 1, 2, 3])
    with hub.attach(model, hub.BatchSplit(*adapters), rows=rows, trainable=False), torch.no_grad():
        found = compute(model, IDS[:4])
    assert found.dtype == torch.bfloat16
    torch.testing.assert_close(found, expected, rtol=5e-2, atol=5e-2)
