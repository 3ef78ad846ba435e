"""Aliases: names that move between the versions of one adapter, and what moved them."""

from __future__ import annotations

from datetime import UTC, datetime

from sqlalchemy import Connection, delete, insert, select, update

from hub_registry import tables
from hub_registry.errors import UnknownReference
from hub_registry.history import find_author
from hub_registry.names import check_alias, check_name, check_prose
from hub_registry.reading import find_adapter, find_aliases, find_version
from hub_registry.records import Version


def move_alias(connection: Connection, reference: str, alias: str, note: str | None) -> Version:
    """Make `alias` point to a version of its adapter; where it does already, nothing is written.
    Raises BadName, UnknownReference."""
    check_alias(alias)
    check_prose(note)
    _, version = find_version(connection, reference)
    adapter_id = _lock_adapter(connection, version.adapter)
    previous = find_aliases(connection, adapter_id).get(alias)
    if previous == version.number:
        return version
    if previous is None:
        connection.execute(
            insert(tables.alias).values(adapter_id=adapter_id, name=alias, number=version.number)
        )
    else:
        connection.execute(
            update(tables.alias)
            .where(tables.alias.c.adapter_id == adapter_id, tables.alias.c.name == alias)
            .values(number=version.number)
        )
    _record_move(connection, adapter_id, alias, previous, version.number, note)
    return version


def remove_alias(connection: Connection, name: str, alias: str, note: str | None) -> None:
    """Remove an alias. Raises BadName, UnknownReference."""
    check_prose(note)
    adapter_id = _lock_adapter(connection, check_name(name))
    aliases = find_aliases(connection, adapter_id)
    if alias not in aliases:
        raise UnknownReference(
            f"'{name}' has no alias '{alias}'; its aliases are {', '.join(aliases) or 'none'}"
        )
    connection.execute(
        delete(tables.alias).where(
            tables.alias.c.adapter_id == adapter_id, tables.alias.c.name == alias
        )
    )
    _record_move(connection, adapter_id, alias, aliases[alias], None, note)


def _lock_adapter(connection: Connection, name: str) -> int:
    """The adapter's row id; on PostgreSQL others who move its aliases wait."""
    adapter_id, _ = find_adapter(connection, name)
    connection.execute(
        select(tables.adapter.c.id).where(tables.adapter.c.id == adapter_id).with_for_update()
    ).one()
    return adapter_id


def _record_move(
    connection: Connection,
    adapter_id: int,
    alias: str,
    previous: int | None,
    number: int | None,
    note: str | None,
) -> None:
    connection.execute(
        insert(tables.alias_history).values(
            adapter_id=adapter_id,
            name=alias,
            number=number,
            previous=previous,
            author=find_author(),
            note=note,
            created=datetime.now(UTC),
        )
    )
