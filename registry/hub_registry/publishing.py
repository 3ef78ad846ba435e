"""Adding a version: files become blobs, and one transaction writes every row.

The files are staged first, so that whatever can go wrong with a disk goes wrong before anything
has a name. Inside the transaction blobs get their names before their rows are committed: a kill in
between leaves blobs of no version, which the sweep removes, and never a version without its blobs.
"""

from __future__ import annotations

import contextlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from sqlalchemy import Connection, insert, select, update

from hub_registry import tables
from hub_registry.blobs import BlobStore, StagedBlob
from hub_registry.database import Database, insert_missing
from hub_registry.errors import AlreadyExists, HubError, RegistryError
from hub_registry.history import check_metric, find_author, insert_metric
from hub_registry.identity import BaseIdentity
from hub_registry.names import check_name, check_prose, check_text
from hub_registry.reading import find_version, load_versions
from hub_registry.records import Version, digest_files
from hub_registry.sweeping import remove_unused

KINDS = ("adapter", "composition")


@dataclass(frozen=True)
class Draft:
    """All that describes a version to be, but its files."""

    name: str
    kind: str
    method: str
    task: str | None
    base: BaseIdentity
    config: Mapping[str, Any]
    metrics: Mapping[str, float]
    parents: tuple[str, ...]
    note: str | None

    def check(self) -> None:
        """Raises BadName or RegistryError for what a registry can't hold."""
        check_name(self.name)
        check_name(self.method, "method")
        if self.task is not None:
            check_text(self.task, "task")
        if self.kind not in KINDS:
            raise RegistryError(f"'{self.kind}' is no kind of version; use {' or '.join(KINDS)}")
        for name, value in self.metrics.items():
            check_metric(name, value)
        for text in (self.note, self.base.repo, self.base.revision, self.base.architecture):
            check_prose(text)
        try:
            json.dumps(self.config, allow_nan=False, sort_keys=True)
        except (TypeError, ValueError) as error:
            raise RegistryError(
                f"the configuration of '{self.name}' can't be written as JSON ({error}); "
                "use text, finite numbers, lists and mappings"
            ) from error


def add_version(
    database: Database, blobs: BlobStore, files: Mapping[str, Path | bytes], draft: Draft
) -> Version:
    """Store files and rows; the same content under the same name gives the version it has.

    Raises BadName, RegistryError, UnknownReference (a parent), AlreadyExists (the same files,
    described otherwise), StorageError.
    """
    draft.check()
    if not files:
        raise RegistryError(f"'{draft.name}' was given no files; a version has at least one")
    for filename in files:
        check_name(filename, "file")
    staged: dict[str, StagedBlob] = {}
    placed: list[str] = []
    try:
        for filename, source in files.items():
            staged[filename] = blobs.stage(source)
        with database.write() as connection:
            return _write_version(connection, blobs, staged, draft, placed)
    except BaseException:
        for sha256 in placed:
            with contextlib.suppress(HubError):  # what stays is left to the sweep
                remove_unused(database, blobs, sha256)
        raise
    finally:
        for blob in staged.values():
            blobs.discard(blob)


def _write_version(
    connection: Connection,
    blobs: BlobStore,
    staged: Mapping[str, StagedBlob],
    draft: Draft,
    placed: list[str],
) -> Version:
    """Write the rows and name the blobs; `placed` gets those that were not there before."""
    now = datetime.now(UTC)
    parents = dict(find_version(connection, text) for text in draft.parents)
    digest = digest_files({name: blob.entry.sha256 for name, blob in staged.items()})

    insert_missing(connection, tables.adapter, "name", draft.name, next_version=1, created=now)
    # Taking the number is what makes others who add to this adapter wait, on PostgreSQL.
    adapter = connection.execute(
        update(tables.adapter)
        .where(tables.adapter.c.name == draft.name)
        .values(next_version=tables.adapter.c.next_version + 1)
        .returning(tables.adapter.c.id, tables.adapter.c.next_version)
    ).one()
    known_id = connection.execute(
        select(tables.version.c.id).where(
            tables.version.c.adapter_id == adapter.id, tables.version.c.digest == digest
        )
    ).scalar_one_or_none()
    if known_id is not None:
        [known] = load_versions(connection, [known_id])
        _check_same(connection, known_id, known, draft, list(parents.values()))
        connection.execute(
            update(tables.adapter)
            .where(tables.adapter.c.id == adapter.id)
            .values(next_version=adapter.next_version - 1)
        )
        _place_blobs(connection, blobs, staged, placed, now)  # mends what was lost or damaged
        return known

    _place_blobs(connection, blobs, staged, placed, now)
    version_id = connection.execute(
        insert(tables.version)
        .values(
            adapter_id=adapter.id,
            number=adapter.next_version - 1,
            digest=digest,
            kind=draft.kind,
            method=draft.method,
            task_id=_find_task(connection, draft.task, now),
            base_model_id=_find_base(connection, draft.base, now),
            config=dict(draft.config),
            file_count=len(staged),
            parent_count=len(parents),
            author=find_author(),
            note=draft.note,
            created=now,
        )
        .returning(tables.version.c.id)
    ).scalar_one()
    _insert_details(connection, version_id, staged, list(parents))
    for name, value in draft.metrics.items():
        insert_metric(connection, version_id, name, value, created=now)
    [version] = load_versions(connection, [version_id])
    return version


