"""Prompt tuning against peft, both ways, and against the paper."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import peft
import pytest
import torch
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import PreTrainedTokenizerFast

import hub
from hub.errors import ConfigError
from hub_prompt import Prompt, PromptConfig
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

T5 = [("t5", "TOKEN_CLS"), ("t5", "FEATURE_EXTRACTION")]


def describe(task_type: str, **more: Any) -> peft.PromptTuningConfig:
    return peft.PromptTuningConfig(task_type=task_type, num_virtual_tokens=N, **more)


@pytest.mark.parametrize(("kind", "task_type"), [*CELLS, *T5])
def test_peft_and_hub_read_each_others_files(kind: str, task_type: str, tmp_path: Path) -> None:
    check_both_ways(describe(task_type), kind, tmp_path)


@pytest.mark.parametrize("task_type", ["SEQ_CLS", "QUESTION_ANS"])
def test_t5_answers_where_peft_can_not(task_type: str) -> None:
    """T5's own classes refuse the embeddings that peft gives them in place of token ids."""
    model = build("t5", task_type)
    inputs = {"input_ids": make_inputs(model)["input_ids"]}
    inputs["input_ids"][:, -1] = model.config.eos_token_id
    with pytest.raises((NotImplementedError, ValueError), match="input"):
        make_peft(describe(task_type), "t5")(**inputs)
    adapter = shake_adapter(hub.Adapter.create("prompt", model, tokens=N))
    bare = compute(model, **inputs)
    with hub.attach(model, adapter):
        found = compute(model, **inputs)
    for name, value in bare.items():
        assert found[name].shape == value.shape
        assert not torch.allclose(found[name], value, atol=1e-3)


def test_peft_reads_what_we_make_for_an_encoder(tmp_path: Path) -> None:
    """peft's own file has rows for the decoder too, which it does not use."""
    model = build("t5", "SEQ_2_SEQ_LM")
    adapter = shake_adapter(hub.Adapter.create("prompt", model, tokens=N))
    adapter.save(tmp_path)
    assert adapter.tensors["prompt_embeddings"].shape == (N, 32)
    with hub.attach(model, adapter):
        expected = compute(model)
    read = load_peft("t5", "SEQ_2_SEQ_LM", tmp_path)
    assert_same(compute(read, **make_inputs(model)), expected)


@pytest.mark.parametrize("kind", ["gpt2", "llama", "t5"])
def test_greedy_tokens_equal_pefts(kind: str, tmp_path: Path) -> None:
    task_type = "SEQ_2_SEQ_LM" if kind == "t5" else "CAUSAL_LM"
    check_generation(describe(task_type), kind, tmp_path)


@pytest.mark.parametrize("kind", ["gpt2", "llama"])
def test_rows_padded_on_the_left_are_continued_as_alone(kind: str) -> None:
    check_left_padding("prompt", kind)


@pytest.mark.parametrize("kind", ["gpt2", "llama"])
def test_a_classifier_finds_the_last_token_where_peft_does_not(kind: str, tmp_path: Path) -> None:
    """peft gives embeddings, in which padding can't be told from words."""
    theirs = make_peft(describe("SEQ_CLS"), kind)
    theirs.save_pretrained(tmp_path)
    model = build(kind, "SEQ_CLS")
    ids = make_inputs(model, rows=1)["input_ids"]
    padded = torch.cat([ids, torch.zeros(1, 3, dtype=torch.long)], dim=1)
    masks = {"attention_mask": (padded != 0).long()}
    alone = compute(theirs, input_ids=ids)["logits"]
    assert not torch.allclose(
        compute(theirs, input_ids=padded, **masks)["logits"], alone, atol=1e-3
    )
    with hub.attach(model, hub.load(tmp_path)):
        found = compute(model, input_ids=padded, **masks)["logits"]
    torch.testing.assert_close(found, alone, rtol=0, atol=1e-5)


def test_loaded_tokens_of_pefts_learn_on(tmp_path: Path) -> None:
    make_peft(describe("CAUSAL_LM"), "llama").save_pretrained(tmp_path)
    assert train_on(build("llama", "CAUSAL_LM"), hub.load(tmp_path)) == {"prompt_embeddings"}


def test_parameters_equal_the_papers() -> None:
    """Section 1, figure 2: 20,480 for a prompt of 5 tokens on T5 XXL."""
    site = hub.Site("embedding", "shared", "encoder", None, 4096, 4096)
    module = Prompt().build_shared([site], PromptConfig(tokens=5))
    assert sum(parameter.numel() for parameter in module.parameters()) == 20_480


def test_a_prompt_starts_as_words_of_the_base() -> None:
    model = build_tiny("llama")
    table = model.get_input_embeddings().weight
    torch.manual_seed(0)
    rows = hub.Adapter.create("prompt", model, tokens=5).tensors["prompt_embeddings"]
    assert all(any(torch.equal(row, word) for word in table) for row in rows)
    common = hub.Adapter.create("prompt", model, tokens=50, most_common=4)
    known = {tuple(word.tolist()) for word in table[:4]}
    assert {tuple(row.tolist()) for row in common.tensors["prompt_embeddings"]} == known


