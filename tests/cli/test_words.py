"""`hub show` reads virtual tokens: the words that they are nearest to."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import AutoModelForCausalLM, AutoModelForSequenceClassification, AutoTokenizer

import hub
from hub.cli.words import load_table
from hub.errors import AttachError, BaseMismatch, ConfigError
from hub.readings import verify_table
from tests.cli.conftest import WORDS, Add, Run
from tests.tiny import build_tiny

Read = Callable[..., Any]
Fail = Callable[..., str]


def load(name: str) -> Any:
    """A base of the workplace, as it is loaded to train on it."""
    kind: Any = AutoModelForCausalLM if name == "llama" else AutoModelForSequenceClassification
    return kind.from_pretrained(str(Path(name).absolute()))


@pytest.fixture
def prompt(registry: hub.Registry) -> hub.Adapter:
    """prompt@1: "film" and the middle between "fine" and "lovely", on the llama."""
    model = load("llama")
    adapter = hub.Adapter.create("prompt", model, tokens=2)
    table = model.get_input_embeddings().weight.detach()
    film, fine, lovely = (table[WORDS.index(word)] for word in ("film", "fine", "lovely"))
    with torch.no_grad():
        adapter.tensors["prompt_embeddings"][0] = 3 * film
        adapter.tensors["prompt_embeddings"][1] = fine / fine.norm() + 0.9 * lovely / lovely.norm()
    registry.add(adapter, name="prompt")
    return adapter


@pytest.mark.usefixtures("prompt")
def test_show_names_the_nearest_words(read: Read, run: Run) -> None:
    first, second = read("show prompt@1")["tokens"]
    assert first["token"] == 0
    assert first["nearest"][0]["word"] == "film"
    assert first["nearest"][0]["id"] == WORDS.index("film")
    assert first["nearest"][0]["distance"] == pytest.approx(0, abs=1e-6)
    assert [word["word"] for word in second["nearest"][:2]] == ["fine", "lovely"]
    distances = [word["distance"] for word in second["nearest"]]
    assert len(distances) == 5
    assert distances == sorted(distances)
    table = load("llama").get_input_embeddings().weight
    row = hub.load("prompt@1").tensors["prompt_embeddings"][1]
    cosine = torch.cosine_similarity(row, table[WORDS.index("fine")], dim=0)
    assert distances[0] == pytest.approx(1 - cosine.item(), abs=1e-5)
    shown = run("show prompt@1").stdout
    assert '0      "film" 0.000' in shown


@pytest.mark.usefixtures("prompt")
def test_show_takes_a_base_and_a_number_of_words(read: Read) -> None:
    first, _ = read("show prompt@1 --base ./llama --nearest 2")["tokens"]
    assert len(first["nearest"]) == 2


@pytest.mark.parametrize("encoder", ["mlp", "lstm"])
def test_what_a_network_makes_is_read(encoder: str, registry: hub.Registry, read: Read) -> None:
    adapter = hub.Adapter.create("ptuning", load("bert"), tokens=3, encoder=encoder)
    registry.add(adapter, name="ptuned")
    assert [row["token"] for row in read("show ptuned@1")["tokens"]] == [0, 1, 2]


def test_python_reads_words_too(prompt: hub.Adapter) -> None:
    model, tokenizer = load("llama"), AutoTokenizer.from_pretrained("llama")
    (nearest,), _ = prompt.read_words(model, tokenizer, count=1)
    assert nearest.word == "film"
    lora = hub.Adapter.create("lora", model)
    with pytest.raises(ConfigError, match="has no virtual tokens to read: its method is lora"):
        lora.read_words(model, tokenizer)
    with pytest.raises(BaseMismatch, match=r"which has no embeddings\..* as BertFor.* has; give"):
        prompt.read_words(load("bert"), tokenizer)
    table = model.get_input_embeddings().weight
    verify_table(prompt, "another.name", table, "the same base, where modules share a weight")
    with torch.no_grad():
        table.mul_(1.1)
    with pytest.raises(BaseMismatch, match="the embeddings of LlamaForCausalLM are others"):
        prompt.read_words(model, tokenizer)
    with pytest.raises(ConfigError, match="0 words are asked for; ask for 1 or more"):
        prompt.read_words(model, tokenizer, count=0)
    with pytest.raises(AttachError, match="have 32 values, and the base's embeddings 16"):
        prompt.read_words(build_tiny("llama", hidden_size=16), tokenizer)


@pytest.mark.usefixtures("prompt")
def test_without_its_base_show_says_how_to_name_one(run: Run) -> None:
    Path("llama").unlink()
    result = run("show prompt@1")
    assert "nearest" not in result.stdout
    (line,) = result.stderr.splitlines()
    assert line.startswith("note: the base ")
    assert line.endswith("see the nearest words with hub show prompt@1 --base BASE")
    assert json.loads(run("show prompt@1 --json").stdout).get("tokens") is None


@pytest.mark.usefixtures("prompt")
def test_another_base_is_refused(fail: Fail, tmp_path: Path) -> None:
    model = load("llama")
    with torch.no_grad():
        model.get_input_embeddings().weight.mul_(1.1)
    model.save_pretrained(tmp_path / "other")
    for file in Path("llama").glob("token*"):
        shutil.copy(file, tmp_path / "other")
    said = fail(f"show prompt@1 --base {tmp_path / 'other'}")
    assert "prompt@1 was made for" in said
    assert "embeddings of" in said
    assert "give that base" in said
    assert "has no embeddings.word_embeddings.weight as ./bert has; give that base" in fail(
        "show prompt@1 --base ./bert"
    )


@pytest.mark.usefixtures("prompt")
def test_a_base_that_can_not_be_read_is_one_line(fail: Fail) -> None:
    assert "the base ./nowhere does not exist" in fail("show prompt@1 --base ./nowhere")


def test_what_has_no_virtual_tokens_says_so(add: Add, fail: Fail, registry: hub.Registry) -> None:
    add()
    assert "sst2@1 has no virtual tokens to read: its method is lora" in fail(
        "show sst2@1 --base ./bert"
    )
    registry.add(hub.Adapter.create("prefix", load("llama"), tokens=2), name="prefix")
    assert "prefix@1 has no virtual tokens" in fail("show prefix@1 --base ./llama")


def test_show_opens_nothing_where_there_are_no_virtual_tokens(
    add: Add, run: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    add()
    monkeypatch.setattr(hub.Registry, "load", lambda *_: pytest.fail("the adapter was loaded"))
    assert "nearest words" not in run("show sst2@1").stdout


@pytest.mark.parametrize("kind", ["gpt2", "t5", "bert", "llama"])
def test_embeddings_are_found_in_the_files_of_any_class(kind: str, tmp_path: Path) -> None:
    model = build_tiny(kind)
    model.save_pretrained(tmp_path, max_shard_size="10KB" if kind == "llama" else "1GB")
    for file in Path("llama").glob("token*"):
        shutil.copy(file, tmp_path)
    name, table, tokenizer = load_table(str(tmp_path), fetch=False)
    assert torch.equal(table, model.get_input_embeddings().weight)
    assert name in {key for key, _ in getattr(model, "base_model", model).named_parameters()}
    assert len(tokenizer) == len(WORDS)
