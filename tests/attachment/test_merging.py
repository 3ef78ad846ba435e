"""Merging gives the same outputs, and the very same weights come back."""

from __future__ import annotations

import pytest
import torch

import hub
from hub.errors import AttachError
from tests.snapshots import run, shake_adapter, take_snapshot
from tests.tiny import build_tiny, make_inputs


@pytest.mark.parametrize(
    "options", [{}, {"rslora": True, "alpha": 3}, {"rank_pattern": {r".*\.0\..*": 2}}]
)
@pytest.mark.parametrize("kind", ["llama", "bert", "t5"])
def test_merged_equals_attached(kind: str, options: dict[str, object]) -> None:
    model = build_tiny(kind)
    before = take_snapshot(model)
    adapter = shake_adapter(hub.Adapter.create("lora", model, **options))
    with hub.attach(model, adapter) as attachment:
        expected = run(model)
        attachment.merge()
        assert attachment.merged
        assert not any(name.startswith("hub_adapters") for name in model.state_dict())
        torch.testing.assert_close(run(model), expected, rtol=1e-4, atol=1e-4)
        attachment.unmerge()
        assert torch.equal(run(model), expected)
        attachment.merge()
    assert take_snapshot(model) == before


def test_conv1d_merges_in_its_own_orientation() -> None:
    model = build_tiny("gpt2")
    adapter = shake_adapter(hub.Adapter.create("lora", model))
    with hub.attach(model, adapter) as attachment:
        expected = run(model)
        attachment.merge()
        torch.testing.assert_close(run(model), expected, rtol=1e-4, atol=1e-4)


def test_stack_merges_to_the_sum_of_both() -> None:
    model = build_tiny("llama")
    one = shake_adapter(hub.Adapter.create("lora", model, r=2), seed=1)
    two = shake_adapter(hub.Adapter.create("lora", model, r=4, targets="attention"), seed=2)
    with hub.attach(model, hub.Stack(one, two)) as attachment:
        expected = run(model)
        attachment.merge()
        torch.testing.assert_close(run(model), expected, rtol=1e-4, atol=1e-4)


def test_bfloat16_weights_come_back_bit_for_bit() -> None:
    model = build_tiny("llama").to(torch.bfloat16)
    before = take_snapshot(model)
    attachment = hub.attach(model, shake_adapter(hub.Adapter.create("lora", model)))
    attachment.merge()
    assert take_snapshot(model).tensors != before.tensors
    attachment.detach()
    assert take_snapshot(model) == before


def test_merging_a_bottleneck_is_refused_and_changes_nothing() -> None:
    model = build_tiny("llama")
    lora = shake_adapter(hub.Adapter.create("lora", model))
    houlsby = shake_adapter(hub.Adapter.create("houlsby", model))
    with hub.attach(model, hub.Stack(lora, houlsby)) as attachment:
        expected = run(model)
        with pytest.raises(AttachError, match="houlsby is no change of weights"):
            attachment.merge()
        assert torch.equal(run(model), expected)


def test_merged_head_answers_in_place_of_the_bases() -> None:
    model = build_tiny("llama", "classification")
    before = take_snapshot(model)
    adapter = shake_adapter(hub.Adapter.create("lora", model))
    with hub.attach(model, adapter) as attachment:
        expected = run(model)
        attachment.merge()
        torch.testing.assert_close(run(model), expected, rtol=1e-4, atol=1e-4)
    assert take_snapshot(model) == before


def test_a_merged_model_says_so_and_takes_no_second_attachment() -> None:
    model = build_tiny("llama")
    before = take_snapshot(model)
    attachment = hub.attach(model, shake_adapter(hub.Adapter.create("lora", model)))
    attachment.merge()
    assert hub.Attachment.of(model) is attachment
    with pytest.raises(AttachError, match="carries lora already, merged; detach first"):
        hub.attach(model, shake_adapter(hub.Adapter.create("houlsby", build_tiny("llama"))))
    attachment.detach()
    assert take_snapshot(model) == before


def test_an_interrupted_merge_leaves_the_model_attached(monkeypatch: pytest.MonkeyPatch) -> None:
    model = build_tiny("llama")
    before = take_snapshot(model)
    attachment = hub.attach(model, shake_adapter(hub.Adapter.create("lora", model)))
    expected = run(model)
    weight = model.model.layers[1].mlp.up_proj.weight
    real = torch.Tensor.to

    def interrupt(tensor: torch.Tensor, *args: object, **kwargs: object) -> torch.Tensor:
        if args == (weight.device, weight.dtype) and tensor.shape == weight.shape:
            raise KeyboardInterrupt
        return real(tensor, *args, **kwargs)  # type: ignore[call-overload]

    monkeypatch.setattr(torch.Tensor, "to", interrupt)
    with pytest.raises(KeyboardInterrupt):
        attachment.merge()
    monkeypatch.undo()
    assert not attachment.merged
    assert torch.equal(run(model), expected)
    attachment.detach()
    assert take_snapshot(model) == before


def test_merging_inside_disabled_is_refused() -> None:
    model = build_tiny("llama")
    attachment = hub.attach(model, shake_adapter(hub.Adapter.create("lora", model)))
    with attachment.disabled(), pytest.raises(AttachError, match="disabled; merge after that"):
        attachment.merge()


@pytest.mark.parametrize("reentrant", [False, True])
def test_merging_before_a_checkpointed_backward_is_an_error(reentrant: bool) -> None:
    model = build_tiny("llama").train()
    model.activation_checkpointing_enable({"use_reentrant": reentrant})
    adapter = shake_adapter(hub.Adapter.create("lora", model))
    attachment = hub.attach(model, adapter, trainable=True)
    inputs = make_inputs(model)
    loss = model(**inputs, labels=inputs["input_ids"], use_cache=False).loss
    attachment.merge()
    with pytest.raises(AttachError, match="call backward first"):
        loss.backward()


def test_weights_converted_while_merged_come_back_in_the_models_precision() -> None:
    model = build_tiny("llama")
    attachment = hub.attach(model, shake_adapter(hub.Adapter.create("lora", model)))
    attachment.merge()
    model.to(torch.bfloat16)
    attachment.detach()
    assert {parameter.dtype for parameter in model.parameters()} == {torch.bfloat16}


def test_a_tied_head_is_not_merged() -> None:
    model = build_tiny("gpt2")
    adapter = shake_adapter(hub.Adapter.create("lora", model))
    embeddings = model.get_submodule("transformer.wte").weight
    adapter.heads = ("transformer.wte",)
    adapter.tensors["transformer.wte.weight"] = torch.nn.Parameter(embeddings.detach().clone())
    with hub.attach(model, adapter) as attachment, pytest.raises(AttachError, match="is shared"):
        attachment.merge()
