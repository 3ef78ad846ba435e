"""`hub export` and `hub import`."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from peft import LoraConfig, PeftModel, get_peft_model
from transformers import AutoModelForSequenceClassification

import hub
from tests.cli.conftest import Add, Run
from tests.tiny import build_tiny

Read = Callable[..., Any]
Fail = Callable[..., str]


@pytest.fixture
def peft_folder(workplace: Path) -> Path:
    """`peft`, written by peft for a classifier on `bert`."""
    model = AutoModelForSequenceClassification.from_pretrained("bert")
    config = LoraConfig(task_type="SEQ_CLS", r=2, target_modules=["query", "value"])
    get_peft_model(model, config).save_pretrained("peft")
    return workplace / "peft"


def test_export_writes_what_peft_loads(run: Run, add: Add, registry: hub.Registry) -> None:
    version = add()
    assert run("export sst2@1 ./out").stdout == "sst2@1 is in out\n"
    assert {path.name for path in Path("out").iterdir()} == set(version.files)
    PeftModel.from_pretrained(build_tiny("bert", "classification"), "out")


def test_export_and_import_give_the_same_digest(
    run: Run, read: Read, add: Add, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    version = add()
    run("export sst2 out")
    monkeypatch.setenv("HUB_HOME", str(tmp_path / "other"))
    document = read("import out --name other --task sentiment")
    assert document.keys() == {"reference", "digest", "method", "task", "base"}
    assert (document["reference"], document["digest"]) == ("other@1", version.digest)


@pytest.mark.usefixtures("peft_folder")
def test_import_of_a_peft_folder_notes_that_its_base_is_unknown(
    run: Run, registry: hub.Registry
) -> None:
    result = run("import ./peft --name theirs --task sentiment --note 'from TRL'")
    assert result.stdout.startswith("theirs@1 is peft (lora, for bert)")
    assert result.stderr == (
        "note: peft does not say which base it is for, so that can't be verified\n"
    )
    assert registry.get("theirs").note == "from TRL"


@pytest.mark.usefixtures("peft_folder")
def test_import_with_a_base_binds_to_it(run: Run, registry: hub.Registry, fail: Fail) -> None:
    assert run("import peft --name theirs --base bert").stderr == ""
    assert registry.get("theirs").base.architecture == "bert"
    with pytest.raises(hub.HubError, match="was made for"):
        hub.attach(build_tiny("bert", "classification", seed=5), "theirs")
    hub.attach(AutoModelForSequenceClassification.from_pretrained("bert"), "theirs").detach()
    assert "this base has down_proj" in fail("import peft --name theirs --base llama")
    config = Path("peft/adapter_config.json")
    config.write_text(json.dumps({**json.loads(config.read_text()), "r": 3}))
    assert "adapter peft does not fit this model" in fail("import peft --name theirs --base bert")
    assert registry.get("theirs").number == 1


@pytest.mark.parametrize(
    ("line", "expected"),
    [
        ("export sst3 out", "close names are sst2"),
        ("export sst2 full", "it is not empty"),
        ("export sst2 reviews.jsonl", "it is a file"),
        ("import nothing --name a", "nothing does not exist"),
        ("import bert --name a", "bert has no adapter_config.json"),
        ("import saved --name 'a b'", "'a b' is no "),
        ("import saved --name a --base ./nothing", "the base ./nothing does not exist"),
        ("import saved --name a --base llama", "was made for"),
    ],
)
def test_folder_commands_fail_in_one_line(
    line: str, expected: str, run: Run, fail: Fail, add: Add, registry: hub.Registry
) -> None:
    add()
    Path("full").mkdir()
    Path("full/file").touch()
    run("export sst2 saved")
    assert expected in fail(line)
    assert [row.name for row in registry.adapters()] == ["sst2"]


def test_import_of_an_edited_folder_fails(run: Run, fail: Fail, add: Add) -> None:
    add()
    run("export sst2 saved")
    path = Path("saved/adapter_config.json")
    path.chmod(0o644)
    path.write_text(path.read_text().replace('"r": 2', '"r": 4'))
    assert "was changed or damaged" in fail("import saved --name a")


def test_folders_may_be_addresses(run: Run, add: Add, workplace: Path, fail: Fail) -> None:
    add()
    run(f"export sst2 file://{workplace}/out")
    assert "is" in run(f"import file://{workplace}/out --name other").stdout
    assert "three slashes" in fail("import file://out --name other")
