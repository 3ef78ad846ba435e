"""`hub doctor`."""

from __future__ import annotations

import sqlite3
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

import hub
from hub.cli.doctor import look_at_packages
from tests.cli.conftest import Add, Run

Read = Callable[..., Any]


def find(document: Any, subject: str) -> Any:
    (found,) = [item for item in document["findings"] if item["subject"] == subject]
    return found


def test_doctor_finds_all_well(run: Run, read: Read, add: Add) -> None:
    add()
    result = run("doctor")
    assert result.stderr == ""
    document = read("doctor")
    assert document.keys() == {"healthy", "findings"}
    assert document["healthy"] is True
    subjects = [item["subject"] for item in document["findings"]]
    for subject in ("python", "torch", "accelerate", "database", "disk", "method lora", "hub"):
        assert subject in subjects
        assert subject in result.stdout
    assert find(document, "pefthub")["text"] == hub.__version__


def test_doctor_names_a_broken_plugin_and_fails(broken: str, run: Run, read: Read) -> None:
    result = run("doctor", 1)
    assert result.stderr.startswith("error: method broken: plugin 'broken' of hub-broken 2.0")
    document = read("doctor", 1)
    assert document["healthy"] is False
    assert find(document, "method broken")["level"] == "error"


def test_doctor_never_shows_the_token(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HF_TOKEN", "hf_secret")
    monkeypatch.setenv("HF_ENDPOINT", "https://hub.example")
    result = run("doctor")
    assert "there is one" in result.stdout
    assert "https://hub.example" in result.stdout
    assert "hf_secret" not in result.output


def test_packages_are_held_against_what_is_required() -> None:
    findings = look_at_packages(
        [
            "torch>=2.6",
            "torch>=99",
            "nothing-there>=1",
            "nothing-optional>=1; extra == 'train'",
            "nothing-for-us; extra == 'dev'",
            "nothing-old; python_version < '3'",
            "pefthub[train]; extra == 'all'",
        ]
    )
    assert [(item.level, item.subject) for item in findings] == [
        ("ok", "torch"),
        ("error", "torch"),
        ("error", "nothing-there"),
        ("warning", "nothing-optional"),
    ]
    assert findings[1].text.endswith(" is not >=99; run: pip install -U 'pefthub'")
    assert findings[2].text == "is not installed; run: pip install -U 'pefthub'"
    assert findings[3].text == "is not installed; run: pip install -U 'pefthub[train]'"


def test_doctor_upgrade_makes_the_registry(run: Run, home: Path) -> None:
    run("doctor --upgrade")
    with sqlite3.connect(home / "registry.db") as connection:
        assert connection.execute("SELECT count(*) FROM version").fetchone() == (0,)
    connection.close()


def test_doctor_names_a_damaged_database(run: Run, home: Path) -> None:
    home.mkdir()
    (home / "registry.db").write_text("what a user put there " * 100)
    assert "restore it from a backup" in run("doctor", 1).stderr
