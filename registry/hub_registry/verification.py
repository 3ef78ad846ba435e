"""Reading everything again: what in the rows and the blobs is not as it was stored."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from sqlalchemy import Connection, func, select, text

from hub_registry import tables
from hub_registry.blobs import BlobStore
from hub_registry.database import Database
from hub_registry.errors import HubError
from hub_registry.identity import BaseIdentity
from hub_registry.names import parse_reference
from hub_registry.reading import find_version_id, load_versions
from hub_registry.records import Fault, FileEntry, digest_files

_BATCH = 200


def find_faults(database: Database, blobs: BlobStore, references: Sequence[str]) -> list[Fault]:
    """Read the rows and every blob of these versions, or of all. Raises UnknownReference,
    StorageError."""
    with database.read() as connection:
        if references:
            row_ids = [
                find_version_id(connection, parse_reference(reference)) for reference in references
            ]
            faults = []
        else:
            row_ids = list(
                connection.execute(
                    select(tables.version.c.id).order_by(tables.version.c.id)
                ).scalars()
            )
            faults = list(_find_row_faults(connection))
            if not database.checked and (lost := find_lost_rows(database, blobs)):
                faults.append(Fault(lost))
        checked: dict[FileEntry, str | None] = {}
        for start in range(0, len(row_ids), _BATCH):
            faults += _find_version_faults(
                connection, blobs, row_ids[start : start + _BATCH], checked
            )
    return faults


def find_lost_rows(database: Database, blobs: BlobStore) -> str | None:
    """What is wrong where a database without tables stands beside blobs: its rows were lost, since
    a blob is placed after the tables are made. Raises StorageError."""
    count = sum(1 for _ in blobs.find_all())
    if not count:
        return None
    what = "is empty" if database.exists() else "is missing"
    return (
        f"the database {database.label} {what}, and {count} blobs are in {blobs.folder}; restore "
        "it from a backup"
    )


def _find_version_faults(
    connection: Connection,
    blobs: BlobStore,
    row_ids: Sequence[int],
    checked: dict[FileEntry, str | None],
) -> Iterator[Fault]:
    for version in load_versions(connection, row_ids):
        digest = digest_files({name: entry.sha256 for name, entry in version.files.items()})
        if digest != version.digest:
            yield Fault("its files are not those that were added", version.reference)
        for name, entry in version.files.items():
            if entry not in checked:
                try:
                    checked[entry] = blobs.find_damage(entry)
                except HubError as error:
                    checked[entry] = str(error)
            if problem := checked[entry]:
                path = blobs.find_path(entry.sha256)
                yield Fault(problem, version.reference, name, path)


def _find_row_faults(connection: Connection) -> Iterator[Fault]:
    if connection.dialect.name == "sqlite":
        for (line,) in connection.execute(text("PRAGMA integrity_check")):
            if line != "ok":
                yield Fault(f"the database is damaged: {line}")
        for row in connection.execute(text("PRAGMA foreign_key_check")):
            yield Fault(f"the database is damaged: a row of {row[0]} points to no row of {row[2]}")
    for digest, label, identity in connection.execute(
        select(tables.base_model.c.digest, tables.base_model.c.label, tables.base_model.c.identity)
    ):
        try:
            same = BaseIdentity.from_json(identity).digest == digest
        except HubError:
            same = False
        if not same:
            yield Fault(f"the identity of the base {label} is not the one that was stored")
    count = func.count(tables.version.c.id)
    for name, versions, next_version in connection.execute(
        select(tables.adapter.c.name, count, tables.adapter.c.next_version)
        .join(tables.version, tables.version.c.adapter_id == tables.adapter.c.id, isouter=True)
        .group_by(tables.adapter.c.id, tables.adapter.c.name, tables.adapter.c.next_version)
        .having(count != tables.adapter.c.next_version - 1)
    ):
        yield Fault(
            f"the adapter {name} has {versions} versions, and {next_version - 1} were taken"
        )
