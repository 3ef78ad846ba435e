"""Gradients where the base has layers that write their own backward."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from transformers import AutoConfig, AutoModelForMaskedLM, set_seed

import hub
from tests.tiny import build_tiny


def build_reformer() -> Any:
    set_seed(0)
    config = AutoConfig.for_model(
        "reformer", hidden_size=32, attention_head_size=8, num_attention_heads=4,
        attn_layers=["local", "local"], feed_forward_size=48, vocab_size=99, axial_pos_embds=False,
        max_position_embeddings=64, hidden_dropout_prob=0.0, local_attention_probs_dropout_prob=0.0,
    )  # fmt: skip
    return AutoModelForMaskedLM.from_config(config)


def test_reversible_layers_give_their_adapters_a_gradient() -> None:
    model = build_reformer()
    ids = torch.arange(3, 11)[None]
    embedding = model.get_input_embeddings().weight
    with hub.attach(model, hub.Adapter.create("houlsby", model)) as attachment:
        model(input_ids=ids).logits.square().sum().backward()
        gradients = [parameter.grad for parameter in attachment.parameters()]
        assert all(gradient is not None and bool(gradient.any()) for gradient in gradients)
    assert embedding.grad is None
    assert not model.get_input_embeddings()._forward_hooks


@pytest.mark.parametrize("trainable", [True, False])
def test_plain_layers_are_asked_for_none(trainable: bool) -> None:
    model = build_tiny("llama")
    seen: list[bool] = []
    model.get_input_embeddings().register_forward_hook(
        lambda module, args, output: seen.append(output.requires_grad)
    )
    with hub.attach(model, hub.Adapter.create("lora", model), trainable=trainable):
        model(input_ids=torch.arange(3, 11)[None])
    assert set(seen) == {False}
