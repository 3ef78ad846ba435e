"""Operators in operators: stacks in stacks without a limit, others as deep as Python can call."""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import Any

import pytest
import torch

import hub
from hub.attachment.routing import DEEPEST
from hub.composition import Part
from hub.errors import AttachError
from tests.snapshots import run, shake_adapter
from tests.tiny import build_tiny, make_inputs

DEEP = 3000


@pytest.fixture
def model() -> Any:
    return build_tiny("llama")


@pytest.fixture
def adapters(model: Any) -> list[hub.Adapter]:
    return [
        shake_adapter(hub.Adapter.create("lora", model, r=2, targets=["q_proj"]), seed=seed)
        for seed in range(3)
    ]


def nest(tree: Part, depth: int, wrap: Callable[[Part], Part]) -> Any:
    for _ in range(depth):
        tree = wrap(tree)
    return tree


def test_stacks_in_stacks_run_at_any_depth(model: Any, adapters: list[hub.Adapter]) -> None:
    one, two, other = adapters
    with hub.attach(model, hub.Stack(one, two, other), trainable=False):
        expected = run(model)
    inner = nest(one, DEEP, lambda tree: hub.Stack(None, tree))
    tree = nest(hub.Stack(inner, two), DEEP, lambda tree: hub.Stack(tree))
    with hub.attach(model, hub.Stack(tree, other), trainable=False) as attachment:
        assert torch.equal(run(model), expected)
        assert attachment.lines == (hub.Stack(one, two, other),)
        twin = copy.deepcopy(model)
        assert torch.equal(run(twin), expected)
        attachment.merge()
        torch.testing.assert_close(run(model), expected, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("kind", [hub.BatchSplit, hub.Parallel])
def test_rows_are_chosen_at_any_depth(
    model: Any, adapters: list[hub.Adapter], kind: Callable[..., Part]
) -> None:
    one, two, other = adapters
    inner = nest(kind(one, two), DEEP, lambda tree: hub.Stack(tree))
    tree = nest(hub.Stack(inner, other), DEEP, lambda tree: kind(tree))
    rows = [0, 1] if kind is hub.BatchSplit else None
    with hub.attach(model, tree, rows=rows, trainable=False) as attachment:
        assert attachment.lines == (hub.Stack(one, other), hub.Stack(two, other))
        run(model)


def make_fuse(model: Any, tree: Part, other: hub.Adapter) -> hub.Fuse:
    return hub.Fuse(tree, other, by=hub.Fuse.create(model, other, size=2, value=False).by)


@pytest.mark.parametrize("kind", ["average", "split", "fuse", "mixed"])
def test_the_deepest_that_is_attached_runs_and_learns(
    model: Any, adapters: list[hub.Adapter], kind: str
) -> None:
    one, _, other = adapters
    wraps: dict[str, Callable[[Part], Part]] = {
        "average": lambda tree: hub.Average(tree, None),
        "split": lambda tree: hub.Split(other, tree, at=1),
        "fuse": lambda tree: make_fuse(model, tree, other),
        "mixed": lambda tree: hub.Stack(other, hub.Average(tree, None)),
    }
    tree = nest(one, DEEPEST, wraps[kind])
    inputs = make_inputs(model)
    with hub.attach(model, tree, trainable=one):
        loss = model(**inputs, labels=inputs["input_ids"]).loss
        loss.backward()
    assert any(tensor.grad is not None for tensor in one.tensors.values())
    if kind in ("average", "mixed"):
        with hub.attach(model, tree, trainable=False) as attachment:
            expected = run(model)
            attachment.merge()
            torch.testing.assert_close(run(model), expected, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("depth", [DEEPEST + 1, DEEP])
def test_what_is_too_deep_to_run_is_refused_with_the_limit(
    model: Any, adapters: list[hub.Adapter], depth: int
) -> None:
    tree = nest(adapters[0], depth, lambda tree: hub.Average(hub.Stack(tree), None))
    with pytest.raises(AttachError, match=f"has {depth:,} averages.* at most {DEEPEST} can run"):
        hub.attach(model, tree)
    assert hub.Attachment.of(model) is None
    with hub.attach(model, adapters[1]) as attachment:
        with pytest.raises(AttachError, match=f"at most {DEEPEST} can run"):
            attachment.add(tree)
        assert list(attachment.resident) == [0]
        attachment.add(adapters[2])
