"""A connection to the registry's database: SQLite or PostgreSQL, its transactions, its errors."""

from __future__ import annotations

import contextlib
import json
import os
import sqlite3
import time
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import Any
from urllib.parse import quote

from sqlalchemy import Connection, Engine, NullPool, TableClause, create_engine, event, select
from sqlalchemy.engine import URL, make_url
from sqlalchemy.exc import (
    ArgumentError,
    DBAPIError,
    IntegrityError,
    NoResultFound,
    NoSuchModuleError,
)

from hub_registry import schema, tables
from hub_registry.errors import HubError, RegistryError, StorageError
from hub_registry.storage import describe_space, make_folder, storage_errors

# Seconds that a writer waits for the other writers.
BUSY_TIMEOUT = 60.0

# One process at a time makes or upgrades the tables of a PostgreSQL registry.
_SCHEMA_LOCK = 7370

_DAMAGED = (sqlite3.SQLITE_CORRUPT, sqlite3.SQLITE_NOTADB)
_UNWRITABLE = (sqlite3.SQLITE_FULL, sqlite3.SQLITE_IOERR)
_FORBIDDEN = (sqlite3.SQLITE_READONLY, sqlite3.SQLITE_CANTOPEN, sqlite3.SQLITE_PERM)
_BUSY = (sqlite3.SQLITE_BUSY, sqlite3.SQLITE_LOCKED)

_to_json = partial(json.dumps, allow_nan=False, sort_keys=True, separators=(",", ":"))


class Database:
    """The database at `url`. Nothing is opened before it is used.

    Every error inside `read` and `write` becomes a StorageError that says what is there.
    """

    def __init__(self, url: str | URL) -> None:
        """Raises RegistryError where `url` is none, or its driver is not installed."""
        try:
            parsed = make_url(url)
            self.label = parsed.render_as_string(hide_password=True)
            self.path: Path | None = None
            if parsed.get_backend_name() == "sqlite":
                if parsed.database in (None, "", ":memory:"):
                    raise RegistryError(
                        "a registry in memory would be gone at the end; "
                        "give a file, as in sqlite:////folder/registry.db"
                    )
                self.path = Path(str(parsed.database)).expanduser().absolute()
                self.label = str(self.path)
                self._engine = _create_sqlite_engine(self.path)
            else:
                self._engine = create_engine(parsed, json_serializer=_to_json, pool_pre_ping=True)
        except (ArgumentError, NoSuchModuleError, ValueError) as error:
            raise RegistryError(
                "the registry's address is not a database URL; write sqlite:////folder/registry.db "
                "or postgresql+psycopg://user@host/name in HUB_REGISTRY"
            ) from error
        except ModuleNotFoundError as error:
            raise RegistryError(
                f"the registry at {self.label} needs the package {error.name}; "
                f"run `pip install {error.name}`"
            ) from error
        self._engine = self._engine.execution_options(hub_label=self.label)
        self.checked = False

    def exists(self) -> bool:
        """Whether there is a file (SQLite); a server is taken to be there. Raises StorageError,
        also where a part of its path is no folder."""
        if self.path is None:
            return True
        with storage_errors(self.path, "read"), contextlib.suppress(FileNotFoundError):
            self.path.stat()
            return True
        return False

    @contextlib.contextmanager
    def read(self) -> Iterator[Connection]:
        """A connection that sees one state of the registry; one that does not exist yet is empty.
        Raises StorageError, SchemaError."""
        if not self.exists():
            with _open_empty(self.label) as connection:
                yield connection
            return
        with self._errors(), self._engine.connect() as connection:
            if not self.checked:
                revision = schema.read_revision(connection)
                if revision is None:
                    with _open_empty(self.label) as empty:
                        yield empty
                    return
                schema.check_revision(connection, revision)
                self.checked = True
            yield connection

    @contextlib.contextmanager
    def write(self) -> Iterator[Connection]:
        """A transaction, committed at the end of the block; on SQLite it is the only writer.
        Makes the registry where there is none. Raises StorageError, SchemaError."""
        if not self.checked:
            with self.change_schema() as connection:
                revision = schema.read_revision(connection)
                if revision is None:
                    schema.upgrade_schema(connection)
                else:
                    schema.check_revision(connection, revision)
            self.checked = True
        with self._errors(), self._begin() as connection:
            yield connection

    @contextlib.contextmanager
    def change_schema(self) -> Iterator[Connection]:
        """As `write`, whatever the schema is. Raises StorageError."""
        if self.path is not None and not self.exists():
            make_folder(self.path.parent)
            with storage_errors(self.path, "write"):
                self.path.touch()
        with self._errors():
            if self.path is not None and not self.path.stat().st_size:
                self._enter_wal(self.path)
            with self._begin() as connection:
                if self.path is None:
                    connection.exec_driver_sql(f"SELECT pg_advisory_xact_lock({_SCHEMA_LOCK})")
                yield connection

    @contextlib.contextmanager
    def _begin(self) -> Iterator[Connection]:
        with self._engine.execution_options(hub_write=True).begin() as connection:
            yield connection

    def _enter_wal(self, path: Path) -> None:
        """Readers and a writer at once. The file remembers the mode, so once is enough; SQLite
        does not wait by itself for others who are about to do the same."""
        deadline = time.monotonic() + BUSY_TIMEOUT
        while True:
            try:
                with contextlib.closing(_open_sqlite(path)) as connection:
                    if connection.execute("PRAGMA journal_mode").fetchone() != ("wal",):
                        connection.execute("PRAGMA journal_mode = WAL")
                return
            except sqlite3.Error as error:
                busy = getattr(error, "sqlite_errorcode", 0) & 0xFF in _BUSY
                if not busy or time.monotonic() > deadline:
                    raise StorageError(self._describe(error)) from error
                time.sleep(0.01)

    @contextlib.contextmanager
    def _errors(self) -> Iterator[None]:
        try:
            yield
        except HubError:
            raise
        except IntegrityError as error:
            raise RegistryError(
                f"the registry at {self.label} refuses this: {_first_line(error.orig)}"
            ) from error
        except DBAPIError as error:
            raise StorageError(self._describe(error.orig)) from error
        except (ValueError, LookupError, NoResultFound) as error:
            raise StorageError(
                f"the database {self.label} holds what nothing here wrote "
                f"({_first_line(error)}); restore it from a backup"
            ) from error

    def _describe(self, error: BaseException | None) -> str:
        what = f"the database {self.label}"
        why = _first_line(error)
        code = getattr(error, "sqlite_errorcode", 0) & 0xFF
        if self.path is None or not code:
            return f"{what} failed: {why}; check that it runs and lets you in"
        if code in _DAMAGED:
            return f"{what} is damaged ({why}); restore it from a backup, or move it away"
        if code in _UNWRITABLE:
            space = describe_space(self.path)
            return f"{what} can't be written ({why}, {space}); free some space and try again"
        if code in _FORBIDDEN:
            return (
                f"{what} can't be opened for this ({why}); ask who owns it and its folder to let "
                "you write them, or set HUB_HOME to a folder of yours"
            )
        if code in _BUSY:
            return f"{what} is busy: others have been writing for {BUSY_TIMEOUT:.0f} s; try again"
        return f"{what} failed ({why}); run `hub doctor`"


