"""IA3 against peft, both ways, and against the paper's numbers."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import peft
import pytest
import torch
import transformers
from torch import nn

import hub
from hub.errors import AttachError, ConfigError
from hub_ia3 import InputScale, Scale
from tests.snapshots import run, shake_adapter, take_snapshot
from tests.tiny import SMALL, SPECIAL, build_tiny, make_inputs

# peft's own targets for these models; BERT's "output.dense" also names the attention's output.
TARGETS: dict[str, tuple[list[str], list[str]]] = {
    "gpt2": (["c_attn", "mlp.c_proj"], ["mlp.c_proj"]),
    "llama": (["k_proj", "v_proj", "down_proj"], ["down_proj"]),
    "t5": (["k", "v", "wo"], ["wo"]),
    "bert": (["key", "value", "output.dense"], ["output.dense"]),
}
HEADS = {
    "CAUSAL_LM": "AutoModelForCausalLM",
    "SEQ_2_SEQ_LM": "AutoModelForSeq2SeqLM",
    "SEQ_CLS": "AutoModelForSequenceClassification",
    "TOKEN_CLS": "AutoModelForTokenClassification",
    "QUESTION_ANS": "AutoModelForQuestionAnswering",
    "FEATURE_EXTRACTION": "AutoModel",
    None: "AutoModelForMaskedLM",
}
TASKS: dict[str, list[str | None]] = {
    "gpt2": ["CAUSAL_LM", "SEQ_CLS", "TOKEN_CLS", "QUESTION_ANS", "FEATURE_EXTRACTION"],
    "llama": ["CAUSAL_LM", "SEQ_CLS", "TOKEN_CLS", "QUESTION_ANS", "FEATURE_EXTRACTION"],
    "t5": ["SEQ_2_SEQ_LM", "SEQ_CLS", "TOKEN_CLS", "QUESTION_ANS"],
    "bert": [None, "SEQ_CLS", "TOKEN_CLS", "QUESTION_ANS", "FEATURE_EXTRACTION"],
}
CASES = [(kind, task) for kind, tasks in TASKS.items() for task in tasks]


def build(kind: str, task: str | None) -> Any:
    """The tiny model with the head of peft's task type."""
    transformers.set_seed(0)
    config = transformers.AutoConfig.for_model(kind, **{**SPECIAL, **SMALL[kind]})
    return getattr(transformers, HEADS[task]).from_config(config).eval()


def compute(model: Any) -> torch.Tensor:
    """Its first output: logits, start logits or hidden states."""
    inputs = make_inputs(model)
    inputs["input_ids"][:, -1] = SPECIAL["eos_token_id"]  # where T5's classifier reads
    with torch.no_grad():
        output: torch.Tensor = model(**inputs)[0]
    return output


def get_peft(model: Any, task: str | None, kind: str) -> Any:
    targets, feedforward = TARGETS[kind]
    config = peft.IA3Config(
        task_type=task,
        target_modules=targets,
        feedforward_modules=feedforward,
        fan_in_fan_out=kind == "gpt2",
        # A head that peft does not know by its name.
        modules_to_save=["classification_head"] if (kind, task) == ("t5", "SEQ_CLS") else None,
    )
    model = peft.get_peft_model(model, config)
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if "ia3_l" in name:
                parameter.copy_(1 + torch.randn(parameter.shape, generator=generator) * 0.5)
            elif parameter.requires_grad:
                parameter.copy_(torch.randn(parameter.shape, generator=generator) * 0.1)
    return model.eval()


@pytest.mark.parametrize(("kind", "task"), CASES)
def test_peft_files_give_pefts_outputs(kind: str, task: str | None, tmp_path: Path) -> None:
    model = get_peft(build(kind, task), task, kind)
    expected = compute(model)
    model.save_pretrained(str(tmp_path / "peft"))
    base = build(kind, task)
    adapter = hub.load(tmp_path / "peft")
    assert not torch.allclose(compute(base), expected, atol=1e-3)
    with hub.attach(base, adapter):
        torch.testing.assert_close(compute(base), expected, rtol=0, atol=1e-5)


