"""The traps that others stepped into, each once."""

from __future__ import annotations

import copy
import pickle
import threading
from typing import Any

import peft
import pytest
import torch
from torch import nn

import hub
from hub.errors import AttachError, BaseMismatch
from tests.snapshots import run, shake_adapter, take_snapshot
from tests.tiny import build_tiny, make_inputs

METHODS = ["lora", "houlsby"]


def make_adapter(method: str, model: Any, **options: Any) -> Any:
    return shake_adapter(hub.Adapter.create(method, model, **options))


@pytest.mark.parametrize("method", METHODS)
def test_compile_sees_adapters_come_and_go(method: str) -> None:
    model = build_tiny("llama")
    adapter = make_adapter(method, model)
    bare = run(model)
    with hub.attach(model, adapter):
        adapted = run(model)
    compiled = torch.compile(model, backend="eager")
    inputs = make_inputs(model)
    torch.testing.assert_close(run(compiled, **inputs), bare)
    with hub.attach(compiled, adapter) as attachment:
        torch.testing.assert_close(run(compiled, **inputs), adapted)
        with attachment.disabled():
            torch.testing.assert_close(run(compiled, **inputs), bare)
        torch.testing.assert_close(run(compiled, **inputs), adapted)
    torch.testing.assert_close(run(compiled, **inputs), bare)
    torch.compiler.reset()


