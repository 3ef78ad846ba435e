"""`hub push` and `hub pull`: folders, and a server with the real client to it."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from huggingface_hub import constants

import hub
from tests.cli.conftest import Add, Run

Read = Callable[..., Any]
Fail = Callable[..., str]


def test_push_to_a_folder_and_pull_from_it(
    run: Run, read: Read, add: Add, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    version = add()
    assert run("push sst2@1 ./shared").stdout.startswith("sst2@1 is at file://")
    assert run("push sst2@1 ./shared").stdout.startswith("sst2@1 was there already: file://")
    monkeypatch.setenv("HUB_HOME", str(tmp_path / "other"))
    document = read("pull ./shared")
    assert document["reference"] == "sst2@1"
    assert document["digest"] == version.digest
    assert run("pull ./shared --name mine").stdout.startswith("mine@1 is ./shared (lora, for ")


@pytest.mark.usefixtures("online")
def test_push_to_the_hub_and_pull_a_revision(
    read: Read, add: Add, registry: hub.Registry, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    add()
    pushed = read("push sst2@1 org/sst2 --private --message 'first one'")
    assert pushed.keys() == {"remote", "revision", "url", "changed"}
    assert (pushed["remote"], pushed["changed"]) == ("org/sst2", True)
    assert registry.publications("sst2") == [("sst2@1", "org/sst2", pushed["revision"])]
    monkeypatch.setenv("HUB_HOME", str(tmp_path / "other"))
    pulled = read(f"pull org/sst2@{pushed['revision']}")
    assert pulled["reference"] == "sst2@1"


@pytest.mark.usefixtures("online")
@pytest.mark.parametrize(
    ("line", "expected"),
    [
        ("push sst3 org/x", "close names are sst2"),
        ("push sst2 org/x/y", "names no repository"),
        ("pull org/nothing", "has no repository org/nothing"),
        ("pull ./nothing", "nothing does not exist"),
        ("pull ./bert", "bert is no adapter"),
    ],
)
def test_remote_commands_fail_in_one_line(line: str, expected: str, fail: Fail, add: Add) -> None:
    add()
    assert expected in fail(line)


@pytest.mark.usefixtures("online")
def test_push_without_permission_is_one_line(
    fail: Fail, add: Add, monkeypatch: pytest.MonkeyPatch
) -> None:
    add()
    monkeypatch.setenv("HF_TOKEN", "rob-reads")
    line = fail("push sst2 org/other")
    assert "no permission to write to org/other" in line
    assert "rob-reads" not in line


def test_push_without_a_server_is_one_line(
    fail: Fail, add: Add, monkeypatch: pytest.MonkeyPatch
) -> None:
    add()
    monkeypatch.setattr(constants, "ENDPOINT", "http://127.0.0.1:9")
    assert "http://127.0.0.1:9 can't be reached" in fail("push sst2 org/sst2")


def test_push_of_a_folder_that_nothing_loads_is_refused(run: Run, fail: Fail, add: Add) -> None:
    add()
    run("export sst2 saved")
    Path("saved/hub.json").unlink()
    path = Path("saved/adapter_config.json")
    path.chmod(0o644)
    path.write_text(path.read_text().replace('"LORA"', '"NOTHING"'))
    assert "NOTHING" in fail("push ./saved ./shared").upper()
    assert not Path("shared").exists()
