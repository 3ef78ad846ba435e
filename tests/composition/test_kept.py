"""What rows gathered of their adapters follows them: whatever changes, each row is as alone."""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor

import hub
from tests.composition.batches import CLOSE, OPTIONS, attach_alone, measure
from tests.snapshots import shake_adapter
from tests.tiny import build_tiny

IDS = torch.randint(5, 90, (2, 5), generator=torch.Generator().manual_seed(3))
CASES: dict[str, tuple[str, dict[str, Any]]] = {
    **{method: (method, options) for method, options in OPTIONS.items()},
    "prompt": ("prompt", {"tokens": 8}),
    "lora of many ranks": ("lora", {"r": 40}),
    "dora": ("lora", {"dora": True, "r": 3}),
}
GATHERED = ["lora", "lora of many ranks", "ia3", "houlsby"]


def build(case: str) -> Any:
    """A model that the method acts on."""
    return build_tiny("bert" if case == "bitfit" else "llama", num_hidden_layers=1)


def make_pair(model: Any, case: str) -> tuple[hub.Adapter, hub.Adapter]:
    """Two adapters with values that matter."""
    method, options = CASES[case]
    one, other = (
        shake_adapter(hub.Adapter.create(method, model, **options), seed=seed, scale=0.2)
        for seed in range(2)
    )
    return one, other


def compute(model: Any, ids: Tensor = IDS) -> Tensor:
    with torch.no_grad():
        logits: Tensor = model(input_ids=ids).logits
    return logits


def require_alone(model: Any, attachment: hub.Attachment, *numbers: int) -> None:
    """Each row gives what it gives where all rows have its part."""
    found = compute(model)
    for row, number in enumerate(numbers):
        attachment.route(number)
        expected = compute(model, IDS[row : row + 1])
        assert measure(found[row : row + 1], expected) < CLOSE, f"row {row}"
    attachment.route(list(numbers))
    again = compute(model)
    assert measure(again, found) < CLOSE, "routed again"


@torch.no_grad()
def change_in_place(model: Any, adapters: tuple[hub.Adapter, ...]) -> None:
    for tensor in adapters[0].tensors.values():
        tensor.mul_(-2)


def load_state(model: Any, adapters: tuple[hub.Adapter, ...]) -> None:
    state = model.state_dict()
    model.load_state_dict(
        {n: t * -2 if n.startswith("hub_adapters.") else t for n, t in state.items()}
    )


def put_other_data(model: Any, adapters: tuple[hub.Adapter, ...]) -> None:
    for name, parameter in model.named_parameters():
        if name.startswith("hub_adapters."):
            parameter.data = parameter.data * -2


def learn_elsewhere(model: Any, adapters: tuple[hub.Adapter, ...]) -> None:
    other = build(adapters[0].method)
    with hub.attach(other, adapters[0], trainable=True) as attachment:
        optimizer = torch.optim.SGD(attachment.parameters(), lr=3.0)
        other(input_ids=IDS, labels=IDS).loss.backward()
        optimizer.step()


CHANGES = [change_in_place, load_state, put_other_data, learn_elsewhere]


@pytest.mark.parametrize("change", CHANGES, ids=lambda change: change.__name__)
@pytest.mark.parametrize("case", CASES)
def test_rows_follow_a_change_of_their_adapters(
    case: str, change: Callable[[Any, tuple[hub.Adapter, ...]], None]
) -> None:
    model = build(case)
    pair = make_pair(model, case)
    with hub.attach(model, hub.BatchSplit(*pair), rows=[0, 1], trainable=False) as attachment:
        before = compute(model)
        change(model, pair)
        after = compute(model)
        assert measure(after[:1], before[:1]) > 2 * CLOSE
        require_alone(model, attachment, 0, 1)


@pytest.mark.parametrize("case", CASES)
def test_rows_follow_the_models_precision(case: str) -> None:
    model = build(case)
    pair = make_pair(model, case)
    with hub.attach(model, hub.BatchSplit(*pair), rows=[0, 1], trainable=False) as attachment:
        compute(model)
        model.to(torch.bfloat16)
        assert compute(model).dtype == torch.bfloat16
        model.to(torch.float64)
        assert compute(model).dtype == torch.float64
        require_alone(model, attachment, 0, 1)


@pytest.mark.parametrize("routed", [False, True], ids=["as they lie", "routed"])
@pytest.mark.parametrize("case", GATHERED)
def test_rows_follow_the_models_device(case: str, routed: bool) -> None:
    model = build(case)
    pair = make_pair(model, case)
    with hub.attach(model, hub.BatchSplit(*pair), rows=[0, 1], trainable=False) as attachment:
        compute(model)
        model.to("meta")
        if routed:
            attachment.route([1, 0])
        assert compute(model, IDS.to("meta")).is_meta


@pytest.mark.parametrize("case", CASES)
def test_rows_learn_once_their_adapters_may(case: str) -> None:
    model = build(case)
    pair = make_pair(model, case)
    with hub.attach(model, hub.BatchSplit(*pair), rows=[0, 1], trainable=True) as attachment:
        model(input_ids=IDS, labels=IDS).loss.backward()
        learning = list(attachment.parameters())
        expected = {p: p.grad for p in learning if p.grad is not None}
        for parameter in learning:
            parameter.grad = None
            parameter.requires_grad_(False)
        attachment.route([0, 1])
        compute(model)
        for parameter in learning:
            parameter.requires_grad_(True)
        model(input_ids=IDS, labels=IDS).loss.backward()
    assert expected
    for parameter, grad in expected.items():
        assert parameter.grad is not None
        torch.testing.assert_close(parameter.grad, grad)


