"""Residents come and go, and rows are routed among them; what fails leaves all as it was."""

from __future__ import annotations

import copy
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

import hub
from hub.composition import Part
from hub.errors import AttachError, BaseMismatch
from tests.architectures.cells import Cell, build_model
from tests.composition.batches import OPTIONS, attach_alone, measure
from tests.snapshots import Snapshot, shake_adapter, take_snapshot
from tests.tiny import build_tiny

IDS = torch.randint(5, 90, (1, 6), generator=torch.Generator().manual_seed(2))
CLOSE = 1e-5


def make(model: Any, method: str, seed: int = 1) -> hub.Adapter:
    """An adapter with values that matter."""
    adapter = hub.Adapter.create(method, model, **OPTIONS[method])
    shaken: hub.Adapter = shake_adapter(adapter, seed=seed, scale=0.2)
    return shaken


def run(model: Any, rows: int = 1) -> Tensor:
    """The logits of so many equal rows."""
    with torch.no_grad():
        logits: Tensor = model(input_ids=IDS.repeat(rows, 1)).logits
    return logits


def run_alone(model: Any, part: Part) -> Tensor:
    """The logits of the row under one part."""
    with attach_alone(model, part):
        return run(model)[0]


def require_rows(model: Any, *expected: Tensor) -> None:
    """Each row gives what is expected of it."""
    for found, wanted in zip(run(model, len(expected)), expected, strict=True):
        assert measure(found, wanted) < CLOSE


@pytest.fixture
def model() -> Any:
    return build_tiny("llama", initializer_range=0.1)


METHODS = ["lora", "ia3", "houlsby", "prefix", "prompt"]


def test_rows_are_named_by_number_adapter_reference_and_none(model: Any, tmp_path: Path) -> None:
    lora, prompt = make(model, "lora"), make(model, "prompt")
    lora.save(tmp_path / "saved")
    saved = str(tmp_path / "saved")
    one, two, bare = (run_alone(model, part) for part in (lora, prompt, None))
    stack = hub.Stack(lora, prompt)
    both = run_alone(model, stack)
    with hub.attach(
        model, hub.BatchSplit(saved, prompt, stack), rows=[0, 1, 2], trainable=False
    ) as attachment:
        require_rows(model, one, two, both)
        for rows in ([1, 0, None, 2], (prompt, saved, None, stack)):
            attachment.route(rows)
            require_rows(model, two, one, bare, both)
        for rows in (torch.tensor([0, 1, 1]), np.array([0, 1, 1]), [np.int64(0), 1, 1]):
            attachment.route(rows)
            require_rows(model, one, two, two)
        for row, expected in ((1, two), (saved, one), (stack, both)):
            attachment.route(row)
            require_rows(model, expected, expected)
        attachment.route([None])
        require_rows(model, bare, bare, bare)


def test_what_is_added_is_ready_and_does_not_act(model: Any) -> None:
    adapters = [make(model, method) for method in METHODS]
    alone = [run_alone(model, adapter) for adapter in adapters]
    before = take_snapshot(model)
    with hub.attach(model, adapters[0], trainable=False) as attachment:
        numbers = [0]
        for adapter in adapters[1:]:
            numbers.append(attachment.add(adapter))
            require_rows(model, alone[0])
            assert attachment.active == (adapters[0],)
        assert dict(attachment.resident) == dict(enumerate(adapters))
        attachment.route(numbers)
        require_rows(model, *alone)
        assert set(attachment.active) == set(adapters)
        attachment.route([*reversed(numbers), None])
        require_rows(model, *reversed(alone), run_alone(build_like(model), None))
    assert take_snapshot(model) == before


def build_like(model: Any) -> Any:
    """A bare copy of a model that carries something."""
    twin = copy.deepcopy(model)
    carried = hub.Attachment.of(twin)
    assert carried is not None
    carried.detach()
    return twin


@pytest.mark.parametrize("method", METHODS)
def test_what_is_removed_leaves_the_others_and_its_number(model: Any, method: str) -> None:
    one, two, three = make(model, "lora"), make(model, method, seed=2), make(model, "houlsby")
    alone = [run_alone(model, part) for part in (one, two, three)]
    with hub.attach(model, one, trainable=False) as attachment:
        plain = take_snapshot(model)
        first, second = attachment.add(two), attachment.add(hub.Stack(three, two))
        assert (first, second) == (1, 2)
        attachment.remove(two)
        assert list(attachment.resident) == [0, 2]
        attachment.route([2, 0])
        run(model, 2)
        attachment.route(0)
        attachment.remove(2)
        assert list(attachment.resident) == [0]
        assert {n for n, _ in take_snapshot(model).tensors} == {n for n, _ in plain.tensors}
        assert attachment.add(three) == 1
        assert attachment.add(two) == 2
        attachment.route([2, 1, 0])
        require_rows(model, alone[1], alone[2], alone[0])


