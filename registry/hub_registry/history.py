"""What happens to versions after they were added: measurements, publications, and the log."""

from __future__ import annotations

import getpass
import math
import os
from datetime import UTC, datetime
from typing import Any

from sqlalchemy import Connection, insert, select

from hub_registry import tables
from hub_registry.errors import RegistryError
from hub_registry.names import check_name, check_prose, check_text
from hub_registry.reading import find_adapter
from hub_registry.records import Event


def find_author() -> str:
    """The user of the operating system, by name where it has one."""
    try:
        name = getpass.getuser()
    except (KeyError, OSError, ImportError):
        return f"uid {os.getuid()}"
    return name.encode("utf-8", "replace").decode().replace("\0", "?")


def check_metric(name: str, value: float) -> None:
    """Raises BadName or RegistryError for what is no measurement."""
    check_text(name, "metric")
    if not isinstance(value, int | float) or not math.isfinite(value):
        raise RegistryError(f"the metric {name} is {value!r}; a measurement is a finite number")


def insert_metric(
    connection: Connection,
    version_id: int,
    name: str,
    value: float,
    *,
    created: datetime,
    dataset: str | None = None,
    samples: int | None = None,
) -> None:
    """Add a measurement. Raises BadName, RegistryError."""
    check_metric(name, value)
    check_prose(dataset)
    if samples is not None and samples < 0:
        raise RegistryError(f"the metric {name} was measured on {samples} samples; use 0 or more")
    connection.execute(
        insert(tables.metric).values(
            version_id=version_id,
            name=name,
            value=float(value),
            dataset=dataset,
            samples=samples,
            author=find_author(),
            created=created,
        )
    )


def insert_publication(connection: Connection, version_id: int, remote: str, revision: str) -> None:
    """Add a publication. Raises BadName."""
    check_prose(remote)
    check_prose(revision)
    connection.execute(
        insert(tables.publication).values(
            version_id=version_id,
            remote=remote,
            revision=revision,
            author=find_author(),
            created=datetime.now(UTC),
        )
    )


def find_events(connection: Connection, name: str) -> list[Event]:
    """All that happened to an adapter, the newest first. Raises BadName, UnknownReference."""
    adapter_id, _ = find_adapter(connection, check_name(name))
    events = [
        *_find_versions(connection, name, adapter_id),
        *_find_metrics(connection, name, adapter_id),
        *_find_moves(connection, name, adapter_id),
        *_describe_publications(connection, name),
    ]
    # Each list is in the order of writing and the sort is stable; so is its reverse.
    return sorted(events, key=lambda event: event.when)[::-1]


def _find_versions(connection: Connection, name: str, adapter_id: int) -> list[Event]:
    rows = connection.execute(
        select(
            tables.version.c.number,
            tables.version.c.kind,
            tables.version.c.method,
            tables.version.c.digest,
            tables.version.c.author,
            tables.version.c.note,
            tables.version.c.created,
        )
        .where(tables.version.c.adapter_id == adapter_id)
        .order_by(tables.version.c.number)
    )
    return [
        Event(
            when=row.created,
            who=row.author,
            kind="version",
            reference=f"{name}@{row.number}",
            what=f"added version {row.number} ({row.method}, {row.digest[:12]})",
            note=row.note,
        )
        for row in rows
    ]


def _find_metrics(connection: Connection, name: str, adapter_id: int) -> list[Event]:
    rows = connection.execute(
        select(
            tables.version.c.number,
            tables.metric.c.name,
            tables.metric.c.value,
            tables.metric.c.dataset,
            tables.metric.c.samples,
            tables.metric.c.author,
            tables.metric.c.created,
        )
        .join(tables.version, tables.version.c.id == tables.metric.c.version_id)
        .where(tables.version.c.adapter_id == adapter_id)
        # Those of the same moment came with the version.
        .where(tables.metric.c.created != tables.version.c.created)
        .order_by(tables.metric.c.id)
    )
    return [
        Event(
            when=row.created,
            who=row.author,
            kind="metric",
            reference=f"{name}@{row.number}",
            what=f"measured {row.name} {row.value:g} of version {row.number}"
            + (f" on {row.dataset}" if row.dataset else "")
            + (f" ({row.samples} samples)" if row.samples is not None else ""),
        )
        for row in rows
    ]


def _find_moves(connection: Connection, name: str, adapter_id: int) -> list[Event]:
    rows = connection.execute(
        select(tables.alias_history)
        .where(tables.alias_history.c.adapter_id == adapter_id)
        .order_by(tables.alias_history.c.id)
    )
    events = []
    for row in rows:
        if row.number is None:
            what = f"removed alias {row.name} from version {row.previous}"
        elif row.previous is None:
            what = f"set alias {row.name} to version {row.number}"
        else:
            what = f"moved alias {row.name} from version {row.previous} to {row.number}"
        number = row.previous if row.number is None else row.number
        reference = f"{name}@{number}"
        events.append(Event(row.created, row.author, "alias", reference, what, row.note))
    return events


def find_publications(connection: Connection, name: str) -> list[Any]:
    """Where an adapter's versions were written to, the oldest first."""
    rows = connection.execute(
        select(
            tables.version.c.number,
            tables.publication.c.remote,
            tables.publication.c.revision,
            tables.publication.c.author,
            tables.publication.c.created,
        )
        .join(tables.version, tables.version.c.id == tables.publication.c.version_id)
        .join(tables.adapter, tables.adapter.c.id == tables.version.c.adapter_id)
        .where(tables.adapter.c.name == name)
        .order_by(tables.publication.c.id)
    )
    return list(rows.all())


def _describe_publications(connection: Connection, name: str) -> list[Event]:
    return [
        Event(
            when=row.created,
            who=row.author,
            kind="publication",
            reference=f"{name}@{row.number}",
            what=f"published version {row.number} to {row.remote} at {row.revision}",
        )
        for row in find_publications(connection, name)
    ]
