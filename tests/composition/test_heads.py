"""Trained heads: each row its adapter's own, and those that come later."""

from __future__ import annotations

from typing import Any

import pytest
import torch

import hub
from hub.errors import AttachError
from tests.snapshots import run, shake_adapter, take_snapshot
from tests.tiny import build_tiny, make_inputs


def make_three() -> tuple[Any, list[Any], dict[str, Any], list[torch.Tensor]]:
    """A classifier, two adapters with heads and one with none, a batch, and what each row gives."""
    model = build_tiny("bert", "classification", num_labels=3)
    adapters: list[Any] = [
        shake_adapter(hub.Adapter.create("lora", model), seed=1),
        shake_adapter(hub.Adapter.create("houlsby", model), seed=2),
        None,
    ]
    ids = make_inputs(model)["input_ids"][:1].repeat(3, 1)
    inputs = {"input_ids": ids, "attention_mask": torch.ones_like(ids)}
    single = []
    for adapter in adapters[:2]:
        with hub.attach(model, adapter, trainable=False):
            single.append(run(model, **inputs)[0])
    single.append(run(model, **inputs)[0])
    return model, adapters, inputs, single


@pytest.mark.parametrize("rows", [[0, 1, 2], [2, 0, 1], [1, 1, 0]])
def test_each_row_is_answered_by_its_own_head(rows: list[int]) -> None:
    model, adapters, inputs, single = make_three()
    with hub.attach(model, hub.BatchSplit(*adapters), rows=rows, trainable=False):
        found = run(model, **inputs)
    torch.testing.assert_close(found, torch.stack([single[row] for row in rows]))


def test_a_head_that_is_added_is_free_of_those_before() -> None:
    model, adapters, inputs, single = make_three()
    before = take_snapshot(model)
    with hub.attach(model, adapters[0], trainable=False) as attachment:
        number = attachment.add(adapters[1], trainable=False)
        attachment.route([number, 0, None])
        found = run(model, **inputs)
        torch.testing.assert_close(found, torch.stack([single[row] for row in (1, 0, 2)]))
        attachment.route(number)
        torch.testing.assert_close(run(model, **inputs)[0], single[1])
        attachment.remove(0)
        torch.testing.assert_close(run(model, **inputs)[0], single[1])
    assert take_snapshot(model) == before


def test_heads_of_other_sizes_are_no_batch() -> None:
    model, adapters, _, _ = make_three()
    adapters[1].tensors["classifier.bias"] = torch.nn.Parameter(torch.zeros(4))
    with pytest.raises(AttachError, match="does not fit"):
        hub.attach(model, hub.BatchSplit(*adapters), rows=[0, 1, 2])
    assert hub.Attachment.of(model) is None


def test_a_fuse_answers_with_its_own_head() -> None:
    model, adapters, inputs, _ = make_three()
    fuse = hub.Fuse.create(model, *adapters[:2])
    shake_adapter(fuse.by, seed=3)
    assert isinstance(fuse.by, hub.Adapter)
    assert fuse.by.heads == ("classifier",)
    with hub.attach(model, fuse, trainable=False):
        fused = run(model, **inputs)
    for name, tensor in fuse.by.tensors.items():
        if name.startswith("classifier."):
            tensor.data.zero_()
    with hub.attach(model, fuse, trainable=False):
        assert not run(model, **inputs).any()
    assert fused.any()


@pytest.mark.parametrize("method", ["lora", "houlsby"])
def test_an_adapter_without_a_head_is_stacked_on_one_that_has_it(method: str) -> None:
    model, adapters, inputs, single = make_three()
    more = shake_adapter(hub.Adapter.create(method, model, head=False), seed=4)
    assert more.heads == ()
    assert not any(name.startswith("classifier.") for name in more.tensors)
    with hub.attach(model, hub.Stack(adapters[0], more), trainable=False):
        both = run(model, **inputs)
    with hub.attach(model, hub.Stack(more, adapters[0]), trainable=False):
        torch.testing.assert_close(run(model, **inputs), both, rtol=1e-4, atol=1e-5)
    assert not torch.allclose(both[0], single[0])