@pytest.mark.parametrize(("kind", "task"), CASES)
def test_peft_reads_our_files_to_our_outputs(kind: str, task: str | None, tmp_path: Path) -> None:
    model = build(kind, task)
    adapter = shake_adapter(hub.Adapter.create("ia3", model))
    adapter.save(tmp_path / "ours")
    written = json.loads((tmp_path / "ours/adapter_config.json").read_text())
    assert (written["peft_type"], written["task_type"]) == ("IA3", task)
    with hub.attach(model, adapter):
        expected = compute(model)
    read = peft.PeftModel.from_pretrained(build(kind, task), str(tmp_path / "ours")).eval()
    torch.testing.assert_close(compute(read), expected, rtol=0, atol=1e-5)


def test_pefts_patterns_mean_what_they_mean_there(tmp_path: Path) -> None:
    config = peft.IA3Config(
        task_type="CAUSAL_LM",
        target_modules=r".*\.(v_proj|down_proj)",
        feedforward_modules=r".*down_proj",
        exclude_modules=["layers.0.mlp.down_proj"],
    )
    model = peft.get_peft_model(build_tiny("llama"), config)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if "ia3_l" in name:
                parameter.uniform_(0.5, 1.5)
    expected = compute(model.eval())
    model.save_pretrained(str(tmp_path / "peft"))
    base = build_tiny("llama")
    with hub.attach(base, hub.load(tmp_path / "peft")):
        torch.testing.assert_close(compute(base), expected, rtol=0, atol=1e-5)


def test_new_adapter_changes_nothing() -> None:
    model = build_tiny("llama")
    bare = run(model)
    with hub.attach(model, hub.Adapter.create("ia3", model)):
        assert torch.equal(run(model), bare)


def test_parameters_equal_the_papers() -> None:
    # Section 3.3: L (d_k + d_v + d_ff) in an encoder, L (2 d_k + 2 d_v + d_ff) in a decoder.
    adapter = hub.Adapter.create("ia3", build_tiny("t5"))
    layers, d_k, d_v, d_ff = 2, 4 * 8, 4 * 8, 48
    count = sum(tensor.numel() for tensor in adapter.tensors.values())
    assert count == layers * (d_k + d_v + d_ff) + layers * (2 * d_k + 2 * d_v + d_ff)


@pytest.mark.parametrize(
    ("kind", "names"),
    [
        ("llama", {"k_proj", "v_proj", "down_proj"}),
        ("gpt2", {"c_attn", "c_proj"}),
        ("t5", {"k", "v", "wo"}),
        ("bart", {"k_proj", "v_proj", "fc2"}),
        ("gpt_neox", {"query_key_value", "dense_4h_to_h"}),
        ("bloom", {"query_key_value", "dense_4h_to_h"}),
        ("opt", {"k_proj", "v_proj", "fc2"}),
    ],
)
def test_default_is_keys_values_and_inner_activation(kind: str, names: set[str]) -> None:
    adapter = hub.Adapter.create("ia3", build_tiny(kind))
    assert {name.split(".")[-2] for name in adapter.tensors} == names
    # GPT-2's attention ends in a c_proj too.
    assert not any("attn.c_proj" in name for name in adapter.tensors)
    outs = [name for name, tensor in adapter.tensors.items() if tensor.shape[0] == 1]
    assert {f"{path}.ia3_l" for path in adapter.config.feedforward} == set(outs)


@pytest.mark.parametrize("kind", ["llama", "gpt2", "t5", "bert"])
def test_merged_equals_attached(kind: str) -> None:
    model = build_tiny(kind)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if name.endswith("bias"):
                parameter.uniform_(-0.3, 0.3)
    before = take_snapshot(model)
    adapter = shake_adapter(hub.Adapter.create("ia3", model))
    with hub.attach(model, adapter) as attachment:
        expected = run(model)
        attachment.merge()
        torch.testing.assert_close(run(model), expected, rtol=1e-4, atol=1e-5)
    assert take_snapshot(model) == before


@pytest.mark.parametrize("first", ["ia3", "lora"])
def test_stacks_with_lora_merge_to_the_same_outputs(first: str) -> None:
    model = build_tiny("llama")
    options = {"lora": {"targets": "all"}, "ia3": {}}
    second = "lora" if first == "ia3" else "ia3"
    adapters = [
        shake_adapter(hub.Adapter.create(method, model, **options[method]), seed, scale=0.2)
        for seed, method in enumerate((first, second))
    ]
    with hub.attach(model, hub.Stack(*adapters)) as attachment:
        expected = run(model)
        attachment.merge()
        torch.testing.assert_close(run(model), expected, rtol=1e-4, atol=1e-4)