def insert_missing(
    connection: Connection, into: TableClause, key: str, value: str, **others: Any
) -> None:
    """Insert a row unless one has this key, also when another process does so meanwhile."""
    if connection.execute(select(into.c[key]).where(into.c[key] == value)).first() is None:
        if connection.dialect.name == "postgresql":
            from sqlalchemy.dialects.postgresql import insert
        else:
            from sqlalchemy.dialects.sqlite import insert  # type: ignore[assignment]
        connection.execute(
            insert(into).values({key: value, **others}).on_conflict_do_nothing(index_elements=[key])
        )


def _create_sqlite_engine(path: Path) -> Engine:
    # A connection per transaction: nothing is shared by threads or carried over a fork.
    engine = create_engine(
        "sqlite://",
        creator=lambda: _open_sqlite(path),
        poolclass=NullPool,
        json_serializer=_to_json,
    )

    @event.listens_for(engine, "begin")
    def begin(connection: Connection) -> None:
        write = connection.get_execution_options().get("hub_write")
        connection.exec_driver_sql("BEGIN IMMEDIATE" if write else "BEGIN")

    return engine


def _open_sqlite(path: Path) -> sqlite3.Connection:
    """Open a file that exists; one that can't be written, or whose folder can't, to be read."""
    mode = "rw"
    if not (os.access(path, os.W_OK) and os.access(path.parent, os.W_OK)):
        # SQLite keeps files beside a database in WAL mode. Where it can't make them, the file
        # must be read as if nobody wrote to it, which is so while there is no log.
        log = path.with_name(path.name + "-wal")
        mode = "ro" if log.exists() else "ro&immutable=1"
    connection = sqlite3.connect(
        f"file:{quote(str(path))}?mode={mode}",
        uri=True,
        timeout=BUSY_TIMEOUT,
        isolation_level=None,
        check_same_thread=False,
    )
    connection.execute("PRAGMA foreign_keys = ON")
    connection.execute("PRAGMA synchronous = FULL")
    return connection


@contextlib.contextmanager
def _open_empty(label: str) -> Iterator[Connection]:
    """A registry without rows, in memory, that goes by the name of the one that is not there."""
    engine = create_engine("sqlite://", poolclass=NullPool, execution_options={"hub_label": label})
    with engine.connect() as connection:
        for table in tables.ALL:
            names = ", ".join(column.name for column in table.c)
            connection.exec_driver_sql(f"CREATE TABLE {table.name} ({names})")
        yield connection


def _first_line(error: BaseException | None) -> str:
    lines = str(error).strip().splitlines()
    return lines[0] if lines else type(error).__name__
