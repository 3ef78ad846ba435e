"""Methods that read the residual stream beside a branch."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch

import hub
from tests.snapshots import run, shake_adapter
from tests.tiny import build_tiny, make_inputs

pytestmark = pytest.mark.parametrize("method", ["pfeiffer", "parallel"])


@pytest.mark.parametrize("kind", ["bert", "llama"])
def test_a_copy_of_an_attached_model_stands_alone(method: str, kind: str) -> None:
    model = build_tiny(kind)
    attachment = hub.attach(model, shake_adapter(hub.Adapter.create(method, model)))
    expected = run(model)
    other = copy.deepcopy(model)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.zero_()
    attachment.detach()
    assert torch.equal(run(other), expected)


@pytest.mark.parametrize("kind", ["bert", "llama"])
def test_a_compiled_model_gives_the_same(method: str, kind: str) -> None:
    model = build_tiny(kind)
    compiled: Any = torch.compile(model, backend="eager")
    bare = run(compiled, **make_inputs(model))
    with hub.attach(model, shake_adapter(hub.Adapter.create(method, model))):
        expected = run(model)
        torch.testing.assert_close(run(compiled, **make_inputs(model)), expected)
    torch.testing.assert_close(run(compiled, **make_inputs(model)), bare)


@pytest.mark.parametrize("reentrant", [True, False])
def test_checkpointing_gives_the_same_gradients(method: str, reentrant: bool) -> None:
    model = build_tiny("llama").train()
    adapter = shake_adapter(hub.Adapter.create(method, model))
    gradients = []
    with hub.attach(model, adapter, trainable=True):
        for checkpointed in (False, True):
            if checkpointed:
                model.enable_input_require_grads()
                model.activation_checkpointing_enable({"use_reentrant": reentrant})
            model(**make_inputs(model)).logits.square().mean().backward()
            gradients.append([tensor.grad for tensor in adapter.tensors.values()])
            for tensor in adapter.tensors.values():
                tensor.grad = None
    torch.testing.assert_close(gradients[0], gradients[1])


@pytest.mark.parametrize("kind", ["gpt2", "t5"])
def test_generating_with_a_cache_gives_the_same(method: str, kind: str) -> None:
    model = build_tiny(kind)
    ids = make_inputs(model)["input_ids"]
    with hub.attach(model, shake_adapter(hub.Adapter.create(method, model))):
        told = [
            model.generate(input_ids=ids, max_new_tokens=5, do_sample=False, use_cache=cached)
            for cached in (True, False)
        ]
    assert torch.equal(told[0], told[1])
