"""LoRA and DoRA against the papers' equations and numbers, and what their options mean."""

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
from tests.snapshots import run, shake_adapter, take_snapshot
from tests.tiny import build_tiny, make_inputs

CASES = {
    "gpt2": ("causal", "CAUSAL_LM"),
    "llama": ("causal", "CAUSAL_LM"),
    "t5": ("seq2seq", "SEQ_2_SEQ_LM"),
    "bert": ("classification", "SEQ_CLS"),
}


@pytest.mark.parametrize(
    "options",
    [
        {"r": 4, "alpha": 12},
        {"r": 4, "alpha": 12, "rslora": True, "targets": "attention"},
        {"r": 4, "rank_pattern": {r".*\.0\..*": 2}, "alpha_pattern": {r".*\.1\..*": 3}},
        {"r": 4, "dora": True, "targets": "feedforward"},
    ],
    ids=["all", "rslora-attention", "ranks", "dora"],
)
@pytest.mark.parametrize("kind", CASES)
def test_peft_reads_our_files_to_our_logits(
    kind: str, options: dict[str, Any], tmp_path: Path
) -> None:
    task, task_type = CASES[kind]
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
        ({"r": 2.5}, "r is 2.5; it must be a whole number"),
        ({"dropout": 1.0}, r"dropout is 1.0; it must be in \[0, 1\)"),
        ({"alpha": float("nan")}, "alpha is nan; it must be a finite number"),
        ({"targets": "atention"}, "no projection matches targets='atention'; this base has"),
        ({"targets": "("}, "is no regular expression"),
        ({"targets": ()}, "targets is empty"),
        ({"targets": 5}, "targets is 5; it must be"),
        ({"r": True}, "r is True; it must be a whole number"),
        ({"layers": 1}, "layers is 1; it must be a list of whole numbers or nothing"),
        ({"rank_pattern": 4}, "rank_pattern is 4; it must be a table of whole numbers by name"),
        ({"layers": [9]}, r"layers=\(9,\) leaves none of the 14 modules .*layers\.0"),
        ({"exclude": ".*"}, r"exclude='\.\*' leaves none of the 14 modules"),
        ({"parameters": ["x"]}, "parameters names 'x', and this base has no stacked experts"),
        ({"rslora": "no"}, "rslora is 'no'; it must be true or false"),
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
        {"init_lora_weights": "loftq"},
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
    words = f"adapter_config.json has {next(iter(field))}="
    if "pissa" in field.values():
        words = "init_lora_weights is 'pissa', .* path_initial_model_for_weight_conversion"
    with pytest.raises(ConfigError, match=words):
        hub.load(folder)


def test_new_adapter_of_embeddings_changes_nothing_and_starts_as_pefts() -> None:
    model = build_tiny("gpt2")
    bare = run(model)
    for dora in (False, True):
        adapter = hub.Adapter.create("lora", model, targets=["wte", "wpe"], r=4, dora=dora)
        with hub.attach(model, adapter):
            torch.testing.assert_close(run(model), bare, rtol=0, atol=1e-5)
        assert not adapter.tensors["transformer.wte.lora_embedding_A"].any()
        assert adapter.tensors["transformer.wte.lora_embedding_A"].shape == (4, 99)
        start = adapter.tensors["transformer.wte.lora_embedding_B"].detach()
        assert start.shape == (32, 4)
        assert 0.7 < float(start.std()) < 1.3


def test_all_leaves_embeddings_and_the_head_out() -> None:
    adapter = hub.Adapter.create("lora", build_tiny("gpt2"))
    assert not any("wte" in name or "wpe" in name or "lm_head" in name for name in adapter.tensors)


@pytest.mark.parametrize("dora", [False, True], ids=["lora", "dora"])
@pytest.mark.parametrize("kind", ["gpt2", "bart"])
def test_embeddings_merge_to_the_same_outputs(kind: str, dora: bool) -> None:
    """BART's are scaled: what is merged is not."""
    changes: dict[str, Any] = {"tie_word_embeddings": False}
    if kind == "bart":
        changes["scale_embedding"] = True
    model = build_tiny(kind, **changes)
    targets = {"gpt2": ["wte", "wpe", "c_attn"], "bart": ["encoder.embed_tokens", "q_proj"]}[kind]
    for module in model.modules():  # of their own, where the configuration leaves them shared
        if isinstance(module, nn.Embedding):
            module.weight = nn.Parameter(module.weight.detach().clone())
    adapter = shake_adapter(hub.Adapter.create("lora", model, targets=targets, dora=dora))
    before = take_snapshot(model)
    with hub.attach(model, adapter) as attachment:
        expected = run(model)
        attachment.merge()
        torch.testing.assert_close(run(model), expected, rtol=1e-4, atol=1e-4)
    assert take_snapshot(model) == before


