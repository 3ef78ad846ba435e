"""The registry: everything that a program does with it, in one place."""

from __future__ import annotations

import builtins
import os
from collections.abc import Mapping, Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from sqlalchemy import URL, false, update

from hub_registry import (
    aliases,
    diagnosis,
    exporting,
    history,
    publishing,
    reading,
    schema,
    sweeping,
    tables,
    verification,
)
from hub_registry.blobs import BlobStore
from hub_registry.database import Database
from hub_registry.errors import UnknownReference
from hub_registry.identity import BaseIdentity
from hub_registry.names import parse_reference
from hub_registry.records import AdapterRow, Event, Fault, Finding, Swept, Version

_DAY = 86_400.0


class Registry:
    """Adapters and their versions, in a database and a folder of blobs.

    `home` is the argument, or HUB_HOME, or `~/.cache/pefthub`; the blobs are in `home/blobs`.
    `url` is the argument, or HUB_REGISTRY, or a SQLite file in `home`. Nothing is opened or made
    before it is needed: reading a registry that does not exist finds it empty, and the first
    writing makes it.

    Every method can raise StorageError (the disk or the database is full, forbidden, damaged or
    away) and SchemaError (the database is of another version of this program).
    """

    def __init__(self, home: Path | str | None = None, url: str | None = None) -> None:
        """Raises RegistryError where `url` is no database."""
        self.home = find_home() if home is None else Path(home).expanduser().absolute()
        default = URL.create("sqlite", database=str(self.home / "registry.db"))
        self.blobs = BlobStore(self.home / "blobs")
        self.database = Database(url or os.environ.get("HUB_REGISTRY") or default)

    def __repr__(self) -> str:
        return f"Registry({self.database.label!r})"

    def add_files(
        self,
        files: Mapping[str, Path | bytes],
        *,
        name: str,
        task: str | None,
        method: str,
        base: BaseIdentity,
        config: Mapping[str, Any],
        metrics: Mapping[str, float] | None = None,
        parents: Sequence[Version | str] = (),
        note: str | None = None,
        kind: str = "adapter",
    ) -> Version:
        """Store files, by name, as the next version of an adapter.

        The same content under the same name is the version that it already is, and mends its
        blobs where they are damaged. Raises BadName, RegistryError (no files, not a file, a
        number that is none), UnknownReference (a parent), AlreadyExists (the same files with
        another description).
        """
        draft = publishing.Draft(
            name=name,
            kind=kind,
            method=method,
            task=task,
            base=base,
            config=config,
            metrics=dict(metrics or {}),
            parents=tuple(_refer(parent) for parent in parents),
            note=note,
        )
        return publishing.add_version(self.database, self.blobs, files, draft)

    def get(self, reference: str) -> Version:
        """The version that `name@number`, `name@alias` or `name` (the latest) means. Raises
        BadName, UnknownReference."""
        with self.database.read() as connection:
            return reading.find_version(connection, reference)[1]

    def collect(self, versions: Sequence[Version | str]) -> builtins.list[Version]:
        """These versions and all that the compositions among them are made of, the oldest first,
        so that parts come before what they are in. Raises BadName, UnknownReference."""
        with self.database.read() as connection:
            references = [parse_reference(_refer(version)) for version in versions]
            row_ids = [reading.find_version_id(connection, ref) for ref in references]
            return reading.find_parts(connection, row_ids)

    def list(
        self, name: str | None = None, task: str | None = None, *, kind: str | None = None
    ) -> builtins.list[Version]:
        """Versions of a name, for a task, of a kind ("adapter", "composition"), or all: by name,
        the newest first within one."""
        with self.database.read() as connection:
            return reading.find_versions(connection, name, task, kind)

    def adapters(self) -> builtins.list[AdapterRow]:
        """Every adapter with what its latest version is, by name."""
        with self.database.read() as connection:
            return reading.find_adapters(connection)

    def alias(self, reference: str, alias: str, *, note: str | None = None) -> None:
        """Make an alias point to a version, or move it there. Raises BadName, UnknownReference."""
        self.get(reference)  # so that a registry is not made for a version that is not there
        with self.database.write() as connection:
            aliases.move_alias(connection, reference, alias, note)

    def unalias(self, name: str, alias: str, *, note: str | None = None) -> None:
        """Remove an alias; its history stays. Raises BadName, UnknownReference."""
        self.get(name)
        with self.database.write() as connection:
            aliases.remove_alias(connection, name, alias, note)

    def log(self, name: str) -> builtins.list[Event]:
        """What happened to an adapter, the newest first: versions, measurements, moves of aliases,
        publications. Raises BadName, UnknownReference."""
        with self.database.read() as connection:
            return history.find_events(connection, name)

    def read(self, version: Version | str, filename: str) -> bytes:
        """The bytes of a file, verified. Raises CorruptBlob, BadName, UnknownReference."""
        version = self._load(version)
        if filename not in version.files:
            raise UnknownReference(
                f"{version.reference} has no file '{filename}'; it has {', '.join(version.files)}"
            )
        return self.blobs.read(version.files[filename], f"{version.reference} {filename}")

    def export(self, version: Version | str, folder: Path) -> Path:
        """Write every file to a new or empty folder, verified, all or none. Raises CorruptBlob,
        AlreadyExists, BadName, UnknownReference."""
        return exporting.export_version(self.blobs, self._load(version), Path(folder))

    def record_metric(
        self,
        version: Version | str,
        name: str,
        value: float,
        *,
        dataset: str | None = None,
        samples: int | None = None,
    ) -> None:
        """Add a measurement, made on so many samples of a dataset; the last one under a name is
        what `Version.metrics` shows. Raises BadName, RegistryError, UnknownReference."""
        with self.database.write() as connection:
            row_id, _ = reading.find_version(connection, _refer(version))
            history.insert_metric(
                connection,
                row_id,
                name,
                value,
                created=datetime.now(UTC),
                dataset=dataset,
                samples=samples,
            )

    def record_publication(self, version: Version | str, remote: str, revision: str) -> None:
        """Note that a version was written to a remote, at this revision. Raises BadName,
        UnknownReference."""
        with self.database.write() as connection:
            row_id, _ = reading.find_version(connection, _refer(version))
            history.insert_publication(connection, row_id, remote, revision)

    def publications(self, name: str) -> builtins.list[tuple[str, str, str]]:
        """Where an adapter's versions were written to, the oldest first: reference, remote,
        revision. None for an adapter that is not here."""
        with self.database.read() as connection:
            rows = history.find_publications(connection, name)
        return [(f"{name}@{row.number}", row.remote, row.revision) for row in rows]

    def verify(self, references: Sequence[str] = ()) -> builtins.list[Fault]:
        """Read every blob of these versions, or everything, and say what is not as it was stored.
        Raises BadName, UnknownReference."""
        return verification.find_faults(self.database, self.blobs, references)

    def check_writable(self) -> None:
        """Write no row: for what would be lost or half done if the rows that end it could not be
        written. Raises StorageError, SchemaError."""
        count = tables.adapter.c.next_version
        with self.database.write() as connection:
            # A transaction alone is no proof: on a file that is read-only SQLite begins it.
            connection.execute(update(tables.adapter).where(false()).values(next_version=count))

    def check(self) -> builtins.list[Finding]:
        """Say whether the registry is fit for use. Raises nothing."""
        return diagnosis.find_findings(self.database, self.blobs, self.home)

    def sweep(self, older_than: float = _DAY) -> Swept:
        """Remove what killed processes left: temporary files and blobs of no version, untouched
        for this many seconds."""
        return sweeping.sweep(self.database, self.blobs, older_than)

    def upgrade(self) -> str:
        """Bring the database to this program's schema, or make it; answers its revision."""
        with self.database.change_schema() as connection:
            schema.upgrade_schema(connection)
        return schema.REVISION

    def _load(self, version: Version | str) -> Version:
        return self.get(version) if isinstance(version, str) else version


def find_home() -> Path:
    """HUB_HOME, or `~/.cache/pefthub`."""
    return Path(os.environ.get("HUB_HOME") or "~/.cache/pefthub").expanduser().absolute()


def _refer(version: Version | str) -> str:
    return version if isinstance(version, str) else version.reference