@pytest.mark.parametrize("beside", [None, "lora", "ia3"])
@pytest.mark.parametrize("case", CASES)
def test_rows_that_were_laid_for_inference_learn(case: str, beside: str | None) -> None:
    model = build(case)
    one, other = make_pair(model, case)
    if beside is not None:
        other, _ = make_pair(model, beside)
    with hub.attach(model, hub.BatchSplit(one, other), rows=[0, 1], trainable=True) as attachment:
        with torch.inference_mode():
            attachment.route([1, 0])
            model(input_ids=IDS, use_cache=False)
        model(input_ids=IDS, labels=IDS).loss.backward()
        assert any(p.grad is not None for p in attachment.parameters())


@pytest.mark.parametrize("case", GATHERED)
def test_what_serves_passes_gradients_on_after_rows_changed(case: str) -> None:
    """Of a forward whose backward comes only after the next table was laid and run."""
    model = build_tiny("llama", num_hidden_layers=1)
    prompt = shake_adapter(hub.Adapter.create("prompt", model, tokens=2), scale=0.2)
    stack = hub.Stack(prompt, hub.BatchSplit(*make_pair(model, case)))

    def learn(attachment: hub.Attachment, *tables: list[int]) -> Tensor:
        losses = []
        for rows in tables:
            attachment.route(rows)
            losses.append(model(input_ids=IDS, labels=IDS).loss)
        (parameter,) = attachment.parameters()
        parameter.grad = None
        sum(losses).backward()
        assert parameter.grad is not None
        return parameter.grad

    with hub.attach(model, stack, rows=[0, 1], trainable=[prompt]) as attachment:
        found = learn(attachment, [0, 1], [1, 0], [0, 1])
        expected = [learn(attachment, rows) for rows in ([0, 1], [1, 0], [0, 1])]
    torch.testing.assert_close(found, expected[0] + expected[1] + expected[2])


@pytest.mark.parametrize("case", ["dora", *GATHERED])
def test_adapters_that_were_loaded_for_inference_serve(case: str, tmp_path: Any) -> None:
    """What is made in inference mode has no count of its changes."""
    model = build(case)
    pair = make_pair(model, case)
    for number, adapter in enumerate(pair):
        adapter.save(tmp_path / str(number))
    with hub.attach(model, hub.BatchSplit(*pair), rows=[0, 1], trainable=False):
        expected = compute(model)
    with torch.inference_mode():
        loaded = [hub.load(tmp_path / str(number)) for number in range(2)]
        with hub.attach(model, hub.BatchSplit(*loaded), rows=[0, 1], trainable=False):
            found = model(input_ids=IDS, use_cache=False).logits
    assert measure(found, expected) < CLOSE


@pytest.mark.parametrize("case", ["dora", *GATHERED])
def test_a_copy_of_the_model_keeps_its_own(case: str) -> None:
    model = build(case)
    pair = make_pair(model, case)
    with hub.attach(model, hub.BatchSplit(*pair), rows=[0, 1], trainable=False):
        before = compute(model)
        other = copy.deepcopy(model)
        change_in_place(model, pair)
        assert measure(compute(other), before) < CLOSE
        attachment = hub.Attachment.of(other)
        assert attachment is not None
        load_state(other, ())
        assert measure(compute(other), before) > 2 * CLOSE
        require_alone(other, attachment, 0, 1)


@pytest.mark.parametrize("case", GATHERED)
def test_decoding_rows_follow_after_as_many_tokens_as_there_are_adapters(case: str) -> None:
    model = build(case)
    parts = [*make_pair(model, case), *make_pair(model, case), *make_pair(model, case)]
    for seed, part in enumerate(parts):
        shake_adapter(part, seed=seed, scale=0.2)
    ids = IDS[:1, :1].repeat(len(parts), 1)
    rows = list(range(len(parts)))
    with hub.attach(model, hub.BatchSplit(*parts), rows=rows, trainable=False) as attachment:
        compute(model, ids)
        change_in_place(model, (parts[2],))
        for _ in parts:
            found = compute(model, ids)
        attachment.route(2)
        assert measure(found[2:3], compute(model, ids[:1])) < CLOSE


def test_a_compiled_model_follows_precision() -> None:
    torch.compiler.reset()
    model = build("lora")
    compiled: Any = torch.compile(model, backend="eager", fullgraph=True)
    pair = make_pair(model, "lora")
    with hub.attach(model, hub.BatchSplit(*pair), rows=[0, 1], trainable=False) as attachment:
        with torch.no_grad():
            compiled(input_ids=IDS, use_cache=False)
            model.to(torch.float64)
            found = compiled(input_ids=IDS, use_cache=False).logits
        attachment.route(0)
        assert measure(found[:1], compute(model)[:1]) < 1e-12
    torch.compiler.reset()


def test_a_gain_follows_the_base() -> None:
    model = build_tiny("llama", num_hidden_layers=1)
    dora, _ = make_pair(model, "dora")
    with hub.attach(model, dora, trainable=False):
        compute(model)
        with torch.no_grad():
            for layer in model.model.layers:
                layer.mlp.up_proj.weight.mul_(3)
        found = compute(model)
    with attach_alone(model, dora, allow_other_base=True):
        assert measure(found, compute(model)) < CLOSE


def test_autocast_is_not_kept() -> None:
    """A gain that a forward under autocast makes anew is as precise as any other."""
    model = build_tiny("llama", num_hidden_layers=1)
    pair = make_pair(model, "dora")
    with hub.attach(model, pair[0], trainable=False):
        change_in_place(model, pair)
        with torch.autocast("cpu", torch.bfloat16):
            compute(model)
        found = compute(model)
    with hub.attach(model, pair[0], trainable=False):
        assert torch.equal(found, compute(model))