def _place_blobs(
    connection: Connection,
    blobs: BlobStore,
    staged: Mapping[str, StagedBlob],
    placed: list[str],
    now: datetime,
) -> None:
    """Give the blobs their rows and names. The rows are locked first, so that no sweep removes a
    blob that is about to be used."""
    by_digest = {blob.entry.sha256: blob for blob in staged.values()}
    for sha256, blob in sorted(by_digest.items()):
        insert_missing(connection, tables.blob, "sha256", sha256, size=blob.entry.size, created=now)
        connection.execute(
            select(tables.blob.c.sha256)
            .where(tables.blob.c.sha256 == sha256)
            .with_for_update(read=True, key_share=True)
        ).one()
        if blobs.place(blob):
            placed.append(sha256)


def _insert_details(
    connection: Connection,
    version_id: int,
    staged: Mapping[str, StagedBlob],
    parent_ids: Sequence[int],
) -> None:
    connection.execute(
        insert(tables.version_file),
        [
            {"version_id": version_id, "name": name, "sha256": blob.entry.sha256}
            for name, blob in sorted(staged.items())
        ],
    )
    if parent_ids:
        connection.execute(
            insert(tables.lineage),
            [
                {"child_id": version_id, "parent_id": parent_id, "position": position}
                for position, parent_id in enumerate(parent_ids)
            ],
        )


def _check_same(
    connection: Connection, row_id: int, known: Version, draft: Draft, parents: Sequence[Version]
) -> None:
    """Raises AlreadyExists where the same files come with another description. What is not said
    (no metrics, no parents, no note) is no difference."""
    measured = connection.execute(
        select(tables.metric.c.name, tables.metric.c.value).where(
            tables.metric.c.version_id == row_id
        )
    )
    values = {(name, value) for name, value in measured}
    given = {
        "kind": draft.kind == known.kind,
        "method": draft.method == known.method,
        "task": draft.task == known.task,
        "base": draft.base == known.base,
        "configuration": json.loads(json.dumps(draft.config)) == known.config,
        "parents": not parents or tuple(item.reference for item in parents) == known.parents,
        "note": draft.note in (None, known.note),
        "metrics": all((name, float(value)) in values for name, value in draft.metrics.items()),
    }
    changed = [name for name, same in given.items() if not same]
    if changed:
        raise AlreadyExists(
            f"{known.reference} has the same files with other {' and '.join(changed)}, and a "
            "version never changes; add it under another name, or record what was measured later"
        )


def _find_task(connection: Connection, name: str | None, now: datetime) -> int | None:
    if name is None:
        return None
    insert_missing(connection, tables.task, "name", name, created=now)
    query = select(tables.task.c.id).where(tables.task.c.name == name)
    row_id: int = connection.execute(query).scalar_one()
    return row_id


def _find_base(connection: Connection, base: BaseIdentity, now: datetime) -> int:
    insert_missing(
        connection,
        tables.base_model,
        "digest",
        base.digest,
        label=base.label,
        repo=base.repo,
        revision=base.revision,
        architecture=base.architecture,
        precision=base.precision,
        quantization=base.quantization,
        identity=base.to_json(),
        created=now,
    )
    query = select(tables.base_model.c.id).where(tables.base_model.c.digest == base.digest)
    row_id: int = connection.execute(query).scalar_one()
    return row_id
