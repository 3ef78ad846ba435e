"""Prefix tuning against peft, both ways, and what peft can't do."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import peft
import pytest
import torch
from safetensors.torch import load_file

import hub
from hub.errors import AttachError, ConfigError
from hub.testing.learning import enable_checkpointing
from hub_prefix import PrefixConfig, PrefixTuning
from tests.methods.prompting import (
    CELLS,
    N,
    assert_same,
    build,
    check_both_ways,
    check_generation,
    check_left_padding,
    compute,
    load_peft,
    make_peft,
    train_on,
)
from tests.snapshots import run, shake_adapter
from tests.tiny import build_tiny, make_inputs

H = 16


def describe(task_type: str, **more: Any) -> peft.PrefixTuningConfig:
    return peft.PrefixTuningConfig(task_type=task_type, num_virtual_tokens=N, **more)


@pytest.mark.parametrize(("kind", "task_type"), CELLS)
def test_peft_and_hub_read_each_others_files(kind: str, task_type: str, tmp_path: Path) -> None:
    check_both_ways(describe(task_type), kind, tmp_path)


@pytest.mark.parametrize("kind", ["gpt2", "llama", "t5"])
def test_what_pefts_network_made_is_read(kind: str, tmp_path: Path) -> None:
    task_type = "SEQ_2_SEQ_LM" if kind == "t5" else "CAUSAL_LM"
    config = describe(task_type, prefix_projection=True, encoder_hidden_size=H)
    check_both_ways(config, kind, tmp_path)


@pytest.mark.parametrize("projection", [False, True], ids=["plain", "network"])
@pytest.mark.parametrize(
    ("kind", "task_type", "layers"),
    [
        ("llama", "CAUSAL_LM", 2),
        ("t5", "SEQ_2_SEQ_LM", 1),
        ("t5", "SEQ_2_SEQ_LM", 2),
        ("t5", "SEQ_2_SEQ_LM", 3),
        ("t5", "FEATURE_EXTRACTION", 2),
        ("bart", "SEQ_2_SEQ_LM", 2),
    ],
)
def test_peft_reads_a_prefix_of_its_own_for_each_layer(
    kind: str, task_type: str, layers: int, projection: bool, tmp_path: Path
) -> None:
    """peft's own files give two of a decoder's layers the same part where their number is even."""
    named = {"llama": "num_hidden_layers", "t5": "num_decoder_layers", "bart": "decoder_layers"}
    changes = {named[kind]: layers}
    model = build(kind, task_type, **changes)
    adapter = hub.Adapter.create("prefix", model, tokens=N, projection=projection, hidden_size=H)
    shake_adapter(adapter).save(tmp_path)
    bare = compute(model)
    with hub.attach(model, adapter):
        expected = compute(model)
    assert not torch.allclose(next(iter(bare.values())), next(iter(expected.values())), atol=1e-3)
    read = peft.PeftModel.from_pretrained(build(kind, task_type, **changes), str(tmp_path))
    assert_same(compute(read, **make_inputs(model)), expected)
    loaded = hub.load(tmp_path)
    assert loaded.config == adapter.config
    for name, tensor in adapter.tensors.items():
        assert torch.equal(loaded.tensors[name], tensor)


def test_peft_mixes_the_decoders_own_keys_into_what_it_looks_at() -> None:
    """peft on T5 without a head: the last token changes what is said of the first, so there is
    nothing to be equal to."""
    theirs = make_peft(describe("FEATURE_EXTRACTION"), "t5")
    inputs = make_inputs(theirs.get_base_model())
    before = compute(theirs, **inputs)["last_hidden_state"][:, 0]
    inputs["decoder_input_ids"][:, -1] = 5
    after = compute(theirs, **inputs)["last_hidden_state"][:, 0]
    assert not torch.allclose(before, after, atol=1e-2)


@pytest.mark.parametrize("task_type", ["FEATURE_EXTRACTION", "QUESTION_ANS", "SEQ_CLS"])
def test_t5_has_a_prefix_where_peft_has_none(task_type: str) -> None:
    """peft refuses T5 for classification, and for answers leaves the decoder out."""
    model = build("t5", task_type)
    inputs = make_inputs(model)
    inputs["input_ids"][:, -1] = model.config.eos_token_id
    adapter = shake_adapter(hub.Adapter.create("prefix", model, tokens=N))
    bare = compute(model, **inputs)
    with hub.attach(model, adapter):
        found = compute(model, **inputs)
    for name, value in bare.items():
        assert found[name].shape == value.shape
        assert not torch.allclose(found[name], value, atol=1e-3)


@pytest.mark.parametrize("kind", ["gpt2", "llama", "t5"])
def test_greedy_tokens_equal_pefts(kind: str, tmp_path: Path) -> None:
    """Without a cache too, where peft fails on Llama."""
    task_type = "SEQ_2_SEQ_LM" if kind == "t5" else "CAUSAL_LM"
    check_generation(describe(task_type), kind, tmp_path)


@pytest.mark.parametrize("kind", ["gpt2", "llama"])
def test_rows_padded_on_the_left_are_continued_as_alone(kind: str) -> None:
    check_left_padding("prefix", kind)


def test_loaded_prefixes_of_pefts_learn_on(tmp_path: Path) -> None:
    make_peft(describe("SEQ_2_SEQ_LM"), "t5").save_pretrained(tmp_path)
    assert train_on(build("t5", "SEQ_2_SEQ_LM"), hub.load(tmp_path)) == {"prompt_embeddings"}


def test_ours_learn_on_through_the_network(tmp_path: Path) -> None:
    model = build("llama", "CAUSAL_LM")
    adapter = hub.Adapter.create("prefix", model, tokens=N, projection=True, hidden_size=H)
    adapter.save(tmp_path / "one")
    loaded = hub.load(tmp_path / "one")
    assert loaded.config == adapter.config
    changed = train_on(model, loaded)
    assert changed == loaded.tensors.keys() == adapter.tensors.keys()
    loaded.save(tmp_path / "two")
    one, two = (load_file(tmp_path / name / "adapter_model.safetensors") for name in ("one", "two"))
    assert not torch.equal(one["prompt_embeddings"], two["prompt_embeddings"])


@pytest.mark.parametrize("kind", ["gpt2", "llama"])
def test_checkpointing_gives_the_same_gradients_where_peft_refuses(kind: str) -> None:
    model = build(kind, "CAUSAL_LM")
    enable_checkpointing(model, reentrant=False)
    with pytest.raises(ValueError, match="does not work with gradient checkpointing"):
        peft.get_peft_model(model, describe("CAUSAL_LM"))
    model = build(kind, "CAUSAL_LM")
    adapter = shake_adapter(hub.Adapter.create("prefix", model, tokens=N))
    gradients = []
    inputs = make_inputs(model)
    with hub.attach(model, adapter):
        for checkpointed in (False, True):
            if checkpointed:
                enable_checkpointing(model, reentrant=False)
            torch.manual_seed(0)
            model.train()(**inputs, labels=inputs["input_ids"]).loss.backward()
            gradients.append(adapter.tensors["prompt_embeddings"].grad)
            adapter.tensors["prompt_embeddings"].grad = None
    torch.testing.assert_close(gradients[0], gradients[1])
    assert gradients[0].abs().max() > 0


def test_layers_of_different_width_have_their_own(tmp_path: Path) -> None:
    """peft's file has one width for all: it must refuse ours."""
    model = build_uneven()
    adapter = shake_adapter(hub.Adapter.create("prefix", model, tokens=N))
    assert adapter.tensors["prompt_embeddings"].shape == (N, 2 * 16 + 2 * 32)
    adapter.save(tmp_path)
    bare = run(model)
    with hub.attach(model, hub.load(tmp_path)):
        found = run(model)
    assert not torch.allclose(found, bare, atol=1e-3)
    with pytest.raises(RuntimeError, match="size mismatch"):
        peft.PeftModel.from_pretrained(build_uneven(), str(tmp_path))


