"""Whether a registry is fit for use: what `hub doctor` asks."""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterator
from pathlib import Path

from sqlalchemy import Connection, NullPool, create_engine
from sqlalchemy import text as sql

from hub_registry import schema
from hub_registry.blobs import BlobStore
from hub_registry.database import Database
from hub_registry.errors import HubError
from hub_registry.records import Finding
from hub_registry.storage import storage_errors
from hub_registry.sweeping import find_leftovers
from hub_registry.verification import find_lost_rows

# Below this many bytes a warning is due.
_LITTLE_SPACE = 1 << 30
_SQLITE_OBJECTS = sql(
    "SELECT type, name, sql FROM sqlite_master WHERE name NOT LIKE 'sqlite_%' ORDER BY type, name"
)


def find_findings(database: Database, blobs: BlobStore, home: Path) -> list[Finding]:
    """Look at the database, the folders and the disk; nothing is changed and nothing raised."""
    findings = []
    for look in (_look_at_database, _look_at_folders, _look_at_leftovers):
        try:
            findings += list(look(database, blobs, home))
        except HubError as error:
            findings.append(Finding("error", "registry", str(error)))
    return list(dict.fromkeys(findings))


def _look_at_database(database: Database, blobs: BlobStore, home: Path) -> Iterator[Finding]:
    with database.read() as connection:
        if not database.checked:
            if lost := find_lost_rows(database, blobs):
                yield Finding("error", "database", lost)
            else:
                yield Finding("ok", "database", f"{database.label} is made by the first version")
            return
        yield Finding("ok", "database", f"{database.label} has schema {schema.REVISION}")
        if connection.dialect.name != "sqlite":
            return
        mode = connection.execute(sql("PRAGMA journal_mode")).scalar_one()
        # A file that can only be read does not tell its mode.
        if mode != "wal" and os.access(home, os.W_OK):
            yield Finding(
                "warning", "journal", f"its journal mode is {mode}, so readers wait for writers"
            )
        if broken := _find_schema_changes(connection):
            yield Finding(
                "error",
                "schema",
                f"{database.label} was changed by hand: {', '.join(broken[:3])}; its promises no "
                "longer hold; restore it from a backup",
            )
        else:
            yield Finding("ok", "schema", "every table, index and trigger is as it was made")


def _find_schema_changes(connection: Connection) -> list[str]:
    """The names of tables, indexes and triggers that are missing, added or changed."""
    engine = create_engine("sqlite://", poolclass=NullPool)
    with engine.connect() as fresh:
        schema.upgrade_schema(fresh)
        expected = {tuple(row) for row in fresh.execute(_SQLITE_OBJECTS)}
    found = {tuple(row) for row in connection.execute(_SQLITE_OBJECTS)}
    return sorted({str(name) for _, name, _ in expected ^ found})


def _look_at_folders(database: Database, blobs: BlobStore, home: Path) -> Iterator[Finding]:
    with storage_errors(home, "read"):
        folder = next(path for path in (home, *home.parents) if path.exists())
        free = shutil.disk_usage(folder).free
    if not folder.is_dir():
        yield Finding("error", "home", f"{folder} is a file; set HUB_HOME to a folder")
    elif not os.access(folder, os.W_OK):
        yield Finding(
            "error", "home", f"{folder} can't be written; set HUB_HOME to a folder of yours"
        )
    else:
        yield Finding("ok", "home", f"{home} can be written")
    text = f"{free / 1e9:.1f} GB are free at {folder}"
    yield Finding("warning" if free < _LITTLE_SPACE else "ok", "disk", text)


def _look_at_leftovers(database: Database, blobs: BlobStore, home: Path) -> Iterator[Finding]:
    with database.read() as connection:
        temporary, unused = find_leftovers(connection, blobs, older_than=0)
    size = sum(temporary.values()) + sum(unused.values())
    if size or temporary or unused:
        yield Finding(
            "warning",
            "leftovers",
            f"{len(temporary)} temporary files and {len(unused)} blobs of no version take "
            f"{size / 1e6:.1f} MB",
        )
    else:
        yield Finding("ok", "leftovers", "nothing was left behind")
