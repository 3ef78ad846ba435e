"""The demo's own base: made once, whole or not at all."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

from hub.demo.corpus import Library, read_library
from hub.demo.muon import orthogonalize
from hub.demo.pretraining import Recipe, keep_base
from hub.errors import FileError

TINY = Recipe(vocabulary=300, width=16, inner=24, layers=1, heads=2, rows=2, length=16, steps=4)


@pytest.fixture(scope="module")
def library() -> Library:
    """A few modules."""
    whole = read_library()
    return Library(dict(list(whole.seen.items())[:10]), dict(list(whole.held_out.items())[:2]))


def test_the_base_is_trained_once(tmp_path: Path, library: Library) -> None:
    said: list[str] = []
    folder = keep_base(tmp_path, library, TINY, said.append)
    assert "training" in " ".join(said)
    written = (folder / "model.safetensors").stat().st_mtime_ns
    said.clear()
    assert keep_base(tmp_path, library, TINY, said.append) == folder
    assert "here already" in " ".join(said)
    assert (folder / "model.safetensors").stat().st_mtime_ns == written


def test_the_same_recipe_gives_the_same_base(tmp_path: Path, library: Library) -> None:
    first, second = (keep_base(tmp_path / n, library, TINY, lambda _: None) for n in "ab")
    assert (first / "model.safetensors").read_bytes() == (second / "model.safetensors").read_bytes()


def test_another_recipe_or_another_text_has_a_base_of_its_own(
    tmp_path: Path, library: Library
) -> None:
    other = Library({**library.seen, "new.py": "pass\n"}, library.held_out)
    folders = {
        keep_base(tmp_path, library, TINY, lambda _: None),
        keep_base(tmp_path, library, replace(TINY, seed=1), lambda _: None),
        keep_base(tmp_path, other, TINY, lambda _: None),
    }
    assert len(folders) == 3


def test_the_base_is_what_transformers_loads(tmp_path: Path, library: Library) -> None:
    folder = keep_base(tmp_path, library, TINY, lambda _: None)
    model = AutoModelForCausalLM.from_pretrained(folder)
    tokenizer = AutoTokenizer.from_pretrained(folder)
    text = "def f(x):\n    return x  # é\n"
    assert tokenizer.decode(tokenizer(text).input_ids) == text
    assert len(tokenizer) == model.config.vocab_size == 300
    assert tokenizer.eos_token_id == model.config.eos_token_id


def test_an_interrupted_base_leaves_nothing_behind(tmp_path: Path, library: Library) -> None:
    def interrupt(line: str) -> None:
        if "training" in line:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        keep_base(tmp_path, library, TINY, interrupt)
    assert list((tmp_path / "demo").iterdir()) == []
    assert keep_base(tmp_path, library, TINY, lambda _: None).is_dir()


def test_a_home_that_is_a_file_is_refused(tmp_path: Path, library: Library) -> None:
    (tmp_path / "home").write_text("")
    with pytest.raises(FileError, match=r"the base can't be kept in .*set HUB_HOME"):
        keep_base(tmp_path / "home", library, TINY, lambda _: None)


def test_orthogonal_steps_have_singular_values_near_one() -> None:
    torch.manual_seed(0)
    singular = torch.linalg.svdvals(orthogonalize(torch.randn(3, 16, 24)))
    assert singular.min() > 0.6
    assert singular.max() < 1.3