def build_uneven() -> Any:
    """A Llama whose second layer has twice the key heads of the first."""
    model = build_tiny("llama")
    wide = build_tiny("llama", num_key_value_heads=4)
    model.model.layers[1].self_attn = wide.model.layers[1].self_attn
    return model


def test_keys_that_a_base_turns_are_told_from_pefts(tmp_path: Path) -> None:
    """GPT-J turns keys by their position after what can be reached: peft's are turned already."""
    make_peft(describe("CAUSAL_LM"), "gptj").save_pretrained(tmp_path / "peft")
    model = build("gptj", "CAUSAL_LM")
    with pytest.raises(ConfigError, match="can only be given keys that it turns first"):
        hub.attach(model, hub.load(tmp_path / "peft"))
    hub.Adapter.create("prefix", model, tokens=N).save(tmp_path / "ours")
    with pytest.raises(RuntimeError, match="size mismatch"):
        load_peft("gptj", "CAUSAL_LM", tmp_path / "ours")


def test_parameters_equal_the_papers() -> None:
    """Section 4.2: for each position as many values as the model has activations for it."""
    sites = [hub.Site("attention", f"h.{i}.attn", "attention", i, 1024, 1024) for i in range(24)]
    module = PrefixTuning().build_shared(sites, PrefixConfig(tokens=10))
    assert sum(parameter.numel() for parameter in module.parameters()) == 10 * 24 * 2 * 1024


def test_a_base_without_attention_is_refused() -> None:
    with pytest.raises(ConfigError, match="prefix: this base has no attention"):
        hub.Adapter.create("prefix", build_tiny("mamba"))


def test_another_number_of_layers_is_refused(tmp_path: Path) -> None:
    make_peft(describe("CAUSAL_LM"), "llama").save_pretrained(tmp_path)
    with pytest.raises(AttachError, match=r"\(3, 64\) instead of \(3, 96\)"):
        hub.attach(build_tiny("llama", num_hidden_layers=3), hub.load(tmp_path))


@pytest.mark.parametrize(
    ("options", "text"),
    [
        ({"tokens": 0}, "tokens is 0; it is a whole number from 1"),
        ({"hidden_size": 0}, "hidden_size is 0; it is a whole number from 1"),
        ({"layers": 1}, "layers is 1, and in this base it is 2; leave it out, it is found"),
        ({"decoder": True}, "decoder is True, and in this base it is False; leave it out"),
        ({"projection": 1}, "projection is 1; it must be true or false"),
        ({"prefix_projection": True}, "prefix has no option 'prefix_projection'; it has"),
    ],
)
def test_wrong_options_are_named(options: dict[str, Any], text: str) -> None:
    with pytest.raises(ConfigError, match=text):
        hub.Adapter.create("prefix", build_tiny("llama"), **options)