def test_a_reference_is_loaded_once(model: Any, tmp_path: Path) -> None:
    lora = make(model, "lora")
    lora.save(tmp_path / "saved")
    saved = str(tmp_path / "saved")
    with hub.attach(model, saved) as attachment:
        number = attachment.add(hub.Stack(saved, make(model, "ia3")))
        (loaded,) = attachment.active
        stack = attachment.resident[number]
        assert isinstance(stack, hub.Stack)
        assert stack.parts[0] is loaded


def test_a_label_is_no_reference(model: Any) -> None:
    """An adapter that was never saved is called by its method, and is not meant by that name."""
    one, two = make(model, "lora"), make(model, "lora", seed=2)
    with hub.attach(model, hub.BatchSplit(one, two), rows=[0, 1], trainable=False) as attachment:
        with pytest.raises(AttachError, match="'lora' may be any of 0, 1"):
            attachment.route(["lora", "lora"])
        with pytest.raises(hub.HubError):
            attachment.add("lora")
        attachment.route(0)
        attachment.remove(1)
        attachment.route("lora")


def test_a_part_that_repeats_the_batch_among_those_that_do_not(model: Any) -> None:
    lora, ia3, prompt = (make(model, method) for method in ("lora", "ia3", "prompt"))
    one, two, three, bare = (run_alone(model, part) for part in (lora, ia3, prompt, None))
    parts = hub.BatchSplit(hub.Parallel(lora, prompt), ia3, None)
    with hub.attach(model, parts, rows=[0, 1, 2], trainable=False) as attachment:
        found = run(model, 3)
        for logits, expected in zip(found, [one, two, bare, three, two, bare], strict=True):
            assert measure(logits, expected) < CLOSE
        attachment.route([1, 2])
        require_rows(model, two, bare)
        attachment.add(hub.Parallel(lora, ia3, None))
        with pytest.raises(AttachError, match="2 and 3 times as large"):
            attachment.route([0, 3])
        require_rows(model, two, bare)


def list_state(model: Any, attachment: hub.Attachment) -> tuple[Any, ...]:
    """What must not change when something fails."""
    snapshot: Snapshot = take_snapshot(model)
    return snapshot, dict(attachment.resident), attachment.active, list(attachment.parameters())


def test_one_entry_is_for_all_rows(model: Any) -> None:
    one, two = make(model, "lora"), make(model, "ia3")
    bare = run(model, 2)
    with hub.attach(model, two, trainable=False):
        expected = run(model, 2)
    with hub.attach(model, hub.BatchSplit(one, two), rows=[0, 1], trainable=False) as attachment:
        for number in (1, torch.tensor(1), torch.tensor([1, 1]), np.int64(1), two):
            attachment.route(number)
            assert measure(run(model, 2), expected) < CLOSE
        attachment.route(None)
        assert torch.equal(run(model, 2), bare)
        assert attachment.active == ()


FAILURES: dict[str, tuple[Callable[[Any], Any], type[Exception], str]] = {
    "number": (lambda a: a.route([0, 7]), AttachError, "no part 7 is here to route to; there are"),
    "negative": (lambda a: a.route([-1]), AttachError, "no part -1 is here"),
    "bool": (lambda a: a.route([True]), AttachError, "no part True is here"),
    "float": (lambda a: a.route([1.0]), AttachError, "no part 1.0 is here"),
    "name": (lambda a: a.route(["sst2@9"]), AttachError, "no part sst2@9 is here"),
    "empty": (lambda a: a.route([]), AttachError, "rows is empty"),
    "mapping": (lambda a: a.route({0: 1}), AttachError, "rows is {0: 1}; give each row's part"),
    "no list": (lambda a: a.route(1.0), AttachError, r"rows is 1.0; give each row's part"),
    "remove acting": (lambda a: a.remove(0), AttachError, "acts on the rows of this batch"),
    "remove unknown": (lambda a: a.remove(9), AttachError, "no part 9 is here"),
    "remove base": (lambda a: a.remove(None), AttachError, "can't be removed"),
    "add several": (lambda a: a.add(hub.BatchSplit(None, None)), AttachError, "one by one"),
    "add nothing": (lambda a: a.add(3), AttachError, "can't be attached"),
    "add unknown": (lambda a: a.add("./nowhere"), hub.HubError, "nowhere"),
}