@pytest.mark.parametrize("reentrant", [False, True])
@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("kind", ["llama", "gpt2", "t5"])
def test_checkpointing_gives_the_same_gradients(kind: str, method: str, reentrant: bool) -> None:
    def gradients(checkpointing: bool) -> dict[str, torch.Tensor]:
        model = build_tiny(kind).train()
        for module in model.modules():
            if isinstance(module, nn.Dropout):
                module.p = 0.0
        if kind == "t5":
            model.config.use_cache = False
        torch.manual_seed(0)
        adapter = make_adapter(method, model)
        if checkpointing:
            model.activation_checkpointing_enable({"use_reentrant": reentrant})
        with hub.attach(model, adapter, trainable=True):
            inputs = make_inputs(model)
            labels = inputs.get("decoder_input_ids", inputs["input_ids"])
            model(**inputs, labels=labels, use_cache=False).loss.backward()
        return {name: tensor.grad for name, tensor in adapter.tensors.items()}

    plain, checkpointed = gradients(False), gradients(True)
    for name, gradient in plain.items():
        assert gradient.abs().sum() > 0, name
        torch.testing.assert_close(checkpointed[name], gradient, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("reentrant", [False, True])
def test_detaching_before_a_checkpointed_backward_is_an_error(reentrant: bool) -> None:
    model = build_tiny("llama").train()
    model.activation_checkpointing_enable({"use_reentrant": reentrant})
    adapter = make_adapter("lora", model)
    with hub.attach(model, adapter, trainable=True):
        inputs = make_inputs(model)
        loss = model(**inputs, labels=inputs["input_ids"], use_cache=False).loss
    with pytest.raises(AttachError, match="call backward first"):
        loss.backward()


def test_disabled_pass_between_forward_and_backward_is_fine() -> None:
    model = build_tiny("llama").train()
    model.activation_checkpointing_enable({"use_reentrant": False})
    adapter = make_adapter("lora", model)
    with hub.attach(model, adapter, trainable=True) as attachment:
        inputs = make_inputs(model)
        loss = model(**inputs, labels=inputs["input_ids"], use_cache=False).loss
        with attachment.disabled(), torch.no_grad():
            model(**inputs, use_cache=False)
        loss.backward()
    assert all(tensor.grad is not None for tensor in adapter.tensors.values())


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize("method", METHODS)
def test_learning_stays_in_float32_on_a_half_precision_base(
    method: str, dtype: torch.dtype
) -> None:
    model = build_tiny("llama").to(dtype)
    adapter = make_adapter(method, model)
    with hub.attach(model, adapter, trainable=True) as attachment:
        assert {p.dtype for p in attachment.parameters()} == {torch.float32}
        inputs = make_inputs(model)
        output = model(**inputs, labels=inputs["input_ids"])
        output.loss.backward()
        assert output.logits.dtype == dtype
    assert all(tensor.grad.dtype == torch.float32 for tensor in adapter.tensors.values())


@pytest.mark.parametrize("method", METHODS)
def test_serving_follows_the_precision_of_the_base_and_keeps_the_adapter(method: str) -> None:
    model = build_tiny("llama").to(torch.bfloat16)
    adapter = make_adapter(method, model)
    kept = {name: tensor.detach().clone() for name, tensor in adapter.tensors.items()}
    with hub.attach(model, adapter, trainable=False):
        live = [p for n, p in model.named_parameters() if n.startswith("hub_adapters")]
        assert {p.dtype for p in live} == {torch.bfloat16}
        assert run(model).dtype == torch.bfloat16
        model.to(torch.float16)
        assert run(model).dtype == torch.float16
    for name, tensor in adapter.tensors.items():
        assert tensor.dtype == torch.float32
        assert torch.equal(tensor, kept[name])


@pytest.mark.parametrize("method", METHODS)
def test_halving_an_attached_model_halves_what_it_carries(method: str) -> None:
    model = build_tiny("llama")
    adapter = make_adapter(method, model, **({"r": 2} if method == "lora" else {"size": 4}))
    with hub.attach(model, adapter, trainable=False):
        expected = run(model)
        model.to(torch.bfloat16)
        torch.testing.assert_close(run(model).float(), expected, rtol=0.1, atol=0.1)


@pytest.mark.parametrize("method", METHODS)
def test_deep_copy_of_an_attached_model_stands_alone(method: str) -> None:
    model = build_tiny("llama")
    before = take_snapshot(model)
    adapter = make_adapter(method, model)
    attachment = hub.attach(model, adapter, trainable=True)
    adapted = run(model)
    twin = copy.deepcopy(model)
    attachment.detach()
    assert torch.equal(run(twin), adapted)
    with torch.no_grad():
        for parameter in hub.Attachment.of(twin).parameters():
            parameter.zero_()
    with hub.attach(model, adapter):
        assert torch.equal(run(model), adapted)
    hub.Attachment.of(twin).detach()
    after = take_snapshot(twin)
    assert (after.tensors, after.hooks, after.outputs) == (
        before.tensors,
        before.hooks,
        before.outputs,
    )


@pytest.mark.parametrize("method", METHODS)
def test_detached_model_pickles_as_before(method: str) -> None:
    model = build_tiny("gpt2")
    size = len(pickle.dumps(model))
    with hub.attach(model, make_adapter(method, model)):
        run(model)
    data = pickle.dumps(model)
    assert len(data) == size
    assert torch.equal(run(pickle.loads(data)), run(model))


def test_threads_read_one_attached_model() -> None:
    model = build_tiny("llama")
    adapter = make_adapter("lora", model)
    with hub.attach(model, adapter):
        inputs = [make_inputs(model, seed=seed) for seed in range(4)]
        expected = [run(model, **one) for one in inputs]
        wrong: list[int] = []

        def read(number: int) -> None:
            with torch.no_grad():
                for _ in range(10):
                    if not torch.equal(model(**inputs[number]).logits, expected[number]):
                        wrong.append(number)

        threads = [threading.Thread(target=read, args=(number,)) for number in range(4)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
    assert wrong == []


@pytest.mark.parametrize("method", METHODS)
def test_generate_uses_the_adapter_with_and_without_cache(method: str) -> None:
    model = build_tiny("llama")
    adapter = make_adapter(method, model)
    inputs = make_inputs(model, rows=2)
    options: dict[str, Any] = {"max_new_tokens": 6, "do_sample": False, "pad_token_id": 0}
    bare = model.generate(**inputs, **options)
    with hub.attach(model, adapter):
        cached = model.generate(**inputs, **options, use_cache=True)
        assert torch.equal(cached, model.generate(**inputs, **options, use_cache=False))
        assert not torch.equal(cached, bare)
    assert torch.equal(bare, model.generate(**inputs, **options))


def test_base_flags_come_back_as_they_were() -> None:
    model = build_tiny("llama").train()
    model.model.embed_tokens.weight.requires_grad_(False)
    before = take_snapshot(model)
    with hub.attach(model, make_adapter("lora", model)):
        base = [p for n, p in model.named_parameters() if not n.startswith("hub_adapters")]
        assert not any(p.requires_grad for p in base)
    assert take_snapshot(model) == before


def test_base_parameters_keep_their_names_while_attached() -> None:
    model = build_tiny("llama")
    names = list(model.state_dict())
    with hub.attach(model, make_adapter("lora", model)):
        assert list(model.state_dict())[: len(names)] == names
        assert type(model).__name__ == "LlamaForCausalLM"


def test_attaching_twice_names_what_is_there() -> None:
    model = build_tiny("llama")
    with hub.attach(model, make_adapter("lora", model)):
        with pytest.raises(AttachError, match="carries lora already"):
            hub.attach(model, make_adapter("houlsby", model))
        assert hub.Attachment.of(model) is not None
    assert hub.Attachment.of(model) is None


def test_other_weights_of_the_same_shape_are_refused_with_both_sides() -> None:
    adapter = make_adapter("lora", build_tiny("llama", seed=0))
    other = build_tiny("llama", seed=5)
    before = take_snapshot(other)
    with pytest.raises(BaseMismatch, match=r"was made for llama .* this model is llama .*"):
        hub.attach(other, adapter)
    assert take_snapshot(other) == before
    with hub.attach(other, adapter, allow_other_base=True) as attachment:
        assert "holds" in attachment.notes[0]


def test_other_architecture_is_refused() -> None:
    adapter = make_adapter("lora", build_tiny("llama"))
    with pytest.raises(BaseMismatch, match="architecture is gpt2, not llama"):
        hub.attach(build_tiny("gpt2"), adapter)


def test_one_changed_matrix_is_another_base() -> None:
    adapter = make_adapter("lora", build_tiny("llama"))
    model = build_tiny("llama")
    with torch.no_grad():
        model.model.layers[1].mlp.up_proj.weight.mul_(1.01)
    with pytest.raises(BaseMismatch, match=r"layers\.1\.mlp\.up_proj"):
        hub.attach(model, adapter)


def test_same_base_in_another_precision_is_noted_and_attached() -> None:
    adapter = make_adapter("lora", build_tiny("llama"))
    with hub.attach(build_tiny("llama").to(torch.bfloat16), adapter) as attachment:
        assert "bfloat16, not float32" in attachment.notes[0]


def test_failed_attach_leaves_nothing_and_the_retry_works() -> None:
    model = build_tiny("llama")
    good = make_adapter("lora", model)
    bad = make_adapter("lora", model)
    del bad.tensors["model.layers.1.mlp.up_proj.lora_B.weight"]
    before = take_snapshot(model)
    with pytest.raises(AttachError, match=r"lacks model\.layers\.1\.mlp\.up_proj\.lora_B"):
        hub.attach(model, hub.Stack(good, bad))
    assert take_snapshot(model) == before
    hub.attach(model, hub.Stack(good)).detach()
    assert take_snapshot(model) == before


def test_trainable_names_the_adapters_that_learn() -> None:
    model = build_tiny("llama")
    one, two = make_adapter("lora", model), make_adapter("houlsby", model)
    with hub.attach(model, hub.Stack(one, two), trainable=[two]) as attachment:
        learning = {id(p) for p in model.parameters() if p.requires_grad}
        assert learning == {id(p) for p in two.tensors.values()}
        shares = attachment.summary().adapters
        assert [share.trainable > 0 for share in shares] == [False, True]
    with pytest.raises(AttachError, match="attached are lora, houlsby"):
        hub.attach(model, hub.Stack(one, two), trainable=["de@2"])


def test_plain_optimizer_over_the_model_trains_the_adapter_alone() -> None:
    model = build_tiny("llama")
    before = take_snapshot(model)
    adapter = make_adapter("lora", model)
    with hub.attach(model, adapter, trainable=True):
        kept = {name: tensor.detach().clone() for name, tensor in adapter.tensors.items()}
        optimizer = torch.optim.AdamW([p for p in model.parameters() if p.requires_grad], lr=1e-2)
        inputs = make_inputs(model)
        model(**inputs, labels=inputs["input_ids"]).loss.backward()
        optimizer.step()
    assert take_snapshot(model) == before
    assert all(not torch.equal(t, kept[n]) for n, t in adapter.tensors.items())


@pytest.mark.parametrize(
    "composition",
    [None, 3, ["sst2"], ("sst2@1",), object()],
    ids=lambda value: type(value).__name__,
)
def test_what_can_not_be_attached_is_named(composition: Any) -> None:
    with pytest.raises(AttachError, match="can't be attached; give an adapter"):
        hub.attach(build_tiny("llama"), composition)


@pytest.mark.parametrize("model", [None, "gpt2", nn.Linear])
def test_what_is_no_model_is_named(model: Any) -> None:
    adapter = hub.Adapter.create("lora", build_tiny("llama"))
    with pytest.raises(AttachError, match="not a loaded model; load the base with transformers"):
        hub.attach(model, adapter)
    with pytest.raises(AttachError, match="not a loaded model; load the base with transformers"):
        hub.Adapter.create("lora", model)


def test_an_adapter_that_is_there_twice_learns_from_both_places() -> None:
    model = build_tiny("llama")
    once = make_adapter("lora", model, r=2, alpha=8)
    twice = hub.Adapter.create("lora", model, r=2, alpha=4)
    for name, tensor in twice.tensors.items():
        tensor.data.copy_(once.tensors[name])
    inputs = make_inputs(model)
    gradients = []
    for composition in (once, hub.Stack(twice, twice)):
        with hub.attach(model, composition, trainable=True) as attachment:
            model(**inputs, labels=inputs["input_ids"]).loss.backward()
            gradients.append([p.grad for p in attachment.parameters()])
    for one, two in zip(*gradients, strict=True):
        torch.testing.assert_close(one, two, rtol=1e-4, atol=1e-6)


def test_a_model_trained_in_memory_is_another_base_whatever_its_name_says() -> None:
    import dataclasses

    adapter = make_adapter("lora", build_tiny("llama"))
    files = {"model.safetensors": "0" * 64}
    assert adapter.base is not None
    adapter.base = dataclasses.replace(adapter.base, files=files)
    from hub.identity import identify_base
    from hub_registry.identity import compare

    found = dataclasses.replace(identify_base(build_tiny("llama", seed=9)), files=files)
    assert compare(adapter.base, found).verdict == "different"


def test_a_users_own_tensor_is_never_written() -> None:
    model = build_tiny("llama")
    patch = torch.zeros(2, 7, 32)
    model.model.layers[0].self_attn.o_proj.register_forward_hook(lambda *_: patch)
    with hub.attach(model, make_adapter("lora", model), trainable=False):
        assert torch.equal(run(model), run(model))
    assert not patch.any()


def test_unfreezing_while_attached_does_not_outlive_it() -> None:
    model = build_tiny("llama").requires_grad_(False)
    before = take_snapshot(model)
    with hub.attach(model, make_adapter("lora", model)):
        model.requires_grad_(True)
    assert take_snapshot(model) == before


@pytest.mark.parametrize("kind", ["bert", "albert"])
def test_a_pooler_or_none_is_the_same_base(kind: str) -> None:
    from transformers import AutoModelForMaskedLM

    classifier = build_tiny(kind, "classification")
    masked = AutoModelForMaskedLM.from_config(classifier.config).eval()
    masked.base_model.load_state_dict(classifier.base_model.state_dict(), strict=False)
    adapter = make_adapter("houlsby", masked)
    assert not adapter.heads
    hub.attach(classifier, adapter).detach()


def test_creating_on_an_attached_or_compiled_classifier_finds_its_own_head() -> None:
    model = build_tiny("llama", "classification")
    with hub.attach(model, make_adapter("lora", model)):
        assert hub.Adapter.create("houlsby", model).heads == ("score",)
    compiled = torch.compile(model, backend="eager")
    adapter = hub.Adapter.create("lora", compiled)
    assert (adapter.heads, adapter.task_type) == (("score",), "SEQ_CLS")


@pytest.mark.parametrize("wrapped", [True, False])
def test_a_model_that_carries_pefts_adapters_is_refused(wrapped: bool) -> None:
    model = build_tiny("llama")
    adapter = hub.Adapter.create("lora", model)
    config = peft.LoraConfig(r=2, target_modules=["q_proj"])
    if wrapped:
        other = peft.get_peft_model(model, config)
    else:
        other = peft.inject_adapter_in_model(config, model)
    for act in (lambda: hub.Adapter.create("lora", other), lambda: hub.attach(other, adapter)):
        with pytest.raises(AttachError, match=r"carries adapters of peft .* unload\(\)"):
            act()
    if wrapped:
        with hub.attach(other.unload(), adapter):
            pass
