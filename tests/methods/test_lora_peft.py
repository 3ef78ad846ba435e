"""LoRA and peft's read each other's files to the same outputs, for every task that peft allows."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import peft
import pytest
import torch
from transformers import (
    AutoConfig,
    AutoModel,
    AutoModelForCausalLM,
    AutoModelForQuestionAnswering,
    AutoModelForSeq2SeqLM,
    AutoModelForSequenceClassification,
    AutoModelForTokenClassification,
    set_seed,
)

import hub
from hub.errors import ConfigError
from tests.snapshots import run, shake_adapter
from tests.tiny import SMALL, SPECIAL, build_tiny, make_inputs

CLASSES: dict[str, Any] = {
    "CAUSAL_LM": AutoModelForCausalLM,
    "SEQ_2_SEQ_LM": AutoModelForSeq2SeqLM,
    "SEQ_CLS": AutoModelForSequenceClassification,
    "TOKEN_CLS": AutoModelForTokenClassification,
    "QUESTION_ANS": AutoModelForQuestionAnswering,
    "FEATURE_EXTRACTION": AutoModel,
}
TARGETS = {
    "gpt2": ["c_attn", "c_proj", "c_fc", "wte"],
    "llama": ["q_proj", "k_proj", "v_proj", "up_proj", "embed_tokens"],
    "t5": ["q", "k", "v", "o", "wi", "wo", "encoder.embed_tokens"],
    "bert": ["query", "key", "value", "attention.output.dense", "word_embeddings"],
}
CELLS = [
    (kind, task)
    for kind in TARGETS
    for task in CLASSES
    if (task == "SEQ_2_SEQ_LM") <= (kind == "t5") and (kind, task) != ("t5", "CAUSAL_LM")
]
VARIANTS: dict[str, dict[str, Any]] = {
    "plain": {"r": 4, "lora_alpha": 12},
    "rslora": {"r": 4, "lora_alpha": 12, "use_rslora": True},
    "dora": {"r": 4, "lora_alpha": 12, "use_dora": True},
    "patterns": {"rank_pattern": {"0.*": 2}, "alpha_pattern": {"1.*": 5}, "r": 4, "lora_alpha": 6},
}
MAIN = {"gpt2": "CAUSAL_LM", "llama": "CAUSAL_LM", "t5": "SEQ_2_SEQ_LM", "bert": "SEQ_CLS"}
# Every variant at its model's main task; at the others what has the most in it.
CASES = [(kind, task, "dora") for kind, task in CELLS] + [
    (kind, MAIN[kind], variant) for kind in TARGETS for variant in VARIANTS if variant != "dora"
]


def build(kind: str, task: str) -> Any:
    set_seed(0)
    changes = dict(is_decoder=True) if (kind, task) == ("bert", "CAUSAL_LM") else {}
    config = AutoConfig.for_model(kind, **{**SPECIAL, **SMALL[kind], **changes})
    return CLASSES[task].from_config(config).eval()


def answer(model: Any, kind: str, task: str) -> list[torch.Tensor]:
    generator = torch.Generator().manual_seed(1)
    inputs = {"input_ids": torch.randint(3, 99, (2, 7), generator=generator)}
    if kind == "t5":
        inputs["input_ids"][:, -1] = SPECIAL["eos_token_id"]  # its classifier looks for one
        if task in ("SEQ_2_SEQ_LM", "FEATURE_EXTRACTION"):
            inputs["decoder_input_ids"] = inputs["input_ids"][:, :5]
    with torch.no_grad():
        output = model(**inputs)
    return [value for value in output.values() if isinstance(value, torch.Tensor)]


def shake(model: Any) -> None:
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.requires_grad:
                parameter.copy_(torch.randn(parameter.shape, generator=generator) * 0.1)


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize(("kind", "task", "variant"), CASES)
def test_files_go_both_ways(kind: str, task: str, variant: str, tmp_path: Path) -> None:
    options = VARIANTS[variant]
    config = peft.LoraConfig(
        task_type=task, target_modules=TARGETS[kind], fan_in_fan_out=kind == "gpt2", **options
    )
    model: Any = peft.get_peft_model(build(kind, task), config)
    shake(model)
    expected = answer(model.eval(), kind, task)
    model.save_pretrained(tmp_path / "theirs")

    base = build(kind, task)
    assert not torch.allclose(answer(base, kind, task)[0], expected[0], atol=1e-3)
    adapter = hub.load(tmp_path / "theirs")
    assert adapter.task_type == task
    with hub.attach(base, adapter) as attachment:
        assert "could not be verified" in attachment.notes[0]
        torch.testing.assert_close(answer(base, kind, task), expected, rtol=0, atol=1e-5)

    adapter.save(tmp_path / "ours")
    again: Any = peft.PeftModel.from_pretrained(base, str(tmp_path / "ours")).eval()
    torch.testing.assert_close(answer(again, kind, task), expected, rtol=0, atol=1e-5)


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("options", [{}, {"use_dora": True}], ids=["lora", "dora"])
@pytest.mark.parametrize("kind", ["bart", "gemma3_text"])
def test_scaled_embeddings_are_scaled_alike(
    kind: str, options: dict[str, Any], tmp_path: Path
) -> None:
    """Their forward multiplies what they look up, and peft multiplies what it adds."""
    sizes = {**SMALL["gemma2"], "head_dim": 8}
    config = AutoConfig.for_model(kind, **{**SPECIAL, **SMALL.get(kind, sizes)})
    if kind == "bart":
        config.scale_embedding = True
    task = "SEQ_2_SEQ_LM" if kind == "bart" else "CAUSAL_LM"

    def make() -> Any:
        set_seed(0)
        return CLASSES[task].from_config(config).eval()

    targets = ["encoder.embed_tokens"] if kind == "bart" else ["embed_tokens"]
    model: Any = peft.get_peft_model(make(), peft.LoraConfig(target_modules=targets, **options))
    shake(model)
    expected = answer(model.eval(), kind, task)
    model.save_pretrained(tmp_path)
    base = make()
    assert any(hasattr(module, "embed_scale") for module in base.modules())
    with hub.attach(base, hub.load(tmp_path)):
        torch.testing.assert_close(answer(base, kind, task), expected, rtol=0, atol=1e-5)


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("kind", ["gpt2", "llama"])
def test_dora_trains_as_pefts(kind: str) -> None:
    """One step of plain gradient descent without dropout, from the same values."""
    targets = {"gpt2": ["c_attn", "c_fc"], "llama": ["q_proj", "embed_tokens", "lm_head"]}[kind]
    config = peft.LoraConfig(r=4, lora_alpha=8, use_dora=True, target_modules=targets)
    model: Any = peft.get_peft_model(build(kind, "CAUSAL_LM"), config)
    base = build(kind, "CAUSAL_LM")
    adapter = hub.Adapter.create("lora", base, r=4, alpha=8, dora=True, targets=targets)
    theirs = {
        name.removeprefix("base_model.model.").replace(".default", ""): parameter
        for name, parameter in model.named_parameters()
        if parameter.requires_grad
    }
    theirs = {
        name.replace("lora_magnitude_vector.weight", "lora_magnitude_vector"): parameter
        for name, parameter in theirs.items()
    }
    assert theirs.keys() == adapter.tensors.keys()
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for name, parameter in theirs.items():
            if name.endswith("magnitude_vector"):
                torch.testing.assert_close(adapter.tensors[name].data, parameter.data)
            else:
                parameter.copy_(torch.randn(parameter.shape, generator=generator) * 0.1)
                adapter.tensors[name].copy_(parameter)
    inputs = make_inputs(base)
    model.eval()(**inputs, labels=inputs["input_ids"]).loss.backward()
    with hub.attach(base, adapter, trainable=True):
        base(**inputs, labels=inputs["input_ids"]).loss.backward()
    for name, parameter in theirs.items():
        assert parameter.grad.any()
        torch.testing.assert_close(
            adapter.tensors[name].grad, parameter.grad, rtol=1e-4, atol=1e-6, msg=name
        )


@pytest.mark.filterwarnings("ignore")
def test_dora_drops_out_as_pefts(monkeypatch: pytest.MonkeyPatch) -> None:
    """With the same mask: the base's own part keeps the whole input."""
    monkeypatch.setattr(
        torch.nn.functional, "dropout", lambda x, p=0.5, *_, **__: x * (x > 0) if p else x
    )
    targets = ["c_attn", "c_fc"]
    config = peft.LoraConfig(
        r=4, lora_dropout=0.5, use_dora=True, target_modules=targets, fan_in_fan_out=True
    )
    still: dict[str, Any] = dict(attn_pdrop=0.0, embd_pdrop=0.0, resid_pdrop=0.0)
    model: Any = peft.get_peft_model(build_tiny("gpt2", **still), config)
    shake(model)
    base = build_tiny("gpt2", **still)
    adapter = hub.Adapter.create(
        "lora", base, r=4, alpha=8, dora=True, dropout=0.5, targets=targets
    )
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if parameter.requires_grad:
                name = name.removeprefix("base_model.model.").replace(".default", "")
                adapter.tensors[name.removesuffix(".weight") if "mag" in name else name].copy_(
                    parameter
                )
    inputs = make_inputs(base)
    expected = model.train()(**inputs).logits
    with hub.attach(base, adapter, trainable=True):
        torch.testing.assert_close(base.train()(**inputs).logits, expected, rtol=0, atol=1e-5)


