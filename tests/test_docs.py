"""The documentation says what the code does."""

import dataclasses
import importlib
import inspect
import json
import os
import re
import subprocess
import sys
from collections.abc import Iterator
from importlib.metadata import entry_points
from pathlib import Path
from typing import Any

import pytest
import torch
from peft import LoraConfig, get_peft_model
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import AutoModelForSequenceClassification, PreTrainedTokenizerFast

import hub
from hub import hookspecs
from hub.discovery import installed_methods
from hub.server import HubServer, User
from tests.tiny import build_tiny, make_inputs

ROOT = Path(__file__).parents[1]
PAGES = [*sorted(ROOT.glob("*.md")), *sorted((ROOT / "docs").rglob("*.md"))]
HOOKS = [name for name in vars(hookspecs) if name.startswith("hub_")]
METHODS = sorted(entry.name for entry in entry_points(group="hub"))
# The guide is tried below, the tutorial in tests/plugins/test_stranger.py.
TRIED = {"plugins", "tutorial"}
RUNNABLE = [page for page in PAGES if "```python" in page.read_text() and page.stem not in TRIED]
# The readme's are run in tests/cli/test_readme.py.
SHELLED = [page for page in PAGES if "```shell" in page.read_text() and page.stem != "README"]
LINK = re.compile(r"\[[^\]]*\]\(([^)#]+)[^)]*\)")


def name_page(path: Path) -> str:
    return path.relative_to(ROOT).as_posix()


def read_blocks(page: str, language: str) -> list[str]:
    """The fenced blocks of one language on a page, in order."""
    return re.findall(rf"```{language}\n(.*?)```", (ROOT / page).read_text(), re.DOTALL)


@pytest.mark.parametrize("page", PAGES, ids=name_page)
def test_links_lead_to_files_that_are_there(page: Path) -> None:
    links = [link for link in LINK.findall(page.read_text()) if "://" not in link]
    assert [link for link in links if not (page.parent / link).exists()] == []


def test_index_names_every_page() -> None:
    index = ROOT / "docs" / "index.md"
    named = {(index.parent / link).resolve() for link in LINK.findall(index.read_text())}
    assert set((ROOT / "docs").rglob("*.md")) - {index} <= named


@pytest.mark.parametrize("name", HOOKS)
def test_plugin_guide_has_the_exact_signature_of(name: str) -> None:
    signature = f"{name}{inspect.signature(getattr(hookspecs, name))}".replace("'", "")
    assert f"### `{signature}`" in (ROOT / "docs" / "plugins.md").read_text()


@pytest.mark.parametrize("name", METHODS)
def test_method_page_names_every_option(name: str) -> None:
    page = (ROOT / "docs" / "methods" / f"{name}.md").read_text()
    options = [field.name for field in dataclasses.fields(installed_methods().get(name).config)]
    assert [option for option in options if f"`{option}`" not in page] == []


@pytest.mark.parametrize("name", METHODS)
def test_readme_lists_the_method(name: str) -> None:
    assert f"[`{name}`](docs/methods/{name}.md)" in (ROOT / "README.md").read_text()


@pytest.fixture
def world(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> dict[str, Any]:
    """What the pages take for granted: a base, data, an adapter, and folders in the current one."""
    monkeypatch.chdir(tmp_path)
    words = ["[PAD]", "[UNK]", "a", "fine", "film", "dull", "[SEP]"]
    inner = Tokenizer(models.WordLevel({word: i for i, word in enumerate(words)}, "[UNK]"))
    inner.pre_tokenizer = pre_tokenizers.Whitespace()
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=inner, pad_token="[PAD]", unk_token="[UNK]", eos_token="[SEP]"
    )
    tokenizer.save_pretrained("bert-base-uncased")
    build_tiny("bert", "classification").save_pretrained("bert-base-uncased")
    build_tiny("llama").save_pretrained("llama")
    rows = [{"text": f"a {word} film", "label": word == "fine"} for word in ("fine", "dull")] * 4
    text = "".join(json.dumps({**row, "label": int(row["label"])}) + "\n" for row in rows)
    for name in ("reviews", "train", "test"):
        Path(f"{name}.jsonl").write_text(text)
    load = AutoModelForSequenceClassification.from_pretrained
    model = load("bert-base-uncased").eval()
    adapter = hub.Adapter.create("lora", model, targets="attention")
    adapter.save("sst2")
    wrapped = get_peft_model(load("bert-base-uncased"), LoraConfig(target_modules=["query"]))
    wrapped.save_pretrained("peft-folder")
    batch = tokenizer(["a fine film"], return_tensors="pt")
    return {"model": model, "adapter": adapter, "tokenizer": tokenizer, "batch": batch}