@pytest.mark.parametrize("failure", FAILURES)
def test_a_failure_leaves_everything_as_it_was(model: Any, failure: str) -> None:
    act, error, reason = FAILURES[failure]
    parts = hub.BatchSplit(make(model, "lora"), make(model, "prompt"))
    with hub.attach(model, parts, rows=[0, 1]) as attachment:
        before = list_state(model, attachment)
        with pytest.raises(error, match=reason):
            act(attachment)
        assert list_state(model, attachment) == before


@pytest.mark.parametrize("rows", [3, 5])
def test_a_batch_of_other_rows_than_were_said_is_an_error(model: Any, rows: int) -> None:
    parts = hub.BatchSplit(make(model, "lora"), None)
    with hub.attach(model, parts, rows=[0, 1]) as attachment:
        with pytest.raises(AttachError, match=f"has {rows} rows, and 2 were said"):
            run(model, rows)
        attachment.route([1] * rows)
        run(model, rows)
        run(model, 2 * rows)
        attachment.route(1)  # all rows, however many
        run(model, rows + 1)


@pytest.mark.parametrize("method", METHODS)
def test_an_adapter_of_another_base_is_not_added(model: Any, method: str) -> None:
    other = make(build_tiny("llama", seed=7), method)
    foreign = make(build_tiny("gpt2"), "lora")
    with hub.attach(model, make(model, "lora"), trainable=False) as attachment:
        before = list_state(model, attachment)
        for stranger in (other, hub.Stack(make(model, "ia3"), other), foreign):
            with pytest.raises(BaseMismatch):
                attachment.add(stranger)
            assert list_state(model, attachment) == before
        assert attachment.add(other, allow_other_base=True) == 1


@pytest.mark.parametrize(
    "make_part",
    [
        lambda m: hub.Average(make(m, "prompt"), make(m, "lora")),
        lambda m: hub.Split(make(m, "ia3"), make(m, "prefix"), at=2),
        lambda m: hub.Stack(make(m, "houlsby"), hub.Split(make(m, "prompt"), None, at=1)),
        lambda m: break_adapter(make(m, "houlsby")),
        lambda m: hub.Stack(make(m, "prompt"), break_adapter(make(m, "lora"))),
    ],
)
def test_what_has_no_meaning_or_does_not_fit_is_not_added(
    model: Any, make_part: Callable[[Any], Any]
) -> None:
    part = make_part(model)
    with hub.attach(model, make(model, "lora"), trainable=False) as attachment:
        before = list_state(model, attachment)
        for _ in range(2):
            with pytest.raises(AttachError):
                attachment.add(part)
            assert list_state(model, attachment) == before
        attachment.route(attachment.add(make(model, "prompt")))
        run(model)


def break_adapter(adapter: hub.Adapter) -> hub.Adapter:
    """An adapter with half of a pair missing."""
    del adapter.tensors[next(reversed(adapter.tensors))]
    return adapter


def test_a_route_that_fails_late_leaves_the_rows_as_they_were() -> None:
    """Rows with differently many virtual tokens: whether a base can have them is found out last."""
    model = build_tiny("bart")
    lora, prefix = (hub.Adapter.create(m, model, **OPTIONS[m]) for m in ("lora", "prefix"))
    shake_adapter(lora), shake_adapter(prefix)
    inputs = {"input_ids": IDS.repeat(2, 1), "decoder_input_ids": IDS.repeat(2, 1)}
    with hub.attach(model, lora, trainable=False) as attachment, torch.no_grad():
        attachment.add(prefix)
        expected = model(**inputs).logits
        with pytest.raises(AttachError, match="what is padded has a part"):
            attachment.route([0, 1])
        assert attachment.active == (lora,)
        assert torch.equal(model(**inputs).logits, expected)
        attachment.route([1, 1])
        assert not torch.allclose(model(**inputs).logits, expected)


