"""Trained heads: each row its adapter's own, and those that come later."""

from __future__ import annotations

from typing import Any

import pytest
import torch

import hub
from hub.errors import AttachError
from tests.architectures.cells import Cell, build_model
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


@pytest.mark.parametrize("weights", [[1, 3], [3, -1], [0, 1]])
def test_an_average_answers_with_the_mean_of_the_heads(weights: list[float]) -> None:
    """The heads alone differ here, so the mean of the models is that of what each answers."""
    model, _, inputs, _ = make_three()
    one, two = (make_head(model, seed) for seed in (1, 2))
    answers = []
    for adapter in (one, two):
        with hub.attach(model, adapter, trainable=False):
            answers.append(run(model, **inputs))
    answers.append(run(model, **inputs))
    first, second = (weight / sum(weights) for weight in weights)
    for pair, numbers in (((one, two), (0, 1)), ((one, None), (0, 2)), ((None, two), (2, 1))):
        expected = first * answers[numbers[0]] + second * answers[numbers[1]]
        before = take_snapshot(model)
        with hub.attach(model, hub.Average(*pair, weights=weights), trainable=False) as attachment:
            torch.testing.assert_close(run(model, **inputs), expected)
            attachment.merge()
            torch.testing.assert_close(run(model, **inputs), expected)
        assert take_snapshot(model) == before
    nested = hub.Average(hub.Average(one, None), hub.Stack(two, hub.Average(None, None)))
    with hub.attach(model, nested, trainable=False):
        expected = (answers[0] + answers[2]) / 4 + answers[1] / 2
        torch.testing.assert_close(run(model, **inputs), expected)


def make_head(model: Any, seed: int, **options: Any) -> hub.Adapter:
    """An adapter that is its trained head alone."""
    adapter = shake_adapter(hub.Adapter.create("lora", model, **options), seed=seed)
    for name, tensor in adapter.tensors.items():
        if not name.startswith("classifier."):
            tensor.data.zero_()
    made: hub.Adapter = adapter
    return made


def test_rows_have_means_of_heads_too() -> None:
    model, (one, two, _), inputs, single = make_three()
    mean = hub.Average(one, two, weights=[2, 1])
    with hub.attach(model, mean, trainable=False):
        expected = run(model, **inputs)[0]
    parts = hub.BatchSplit(mean, one, None)
    with hub.attach(model, parts, rows=[2, 0, 1], trainable=False):
        found = run(model, **inputs)
    torch.testing.assert_close(found, torch.stack([single[2], expected, single[0]]))


def test_a_mean_of_heads_learns() -> None:
    model, (one, two, _), inputs, _ = make_three()
    with hub.attach(model, hub.Average(one, two), trainable=True):
        model(**inputs, labels=torch.tensor([0, 1, 2])).loss.backward()
    for adapter in (one, two):
        assert adapter.tensors["classifier.weight"].grad.any()


def test_a_mean_of_heads_that_are_no_linear_layer_does_not_merge() -> None:
    model = build_model(Cell("classification", "roberta"))
    parts = [shake_adapter(hub.Adapter.create("lora", model), seed=seed) for seed in (1, 2)]
    with hub.attach(model, hub.Average(*parts), trainable=False) as attachment:
        before = run(model)
        with pytest.raises(AttachError, match="a mean of the trained heads at classifier"):
            attachment.merge()
        torch.testing.assert_close(run(model), before)


def test_answers_that_mean_different_things_have_no_mean() -> None:
    model, (one, two, _), _, _ = make_three()
    one.lineage["labels"], two.lineage["labels"] = ["a", "b", "c"], ["c", "b", "a"]
    with pytest.raises(AttachError, match=r"answers with a, b, c and .* with c, b, a"):
        hub.attach(model, hub.Average(one, two))
    with hub.attach(model, hub.BatchSplit(one, two), rows=[0, 1]):
        pass


def test_a_head_answers_for_the_whole_sequence() -> None:
    model, (one, two, _), inputs, _ = make_three()
    for split in (hub.Split(None, one, at=3), hub.Split(one, two, at=3)):
        with pytest.raises(AttachError, match="which answers for the whole sequence"):
            hub.attach(model, split)
    plain = hub.Adapter.create("lora", model, head=False, targets="attention")
    head = make_head(model, 1, targets="attention")
    with hub.attach(model, hub.Stack(head, hub.Split(None, plain, at=3))):
        assert run(model, **inputs).isfinite().all()
