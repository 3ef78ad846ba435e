"""Finding adapters and versions. Everything goes through Core: the command line starts here."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Sequence
from typing import Any

from sqlalchemy import Connection, Row, func, select

from hub_registry import tables
from hub_registry.errors import UnknownReference
from hub_registry.identity import BaseIdentity
from hub_registry.names import Reference, parse_reference
from hub_registry.records import AdapterRow, FileEntry, Version
from hub_registry.schema import describe

# How many values go into one IN (...): SQLite of any age takes 999.
_BATCH = 900
_SHOWN = 8


def find_version(connection: Connection, text: str) -> tuple[int, Version]:
    """The row id and the version that a reference means. Raises BadName, UnknownReference."""
    row_id = find_version_id(connection, parse_reference(text))
    [version] = load_versions(connection, [row_id])
    return row_id, version


def find_version_id(connection: Connection, reference: Reference) -> int:
    """The row id of a version. Raises UnknownReference, which says what there is instead."""
    adapter_id, latest = find_adapter(connection, reference.name)
    number = latest if reference.number is None else reference.number
    if reference.alias is not None:
        aliases = find_aliases(connection, adapter_id)
        if reference.alias not in aliases:
            known = ", ".join(f"{name} ({number})" for name, number in aliases.items())
            raise UnknownReference(
                f"'{reference.name}' has no alias '{reference.alias}'; "
                + (f"its aliases are {known}" if known else f"its versions are 1 to {latest}")
            )
        number = aliases[reference.alias]
    if not 1 <= number <= latest:
        raise UnknownReference(
            f"'{reference.name}' has no version {number}; "
            + (f"its versions are 1 to {latest}" if latest > 1 else "its only version is 1")
        )
    row_id: int = connection.execute(
        select(tables.version.c.id).where(
            tables.version.c.adapter_id == adapter_id, tables.version.c.number == number
        )
    ).scalar_one()
    return row_id


def find_adapter(connection: Connection, name: str) -> tuple[int, int]:
    """The row id and the latest number of an adapter. Raises UnknownReference."""
    row = connection.execute(
        select(tables.adapter.c.id, func.max(tables.version.c.number))
        .join(tables.version, tables.version.c.adapter_id == tables.adapter.c.id)
        .where(tables.adapter.c.name == name)
        .group_by(tables.adapter.c.id)
    ).one_or_none()
    if row is None:
        raise UnknownReference(_describe_missing_adapter(connection, name))
    return row[0], row[1]


def find_aliases(connection: Connection, adapter_id: int) -> dict[str, int]:
    """The number that each alias of an adapter points to, by name."""
    rows = connection.execute(
        select(tables.alias.c.name, tables.alias.c.number)
        .where(tables.alias.c.adapter_id == adapter_id)
        .order_by(tables.alias.c.name)
    )
    return {row.name: row.number for row in rows}


def find_versions(
    connection: Connection, name: str | None, task: str | None, kind: str | None = None
) -> list[Version]:
    """The versions of a name, for a task, of a kind, or all: by name, the newest first in one."""
    query = (
        select(tables.version.c.id)
        .join(tables.adapter, tables.adapter.c.id == tables.version.c.adapter_id)
        .order_by(tables.adapter.c.name, tables.version.c.number.desc())
    )
    if name is not None:
        query = query.where(tables.adapter.c.name == name)
    if task is not None:
        query = query.join(tables.task, tables.task.c.id == tables.version.c.task_id)
        query = query.where(tables.task.c.name == task)
    if kind is not None:
        query = query.where(tables.version.c.kind == kind)
    return load_versions(connection, connection.execute(query).scalars().all())


def find_parts(connection: Connection, row_ids: Sequence[int]) -> list[Version]:
    """These versions and all that the compositions among them are made of, the oldest first."""
    found: set[int] = set()
    for start in range(0, len(row_ids), _BATCH):
        part = (
            select(tables.version.c.id)
            .where(tables.version.c.id.in_(row_ids[start : start + _BATCH]))
            .cte("part", recursive=True)
        )
        part = part.union(
            select(tables.lineage.c.parent_id)
            .join(part, part.c.id == tables.lineage.c.child_id)
            .join(tables.version, tables.version.c.id == part.c.id)
            .where(tables.version.c.kind == "composition")
        )
        found.update(connection.execute(select(part.c.id)).scalars())
    return load_versions(connection, sorted(found))


def find_adapters(connection: Connection) -> list[AdapterRow]:
    """Every adapter and what its latest version is, by name."""
    aliases: dict[int, dict[str, int]] = defaultdict(dict)
    for adapter_id, alias, number in connection.execute(
        select(tables.alias.c.adapter_id, tables.alias.c.name, tables.alias.c.number).order_by(
            tables.alias.c.name
        )
    ):
        aliases[adapter_id][alias] = number
    latest = (
        select(func.max(tables.version.c.number))
        .where(tables.version.c.adapter_id == tables.adapter.c.id)
        .correlate(tables.adapter)
        .scalar_subquery()
    )
    rows = connection.execute(
        select(
            tables.adapter.c.id,
            tables.adapter.c.name,
            tables.version.c.number,
            tables.version.c.kind,
            tables.version.c.method,
            tables.version.c.created,
            tables.task.c.name.label("task"),
            tables.base_model.c.label.label("base"),
        )
        .join(
            tables.version,
            (tables.version.c.adapter_id == tables.adapter.c.id)
            & (tables.version.c.number == latest),
        )
        .join(tables.base_model, tables.base_model.c.id == tables.version.c.base_model_id)
        .join(tables.task, tables.task.c.id == tables.version.c.task_id, isouter=True)
        .order_by(tables.adapter.c.name)
    )
    return [
        AdapterRow(
            name=row.name,
            latest=row.number,
            kind=row.kind,
            method=row.method,
            task=row.task,
            base=row.base,
            aliases=aliases.get(row.id, {}),
            created=row.created,
        )
        for row in rows
    ]


def load_versions(connection: Connection, row_ids: Sequence[int]) -> list[Version]:
    """The versions with these row ids, in this order."""
    bases: dict[int, BaseIdentity] = {}
    versions: dict[int, Version] = {}
    for start in range(0, len(row_ids), _BATCH):
        _load_batch(connection, row_ids[start : start + _BATCH], bases, versions)
    return [versions[row_id] for row_id in row_ids]


def _load_batch(
    connection: Connection,
    row_ids: Sequence[int],
    bases: dict[int, BaseIdentity],
    versions: dict[int, Version],
) -> None:
    rows = connection.execute(
        select(
            *tables.version.c,
            tables.adapter.c.name.label("adapter"),
            tables.task.c.name.label("task"),
        )
        .join(tables.adapter, tables.adapter.c.id == tables.version.c.adapter_id)
        .join(tables.task, tables.task.c.id == tables.version.c.task_id, isouter=True)
        .where(tables.version.c.id.in_(row_ids))
    ).all()
    # Identities hold a sample of every tensor, and few bases serve many adapters: read each once.
    missing = {row.base_model_id for row in rows} - bases.keys()
    for base_id, identity in connection.execute(
        select(tables.base_model.c.id, tables.base_model.c.identity).where(
            tables.base_model.c.id.in_(missing)
        )
    ):
        bases[base_id] = BaseIdentity.from_json(identity)
    files = _group(
        connection.execute(
            select(
                tables.version_file.c.version_id,
                tables.version_file.c.name,
                tables.blob.c.sha256,
                tables.blob.c.size,
            )
            .join(tables.blob, tables.blob.c.sha256 == tables.version_file.c.sha256)
            .where(tables.version_file.c.version_id.in_(row_ids))
            .order_by(tables.version_file.c.name)
        )
    )
    metrics = _group(
        connection.execute(
            select(tables.metric.c.version_id, tables.metric.c.name, tables.metric.c.value)
            .where(tables.metric.c.version_id.in_(row_ids))
            .order_by(tables.metric.c.id)
        )
    )
    parent = tables.version
    parents = _group(
        connection.execute(
            select(tables.lineage.c.child_id, tables.adapter.c.name, parent.c.number)
            .join(parent, parent.c.id == tables.lineage.c.parent_id)
            .join(tables.adapter, tables.adapter.c.id == parent.c.adapter_id)
            .where(tables.lineage.c.child_id.in_(row_ids))
            .order_by(tables.lineage.c.position)
        )
    )
    aliases = _group(
        connection.execute(
            select(tables.version.c.id, tables.alias.c.name)
            .join(
                tables.alias,
                (tables.alias.c.adapter_id == tables.version.c.adapter_id)
                & (tables.alias.c.number == tables.version.c.number),
            )
            .where(tables.version.c.id.in_(row_ids))
            .order_by(tables.alias.c.name)
        )
    )
    for row in rows:
        versions[row.id] = Version(
            adapter=row.adapter,
            number=row.number,
            digest=row.digest,
            kind=row.kind,
            method=row.method,
            task=row.task,
            base=bases[row.base_model_id],
            config=row.config,
            metrics={name: value for _, name, value in metrics[row.id]},
            created=row.created,
            author=row.author,
            note=row.note,
            files={name: FileEntry(sha256, size) for _, name, sha256, size in files[row.id]},
            parents=tuple(f"{name}@{number}" for _, name, number in parents[row.id]),
            aliases=tuple(name for _, name in aliases[row.id]),
        )


def _group(rows: Iterable[Row[Any]]) -> dict[int, list[Any]]:
    """Rows by their first column."""
    groups: dict[int, list[Any]] = defaultdict(list)
    for row in rows:
        groups[row[0]].append(row)
    return groups


def _describe_missing_adapter(connection: Connection, name: str) -> str:
    from difflib import get_close_matches

    names = connection.execute(select(tables.adapter.c.name).order_by(tables.adapter.c.name))
    known = list(names.scalars())
    where = describe(connection)
    if not known:
        return f"there is no adapter '{name}': the registry at {where} is empty"
    close = get_close_matches(name, known, n=3, cutoff=0.5)
    if close:
        return f"there is no adapter '{name}' in {where}; close names are {', '.join(close)}"
    more = "..." if len(known) > _SHOWN else ""
    return f"there is no adapter '{name}' in {where}; it has {', '.join(known[:_SHOWN])}{more}"
