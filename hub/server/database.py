"""The server's state beside the bytes: one SQLite file, whose schema refuses a torn state."""

from __future__ import annotations

import sqlite3
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from hub.errors import RemoteError

_VERSION = 1
_BUSY = 30.0  # seconds to wait for another writer

_SCHEMA = (
    """
    CREATE TABLE repo (
        key INTEGER PRIMARY KEY AUTOINCREMENT,
        namespace TEXT NOT NULL,
        name TEXT NOT NULL,
        private INTEGER NOT NULL,
        created TEXT NOT NULL,
        UNIQUE (namespace, name)
    )
    """,
    # What a repo may refer to. Per repo, so that knowing the sha256 of another repo's file
    # is not enough to read it.
    """
    CREATE TABLE object (
        repo INTEGER NOT NULL REFERENCES repo ON DELETE CASCADE,
        sha256 TEXT NOT NULL,
        size INTEGER NOT NULL,
        git TEXT NOT NULL,
        PRIMARY KEY (repo, sha256)
    ) WITHOUT ROWID
    """,
    "CREATE INDEX object_by_sha256 ON object (sha256)",
    """
    CREATE TABLE revision (
        repo INTEGER NOT NULL REFERENCES repo ON DELETE CASCADE,
        oid TEXT NOT NULL,
        parent TEXT,
        title TEXT NOT NULL,
        description TEXT NOT NULL,
        author TEXT NOT NULL,
        date TEXT NOT NULL,
        PRIMARY KEY (repo, oid),
        FOREIGN KEY (repo, parent) REFERENCES revision (repo, oid) DEFERRABLE INITIALLY DEFERRED
    ) WITHOUT ROWID
    """,
    """
    CREATE TABLE entry (
        repo INTEGER NOT NULL,
        oid TEXT NOT NULL,
        path TEXT NOT NULL,
        sha256 TEXT NOT NULL,
        lfs INTEGER NOT NULL,
        PRIMARY KEY (repo, oid, path),
        FOREIGN KEY (repo, oid) REFERENCES revision (repo, oid) ON DELETE CASCADE,
        FOREIGN KEY (repo, sha256) REFERENCES object (repo, sha256)
            DEFERRABLE INITIALLY DEFERRED
    ) WITHOUT ROWID
    """,
    """
    CREATE TABLE ref (
        repo INTEGER NOT NULL,
        kind TEXT NOT NULL CHECK (kind IN ('branch', 'tag')),
        name TEXT NOT NULL,
        oid TEXT NOT NULL,
        PRIMARY KEY (repo, kind, name),
        FOREIGN KEY (repo, oid) REFERENCES revision (repo, oid) ON DELETE CASCADE
    ) WITHOUT ROWID
    """,
)


class Database:
    """Connections to the state, one per use, so that any thread and any process may have one."""

    def __init__(self, path: Path) -> None:
        """Open, and create when new.

        Raises `RemoteError` for a file of another version of this program.
        """
        self._path = path
        with self.write() as connection:
            (version,) = connection.execute("PRAGMA user_version").fetchone()
            if version == 0:
                for statement in _SCHEMA:
                    connection.execute(statement)
                connection.execute(f"PRAGMA user_version = {_VERSION}")
            elif version != _VERSION:
                raise RemoteError(
                    f"{path} has schema {version} and this program knows {_VERSION}; "
                    "serve it with the version of pefthub that wrote it"
                )

    @contextmanager
    def read(self) -> Iterator[sqlite3.Connection]:
        """One consistent state: what commits meanwhile is not seen."""
        connection = self._connect()
        try:
            connection.execute("BEGIN")
            yield connection
        finally:
            connection.close()

    @contextmanager
    def write(self) -> Iterator[sqlite3.Connection]:
        """All of it or nothing, one writer at a time."""
        connection = self._connect()
        try:
            connection.execute("BEGIN IMMEDIATE")
            yield connection
            connection.execute("COMMIT")
        finally:  # closing without a commit rolls back
            connection.close()

    def _connect(self) -> sqlite3.Connection:
        connection = sqlite3.connect(self._path, timeout=_BUSY, isolation_level=None)
        connection.execute("PRAGMA journal_mode = WAL")
        connection.execute("PRAGMA synchronous = FULL")
        connection.execute("PRAGMA foreign_keys = ON")
        return connection
