"""What stacks compute, and what a model with adapters says of itself."""

from __future__ import annotations

import pytest
import torch

import hub
from hub.errors import AttachError
from tests.snapshots import run, shake_adapter
from tests.tiny import build_tiny, make_inputs


def test_two_lora_add_their_changes() -> None:
    model = build_tiny("llama")
    one = shake_adapter(hub.Adapter.create("lora", model, r=2, targets="attention"), seed=1)
    two = shake_adapter(hub.Adapter.create("lora", model, r=3, alpha=9), seed=2)
    changed = build_tiny("llama")
    with torch.no_grad():
        for adapter in (one, two):
            for name, A in adapter.tensors.items():
                if ".lora_A" in name:
                    path = name.removesuffix(".lora_A.weight")
                    B = adapter.tensors[f"{path}.lora_B.weight"]
                    scaling = adapter.config.alpha / adapter.config.r
                    changed.get_submodule(path).weight.add_(scaling * B @ A)
    expected = run(changed)
    for stack in (hub.Stack(one, two), hub.Stack(two, one), hub.Stack(hub.Stack(one), two)):
        with hub.attach(model, stack):
            torch.testing.assert_close(run(model), expected, rtol=1e-4, atol=1e-4)


def test_bottlenecks_run_one_after_the_other() -> None:
    model = build_tiny("llama")
    one, two = (
        shake_adapter(hub.Adapter.create("houlsby", model, size=4), seed=seed) for seed in (1, 2)
    )
    with hub.attach(model, hub.Stack(one, two)):
        forth = run(model)
    with hub.attach(model, hub.Stack(two, one)):
        back = run(model)
    assert not torch.allclose(forth, back)


def test_lora_comes_before_the_bottleneck_of_its_branch_in_any_order() -> None:
    model = build_tiny("llama")
    lora = shake_adapter(hub.Adapter.create("lora", model))
    houlsby = shake_adapter(hub.Adapter.create("houlsby", model))
    with hub.attach(model, lora) as attachment:
        attachment.merge()
        merged = build_tiny("llama")
        merged.load_state_dict(model.state_dict())
    with hub.attach(merged, houlsby, allow_other_base=True):
        expected = run(merged)
    for stack in (hub.Stack(lora, houlsby), hub.Stack(houlsby, lora)):
        with hub.attach(model, stack):
            torch.testing.assert_close(run(model), expected, rtol=1e-4, atol=1e-4)


def test_two_heads_at_once_are_an_error_that_names_both() -> None:
    model = build_tiny("llama", "classification")
    one, two = hub.Adapter.create("lora", model), hub.Adapter.create("houlsby", model)
    with pytest.raises(AttachError, match="lora and houlsby each bring a trained head"):
        hub.attach(model, hub.Stack(one, two))
    assert hub.Attachment.of(model) is None


def test_head_stands_in_front_of_the_bases_own() -> None:
    model = build_tiny("bert", "classification", num_labels=3)
    kept = model.classifier.weight.clone()
    adapter = shake_adapter(hub.Adapter.create("lora", model))
    assert adapter.heads == ("classifier",)
    inputs = make_inputs(model)
    with hub.attach(model, adapter) as attachment:
        adapted = run(model, **inputs)
        with attachment.disabled():
            bare = run(model, **inputs)
    assert torch.equal(model.classifier.weight, kept)
    assert torch.equal(run(model, **inputs), bare)
    assert not torch.equal(adapted, bare)


def test_adapter_with_a_head_needs_a_model_with_one() -> None:
    adapter = hub.Adapter.create("lora", build_tiny("llama", "classification"))
    with pytest.raises(
        AttachError, match=r"trained head 'score', and LlamaForCausalLM has no such"
    ):
        hub.attach(build_tiny("llama"), adapter)


def test_summary_counts_what_learns_and_what_is_there() -> None:
    model = build_tiny("llama")
    base = sum(p.numel() for p in model.parameters())
    adapter = hub.Adapter.create("lora", model, r=2, targets=["q_proj"])
    with hub.attach(model, adapter) as attachment:
        summary = attachment.summary()
        assert summary.base == base
        assert summary.trainable == summary.adapters[0].total == 2 * 2 * (32 + 32)
        assert f"{base:,}" in str(summary)
