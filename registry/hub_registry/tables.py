"""The tables as queries see them: names and types alone.

`models` says all the rest, and importing it, with the ORM, would double the start of the command
line. A test holds the two together.
"""

from __future__ import annotations

from datetime import UTC, datetime
from typing import Any

from sqlalchemy import (
    JSON,
    BigInteger,
    DateTime,
    Dialect,
    Double,
    Integer,
    String,
    TableClause,
    Text,
    TypeDecorator,
    column,
    table,
)
from sqlalchemy.types import TypeEngine


class UtcDateTime(TypeDecorator[datetime]):
    """An aware datetime, kept in UTC also where the database knows no time zones."""

    impl = DateTime(timezone=True)
    cache_ok = True

    def process_bind_param(self, value: datetime | None, dialect: Dialect) -> datetime | None:
        return None if value is None else value.astimezone(UTC)

    def process_result_value(self, value: datetime | None, dialect: Dialect) -> datetime | None:
        if value is None:
            return None
        return value.replace(tzinfo=UTC) if value.tzinfo is None else value.astimezone(UTC)


def _make_table(name: str, /, **columns: TypeEngine[Any]) -> TableClause:
    return table(name, *(column(key, kind) for key, kind in columns.items()))


_ID, _NAME, _SHA256, _LINE, _MOMENT = Integer(), String(128), String(64), Text(), UtcDateTime()

base_model = _make_table(
    "base_model",
    id=_ID,
    digest=_SHA256,
    label=_LINE,
    repo=_LINE,
    revision=_LINE,
    architecture=_LINE,
    precision=_LINE,
    quantization=_LINE,
    identity=JSON(),
    created=_MOMENT,
)
task = _make_table("task", id=_ID, name=_NAME, created=_MOMENT)
adapter = _make_table("adapter", id=_ID, name=_NAME, next_version=Integer(), created=_MOMENT)
version = _make_table(
    "version",
    id=_ID,
    adapter_id=_ID,
    number=Integer(),
    digest=_SHA256,
    kind=_NAME,
    method=_NAME,
    task_id=_ID,
    base_model_id=_ID,
    config=JSON(),
    file_count=Integer(),
    parent_count=Integer(),
    author=_LINE,
    note=_LINE,
    created=_MOMENT,
)
blob = _make_table("blob", sha256=_SHA256, size=BigInteger(), created=_MOMENT)
version_file = _make_table("version_file", version_id=_ID, name=_NAME, sha256=_SHA256)
lineage = _make_table("lineage", child_id=_ID, parent_id=_ID, position=Integer())
alias = _make_table("alias", adapter_id=_ID, name=_NAME, number=Integer())
alias_history = _make_table(
    "alias_history",
    id=_ID,
    adapter_id=_ID,
    name=_NAME,
    number=Integer(),
    previous=Integer(),
    author=_LINE,
    note=_LINE,
    created=_MOMENT,
)
metric = _make_table(
    "metric",
    id=_ID,
    version_id=_ID,
    name=_NAME,
    value=Double(),
    dataset=_LINE,
    samples=BigInteger(),
    author=_LINE,
    created=_MOMENT,
)
publication = _make_table(
    "publication",
    id=_ID,
    version_id=_ID,
    remote=_LINE,
    revision=_LINE,
    author=_LINE,
    created=_MOMENT,
)

ALL = (
    base_model,
    task,
    adapter,
    version,
    blob,
    version_file,
    lineage,
    alias,
    alias_history,
    metric,
    publication,
)
