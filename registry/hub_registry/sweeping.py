"""Removing what killed processes left: temporary files, and blobs of no version."""

from __future__ import annotations

import time
from datetime import UTC, datetime
from pathlib import Path

from sqlalchemy import Connection, delete, select

from hub_registry import tables
from hub_registry.blobs import BlobStore
from hub_registry.database import Database, insert_missing
from hub_registry.records import Swept


def find_leftovers(
    connection: Connection, blobs: BlobStore, older_than: float
) -> tuple[dict[Path, int], dict[str, int]]:
    """Temporary files, and the sha256 of blobs that no version has, each with its size in bytes,
    that were not touched for `older_than` seconds. Raises StorageError."""
    limit = time.time() - older_than
    temporary = {
        path: stat.st_size for path, stat in blobs.find_temporary() if stat.st_mtime <= limit
    }
    used = set(connection.execute(select(tables.version_file.c.sha256).distinct()).scalars())
    unused = {
        sha256: stat.st_size
        for sha256, stat in blobs.find_all()
        if sha256 not in used and stat.st_mtime <= limit
    }
    return temporary, unused


def sweep(database: Database, blobs: BlobStore, older_than: float) -> Swept:
    """Remove the leftovers that are older than this, in seconds. Raises StorageError."""
    with database.read() as connection:
        temporary, unused = find_leftovers(connection, blobs, older_than)
    for path in temporary:
        blobs.remove_temporary(path)
    removed = [sha256 for sha256 in sorted(unused) if remove_unused(database, blobs, sha256)]
    size = sum(temporary.values()) + sum(unused[sha256] for sha256 in removed)
    return Swept(len(temporary), len(removed), size)


def remove_unused(database: Database, blobs: BlobStore, sha256: str) -> bool:
    """Remove a blob, unless a version has it, and say whether that was done. Raises StorageError.

    It is done as a writer, so that nobody takes the blob meanwhile.
    """
    with database.write() as connection:
        if connection.dialect.name != "sqlite":
            # Here there are other writers; the row of the blob, made if need be, is what they
            # wait for.
            now = datetime.now(UTC)
            insert_missing(connection, tables.blob, "sha256", sha256, size=0, created=now)
            row = select(tables.blob.c.sha256).where(tables.blob.c.sha256 == sha256)
            connection.execute(row.with_for_update()).one()
        used = select(tables.version_file.c.name).where(tables.version_file.c.sha256 == sha256)
        if connection.execute(used.limit(1)).first() is not None:
            return False
        blobs.remove(sha256)
        connection.execute(delete(tables.blob).where(tables.blob.c.sha256 == sha256))
        return True
