"""`hub list`, `show`, `log`, `alias`, `verify`."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

import hub
from tests.cli.conftest import Add, Run

Read = Callable[..., Any]
Fail = Callable[..., str]

VERSION = {
    *("reference", "adapter", "number", "digest", "kind", "method", "task", "base", "config"),
    *("metrics", "created", "author", "note", "files", "parents", "aliases"),
}


@pytest.fixture
def sst2(add: Add, registry: hub.Registry) -> None:
    """sst2@1, which is production, and sst2@2."""
    add(metrics={"accuracy": 0.9})
    add(note="more data")
    registry.alias("sst2@1", "production")


def test_list_says_when_there_is_nothing(run: Run) -> None:
    result = run("list")
    assert result.stdout == ""
    assert "no adapter in " in result.stderr
    assert "no adapter for the task 'qa' in" in run("list --task qa").stderr


@pytest.mark.usefixtures("sst2")
def test_list_has_a_line_for_each_adapter(run: Run, add: Add) -> None:
    add("de", None)
    title, de, sst2 = run("list").stdout.splitlines()
    assert title.split() == ["NAME", "LATEST", "METHOD", "TASK", "ALIASES", "UPDATED", "BASE"]
    assert de.split()[:5] == ["de", "1", "lora", "-", "-"]
    assert sst2.split()[:5] == ["sst2", "2", "lora", "sentiment", "production=1"]
    assert title.index("METHOD") == de.index("lora") == sst2.index("lora")


@pytest.mark.usefixtures("sst2")
def test_list_of_a_task_leaves_out_the_others(read: Read, add: Add) -> None:
    add("de", "translation")
    names = [row["name"] for row in read("list --task sentiment")["adapters"]]
    assert names == ["sst2"]


@pytest.mark.usefixtures("sst2")
def test_list_of_a_name_has_its_versions_newest_first(run: Run) -> None:
    lines = run("list sst2").stdout.splitlines()
    assert [line.split()[0] for line in lines] == ["VERSION", "sst2@2", "sst2@1"]
    assert "more data" in lines[1]
    assert "accuracy 0.9" in lines[2]
    assert "production" in lines[2]


@pytest.mark.usefixtures("sst2")
def test_list_json_is_one_document(read: Read) -> None:
    (row,) = read("list")["adapters"]
    assert row.keys() == {
        *("name", "latest", "kind", "method", "task", "base", "aliases", "created"),
    }
    assert row["aliases"] == {"production": 1}
    assert [version.keys() for version in read("list sst2")["versions"]] == [VERSION, VERSION]
    assert read("list --task other") == {"adapters": []}


@pytest.mark.usefixtures("sst2")
def test_show_has_all_that_is_known(run: Run, registry: hub.Registry) -> None:
    hub.push("sst2@1", "./shared")
    shown = run("show sst2@production").stdout
    version = registry.get("sst2@1")
    assert shown.splitlines()[0] == "sst2@1"
    for part in (
        *("sentiment", "production", version.digest, version.author, version.base.label),
        *("accuracy", "0.9", "target_modules"[:6], "file://", "adapter_model.safetensors"),
        *(entry.sha256 for entry in version.files.values()),
    ):
        assert part in shown


@pytest.mark.usefixtures("sst2")
def test_show_json_has_publications_and_lineage(read: Read, registry: hub.Registry) -> None:
    publication = hub.push("sst2@1", "./shared")
    document = read("show sst2@production")
    assert document.keys() == VERSION | {"lineage", "publications"}
    assert document["reference"] == "sst2@1"
    assert document["base"]["architecture"] == "bert"
    assert "sample" not in document["base"]
    assert document["files"]["hub.json"].keys() == {"sha256", "size"}
    assert document["publications"] == [
        {"remote": publication.remote, "revision": publication.revision}
    ]


def test_show_lineage_and_parents(read: Read, run: Run, add: Add) -> None:
    add(lineage={"training": {"template": "{{ a }}|||{{ b }}"}})
    document = read("show sst2@1")
    assert document["lineage"]["training"]["template"] == "{{ a }}|||{{ b }}"
    assert "{{ a }}|||{{ b }}" in run("show sst2@1").stdout


@pytest.mark.usefixtures("sst2")
def test_log_tells_the_newest_first(run: Run, read: Read) -> None:
    run("alias sst2@2 production --note 'better on new clients'")
    first, *_ = run("log sst2").stdout.splitlines()[1:]
    assert "moved alias production from version 1 to 2" in first
    assert "better on new clients" in first
    events = read("log sst2")["events"]
    assert events[0].keys() == {"when", "who", "kind", "reference", "what", "note"}
    assert [event["kind"] for event in events] == ["alias", "alias", "version", "version"]


@pytest.mark.usefixtures("sst2")
def test_alias_moves_and_is_removed(run: Run, registry: hub.Registry) -> None:
    assert run("alias sst2@2 production").stdout == "sst2@production is sst2@2\n"
    assert registry.get("sst2@production").number == 2
    assert run("alias sst2@production v1.0").stdout == "sst2@v1.0 is sst2@2\n"
    assert run("alias sst2 production --remove").stdout == "sst2@production is removed\n"
    assert registry.get("sst2@2").aliases == ("v1.0",)


@pytest.mark.usefixtures("sst2")
def test_verify_says_that_all_is_well(run: Run, read: Read) -> None:
    assert run("verify").stdout == "everything is as it was stored\n"
    assert run("verify sst2@1 sst2").stdout == "sst2@1, sst2 is as it was stored\n"
    assert read("verify") == {"faults": []}


@pytest.mark.usefixtures("sst2")
def test_verify_lists_a_flipped_byte_and_fails(
    run: Run, read: Read, registry: hub.Registry
) -> None:
    entry = registry.get("sst2@2").files["adapter_model.safetensors"]
    path = registry.blobs.find_path(entry.sha256)
    data = bytearray(path.read_bytes())
    data[100] ^= 1
    path.chmod(0o644)
    path.write_bytes(data)
    result = run("verify", 1)
    assert "sst2@2" in result.stdout
    assert str(path) in result.stdout
    assert result.stderr.startswith("error: 1 fault in ")
    (fault,) = read("verify", 1)["faults"]
    assert fault.keys() == {"problem", "reference", "filename", "path"}
    assert (fault["reference"], fault["path"]) == ("sst2@2", str(path))
    assert run("verify sst2@1").exit_code == 0


@pytest.mark.usefixtures("sst2")
@pytest.mark.parametrize(
    ("line", "expected"),
    [
        ("show sst3", "close names are sst2"),
        ("list zzzzzz", "it has sst2"),
        ("show sst2@7", "its versions are 1 to 2"),
        ("show sst2@staging", "its aliases are production (1)"),
        ("show 'a b'", "write name, name@number or name@alias"),
        ("log sst3", "close names are sst2"),
        ("log sst2@1", "'sst2@1' is no "),
        ("alias sst2@9 production", "has no version 9"),
        ("alias sst2@1 latest", "'latest' can't be an alias"),
        ("alias sst2 staging --remove", "its aliases are production"),
        ("verify sst3", "close names are sst2"),
    ],
)
def test_a_wrong_reference_says_what_is_there(line: str, expected: str, fail: Fail) -> None:
    assert expected in fail(line)


def test_removing_an_alias_from_a_version_is_wrong_usage(run: Run) -> None:
    stderr = run("alias sst2@1 production --remove", 2).stderr
    assert "hub alias sst2 production --remove" in stderr


def test_a_home_that_can_not_be_is_one_line(
    fail: Fail, run: Run, add: Add, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    add()
    run("export sst2 folder")
    (tmp_path / "file").touch()
    monkeypatch.setenv("HUB_HOME", str(tmp_path / "file" / "home"))
    assert str(tmp_path / "file" / "home") in fail("import ./folder --name a")


def test_a_database_that_is_none_is_one_line(fail: Fail, home: Path) -> None:
    home.mkdir()
    (home / "registry.db").write_text("what a user put there " * 100)
    assert "restore it from a backup" in fail("list")


def test_an_address_that_is_none_is_one_line(fail: Fail, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HUB_REGISTRY", "nothing")
    assert "not a database URL" in fail("list")


def test_a_base_in_a_folder_is_its_last_part_in_a_table(run: Run, add: Add) -> None:
    base = dataclasses.replace(add("first").base, repo="/some/long/way/bert")
    add("second", base=base)
    line = run("list").stdout.splitlines()[-1]
    assert line.endswith("  bert")


def test_list_says_that_no_version_is_for_a_task(run: Run, add: Add) -> None:
    add()
    result = run("list sst2 --task zz")
    assert result.stdout == ""
    assert result.stderr == "no version of sst2 is for the task 'zz'\n"


@pytest.mark.parametrize("line", ["list", "doctor"])
def test_a_home_that_is_a_file_is_said(line: str, run: Run, home: Path) -> None:
    home.write_text("mine")
    assert "not a directory" in run(line, 1).stderr
