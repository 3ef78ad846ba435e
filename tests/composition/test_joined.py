"""The faster ways of the built-in methods: each row is what it is alone, and learns the same."""

from __future__ import annotations

from typing import Any

import pytest
import torch

import hub
from hub.attachment.mixing import JoinedNode
from tests.snapshots import shake_adapter
from tests.tiny import build_tiny

IDS = torch.randint(5, 90, (4, 6), generator=torch.Generator().manual_seed(0))
METHODS = ["ia3", "houlsby", "pfeiffer", "parallel"]


def count_joined(model: Any) -> int:
    hooks = [
        hook
        for module in model.modules()
        for table in (module._forward_hooks, module._forward_pre_hooks)
        for hook in table.values()
    ]
    nodes = [node for hook in hooks for node in getattr(hook, "chain", ())]
    return sum(isinstance(node, JoinedNode) for node in nodes)


@pytest.mark.parametrize("learns", [False, True], ids=["serving", "learning"])
@pytest.mark.parametrize("kind", ["llama", "bert"])
@pytest.mark.parametrize("method", METHODS)
def test_rows_are_what_they_are_alone(method: str, kind: str, learns: bool) -> None:
    model = build_tiny(kind)
    adapters: list[Any] = [
        shake_adapter(hub.Adapter.create(method, model), seed=seed) for seed in range(3)
    ]
    parts = [*adapters, None]
    rows = [2, 0, 3, 1]
    expected, alone = [], {}
    for ids, row in zip(IDS, rows, strict=True):
        if parts[row] is None:
            expected.append(model(input_ids=ids[None]).logits.detach())
            continue
        with hub.attach(model, parts[row], trainable=learns) as attachment:
            logits = model(input_ids=ids[None]).logits
            expected.append(logits.detach())
            if learns:
                logits.square().sum().backward()
                alone |= {p: p.grad for p in attachment.parameters()}
            for parameter in attachment.parameters():
                parameter.grad = None
    with hub.attach(model, hub.BatchSplit(*parts), rows=rows, trainable=learns) as attachment:
        assert count_joined(model)
        found = model(input_ids=IDS).logits
        torch.testing.assert_close(found, torch.cat(expected), rtol=1e-4, atol=1e-5)
        if learns:
            found.square().sum().backward()
            grads = {p: p.grad for p in attachment.parameters()}
            assert grads.keys() == alone.keys()
            for parameter, grad in grads.items():
                torch.testing.assert_close(grad, alone[parameter], rtol=1e-3, atol=1e-4)


def test_stacks_of_vectors_are_one_vector() -> None:
    model = build_tiny("llama")
    one, two = (shake_adapter(hub.Adapter.create("ia3", model), seed=seed) for seed in range(2))
    with torch.no_grad():
        expected = []
        for ids, part in zip(IDS, (hub.Stack(one, two), two), strict=False):
            with hub.attach(model, part, trainable=False):
                expected.append(model(input_ids=ids[None]).logits)
        parts = hub.BatchSplit(hub.Stack(one, two), two)
        with hub.attach(model, parts, rows=[0, 1], trainable=False):
            assert count_joined(model)
            found = model(input_ids=IDS[:2]).logits
    torch.testing.assert_close(found, torch.cat(expected), rtol=1e-4, atol=1e-5)


def test_bottlenecks_of_other_widths_go_the_slow_way() -> None:
    model = build_tiny("llama")
    parts = [
        shake_adapter(hub.Adapter.create("houlsby", model, size=size), seed=size) for size in (2, 5)
    ]
    with torch.no_grad():
        expected = []
        for ids, part in zip(IDS, parts, strict=False):
            with hub.attach(model, part, trainable=False):
                expected.append(model(input_ids=ids[None]).logits)
        with hub.attach(model, hub.BatchSplit(*parts), rows=[0, 1], trainable=False):
            assert not count_joined(model)
            found = model(input_ids=IDS[:2]).logits
    torch.testing.assert_close(found, torch.cat(expected), rtol=1e-4, atol=1e-5)
