"""LLaMA-Adapter against peft, both ways, and against the paper."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import peft
import pytest
import torch

import hub
from hub.errors import ConfigError
from hub_llama_adapter import LlamaAdapter, LlamaAdapterConfig
from tests.methods.prompting import assert_same, compute, shake, train_on
from tests.snapshots import run, shake_adapter
from tests.tiny import SMALL, build_tiny, make_inputs

N = 3
KINDS = ["llama", "mistral"]


@pytest.fixture(autouse=True)
def mistral(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(SMALL, "mistral", {**SMALL["llama"], "sliding_window": None})


def make_peft(kind: str, layers: int = 1) -> Any:
    config = peft.AdaptionPromptConfig(task_type="CAUSAL_LM", adapter_len=N, adapter_layers=layers)
    return shake(peft.get_peft_model(build_tiny(kind), config), 1.0)


@pytest.mark.parametrize("layers", [1, 2])
@pytest.mark.parametrize("kind", KINDS)
def test_peft_and_hub_read_each_others_files(kind: str, layers: int, tmp_path: Path) -> None:
    theirs = make_peft(kind, layers)
    theirs.save_pretrained(tmp_path / "peft")
    model = build_tiny(kind)
    expected = compute(theirs, **make_inputs(model))
    assert not torch.allclose(compute(model)["logits"], expected["logits"], atol=1e-3)
    adapter = hub.load(tmp_path / "peft")
    with hub.attach(model, adapter):
        assert_same(compute(model), expected)
    with hub.attach(model, adapter, trainable=True):
        assert_same(compute(model), expected)
    adapter.save(tmp_path / "ours")
    read = peft.PeftModel.from_pretrained(build_tiny(kind), str(tmp_path / "ours"))
    assert_same(compute(read, **make_inputs(model)), expected)


def test_greedy_tokens_equal_pefts(tmp_path: Path) -> None:
    theirs = make_peft("llama")
    theirs.save_pretrained(tmp_path)
    model = build_tiny("llama")
    options: dict[str, Any] = dict(max_new_tokens=6, min_new_tokens=6, do_sample=False)
    expected = theirs.generate(**make_inputs(model), **options)
    assert not torch.equal(model.generate(**make_inputs(model), **options), expected)
    with hub.attach(model, hub.load(tmp_path)):
        for cached in (True, False):
            found = model.generate(**make_inputs(model), **options, use_cache=cached)
            assert torch.equal(found, expected)


def test_new_adapter_changes_nothing() -> None:
    model = build_tiny("llama")
    bare = run(model)
    with hub.attach(model, hub.Adapter.create("llama_adapter", model)):
        assert torch.equal(run(model), bare)


def test_parameters_equal_the_papers() -> None:
    """Table 1: 1.2 million on LLaMA 7B, with 10 tokens in the topmost 30 layers."""
    adapter = LlamaAdapter()
    sites = [
        hub.Site(
            "attention", f"layers.{i}.self_attn", "attention", i, 4096, 4096,
            feeds=("k", "v"), heads=32, direct=True, width=4096,
        )
        for i in range(32)
    ]  # fmt: skip
    config = LlamaAdapterConfig()
    chosen = adapter.choose_sites(sites, config)
    assert [site.block for site in chosen] == list(range(2, 32))
    modules = [adapter.build(site, config) for site in chosen]
    count = sum(p.numel() for module in modules for p in module.parameters())
    assert count == 30 * (10 * 4096 + 1)
    assert f"{count / 1e6:.1f}" == "1.2"


def test_loaded_prompts_of_pefts_learn_on(tmp_path: Path) -> None:
    make_peft("llama").save_pretrained(tmp_path)
    adapter = hub.load(tmp_path)
    assert train_on(build_tiny("llama"), adapter) == adapter.tensors.keys()


def test_serving_looks_the_prompt_up_once(monkeypatch: pytest.MonkeyPatch) -> None:
    reads = []
    read = hub.Base.read_weight

    def count(self: hub.Base, path: str) -> torch.Tensor:
        reads.append(path)
        return read(self, path)

    monkeypatch.setattr(hub.Base, "read_weight", count)
    model = build_tiny("llama")
    adapter = shake_adapter(hub.Adapter.create("llama_adapter", model))
    with hub.attach(model, adapter, trainable=False):
        made = len(reads)
        served = run(model)
        assert len(reads) == made == 2
        with torch.no_grad():
            next(t for n, t in adapter.tensors.items() if n.endswith("prompt")).mul_(-1)
        assert not torch.allclose(run(model), served, atol=1e-4)


@pytest.mark.parametrize(
    ("kind", "text"),
    [
        ("gpt2", r"attn has its keys and values from transformer\.h\.1\.attn\.c_attn and not from"),
        ("gptj", "attn does not go through transformers' attention functions"),
        ("mamba", "this base has no attention to act at"),
    ],
)
def test_a_base_where_it_can_not_act_is_refused(kind: str, text: str) -> None:
    with pytest.raises(ConfigError, match=text):
        hub.Adapter.create("llama_adapter", build_tiny(kind))


@pytest.mark.parametrize(
    ("options", "text"),
    [
        ({"tokens": 0}, "tokens is 0; it is a whole number from 1"),
        ({"layers": 0}, "layers is 0; it is a whole number from 1"),
        ({"layers": 3}, "layers is 3, this base has 2 attentions; ask for at most that many"),
        ({"adapter_len": 3}, "llama_adapter has no option 'adapter_len'; it has"),
    ],
)
def test_wrong_options_are_named(options: dict[str, Any], text: str) -> None:
    with pytest.raises(ConfigError, match=text):
        hub.Adapter.create("llama_adapter", build_tiny("llama"), **options)
