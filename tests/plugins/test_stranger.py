"""A method of somebody else's: its wheel beside ours in a fresh environment, through a whole life,
as docs/tutorial.md tells it."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
import sysconfig
import tomllib
import venv
from collections.abc import Iterator
from pathlib import Path

import pytest
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import PreTrainedTokenizerFast

from hub.server import HubServer, User
from tests.tiny import build_tiny

ROOT = Path(__file__).parents[2]
EXAMPLE = ROOT / "docs" / "examples" / "vera"
TUTORIAL = (ROOT / "docs" / "tutorial.md").read_text()
# One process for the whole life: importing torch costs more than all the rest.
LIFE = """
import doctest, json, shlex, sys
import hub, hub_vera
from hub.cli import main
assert all(module.__file__.startswith(sys.prefix) for module in (hub, hub_vera)), hub.__file__
for line in json.loads(sys.argv[1]):
    main(shlex.split(line)[1:], prog_name="hub", standalone_mode=False)
page = doctest.DocTestParser().get_doctest(sys.argv[2], {}, "tutorial", None, 0)
sys.exit(doctest.DocTestRunner().run(page).failed)
"""


def read_blocks(language: str) -> list[str]:
    """The fenced blocks of one language in the tutorial, in order."""
    return re.findall(rf"```{language}\n(.*?)```", TUTORIAL, re.DOTALL)


def strip_blank(text: str) -> list[str]:
    return [line for line in text.splitlines() if line.strip()]


def run(*words: str | Path, **options: object) -> str:
    """The stdout of a command that must succeed."""
    done = subprocess.run(list(map(str, words)), capture_output=True, text=True, **options)  # type: ignore[call-overload]
    assert done.returncode == 0, done.stdout + done.stderr
    return str(done.stdout)


@pytest.fixture(scope="module")
def python(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The interpreter of a fresh environment with both wheels, and no other trace of our source.

    What we depend on is borrowed from the environment of this test, behind the wheels.
    """
    folder = tmp_path_factory.mktemp("fresh")
    wheels = folder / "wheels"
    for source in (ROOT, EXAMPLE):
        run(sys.executable, "-m", "hatchling", "build", "-t", "wheel", "-d", wheels, cwd=source)
    venv.create(folder / "venv", symlinks=True)
    interpreter = folder / "venv" / "bin" / "python"
    pip = (sys.executable, "-m", "pip", "--python", interpreter, "install", "--quiet")
    run(*pip, "--no-index", "--no-deps", *wheels.iterdir())
    (packages,) = (folder / "venv" / "lib").glob("python*/site-packages")
    borrowed = sysconfig.get_path("purelib")
    (packages / "borrowed.pth").write_text(f"import site; site.addsitedir({borrowed!r})\n")
    return interpreter


@pytest.fixture
def workplace(tmp_path: Path) -> Path:
    """A folder with the base and the data that the tutorial takes for granted."""
    words = {
        word: i for i, word in enumerate(["<pad>", "<s>", "</s>", "<unk>", "a", "fine", "dull"])
    }
    inner = Tokenizer(models.WordLevel(words, unk_token="<unk>"))
    inner.pre_tokenizer = pre_tokenizers.Whitespace()
    special = {"pad_token": "<pad>", "bos_token": "<s>", "eos_token": "</s>", "unk_token": "<unk>"}
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=inner, **special)  # type: ignore[no-untyped-call]
    tokenizer.save_pretrained(tmp_path / "llama")
    build_tiny("llama").save_pretrained(tmp_path / "llama")
    rows = [{"text": "a fine", "label": "fine"}, {"text": "a dull", "label": "dull"}] * 4
    (tmp_path / "reviews.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    return tmp_path


@pytest.fixture
def environment(tmp_path: Path) -> Iterator[dict[str, str]]:
    """A server to publish on, and nothing that leads back to our source."""
    users = {"ana-writes": User("ana", namespaces=frozenset({"org"}))}
    with HubServer(tmp_path / "served", users) as server:
        kept = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
        yield {
            **kept,
            "HF_ENDPOINT": server.url,
            "HF_TOKEN": "ana-writes",
            "HF_HOME": str(tmp_path / "hf"),
            "HUB_HOME": str(tmp_path / "home"),
        }


def test_the_life_of_the_tutorial(
    python: Path, workplace: Path, environment: dict[str, str]
) -> None:
    typed = [line[2:] for block in read_blocks("console") for line in block.splitlines()]
    commands = [line for line in typed if line.startswith("hub ") and "methods new" not in line]
    assert [line.split()[1] for line in commands] == ["methods", "train", "push", "pull"]
    (session,) = read_blocks("pycon")
    shown = run(
        python, "-c", LIFE, json.dumps(["hub methods", *commands]), session,
        cwd=workplace, env=environment,
    )  # fmt: skip
    assert re.search(r"^vera +hub-vera 0.1.0 +Kopiczko", shown, re.MULTILINE)
    assert "theirs@1 is org/reviews" in shown


def test_it_keeps_the_contract(python: Path, tmp_path: Path, environment: dict[str, str]) -> None:
    for path in EXAMPLE.glob("tests/*.py"):
        (tmp_path / path.name).write_text(path.read_text())
    # Two kinds of model: what matters here is the environment, and the rest would take long.
    chosen = ["-k", "llama or t5 or can_not_act", "-p", "no:cacheprovider"]
    command: list[str | Path] = [python, "-m", "pytest", "-q", *chosen, tmp_path]
    shown = run(*command, cwd=tmp_path, env=environment)
    assert re.search(r"^39 passed", shown, re.MULTILINE), shown


def test_the_tutorial_writes_the_files_of_the_example() -> None:
    module = (EXAMPLE / "hub_vera.py").read_text()
    assert strip_blank("".join(read_blocks("python"))) == strip_blank(module)
    (settings,), (test,) = read_blocks("toml"), read_blocks("py")
    assert settings == (EXAMPLE / "pyproject.toml").read_text()
    assert test == (EXAMPLE / "tests" / "test_vera.py").read_text()


def test_it_is_one_short_file_that_we_know_nothing_of() -> None:
    count = len((EXAMPLE / "hub_vera.py").read_text().splitlines())
    assert count < 80
    assert f"in {count} lines" in TUTORIAL
    assert tomllib.loads((EXAMPLE / "pyproject.toml").read_text())["project"]["name"] == "hub-vera"
    ours = [*(ROOT / "hub").rglob("*.py"), *(ROOT / "plugins").rglob("*.py")]
    assert [path for path in ours if "hub_vera" in path.read_text()] == []