def test_gradient_reaches_every_vector() -> None:
    model = build_tiny("t5").train()
    adapter = hub.Adapter.create("ia3", model)
    with hub.attach(model, adapter):
        model(**make_inputs(model)).logits.square().mean().backward()
        assert all(t.grad is not None and t.grad.abs().max() > 0 for t in adapter.tensors.values())


def test_half_precision_stays_half_while_the_vectors_learn_in_full() -> None:
    model = build_tiny("llama").to(torch.bfloat16)
    adapter = hub.Adapter.create("ia3", model)
    with hub.attach(model, adapter):
        logits = model(**make_inputs(model)).logits
        assert logits.dtype == torch.bfloat16
        logits.float().mean().backward()
        assert {tensor.dtype for tensor in adapter.tensors.values()} == {torch.float32}


def test_a_vector_on_the_input_costs_no_second_product() -> None:
    calls = 0

    class Counting(nn.Linear):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            nonlocal calls
            calls += 1
            return super().forward(x)

    model = build_tiny("llama")
    old = model.model.layers[0].mlp.down_proj
    new = Counting(old.in_features, old.out_features, bias=False)
    new.weight = old.weight
    model.model.layers[0].mlp.down_proj = new
    with hub.attach(model, shake_adapter(hub.Adapter.create("ia3", model))):
        calls = 0
        run(model)
    assert calls == 1


@pytest.mark.parametrize("shape", [(3, 4), (2, 3, 4), (4,)])
def test_vectors_take_any_number_of_dimensions(shape: tuple[int, ...]) -> None:
    x = torch.randn(shape)
    for module in (Scale(4), InputScale(4)):
        nn.init.constant_(module.ia3_l, 2.0)
        given = module(x, x) if isinstance(module, Scale) else module.before(x)
        assert torch.equal(given, 2 * x)


@pytest.mark.parametrize(
    ("options", "text"),
    [
        ({"vectors": 4}, "ia3 has no option 'vectors'; it has"),
        ({"targets": "atention"}, "no projection matches targets='atention'; this base has"),
        ({"targets": "("}, "is no regular expression"),
        ({"targets": ()}, "targets is empty"),
        ({"targets": 5}, "targets is 5; it must be"),
        ({"feedforward": "("}, "is no regular expression"),
        ({"feedforward": 5}, "feedforward is 5; it must be"),
        (
            {"feedforward": ("up_proj",)},
            r"feedforward=\('up_proj',\) matches none of the 6 modules",
        ),
        ({"targets": ("k_proj",), "feedforward": "v_proj"}, "matches none of the 2 modules"),
        ({"exclude": ".*"}, r"exclude='\.\*' leaves none of the 6 modules"),
        ({"targets": ("embed_tokens",)}, "embed_tokens"),
    ],
)
def test_wrong_options_are_named(options: dict[str, Any], text: str) -> None:
    with pytest.raises(ConfigError, match=text):
        hub.Adapter.create("ia3", build_tiny("llama"), **options)


def test_a_field_of_the_future_is_refused(tmp_path: Path) -> None:
    folder = hub.Adapter.create("ia3", build_tiny("llama")).save(tmp_path / "adapter")
    (folder / "hub.json").unlink()
    path = folder / "adapter_config.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), "ia3_bias": True}))
    with pytest.raises(ConfigError, match=r"adapter_config\.json has ia3_bias=True"):
        hub.load(folder)


def test_vectors_of_another_side_do_not_fit(tmp_path: Path) -> None:
    model = build_tiny("llama")
    folder = hub.Adapter.create("ia3", model).save(tmp_path / "adapter")
    (folder / "hub.json").unlink()
    path = folder / "adapter_config.json"
    fields = json.loads(path.read_text())
    path.write_text(json.dumps({**fields, "feedforward_modules": []}))
    with pytest.raises(AttachError, match=r"down_proj.ia3_l \(1, 48\) instead of \(32, 1\)"):
        hub.attach(model, hub.load(folder))
