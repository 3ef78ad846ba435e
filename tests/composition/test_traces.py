"""What a composition leaves of itself on a base: nothing; and what a copy or a file of it holds."""

from __future__ import annotations

import copy
import pickle
import threading
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor
from transformers import AutoModelForCausalLM

import hub
from hub.composition import Operator
from tests.composition.batches import OPTIONS
from tests.snapshots import shake_adapter, take_snapshot
from tests.tiny import build_tiny

METHODS = ["lora", "houlsby", "ia3", "prefix", "prompt", "llama_adapter", "pfeiffer"]
IDS = torch.randint(5, 90, (3, 6), generator=torch.Generator().manual_seed(4))


def make_compositions(model: Any) -> dict[str, tuple[Operator, Any]]:
    """Every operator over all kinds of parts, and its rows."""
    adapters = [
        shake_adapter(hub.Adapter.create(method, model, **OPTIONS[method]), seed=seed, scale=0.2)
        for seed, method in enumerate(METHODS)
    ]
    lora, houlsby, ia3, prefix, prompt, gated, pfeiffer = adapters
    return {
        "stack": (hub.Stack(*adapters), None),
        "average": (hub.Average(lora, houlsby, gated, pfeiffer, weights=[2, -1, 1, 1]), None),
        "split": (hub.Split(hub.Stack(lora, houlsby), None, ia3, at=[1, 4]), None),
        "batchsplit": (hub.BatchSplit(*adapters, None, hub.Stack(lora, prompt)), [0, 4, 8]),
        "parallel": (hub.Parallel(lora, prefix, None, prompt), None),
        "all": (
            hub.Stack(
                hub.Split(ia3, None, at=2),
                hub.BatchSplit(hub.Average(lora, houlsby), hub.Stack(prompt, prefix), None),
                hub.Parallel(pfeiffer, gated),
            ),
            [1, 2, 0],
        ),
    }


NAMES = ["stack", "average", "split", "batchsplit", "parallel", "all"]


def run(model: Any) -> Tensor:
    with torch.no_grad():
        logits: Tensor = model(input_ids=IDS).logits
    return logits


@pytest.fixture
def model() -> Any:
    return build_tiny("llama")


@pytest.mark.parametrize("learns", [True, False], ids=["learning", "serving"])
@pytest.mark.parametrize("name", NAMES)
def test_detaching_leaves_no_trace(model: Any, name: str, learns: bool) -> None:
    composition, rows = make_compositions(model)[name]
    before = take_snapshot(model)
    bare = run(model)
    generate = dict(max_new_tokens=2, do_sample=False, pad_token_id=0)
    written = model.generate(IDS, **generate)
    with hub.attach(model, composition, rows=rows, trainable=learns) as attachment:
        changed = run(model)
        model.generate(IDS, **generate)
        if learns:
            model(input_ids=IDS).logits.sum().backward()
        with attachment.disabled():
            assert torch.equal(run(model), bare)
            assert torch.equal(model.generate(IDS, **generate), written)
        torch.testing.assert_close(run(model), changed)
        attachment.route(None if rows is None else [2, 1, 0])
    assert take_snapshot(model) == before
    assert torch.equal(run(model), bare)
    assert type(model).generate is not vars(model).get("generate")
    assert "generate" not in vars(model)


@pytest.mark.parametrize("name", NAMES)
def test_a_failed_forward_leaves_the_next_as_it_is(model: Any, name: str) -> None:
    composition, rows = make_compositions(model)[name]

    def interrupt(*_: Any) -> None:
        raise KeyboardInterrupt

    with hub.attach(model, composition, rows=rows, trainable=False):
        expected = run(model)
        for path in ("model.layers.1.mlp.up_proj", "lm_head"):
            handle = model.get_submodule(path).register_forward_hook(interrupt)
            with pytest.raises(KeyboardInterrupt):
                run(model)
            handle.remove()
            assert torch.equal(run(model), expected)
        with pytest.raises(IndexError):
            model(input_ids=IDS + 1000)
        assert torch.equal(run(model), expected)


@pytest.mark.parametrize("how", ["copied", "pickled"])
@pytest.mark.parametrize("name", NAMES)
def test_a_copy_of_an_attached_model_stands_alone(model: Any, name: str, how: str) -> None:
    composition, rows = make_compositions(model)[name]
    before = take_snapshot(model)
    generate = dict(max_new_tokens=2, do_sample=False, pad_token_id=0)
    with hub.attach(model, composition, rows=rows, trainable=False):
        expected, written = run(model), model.generate(IDS, **generate)
        twin = copy.deepcopy(model) if how == "copied" else pickle.loads(pickle.dumps(model))
        carried = hub.Attachment.of(twin)
        assert carried is not None
    assert torch.equal(run(twin), expected)
    assert torch.equal(twin.generate(IDS, **generate), written)
    with carried.disabled():
        assert torch.equal(run(twin), run(model))
    carried.detach()
    after = take_snapshot(twin)
    assert (after.tensors, after.hooks, after.outputs, after.attributes) == (
        before.tensors,
        before.hooks,
        before.outputs,
        before.attributes,
    )


@pytest.mark.parametrize("name", NAMES)
def test_the_base_that_is_saved_meanwhile_is_the_base(
    model: Any, name: str, tmp_path: Path
) -> None:
    composition, rows = make_compositions(model)[name]
    bare = run(model)
    with hub.attach(model, composition, rows=rows, trainable=False):
        expected = run(model)
        model.load_state_dict(model.state_dict())
        assert torch.equal(run(model), expected)
        model.save_pretrained(tmp_path)
    again = AutoModelForCausalLM.from_pretrained(tmp_path).eval()
    assert torch.equal(run(again), bare)


def test_parallel_gives_the_rows_of_every_part(model: Any) -> None:
    composition, _ = make_compositions(model)["parallel"]
    expected = []
    for part in composition.parts:
        if part is None:
            expected.append(run(model))
            continue
        with hub.attach(model, part, trainable=False):
            expected.append(run(model))
    with hub.attach(model, composition, trainable=False):
        found = run(model)
        assert found.shape[0] == 4 * len(IDS)
        torch.testing.assert_close(found, torch.cat(expected), rtol=1e-4, atol=1e-4)
        with torch.no_grad():
            loss = model(input_ids=IDS, labels=IDS).loss
        assert loss.isfinite()
        # By position, and with a mask.
        torch.testing.assert_close(model(IDS, torch.ones_like(IDS)).logits, found)


def test_threads_run_rows_of_their_own_number() -> None:
    """What is kept between calls of one thread is no other's."""
    model = build_tiny("llama")
    composition, rows = make_compositions(model)["batchsplit"]
    with hub.attach(model, composition, rows=rows, trainable=False), torch.no_grad():
        given = [IDS[:, : length + 2].repeat_interleave(length % 2 + 1, 0) for length in range(4)]
        expected = [model(input_ids=ids).logits for ids in given]
        wrong: list[int] = []

        def read(number: int) -> None:
            with torch.no_grad():
                for _ in range(10):
                    if not torch.equal(model(input_ids=given[number]).logits, expected[number]):
                        wrong.append(number)

        threads = [threading.Thread(target=read, args=(number,)) for number in range(4)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
    assert wrong == []