def test_words_start_as_the_base_embeds_them() -> None:
    """BART scales what its table holds."""
    model = build_tiny("bart", scale_embedding=True)
    rows = hub.Adapter.create("prompt", model, tokens=50, most_common=1).tensors
    table = model.get_input_embeddings().weight
    torch.testing.assert_close(rows["prompt_embeddings"][7], table[0] * 32**0.5)


def test_a_random_start_is_the_papers() -> None:
    """Section 3.2: uniform in [-0.5, 0.5]."""
    adapter = hub.Adapter.create("prompt", build_tiny("llama"), tokens=200, start="random")
    rows = adapter.tensors["prompt_embeddings"]
    assert 0.49 < rows.abs().max() <= 0.5
    assert rows.mean().abs() < 0.02


@pytest.fixture
def tokenizer(tmp_path: Path) -> str:
    """A folder with a tokenizer whose words are letters: f is 4, i 5, l 6, m 7."""
    inner = Tokenizer(models.WordLevel(dict(zip("?<>afilm", range(8), strict=True)), "?"))
    inner.pre_tokenizer = pre_tokenizers.Split("", "isolated")
    folder = tmp_path / "tokenizer"
    fast: Any = PreTrainedTokenizerFast
    fast(tokenizer_object=inner, unk_token="?").save_pretrained(folder)
    return str(folder)


def test_a_prompt_starts_as_a_text(tokenizer: str, tmp_path: Path) -> None:
    model = build_tiny("llama")
    adapter = hub.Adapter.create("prompt", model, tokens=5, text="film", tokenizer=tokenizer)
    table = model.get_input_embeddings().weight
    assert torch.equal(adapter.tensors["prompt_embeddings"], table[[4, 5, 6, 7, 4]])
    adapter = hub.Adapter.create("prompt", model, tokens=2, text="film", tokenizer=tokenizer)
    assert torch.equal(adapter.tensors["prompt_embeddings"], table[[4, 5]])
    adapter.save(tmp_path / "adapter")
    fields = json.loads((tmp_path / "adapter/adapter_config.json").read_text())
    assert fields["prompt_tuning_init"] == "TEXT"
    assert hub.load(tmp_path / "adapter").config == adapter.config
    read = load_peft("llama", "CAUSAL_LM", tmp_path / "adapter")
    assert torch.equal(
        read.prompt_encoder.default.embedding.weight, adapter.tensors["prompt_embeddings"]
    )


def test_the_tokenizer_of_a_text_is_the_bases_own(tokenizer: str) -> None:
    build_tiny("llama").save_pretrained(tokenizer)
    model = type(build_tiny("llama")).from_pretrained(tokenizer)
    adapter = hub.Adapter.create("prompt", model, tokens=1, text="m")
    table = model.get_input_embeddings().weight
    assert torch.equal(adapter.tensors["prompt_embeddings"], table[[7]])


def test_a_text_without_a_tokenizer_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="does not say where it was loaded from"):
        hub.Adapter.create("prompt", build_tiny("llama"), text="a film")
    with pytest.raises(ConfigError, match="can't load the tokenizer of"):
        hub.Adapter.create("prompt", build_tiny("llama"), text="film", tokenizer=str(tmp_path))


def test_outputs_have_the_bare_models_shapes() -> None:
    model = build_tiny("llama")
    bare = run(model)
    with hub.attach(model, hub.Adapter.create("prompt", model)):
        assert run(model).shape == bare.shape


@pytest.mark.parametrize(
    ("options", "text"),
    [
        ({"tokens": 0}, "tokens is 0; it is a whole number from 1"),
        ({"most_common": 0}, "most_common is 0; it is a whole number from 1"),
        ({"start": "zeros"}, "start is 'zeros'; choose from vocabulary, random, or give a text"),
        ({"text": " "}, "text is empty"),
        ({"d_model": 5}, "d_model is 5, and in this base it is 32; leave it out, it is found"),
        ({"tokenizer": "./there"}, "tokenizer is that of a text; give text, or leave it out"),
        ({"start": "random", "most_common": 5}, "most_common is for words drawn at random"),
        ({"text": "a", "tokenizer": "./there"}, "the tokenizer's folder ./there does not exist"),
        ({"tokens": "5"}, "tokens is '5'; it must be a whole number"),
        ({"num_virtual_tokens": 5}, "prompt has no option 'num_virtual_tokens'; it has"),
    ],
)
def test_wrong_options_are_named(options: dict[str, Any], text: str) -> None:
    with pytest.raises(ConfigError, match=text):
        hub.Adapter.create("prompt", build_tiny("llama"), **options)


def test_an_unknown_field_is_refused(tmp_path: Path) -> None:
    adapter = hub.Adapter.create("prompt", build_tiny("llama"))
    folder = adapter.save(tmp_path / "adapter")
    (folder / "hub.json").unlink()
    path = folder / "adapter_config.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), "a_field_of_the_future": 3}))
    with pytest.raises(ConfigError, match="a_field_of_the_future=3"):
        hub.load(folder)