def test_a_tied_embedding_does_not_merge() -> None:
    model = build_tiny("gpt2")
    adapter = hub.Adapter.create("lora", model, targets=["wte"])
    with (
        hub.attach(model, adapter) as attachment,
        pytest.raises(hub.errors.AttachError, match=r"wte: the weight is shared"),
    ):
        attachment.merge()


def test_tokens_learn_their_own_columns_alone() -> None:
    model = build_tiny("llama")
    adapter = hub.Adapter.create("lora", model, targets=["embed_tokens"])
    inputs = make_inputs(model)
    inputs["input_ids"][0, 0] = model.config.pad_token_id
    with hub.attach(model, adapter):
        model(**inputs, labels=inputs["input_ids"]).loss.backward()
    gradient = adapter.tensors["model.embed_tokens.lora_embedding_A"].grad
    assert gradient is not None
    # What stands last is asked for nothing.
    seen = set(inputs["input_ids"][:, :-1].unique().tolist()) - {model.config.pad_token_id}
    assert set(gradient.abs().sum(0).nonzero().flatten().tolist()) == seen


@pytest.mark.parametrize("kind", ["llama", "gpt2", "bert"])
def test_dora_is_equation_5(kind: str) -> None:
    """The magnitude of every output's weights is m, their direction that of W + s B A."""
    model = build_tiny(kind)
    new = hub.Adapter.create("lora", model, r=4, alpha=8, dora=True)
    bare = run(model)
    with hub.attach(model, new):
        torch.testing.assert_close(run(model), bare, rtol=0, atol=1e-5)
    adapter = shake_adapter(new)
    path = next(name for name in adapter.tensors if name.endswith("lora_A.weight"))
    path = path.removesuffix(".lora_A.weight")
    A, B = (adapter.tensors[f"{path}.lora_{factor}.weight"].detach() for factor in "AB")
    m = adapter.tensors[f"{path}.lora_magnitude_vector"].detach()
    weight = model.get_submodule(path).weight.detach()
    weight = weight.T if kind == "gpt2" else weight
    V = weight + 8 / 4 * B @ A
    expected = m[:, None] * V / V.norm(dim=1, keepdim=True)
    x = torch.randn(3, weight.shape[1])
    layer = model.get_submodule(path)
    bias = layer.bias if layer.bias is not None else 0
    for trainable in (False, True):
        with hub.attach(model, adapter, trainable=trainable), torch.no_grad():
            got = layer(x)
        torch.testing.assert_close(got, x @ expected.T + bias, rtol=1e-4, atol=1e-4)
    with hub.attach(model, adapter) as attachment:
        output = run(model)
        attachment.merge()
        merged = layer.weight.T if kind == "gpt2" else layer.weight
        torch.testing.assert_close(merged, expected, rtol=1e-4, atol=1e-5)
        torch.testing.assert_close(run(model), output, rtol=1e-4, atol=1e-4)


def test_dora_merges_after_others() -> None:
    """It leaves its base's own bias alone and takes what stands before it into its direction."""
    model = build_tiny("gpt2")
    one = shake_adapter(hub.Adapter.create("lora", model, r=2), seed=1)
    two = shake_adapter(hub.Adapter.create("lora", model, r=2, dora=True), seed=2)
    with hub.attach(model, hub.Stack(one, two)) as attachment:
        expected = run(model)
        attachment.merge()
        torch.testing.assert_close(run(model), expected, rtol=1e-3, atol=1e-3)


@pytest.mark.parametrize("targets", ["all", ["wte"]], ids=["projections", "embedding"])
def test_dora_that_serves_follows_its_tensors(targets: Any) -> None:
    model = build_tiny("gpt2")
    adapter = shake_adapter(hub.Adapter.create("lora", model, dora=True, targets=targets))
    with hub.attach(model, adapter, trainable=False):
        with torch.no_grad():
            for tensor in adapter.tensors.values():
                tensor.mul_(1.5)
        changed = run(model)
    with hub.attach(model, adapter, trainable=False):
        torch.testing.assert_close(changed, run(model))


def test_dora_in_half_precision_follows_the_base() -> None:
    model = build_tiny("llama").to(torch.bfloat16)
    adapter = hub.Adapter.create("lora", model, dora=True)
    inputs = make_inputs(model)
    with hub.attach(model, adapter):
        loss = model(**inputs, labels=inputs["input_ids"]).loss
        loss.backward()
        assert loss.dtype == torch.bfloat16 or loss.isfinite()
    magnitudes = [t for name, t in adapter.tensors.items() if name.endswith("magnitude_vector")]
    assert all(t.dtype == torch.float32 and t.grad is not None for t in magnitudes)
    with hub.attach(model, adapter, trainable=False):
        assert run(model).dtype == torch.bfloat16