@pytest.mark.parametrize("page", RUNNABLE, ids=name_page)
def test_python_of_the_page_runs(page: Path, world: dict[str, Any]) -> None:
    for block in read_blocks(name_page(page), "python"):
        exec(compile(block, name_page(page), "exec"), world)


@pytest.mark.usefixtures("world")
@pytest.mark.parametrize("page", SHELLED, ids=name_page)
def test_shell_lines_of_the_page_run(page: Path, tmp_path: Path) -> None:
    script = "".join(read_blocks(name_page(page), "shell"))
    tokens = {"ana-writes": User("ana", namespaces=frozenset({"org"}))}
    hub.Registry().add(Path("sst2"), name="sst2")
    with HubServer(tmp_path / "served", tokens) as server:
        environment = {
            **os.environ,
            "PATH": os.pathsep.join([str(Path(sys.executable).parent), os.environ["PATH"]]),
            "HF_ENDPOINT": server.url,
            "HF_TOKEN": "ana-writes",
            "HF_HOME": str(tmp_path / "hf-home"),
        }
        done = subprocess.run(
            ["bash", "-e", "-c", script], env=environment, capture_output=True, text=True
        )
    assert done.returncode == 0, done.stderr


@pytest.fixture
def shift(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """The plugin of docs/plugins.md, installed."""
    source = "".join(read_blocks("docs/plugins.md", "python"))
    (tmp_path / "hub_shift.py").write_text(source)
    info = tmp_path / "hub_shift-1.0.dist-info"
    info.mkdir()
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: hub-shift\nVersion: 1.0\n")
    (toml,) = read_blocks("docs/plugins.md", "toml")
    (info / "entry_points.txt").write_text(
        toml.replace("project.entry-points.", "").replace('"', "")
    )
    monkeypatch.syspath_prepend(str(tmp_path))
    monkeypatch.delitem(sys.modules, "hub_shift", raising=False)
    importlib.invalidate_caches()
    installed_methods.cache_clear()
    yield
    installed_methods.cache_clear()


@pytest.mark.usefixtures("shift")
def test_plugin_of_the_guide_adapts_a_model() -> None:
    model = build_tiny("llama")
    inputs = make_inputs(model)
    bare = model(**inputs).logits
    adapter = hub.Adapter.create("shift", model)
    assert all(".v_proj." in name for name in adapter.tensors)
    with torch.no_grad(), hub.attach(model, adapter) as attachment:
        assert torch.equal(model(**inputs).logits, bare)
        for parameter in attachment.parameters():
            parameter.fill_(0.5)
        assert not torch.allclose(model(**inputs).logits, bare)
    assert torch.equal(model(**inputs).logits, bare)


@pytest.mark.usefixtures("shift")
def test_contract_of_the_guide_holds() -> None:
    world: dict[str, Any] = {}
    for block in read_blocks("docs/plugins.md", "py"):
        exec(compile(block, "docs/plugins.md", "exec"), world)
    contract = world["TestShift"]()
    contract.test_where_it_can_not_act_it_says_why()
    for kind in contract.models:
        if kind not in contract.refuses:
            contract.test_every_site_acts(kind)


@pytest.mark.usefixtures("shift")
def test_plugin_of_the_guide_adds_its_penalty() -> None:
    model = build_tiny("llama")
    adapter = hub.Adapter.create("shift", model)
    with hub.attach(model, adapter) as attachment:
        modules = attachment.modules(adapter)
        training = installed_methods().call(
            "hub_train", "shift", adapter=adapter, modules=modules, steps=1
        )
        assert isinstance(training, hub.Training)
        assert training.penalty is not None
        with torch.no_grad():
            for parameter in attachment.parameters():
                parameter.fill_(-1.0)
        count = sum(tensor.numel() for tensor in adapter.tensors.values())
        assert training.penalty().item() == pytest.approx(0.01 * count)
