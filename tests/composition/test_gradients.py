"""A batch of rows with parts of their own learns what each row's run of its own would teach."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor

import hub
from hub.errors import AttachError
from tests.composition.batches import Batch, attach_alone, make_batch, make_rows, pick
from tests.tiny import build_tiny

SILENT: dict[str, dict[str, float]] = {
    "llama": {},
    "gpt2": dict.fromkeys(("resid_pdrop", "embd_pdrop", "attn_pdrop"), 0.0),
    "opt": {"dropout": 0.0, "attention_dropout": 0.0},
    "bert": {"hidden_dropout_prob": 0.0, "attention_probs_dropout_prob": 0.0},
    "t5": {"dropout_rate": 0.0},
    "mixtral": {},
}


def weigh(batch: Batch, inputs: dict[str, Any]) -> Tensor:
    """A loss that asks something else of every logit, a sum over the rows."""
    more = {} if batch.model.config.model_type == "bert" else {"use_cache": False}
    logits = batch.model(**inputs, **more).logits.float()
    weights = torch.linspace(-1, 1, logits[0].numel()).view(logits[0].shape)
    loss: Tensor = (logits.tanh() * weights).sum()
    return loss


def take_gradients(adapters: dict[str, hub.Adapter]) -> dict[str, Tensor]:
    """The gradients that are not zero, and none afterwards."""
    found = {}
    for label, adapter in adapters.items():
        for name, tensor in adapter.tensors.items():
            if tensor.grad is not None and tensor.grad.any():
                found[f"{label} {name}"] = tensor.grad.clone()
            tensor.grad = None
    return found


@pytest.mark.parametrize("checkpointing", [None, "reentrant", "anew"])
@pytest.mark.parametrize("kind", SILENT)
def test_gradients_are_those_of_the_rows_own_runs(kind: str, checkpointing: str | None) -> None:
    model = build_tiny(kind, **SILENT[kind]).train()
    # Gates of diff pruning are drawn by chance while it learns.
    batch = make_batch(model).without("diff")
    inputs = make_rows(batch, padding=None if kind == "t5" else "left")
    adapters = {n: part for n, part in batch.parts.items() if isinstance(part, hub.Adapter)}
    for row, part in enumerate(batch.parts.values()):
        if part is not None:
            with attach_alone(model, part, trainable=True):
                weigh(batch, pick(inputs, row)).backward()
    alone = take_gradients(adapters)
    if checkpointing is not None:
        model.activation_checkpointing_enable({"use_reentrant": checkpointing == "reentrant"})
        model.enable_input_require_grads()
    with batch.attach(trainable=True):
        weigh(batch, inputs).backward()
    together = take_gradients(adapters)
    assert alone.keys() == together.keys()
    assert {name.split()[0] for name in alone} == adapters.keys()
    for name, gradient in together.items():
        # What is added to every key alike changes no attention, so that its gradient is noise.
        if not name.endswith(("k_proj.bias", "key.bias", "k_proj.bias.values", "key.bias.values")):
            scale = float(alone[name].abs().max())
            torch.testing.assert_close(gradient, alone[name], rtol=1e-3, atol=1e-4 * scale)


def test_one_adapter_on_several_rows_learns_from_all_of_them() -> None:
    model = build_tiny("llama").train()
    batch = make_batch(model).only("lora", "prompt", "prefix", "none")
    inputs = pick(make_rows(batch), 0, 1, 2, 3, 0)
    adapters = {n: part for n, part in batch.parts.items() if isinstance(part, hub.Adapter)}
    rows = [0, 1, 2, 0, 1]
    for row, number in enumerate(rows):
        with hub.attach(model, list(adapters.values())[number], trainable=True):
            weigh(batch, pick(inputs, row)).backward()
    alone = take_gradients(adapters)
    with batch.attach(rows, trainable=True):
        weigh(batch, inputs).backward()
    for name, gradient in take_gradients(adapters).items():
        torch.testing.assert_close(gradient, alone[name], rtol=1e-3, atol=1e-5)


def test_only_named_parts_of_a_composition_learn() -> None:
    model = build_tiny("llama").train()
    batch = make_batch(model).only("lora", "houlsby", "prefix", "prompt", "none")
    lora, houlsby, prefix, prompt, _ = batch.parts.values()
    stack = hub.Stack(lora, houlsby, prefix, prompt)
    rows = hub.BatchSplit(stack, hub.Average(lora, houlsby), prompt, None)
    inputs = pick(make_rows(batch), 0, 1, 2, 3)
    with hub.attach(model, rows, rows=[0, 1, 2, 3], trainable=[houlsby, prompt]) as attachment:
        weigh(batch, inputs).backward()
        learning = [p for p in model.parameters() if p.requires_grad]
        assert {id(p) for p in attachment.parameters()} == {id(p) for p in learning}
    adapters = {"lora": lora, "houlsby": houlsby, "prefix": prefix, "prompt": prompt}
    assert {name.split()[0] for name in take_gradients(adapters)} == {"houlsby", "prompt"}


@pytest.mark.parametrize("reentrant", [True, False])
def test_other_rows_before_a_checkpointed_backward_are_an_error(reentrant: bool) -> None:
    model = build_tiny("llama").train()
    batch = make_batch(model).only("lora", "houlsby")
    model.activation_checkpointing_enable({"use_reentrant": reentrant})
    with batch.attach(trainable=True) as attachment:
        loss = weigh(batch, make_rows(batch))
        attachment.route([1, 0])
        with pytest.raises(AttachError, match="routed"):
            loss.backward()
        loss = weigh(batch, make_rows(batch))
        attachment.route([1, 0])  # the same as it was
        loss.backward()


def test_a_split_under_checkpointing_is_refused_at_the_backward() -> None:
    model = build_tiny("llama").train()
    batch = make_batch(model).only("lora", "ia3")
    with hub.attach(model, hub.Split(*batch.parts.values(), at=3), trainable=True):
        weigh(batch, make_rows(batch)).backward()
        assert take_gradients(batch.parts)
        model.activation_checkpointing_enable({"use_reentrant": False})
        loss = weigh(batch, make_rows(batch))
        with pytest.raises(AttachError, match="gradient checkpointing runs layers again"):
            loss.backward()