@pytest.mark.filterwarnings("ignore")
def test_lora_on_a_tied_head_equals_pefts(tmp_path: Path) -> None:
    base = build("gpt2", "CAUSAL_LM")
    model: Any = peft.get_peft_model(
        build("gpt2", "CAUSAL_LM"), peft.LoraConfig(target_modules=["lm_head", "c_attn"])
    )
    shake(model)
    expected = answer(model.eval(), "gpt2", "CAUSAL_LM")
    model.save_pretrained(tmp_path)
    adapter = hub.load(tmp_path)
    assert "lm_head" in adapter.config.base_digests
    with hub.attach(base, adapter):
        torch.testing.assert_close(answer(base, "gpt2", "CAUSAL_LM"), expected, rtol=0, atol=1e-5)


@pytest.mark.filterwarnings("ignore")
def test_a_file_with_other_embeddings_than_the_bases_is_refused(tmp_path: Path) -> None:
    config = peft.LoraConfig(target_modules=["embed_tokens", "q_proj"])
    model: Any = peft.get_peft_model(build("llama", "CAUSAL_LM"), config)
    model.save_pretrained(tmp_path)
    half = build("llama", "CAUSAL_LM").to(torch.bfloat16)
    hub.attach(half, hub.load(tmp_path)).detach()
    with torch.no_grad():
        model.get_input_embeddings().base_layer.weight[5] += 0.1
    model.save_pretrained(tmp_path)
    adapter = hub.load(tmp_path)
    for reference in (adapter, hub.load(adapter.save(tmp_path / "ours"))):
        with pytest.raises(ConfigError, match=r"weights of model\.embed_tokens that are not this"):
            hub.attach(build("llama", "CAUSAL_LM"), reference)


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("names", [["gate_up_proj", "down_proj"], ["experts.down_proj"]])
def test_stacked_experts_go_both_ways(names: list[str], tmp_path: Path) -> None:
    config = peft.LoraConfig(
        r=3, lora_alpha=5, target_modules=["q_proj"], target_parameters=names,
        rank_pattern={"down_proj": 2},
    )  # fmt: skip
    model: Any = peft.get_peft_model(build_tiny("mixtral"), config)
    shake(model)
    inputs = make_inputs(model)
    expected = run(model.eval(), **inputs)
    model.save_pretrained(tmp_path / "theirs")

    base = build_tiny("mixtral")
    adapter = hub.load(tmp_path / "theirs")
    assert "model.layers.0.mlp.experts.down_proj.3.lora_A.weight" in adapter.tensors
    with hub.attach(base, adapter):
        torch.testing.assert_close(run(base), expected, rtol=0, atol=1e-5)
    adapter.save(tmp_path / "ours")
    again: Any = peft.PeftModel.from_pretrained(base, str(tmp_path / "ours")).eval()
    torch.testing.assert_close(run(again, **inputs), expected, rtol=0, atol=1e-5)


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("targets", ["all", "feedforward"])
def test_peft_reads_our_experts(targets: str, tmp_path: Path) -> None:
    base = build_tiny("mixtral")
    adapter = shake_adapter(hub.Adapter.create("lora", base, r=2, targets=targets), scale=0.1)
    fields = json.loads((adapter.save(tmp_path) / "adapter_config.json").read_text())
    assert len(fields["target_parameters"]) == 4
    with hub.attach(base, adapter):
        expected = run(base)
    with hub.attach(base, hub.load(tmp_path)):
        assert torch.equal(run(base), expected)
    read: Any = peft.PeftModel.from_pretrained(base, str(tmp_path)).eval()
    torch.testing.assert_close(run(read, **make_inputs(base)), expected, rtol=0, atol=1e-5)


def test_a_stack_of_another_rank_is_refused(tmp_path: Path) -> None:
    adapter = hub.Adapter.create("lora", build_tiny("mixtral"), r=4, targets=["down_proj"])
    folder = adapter.save(tmp_path)
    (folder / "hub.json").unlink()
    path = folder / "adapter_config.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), "r": 3}))
    with pytest.raises(ConfigError, match="which is no stack of experts of rank 3"):
        hub.load(folder)
