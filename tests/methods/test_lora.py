"""LoRA against peft, both ways, and against the paper's numbers."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import peft
import pytest
import torch
from torch import nn

import hub
from hub.errors import ConfigError
from tests.snapshots import run, shake_adapter
from tests.tiny import build_tiny, make_inputs

CASES = {
    "gpt2": ("causal", "CAUSAL_LM", ["c_attn", "c_proj", "c_fc"]),
    "llama": ("causal", "CAUSAL_LM", ["q_proj", "k_proj", "v_proj", "o_proj", "up_proj"]),
    "t5": ("seq2seq", "SEQ_2_SEQ_LM", ["q", "k", "v", "o", "wi", "wo"]),
    "bert": ("classification", "SEQ_CLS", ["query", "key", "value", "attention.output.dense"]),
}
VARIANTS: list[dict[str, Any]] = [
    {"r": 4, "lora_alpha": 12},
    {"r": 4, "lora_alpha": 12, "use_rslora": True},
    {"r": 4, "lora_alpha": 6, "rank_pattern": {"0.*": 2}, "alpha_pattern": {"1.*": 5}},
]


@pytest.mark.parametrize("variant", VARIANTS, ids=["plain", "rslora", "patterns"])
@pytest.mark.parametrize("kind", CASES)
def test_peft_files_give_pefts_logits(kind: str, variant: dict[str, Any], tmp_path: Path) -> None:
    task, task_type, targets = CASES[kind]
    config = peft.LoraConfig(
        task_type=task_type,
        target_modules=targets,
        fan_in_fan_out=kind == "gpt2",
        **variant,
    )
    model = peft.get_peft_model(build_tiny(kind, task), config)
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.requires_grad:
                parameter.copy_(torch.randn(parameter.shape, generator=generator) * 0.1)
    expected = run(model.eval(), **make_inputs(model))
    model.save_pretrained(tmp_path / "peft")

    base = build_tiny(kind, task)
    adapter = hub.load(tmp_path / "peft")
    with hub.attach(base, adapter) as attachment:
        assert "could not be verified" in attachment.notes[0]
        torch.testing.assert_close(run(base), expected, rtol=0, atol=1e-5)


@pytest.mark.parametrize(
    "options",
    [
        {"r": 4, "alpha": 12},
        {"r": 4, "alpha": 12, "rslora": True, "targets": "attention"},
        {"r": 4, "rank_pattern": {r".*\.0\..*": 2}, "alpha_pattern": {r".*\.1\..*": 3}},
    ],
    ids=["all", "rslora-attention", "ranks"],
)
@pytest.mark.parametrize("kind", CASES)
def test_peft_reads_our_files_to_our_logits(
    kind: str, options: dict[str, Any], tmp_path: Path
) -> None:
    task, task_type, _ = CASES[kind]
    model = build_tiny(kind, task)
    adapter = shake_adapter(hub.Adapter.create("lora", model, **options), scale=0.1)
    adapter.save(tmp_path / "ours")
    assert json.loads((tmp_path / "ours/adapter_config.json").read_text())["task_type"] == task_type
    with hub.attach(model, adapter):
        expected = run(model)
    read = peft.PeftModel.from_pretrained(build_tiny(kind, task), str(tmp_path / "ours")).eval()
    torch.testing.assert_close(run(read, **make_inputs(model)), expected, rtol=0, atol=1e-5)


def test_parameters_equal_the_papers() -> None:
    class Base(nn.Module):
        """One projection of 512 x 64, the issue's example."""

        def __init__(self) -> None:
            super().__init__()
            self.query = nn.Linear(512, 64, bias=False)

    site = hub.Site("projection", "query", "query", 0, 512, 64)
    from hub_lora import LoRA, LoRAConfig

    layer = LoRA().build(site, LoRAConfig(r=8))
    count = sum(parameter.numel() for parameter in layer.parameters())
    assert count == 4_608
    full = sum(parameter.numel() for parameter in Base().parameters())
    assert full == 32_768
    assert round(1 - count / full, 2) == 0.86


