from __future__ import annotations

import os
import sqlite3
from collections.abc import Callable
from contextlib import closing
from typing import Any

import pytest
from sqlalchemy import text

from hub_registry import HubError, Registry, RegistryError, StorageError, Version

Add = Callable[..., Version]


@pytest.mark.parametrize(
    ("url", "message"),
    [
        ("sqlite://", "a registry in memory would be gone at the end"),
        ("sqlite:///:memory:", "a registry in memory would be gone at the end"),
        ("somewhere", "the registry's address is not a database URL"),
        ("nosuchdb://host/name", "the registry's address is not a database URL"),
    ],
)
def test_an_address_that_is_none_is_refused(home: Any, url: str, message: str) -> None:
    with pytest.raises(RegistryError, match=message):
        Registry(home, url)


def test_a_password_is_never_shown(home: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    url = "postgresql+nosuchdriver://ada:secret@host/name"
    with pytest.raises(HubError) as caught:
        Registry(home, url)
    assert "secret" not in str(caught.value)


def test_a_database_elsewhere_keeps_its_blobs_at_home(
    registry: Registry, base: Any, tmp_path: Any
) -> None:
    other = Registry(registry.home, f"sqlite:///{tmp_path}/team/registry.db")
    version = other.add_files(
        {"a.json": b"1"}, name="a", task=None, method="lora", base=base, config={}
    )
    assert (tmp_path / "team" / "registry.db").is_file()
    assert not (registry.home / "registry.db").exists()
    assert registry.blobs.read(version.files["a.json"], "it") == b"1"


def test_sqlite_is_set_up_to_keep_its_promises(registry: Registry, add: Add) -> None:
    add()
    with registry.database.write() as connection:
        values = {
            name: connection.execute(text(f"PRAGMA {name}")).scalar_one()
            for name in ("journal_mode", "foreign_keys", "synchronous", "busy_timeout")
        }
    assert values == {
        "journal_mode": "wal", "foreign_keys": 1, "synchronous": 2, "busy_timeout": 60_000,
    }  # fmt: skip


def test_a_reader_sees_one_state_while_others_write(registry: Registry, add: Add) -> None:
    add()
    count = text("SELECT count(*) FROM version")
    with registry.database.read() as connection:
        assert connection.execute(count).scalar_one() == 1
        add(content=b"two")
        assert connection.execute(count).scalar_one() == 1
    assert len(registry.list()) == 2


def test_a_writer_that_waits_too_long_says_so(
    registry: Registry, add: Add, monkeypatch: pytest.MonkeyPatch
) -> None:
    add()
    monkeypatch.setattr("hub_registry.database.BUSY_TIMEOUT", 0.05)
    with closing(sqlite3.connect(registry.home / "registry.db")) as other:
        other.execute("BEGIN IMMEDIATE")
        with pytest.raises(StorageError, match=r"is busy: .*; try again"):
            add(content=b"two")
    assert add(content=b"two").number == 2


def test_a_file_that_is_no_database_is_named(registry: Registry, add: Add) -> None:
    registry.home.mkdir()
    path = registry.home / "registry.db"
    path.write_bytes(b"hello, this is a text file\n" * 50)
    for use in (registry.list, registry.adapters, add, registry.verify, registry.upgrade):
        with pytest.raises(StorageError, match=r"is damaged \(file is not a database\)") as caught:
            use()
        assert str(path) in str(caught.value)
        assert "restore it from a backup" in str(caught.value)
    assert path.read_bytes().startswith(b"hello")
    assert list(registry.blobs.find_temporary()) == []


def test_a_folder_in_the_way_is_named(registry: Registry, add: Add) -> None:
    (registry.home / "registry.db").mkdir(parents=True)
    for use in (registry.list, add):
        with pytest.raises(StorageError, match=r"registry\.db can't be opened"):
            use()


def test_a_registry_can_be_used_after_a_fork(registry: Registry, add: Add) -> None:
    add()
    registry.list()
    reader, writer = os.pipe()
    child = os.fork()
    if child == 0:
        try:
            os.write(writer, str(add(content=b"two").number).encode())
        finally:
            os._exit(0)
    os.waitpid(child, 0)
    assert os.read(reader, 10) == b"2"
    os.close(reader)
    os.close(writer)
    assert add(content=b"three").number == 3
