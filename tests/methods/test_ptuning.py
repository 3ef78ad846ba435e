"""P-tuning against peft, both ways, and its networks against peft's."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import peft
import pytest
import torch
from safetensors.torch import load_file

import hub
from hub.errors import ConfigError
from hub_ptuning import PromptEncoder, PTuning, PTuningConfig
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
from tests.snapshots import shake_adapter
from tests.tiny import build_tiny, make_inputs

H = 16
T5 = [("t5", "TOKEN_CLS"), ("t5", "FEATURE_EXTRACTION")]


def describe(task_type: str, **more: Any) -> peft.PromptEncoderConfig:
    return peft.PromptEncoderConfig(
        task_type=task_type, num_virtual_tokens=N, encoder_hidden_size=H, **more
    )


@pytest.mark.parametrize(("kind", "task_type"), [*CELLS, *T5])
def test_peft_and_hub_read_each_others_files(kind: str, task_type: str, tmp_path: Path) -> None:
    check_both_ways(describe(task_type), kind, tmp_path)


@pytest.mark.parametrize("encoder", ["mlp", "lstm"])
@pytest.mark.parametrize("kind", ["gpt2", "t5"])
def test_peft_reads_what_the_network_makes(kind: str, encoder: str, tmp_path: Path) -> None:
    task_type = "SEQ_2_SEQ_LM" if kind == "t5" else "CAUSAL_LM"
    model = build(kind, task_type)
    adapter = hub.Adapter.create("ptuning", model, tokens=N, encoder=encoder, hidden_size=H)
    shake_adapter(adapter).save(tmp_path)
    bare = compute(model)["logits"]
    with hub.attach(model, adapter):
        expected = compute(model)
    assert not torch.allclose(expected["logits"], bare, atol=1e-3)
    read = load_peft(kind, task_type, tmp_path)
    assert_same(compute(read, **make_inputs(model)), expected)


@pytest.mark.parametrize("encoder", ["MLP", "LSTM"])
def test_networks_are_pefts(encoder: str) -> None:
    """The same weights give the same tokens, and there are as many of them."""
    theirs = make_peft(describe("CAUSAL_LM", encoder_reparameterization_type=encoder), "gpt2")
    network = theirs.prompt_encoder.default
    config = PTuningConfig(tokens=N, encoder=encoder.lower(), hidden_size=H)
    ours = PromptEncoder(config, 32)
    values = {
        name.replace("embedding.weight", "embedding").replace("_head", ""): value
        for name, value in network.state_dict().items()
    }
    ours.load_state_dict(values)
    expected = theirs.get_prompt_embedding_to_save("default")
    torch.testing.assert_close(ours(), expected, rtol=0, atol=1e-6)
    trainable, _ = theirs.get_nb_trainable_parameters()
    assert sum(parameter.numel() for parameter in ours.parameters()) == trainable


@pytest.mark.parametrize("kind", ["gpt2", "llama", "t5"])
def test_greedy_tokens_equal_pefts(kind: str, tmp_path: Path) -> None:
    task_type = "SEQ_2_SEQ_LM" if kind == "t5" else "CAUSAL_LM"
    check_generation(describe(task_type), kind, tmp_path)


def test_rows_padded_on_the_left_are_continued_as_alone() -> None:
    check_left_padding("ptuning", "llama")


def test_loaded_tokens_of_pefts_learn_on(tmp_path: Path) -> None:
    make_peft(describe("CAUSAL_LM"), "llama").save_pretrained(tmp_path)
    assert train_on(build("llama", "CAUSAL_LM"), hub.load(tmp_path)) == {"prompt_embeddings"}


@pytest.mark.parametrize("encoder", ["mlp", "lstm"])
def test_ours_learn_on_through_the_network(encoder: str, tmp_path: Path) -> None:
    model = build("llama", "CAUSAL_LM")
    adapter = hub.Adapter.create("ptuning", model, tokens=N, encoder=encoder, layers=1)
    adapter.save(tmp_path / "one")
    loaded = hub.load(tmp_path / "one")
    assert loaded.config == adapter.config
    changed = train_on(model, loaded)
    assert changed == loaded.tensors.keys() == adapter.tensors.keys()
    assert all(name.startswith("prompt_encoder.") for name in changed)
    loaded.save(tmp_path / "two")
    one, two = (load_file(tmp_path / name / "adapter_model.safetensors") for name in ("one", "two"))
    assert not torch.equal(one["prompt_embeddings"], two["prompt_embeddings"])


def test_serving_runs_the_network_once(monkeypatch: pytest.MonkeyPatch) -> None:
    calls = []
    forward = PromptEncoder.forward

    def count(self: PromptEncoder) -> torch.Tensor:
        calls.append(self)
        return forward(self)

    monkeypatch.setattr(PromptEncoder, "forward", count)
    model = build_tiny("llama")
    adapter = hub.Adapter.create("ptuning", model, tokens=N)
    with hub.attach(model, adapter, trainable=False):
        made = len(calls)
        compute(model)
        compute(model)
    assert len(calls) == made > 0


def test_serving_notices_that_the_network_changed() -> None:
    model = build_tiny("llama")
    adapter = hub.Adapter.create("ptuning", model, tokens=N)
    with hub.attach(model, adapter, trainable=False):
        before = compute(model)["logits"]
        with torch.no_grad():
            adapter.tensors["prompt_encoder.embedding"].mul_(-1)
        assert not torch.allclose(compute(model)["logits"], before, atol=1e-4)


def test_dropout_acts_in_training_alone() -> None:
    config = PTuningConfig(tokens=N, encoder="lstm", dropout=0.5)
    network = PromptEncoder(config, 32)
    assert not torch.equal(network(), network())
    assert torch.equal(network.eval()(), network())


def test_one_token_is_d_model_values_of_the_base() -> None:
    site = hub.Site("embedding", "wte", "input", None, 768, 768)
    module = PTuning().build_shared([site], PTuningConfig(tokens=20, encoder=None))
    assert sum(parameter.numel() for parameter in module.parameters()) == 20 * 768


@pytest.mark.parametrize(
    ("options", "text"),
    [
        ({"tokens": 0}, "tokens is 0; it is a whole number from 1"),
        ({"hidden_size": 0}, "hidden_size is 0; it is a whole number from 1"),
        ({"layers": 0}, "layers is 0; it is a whole number from 1"),
        ({"encoder": "gru"}, "encoder is 'gru'; choose from mlp, lstm"),
        ({"d_model": 5}, "d_model is 5, and in this base it is 32; leave it out, it is found"),
        ({"dropout": 1.0}, r"dropout is 1.0; it must be in \[0, 1\)"),
        ({"text": "a"}, "ptuning has no option 'text'; it has"),
    ],
)
def test_wrong_options_are_named(options: dict[str, Any], text: str) -> None:
    with pytest.raises(ConfigError, match=text):
        hub.Adapter.create("ptuning", build_tiny("llama"), **options)
