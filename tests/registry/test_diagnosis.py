from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest

from hub_registry import Registry, StorageError, Version

Add = Callable[..., Version]


def find_levels(registry: Registry) -> dict[str, str]:
    return {finding.subject: finding.level for finding in registry.check()}


def test_a_sound_registry_is_fit_for_use(registry: Registry, add: Add) -> None:
    add()
    levels = find_levels(registry)
    del levels["disk"]  # it depends on this machine
    assert levels == dict.fromkeys(("database", "schema", "home", "leftovers"), "ok")


def test_a_dropped_trigger_is_an_error(registry: Registry, add: Add, execute: Any) -> None:
    add()
    execute("DROP TRIGGER tr_version_no_update")
    assert find_levels(registry)["schema"] == "error"
    assert any("tr_version_no_update" in finding.text for finding in registry.check())


def test_another_journal_mode_is_a_warning(registry: Registry, add: Add, execute: Any) -> None:
    add()
    execute("PRAGMA journal_mode = DELETE")
    assert find_levels(registry)["journal"] == "warning"


def test_a_damaged_database_is_an_error_and_not_an_exception(registry: Registry) -> None:
    registry.home.mkdir()
    (registry.home / "registry.db").write_bytes(b"this is no database at all" * 100)
    [error] = [finding for finding in registry.check() if finding.level == "error"]
    assert "is damaged" in error.text


def test_a_home_that_is_a_file_is_an_error(registry: Registry) -> None:
    registry.home.write_text("mine")
    errors = [finding for finding in registry.check() if finding.level == "error"]
    assert any("not a directory; move away what is there" in item.text for item in errors)
    assert any("is a file; set HUB_HOME to a folder" in item.text for item in errors)
    with pytest.raises(StorageError, match="not a directory"):
        registry.adapters()
