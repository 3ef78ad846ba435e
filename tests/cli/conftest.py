"""Tiny bases with tokenizers in folders, data, and the command line in this process."""

from __future__ import annotations

import importlib
import json
import re
import shlex
import shutil
import sys
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import click
import pytest
import torch
from click.testing import CliRunner, Result
from huggingface_hub import constants
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import PreTrainedTokenizerFast

import hub
from hub.cli import main
from hub.discovery import installed_methods
from hub.server import HubServer, User
from tests.tiny import build_tiny

SPECIAL = {"pad_token": "<pad>", "bos_token": "<s>", "eos_token": "</s>", "unk_token": "<unk>"}
GOOD = ("fine", "lovely", "warm", "clever")
BAD = ("dull", "poor", "cold", "silly")
WORDS = (*SPECIAL.values(), "a", "film", "very", "good", "bad", *GOOD, *BAD)
ROWS = [
    {"text": f"a {very}{word} film", "label": label}
    for label, words in (("good", GOOD), ("bad", BAD))
    for word in words
    for very in ("", "very ")
]

TOKENS = {
    "ana-writes": User("ana", namespaces=frozenset({"org"})),
    "rob-reads": User("rob", "read"),
}

Run = Callable[..., Result]
Add = Callable[..., Any]


@pytest.fixture(scope="session")
def bases(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with the folders `bert` (no head), `masked` (a BERT without a pooler), `llama`."""
    folder = tmp_path_factory.mktemp("bases")
    words = Tokenizer(models.WordLevel({w: i for i, w in enumerate(WORDS)}, unk_token="<unk>"))
    words.pre_tokenizer = pre_tokenizers.Whitespace()
    bert, llama = build_tiny("bert", "classification").bert, build_tiny("llama")
    for name, base in {"bert": bert, "llama": llama, "masked": build_tiny("bert")}.items():
        base.save_pretrained(folder / name)
        tokenizer = PreTrainedTokenizerFast(tokenizer_object=words, **SPECIAL)
        tokenizer.save_pretrained(folder / name)
    return folder


@pytest.fixture(autouse=True)
def workplace(tmp_path: Path, bases: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The folder where commands run: the bases, `reviews.jsonl` and `test.jsonl`."""
    folder = tmp_path / "workplace"
    folder.mkdir()
    for base in bases.iterdir():
        (folder / base.name).symlink_to(base)
    for name, rows in (("reviews.jsonl", ROWS), ("test.jsonl", ROWS[::3])):
        (folder / name).write_text("".join(json.dumps(row) + "\n" for row in rows))
    monkeypatch.chdir(folder)
    return folder


@pytest.fixture
def run() -> Run:
    """Run a command line as it is typed, or its words; it must end with this exit code."""

    def invoke(line: str | Sequence[str], code: int = 0) -> Result:
        words = shlex.split(line) if isinstance(line, str) else list(line)
        result = CliRunner().invoke(main, words, prog_name="hub")
        assert result.exit_code == code, result.output
        return result

    return invoke


@pytest.fixture
def read(run: Run) -> Callable[..., Any]:
    """The JSON document that a command prints, alone on stdout; its help names every key."""

    def invoke(line: str | Sequence[str], code: int = 0) -> Any:
        words = shlex.split(line) if isinstance(line, str) else list(line)
        document = json.loads(run([*words, "--json"], code).stdout)
        assert find_keys(document) <= set(re.findall(r"\w+", find_json_help(words[0])))
        return document

    return invoke


def find_json_help(name: str) -> str:
    command = main.get_command(click.Context(main), name)
    (option,) = [option for option in command.params if option.name == "as_json"]
    return str(option.help)


def find_keys(document: dict[str, Any]) -> set[str]:
    """The keys of a document and of the items in its lists; versions are those of `hub show`."""
    lists = [items for key, items in document.items() if key != "versions"]
    items = [item for part in lists if isinstance(part, list) for item in part]
    return set(document).union(*(item for item in items if isinstance(item, dict)))


@pytest.fixture
def fail(run: Run) -> Callable[..., str]:
    """The one line on stderr with which a command fails."""

    def invoke(line: str | Sequence[str], code: int = 1) -> str:
        result = run(line, code)
        assert result.stdout == ""
        assert result.stderr.startswith("error: ")
        assert result.stderr.count("\n") == 1
        return result.stderr.removeprefix("error: ").strip()

    return invoke


@pytest.fixture(scope="session")
def model() -> Any:
    return build_tiny("bert", "classification")


@pytest.fixture(scope="session")
def _adapter(model: Any) -> hub.Adapter:
    return hub.Adapter.create("lora", model, r=2)


@pytest.fixture
def registry() -> hub.Registry:
    return hub.Registry()


@pytest.fixture
def add(_adapter: hub.Adapter, registry: hub.Registry) -> Add:
    """Add a version, with other values each time, and without any training."""
    counter: Iterator[int] = iter(range(1, 100))

    def make(name: str = "sst2", task: str | None = "sentiment", **says: Any) -> Any:
        note = says.pop("note", None)
        adapter = hub.Adapter("lora", _adapter.config, _adapter.tensors, heads=_adapter.heads)
        adapter.base, adapter.task_type = _adapter.base, _adapter.task_type
        adapter.tensors = {
            key: torch.nn.Parameter(tensor.detach() + next_value)
            for next_value in [next(counter) / 100]
            for key, tensor in adapter.tensors.items()
        }
        for key, value in says.items():
            setattr(adapter, key, value)
        return registry.add(adapter, name=name, task=task, note=note)

    return make


@pytest.fixture
def broken(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[str]:
    """An installed plugin whose import fails; its method's name."""
    (tmp_path / "hub_broken.py").write_text("import nothing_of_that_name\n")
    info = tmp_path / "hub_broken-2.0.dist-info"
    info.mkdir()
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: hub-broken\nVersion: 2.0\n")
    (info / "entry_points.txt").write_text("[hub]\nbroken = hub_broken\n")
    monkeypatch.syspath_prepend(str(tmp_path))
    importlib.invalidate_caches()
    installed_methods.cache_clear()
    yield "broken"
    shutil.rmtree(info)
    sys.modules.pop("hub_broken", None)
    installed_methods.cache_clear()


@pytest.fixture(scope="session")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[HubServer]:
    with HubServer(tmp_path_factory.mktemp("served"), TOKENS) as running:
        yield running


@pytest.fixture
def online(server: HubServer, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> HubServer:
    """What HF_ENDPOINT, HF_TOKEN and HF_HOME do in a new process."""
    template = f"{server.url}/{{repo_id}}/resolve/{{revision}}/{{filename}}"
    monkeypatch.setenv("HF_TOKEN", "ana-writes")
    monkeypatch.setattr(constants, "ENDPOINT", server.url)
    monkeypatch.setattr(constants, "HUGGINGFACE_CO_URL_TEMPLATE", template)
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "cache"))
    return server
