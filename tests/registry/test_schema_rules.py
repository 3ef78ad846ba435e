"""What the database itself refuses, told in direct SQL, past all of our code."""

from __future__ import annotations

import shutil
import sqlite3
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from hub_registry import BaseIdentity, Registry

Execute = Callable[..., list[Any]]

VERSION = (
    "INSERT INTO version (adapter_id, number, digest, kind, method, base_model_id, config,"
    " file_count, parent_count, author, created)"
    " VALUES (1, {number}, '{digest}', 'adapter', 'lora', 1, '{{}}', 1, {parents}, 'me', '2026')"
)
NEW = "f" * 64


@pytest.fixture(scope="module")
def filled(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two versions of one adapter, one of another, an alias, a measurement, a publication."""
    registry = Registry(tmp_path_factory.mktemp("filled"))
    base = BaseIdentity("llama", "float32")
    for name, content, parents in (
        ("sst2", b"1", ()),
        ("sst2", b"2", ("sst2@1",)),
        ("b", b"3", ()),
    ):
        registry.add_files(
            {"a.json": content},
            name=name,
            task="a",
            method="lora",
            base=base,
            config={},
            parents=parents,
        )
    registry.alias("sst2@1", "production")
    registry.record_metric("sst2@1", "accuracy", 0.5)
    registry.record_publication("sst2@1", "hf://org/repo", "abc")
    return registry.home


@pytest.fixture(autouse=True)
def copied(registry: Registry, filled: Path) -> None:
    shutil.copytree(filled, registry.home)


APPEND_ONLY = (
    "base_model",
    "task",
    "version",
    "version_file",
    "lineage",
    "alias_history",
    "metric",
    "publication",
)


@pytest.mark.parametrize("foreign_keys", [True, False])
@pytest.mark.parametrize("table", APPEND_ONLY)
def test_a_row_written_once_is_never_deleted(
    table: str, foreign_keys: bool, execute: Execute
) -> None:
    before = execute(f"SELECT * FROM {table}")
    assert before
    with pytest.raises(sqlite3.IntegrityError, match=r"never change|append-only"):
        execute(f"DELETE FROM {table}", foreign_keys=foreign_keys)
    assert execute(f"SELECT * FROM {table}") == before


@pytest.mark.parametrize("table", [*APPEND_ONLY, "blob"])
def test_no_column_of_a_row_written_once_ever_changes(table: str, execute: Execute) -> None:
    for row in execute(f"PRAGMA table_info({table})"):
        with pytest.raises(sqlite3.IntegrityError, match=r"never change|append-only"):
            execute(f"UPDATE {table} SET {row[1]} = {row[1]}", foreign_keys=False)


@pytest.mark.parametrize("foreign_keys", [True, False])
@pytest.mark.parametrize("table", [*APPEND_ONLY, "blob", "adapter"])
def test_a_row_written_once_is_never_replaced(
    table: str, foreign_keys: bool, execute: Execute
) -> None:
    before = execute(f"SELECT * FROM {table}")
    with pytest.raises(sqlite3.IntegrityError):
        execute(f"REPLACE INTO {table} SELECT * FROM {table}", foreign_keys=foreign_keys)
    assert execute(f"SELECT * FROM {table}") == before


def test_a_version_is_not_replaced_by_its_other_keys(execute: Execute) -> None:
    digest = execute("SELECT digest FROM version WHERE id = 1")[0][0]
    replace = VERSION.replace("INSERT", "REPLACE")
    for number, sha256 in ((1, NEW), (3, digest)):
        with pytest.raises(sqlite3.IntegrityError):
            execute(replace.format(number=number, digest=sha256, parents=0), foreign_keys=False)
    assert execute("SELECT count(*) FROM version") == [(3,)]


@pytest.mark.parametrize("number", [-1, 0, 1, 2, 4, 999])
def test_a_number_is_never_used_again_and_leaves_no_gap(number: int, execute: Execute) -> None:
    with pytest.raises(sqlite3.IntegrityError):
        execute(VERSION.format(number=number, digest=NEW, parents=0))
    execute(VERSION.format(number=3, digest=NEW, parents=0))


def test_an_adapter_never_starts_again(execute: Execute) -> None:
    with pytest.raises(sqlite3.IntegrityError, match="keeps its numbers"):
        execute("DELETE FROM adapter", foreign_keys=False)
    with pytest.raises(sqlite3.IntegrityError, match="begin with 1"):
        execute("INSERT INTO adapter (name, next_version, created) VALUES ('a', 2, '2026')")
    for number in (1, 2, 5):
        with pytest.raises(sqlite3.IntegrityError, match="never used again"):
            execute("UPDATE adapter SET next_version = ? WHERE id = 1", number)
    with pytest.raises(sqlite3.IntegrityError, match="name of an adapter"):
        execute("UPDATE adapter SET name = 'a' WHERE id = 1")


def test_the_same_content_is_one_version(execute: Execute) -> None:
    digest = execute("SELECT digest FROM version WHERE id = 1")[0][0]
    with pytest.raises(sqlite3.IntegrityError):
        execute(VERSION.format(number=3, digest=digest, parents=0))


@pytest.mark.parametrize("foreign_keys", [True, False])
def test_an_alias_points_to_a_version_of_its_adapter(foreign_keys: bool, execute: Execute) -> None:
    insert = "INSERT INTO alias (adapter_id, name, number) VALUES (?, ?, ?)"
    for adapter_id, number in ((1, 999), (1, 0), (2, 2), (99, 1)):
        with pytest.raises(sqlite3.IntegrityError):
            execute(insert, adapter_id, "a", number, foreign_keys=foreign_keys)
    with pytest.raises(sqlite3.IntegrityError):
        execute("UPDATE alias SET number = 999", foreign_keys=foreign_keys)
    with pytest.raises(sqlite3.IntegrityError):
        execute("UPDATE alias SET adapter_id = 2, number = 2", foreign_keys=foreign_keys)
    execute("UPDATE alias SET number = 2", foreign_keys=foreign_keys)


@pytest.mark.parametrize("name", ["latest", "3", "007", ""])
def test_an_alias_is_no_number(name: str, execute: Execute) -> None:
    with pytest.raises(sqlite3.IntegrityError):
        execute("INSERT INTO alias (adapter_id, name, number) VALUES (1, ?, 1)", name)


def test_the_history_of_an_alias_names_versions(execute: Execute) -> None:
    insert = (
        "INSERT INTO alias_history (adapter_id, name, number, previous, author, created)"
        " VALUES (1, 'a', ?, ?, 'me', '2026')"
    )
    for number, previous in ((999, None), (1, 999), (None, None)):
        with pytest.raises(sqlite3.IntegrityError):
            execute(insert, number, previous)
    execute(insert, 2, 1)


def test_a_parent_is_older_than_its_child(execute: Execute) -> None:
    execute(VERSION.format(number=3, digest=NEW, parents=5))
    child = execute("SELECT max(id) FROM version")[0][0]
    insert = "INSERT INTO lineage (child_id, parent_id, position) VALUES (?, ?, 0)"
    with pytest.raises(sqlite3.IntegrityError, match="parent_is_older"):
        execute(insert, child, child)
    execute(VERSION.format(number=4, digest="e" * 64, parents=0))
    with pytest.raises(sqlite3.IntegrityError, match="parent_is_older"):
        execute(insert, child, child + 1)
    with pytest.raises(sqlite3.IntegrityError):
        execute(insert, child, 0)
    execute(insert, child, 1)


def test_a_version_gets_no_more_parents(execute: Execute) -> None:
    with pytest.raises(sqlite3.IntegrityError, match="parents of a version"):
        execute("INSERT INTO lineage (child_id, parent_id, position) VALUES (3, 1, 0)")


def test_a_version_gets_no_more_files(execute: Execute) -> None:
    sha256 = execute("SELECT sha256 FROM blob")[0][0]
    with pytest.raises(sqlite3.IntegrityError, match="files of a version"):
        execute("INSERT INTO version_file VALUES (1, 'more.json', ?)", sha256)


@pytest.mark.parametrize("foreign_keys", [True, False])
def test_a_file_has_its_blob(foreign_keys: bool, execute: Execute) -> None:
    execute(VERSION.format(number=3, digest=NEW, parents=0))
    child = execute("SELECT max(id) FROM version")[0][0]
    insert = "INSERT INTO version_file VALUES (?, 'a.json', ?)"
    with pytest.raises(sqlite3.IntegrityError):
        execute(insert, child, NEW, foreign_keys=foreign_keys)
    with pytest.raises(sqlite3.IntegrityError):
        execute("DELETE FROM blob", foreign_keys=foreign_keys)
    execute("INSERT INTO blob VALUES (?, 0, '2026')", NEW)
    execute(insert, child, NEW)


def test_a_version_has_its_base(execute: Execute) -> None:
    insert = VERSION.replace("'lora', 1,", "'lora', {base},")
    with pytest.raises(sqlite3.IntegrityError):
        execute(insert.format(number=3, digest=NEW, parents=0, base=99))
    with pytest.raises(sqlite3.IntegrityError):
        execute(insert.format(number=3, digest=NEW, parents=0, base="NULL"))


@pytest.mark.parametrize(
    "statement",
    [
        "INSERT INTO blob VALUES ('short', 0, '2026')",
        f"INSERT INTO blob VALUES ('{NEW}', -1, '2026')",
        "INSERT INTO metric (version_id, name, value, author, created)"
        " VALUES (1, 'a', NULL, 'me', '2026')",
        "INSERT INTO metric (version_id, name, value, samples, author, created)"
        " VALUES (1, 'a', 1, -1, 'me', '2026')",
        "INSERT INTO metric (version_id, name, value, author, created)"
        " VALUES (99, 'a', 1, 'me', '2026')",
        "INSERT INTO publication (version_id, remote, revision, author, created)"
        " VALUES (99, 'a', 'b', 'me', '2026')",
        "INSERT INTO adapter (name, next_version, created) VALUES ('', 1, '2026')",
        "INSERT INTO adapter (name, next_version, created) VALUES ('sst2', 1, '2026')",
        VERSION.format(number=3, digest="short", parents=0),
        VERSION.format(number=3, digest=NEW, parents=-1),
        VERSION.format(number=3, digest=NEW, parents=0).replace("'adapter'", "'song'"),
    ],
)
def test_a_row_that_means_nothing_is_refused(statement: str, execute: Execute) -> None:
    with pytest.raises(sqlite3.IntegrityError):
        execute(statement)