def test_what_is_merged_is_not_changed_or_routed(model: Any) -> None:
    lora, ia3 = make(model, "lora"), make(model, "ia3")
    with hub.attach(model, lora, trainable=False) as attachment:
        attachment.add(ia3)
        expected = run(model)
        attachment.merge()
        for act in (
            lambda: attachment.add(make(model, "houlsby")),
            lambda: attachment.route(1),
            lambda: attachment.remove(1),
        ):
            with pytest.raises(AttachError, match=r"call unmerge\(\) first"):
                act()
        assert dict(attachment.resident) == {0: lora, 1: ia3}
        attachment.unmerge()
        assert torch.equal(run(model), expected)
        attachment.route([1, 0])
        with pytest.raises(AttachError, match="route all rows to one part"):
            attachment.merge()
        require_rows(model, run_alone(build_like(model), ia3), expected[0])


def test_after_detaching_nothing_is_here(model: Any) -> None:
    attachment = hub.attach(model, make(model, "lora"))
    attachment.detach()
    assert (attachment.active, dict(attachment.resident)) == ((), {})
    for act in (
        lambda: attachment.add(make(model, "ia3")),
        lambda: attachment.route(0),
        lambda: attachment.remove(0),
    ):
        with pytest.raises(AttachError, match="nothing is attached any more"):
            act()


def test_what_is_added_learns_where_it_is_asked_to(model: Any) -> None:
    lora, ia3, houlsby = make(model, "lora"), make(model, "ia3"), make(model, "houlsby")
    with hub.attach(model, lora, trainable=False) as attachment:
        attachment.add(ia3, trainable=True)
        attachment.add(houlsby, trainable=False)
        attachment.route([1, 2, 0])
        model(input_ids=IDS.repeat(3, 1), labels=IDS.repeat(3, 1)).loss.backward()
        assert {id(p) for p in attachment.parameters()} == {id(p) for p in ia3.tensors.values()}
    assert all(tensor.grad is not None for tensor in ia3.tensors.values())
    assert all(t.grad is None for other in (lora, houlsby) for t in other.tensors.values())


def test_a_first_prompt_is_added_to_a_base_that_was_generating(model: Any) -> None:
    lora, prompt = make(model, "lora"), make(model, "prompt")
    expected = run_alone(model, prompt)
    options: dict[str, Any] = dict(max_new_tokens=3, do_sample=False, pad_token_id=0)
    with hub.attach(model, prompt, trainable=False):
        written = model.generate(IDS, **options)
    with hub.attach(model, lora, trainable=False) as attachment:
        model.generate(IDS, **options)
        attachment.route([attachment.add(prompt)])
        require_rows(model, expected)
        assert torch.equal(model.generate(IDS, **options), written)
        attachment.route(0)
        attachment.remove(1)
        model.generate(IDS, **options)


def test_a_deep_copy_routes_by_itself(model: Any) -> None:
    lora, prompt = make(model, "lora"), make(model, "prompt")
    one, two = run_alone(model, lora), run_alone(model, prompt)
    with hub.attach(model, hub.BatchSplit(lora, prompt), rows=[0, 1], trainable=False):
        twin = copy.deepcopy(model)
        carried = hub.Attachment.of(twin)
        assert carried is not None
        carried.route([1, 0, 1])
        require_rows(twin, two, one, two)
        require_rows(model, one, two)
        carried.detach()
        require_rows(model, one, two)
    assert measure(run(twin), run(model)) == 0


def test_what_comes_back_is_read_anew(model: Any, tmp_path: Path) -> None:
    folder = tmp_path / "saved"
    saved = str(folder)
    make(model, "lora").save(folder)
    with hub.attach(model, make(model, "ia3"), trainable=False) as attachment:
        number = attachment.add(saved)
        attachment.remove(saved)
        for file in folder.iterdir():
            file.unlink()
        changed = make(model, "lora", seed=9)
        changed.save(folder)
        attachment.route(attachment.add(saved))
        assert number in attachment.resident
        require_rows(model, run_alone(build_like(model), changed))


def test_what_is_added_learns_through_layers_that_write_their_own_backward() -> None:
    model = build_model(Cell("causal", "reformer")).train()
    one, two = (hub.Adapter.create("lora", model, r=2) for _ in range(2))
    shake_adapter(two)
    ids = torch.randint(5, 90, (1, 16))
    with hub.attach(model, one, trainable=False) as attachment:
        attachment.route(attachment.add(two, trainable=True))
        model(input_ids=ids, labels=ids).loss.backward()
    gradients = [tensor.grad for tensor in two.tensors.values() if tensor.grad is not None]
    assert any(gradient.any() for gradient in gradients)