def test_new_adapter_changes_nothing() -> None:
    model = build_tiny("llama")
    bare = run(model)
    with hub.attach(model, hub.Adapter.create("lora", model)):
        assert torch.equal(run(model), bare)


def test_targets_choose_by_what_a_projection_does() -> None:
    model = build_tiny("llama")

    def names(targets: Any) -> set[str]:
        adapter = hub.Adapter.create("lora", model, targets=targets)
        return {name.split(".lora_")[0].rsplit(".", 1)[-1] for name in adapter.tensors}

    assert names("attention") == {"q_proj", "k_proj", "v_proj", "o_proj"}
    assert names("feedforward") == {"gate_proj", "up_proj", "down_proj"}
    assert names("all") == names("attention") | names("feedforward")
    assert names(r".*\.1\.self_attn\.[qv]_proj") == {"q_proj", "v_proj"}
    assert names(["q_proj"]) == {"q_proj"}


@pytest.mark.parametrize("targets", ["all", "attention", ["q_proj"]])
def test_layers_narrow_the_targets(targets: Any) -> None:
    adapter = hub.Adapter.create("lora", build_tiny("llama"), targets=targets, layers=[1])
    assert {name.split(".")[2] for name in adapter.tensors} == {"1"}


def test_pefts_own_alpha_is_meant_where_a_file_does_not_say_it() -> None:
    from hub_lora import LoRA

    assert LoRA().read_config({"r": 4, "target_modules": ["q"]}).scaling("q") == 8 / 4


def test_dropout_acts_in_training_alone() -> None:
    model = build_tiny("llama")
    adapter = shake_adapter(hub.Adapter.create("lora", model, dropout=0.5))
    with hub.attach(model, adapter):
        assert torch.equal(run(model), run(model))
        model.train()
        inputs = make_inputs(model)
        assert not torch.equal(model(**inputs).logits, model(**inputs).logits)


@pytest.mark.parametrize(
    ("options", "text"),
    [
        ({"rank": 4}, "lora has no option 'rank'; it has"),
        ({"r": 0}, "r is 0; a rank is a whole number from 1"),
        ({"r": 2.5}, "r is 2.5; it must be int"),
        ({"dropout": 1.0}, r"dropout is 1.0; it must be in \[0, 1\)"),
        ({"alpha": float("nan")}, "alpha is nan; it must be a finite number"),
        ({"targets": "atention"}, "no projection matches targets='atention'; this base has"),
        ({"targets": "("}, "is no regular expression"),
        ({"targets": ()}, "targets is empty"),
        ({"targets": 5}, "targets is 5; it must be"),
        ({"r": True}, "r is True; it must be int"),
        ({"rslora": "no"}, "rslora is 'no'; it must be bool"),
        ({"rank_pattern": [1]}, r"rank_pattern is \(1,\); it must be"),
        ({"rank_pattern": {"(": 2}}, r"'\(' is no regular expression"),
        ({"layers": 1}, "layers is 1; it must be"),
        ({"targets": ".*q_proj", "layers": [1]}, "layers can't narrow the pattern"),
        ({"rank_pattern": {"q_proj": 0}}, "q_proj is 0"),
        ({"rank_pattern": {"q_porj": 2}}, "the pattern 'q_porj' matches none of the 14 modules"),
    ],
)
def test_wrong_options_are_named(options: dict[str, Any], text: str) -> None:
    with pytest.raises(ConfigError, match=text):
        hub.Adapter.create("lora", build_tiny("llama"), **options)


@pytest.mark.parametrize(
    "field",
    [
        {"bias": "all"},
        {"lora_bias": True},
        {"init_lora_weights": "pissa"},
        {"trainable_token_indices": [1]},
        {"a_field_of_the_future": 3},
    ],
)
def test_variants_that_would_compute_something_else_are_refused(
    field: dict[str, Any], tmp_path: Path
) -> None:
    adapter = hub.Adapter.create("lora", build_tiny("llama"))
    folder = adapter.save(tmp_path / "adapter")
    (folder / "hub.json").unlink()
    path = folder / "adapter_config.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), **field}))
    with pytest.raises(ConfigError, match=f"adapter_config.json has {next(iter(field))}="):
        hub.load(folder)
