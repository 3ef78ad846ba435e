"""The schema. The triggers that keep it honest are in the migrations.

A version and all that describes it is written once: `base_model`, `task`, `version`,
`version_file`, `lineage`. What happens to it later is added and never changed: `metric`,
`alias_history`, `publication`. Only `alias` rows move, and `adapter.next_version` counts.
"""

from __future__ import annotations

from datetime import datetime
from typing import Annotated, Any

from sqlalchemy import (
    JSON,
    BigInteger,
    CheckConstraint,
    Double,
    ForeignKey,
    ForeignKeyConstraint,
    Index,
    MetaData,
    String,
    Text,
    UniqueConstraint,
)
from sqlalchemy.orm import DeclarativeBase, Mapped, mapped_column

from hub_registry.tables import UtcDateTime

NAMING = {
    "pk": "pk_%(table_name)s",
    "fk": "fk_%(table_name)s_%(column_0_N_name)s_%(referred_table_name)s",
    "uq": "uq_%(table_name)s_%(column_0_N_name)s",
    "ck": "ck_%(table_name)s_%(constraint_name)s",
    "ix": "ix_%(table_name)s_%(column_0_N_name)s",
}


Id = Annotated[int, mapped_column(primary_key=True)]
Name = Annotated[str, mapped_column(String(128))]
Sha256 = Annotated[str, mapped_column(String(64))]
Line = Annotated[str, mapped_column(Text)]
Moment = Annotated[datetime, mapped_column(UtcDateTime)]
Value = Annotated[Any, mapped_column(JSON, nullable=False)]


class Model(DeclarativeBase):
    """The root of the tables; every constraint gets its name from `NAMING`."""

    metadata = MetaData(naming_convention=NAMING)


class BaseModel(Model):
    """A base identity. The columns beside `identity` are there to search and to show."""

    __tablename__ = "base_model"
    __table_args__ = (
        UniqueConstraint("digest"),
        CheckConstraint("length(digest) = 64", name="digest"),
        Index(None, "repo"),
    )

    id: Mapped[Id]
    digest: Mapped[Sha256]
    label: Mapped[Line]
    repo: Mapped[Line | None]
    revision: Mapped[Line | None]
    architecture: Mapped[Line]
    precision: Mapped[Line]
    quantization: Mapped[Line | None]
    identity: Mapped[Value]
    created: Mapped[Moment]


class Task(Model):
    """What adapters are for."""

    __tablename__ = "task"
    __table_args__ = (UniqueConstraint("name"),)

    id: Mapped[Id]
    name: Mapped[Name]
    created: Mapped[Moment]


class Adapter(Model):
    """A name, and the number that its next version gets."""

    __tablename__ = "adapter"
    __table_args__ = (
        UniqueConstraint("name"),
        CheckConstraint("length(name) BETWEEN 1 AND 128", name="name"),
        CheckConstraint("next_version >= 1", name="next_version"),
    )

    id: Mapped[Id]
    name: Mapped[Name]
    next_version: Mapped[int]
    created: Mapped[Moment]


class Version(Model):
    """A version. `file_count` and `parent_count` close it: no row can be added to it later."""

    __tablename__ = "version"
    __table_args__ = (
        UniqueConstraint("adapter_id", "number"),
        UniqueConstraint("adapter_id", "digest"),
        CheckConstraint("number >= 1", name="number"),
        CheckConstraint("length(digest) = 64", name="digest"),
        CheckConstraint("kind IN ('adapter', 'composition')", name="kind"),
        CheckConstraint("file_count >= 1", name="file_count"),
        CheckConstraint("parent_count >= 0", name="parent_count"),
        Index(None, "task_id"),
        Index(None, "base_model_id"),
    )

    id: Mapped[Id]
    adapter_id: Mapped[int] = mapped_column(ForeignKey("adapter.id"))
    number: Mapped[int]
    digest: Mapped[Sha256]
    kind: Mapped[Name]
    method: Mapped[Name]
    task_id: Mapped[int | None] = mapped_column(ForeignKey("task.id"))
    base_model_id: Mapped[int] = mapped_column(ForeignKey("base_model.id"))
    config: Mapped[Value]
    file_count: Mapped[int]
    parent_count: Mapped[int]
    author: Mapped[Line]
    note: Mapped[Line | None]
    created: Mapped[Moment]


class Blob(Model):
    """Bytes that the blob store holds."""

    __tablename__ = "blob"
    __table_args__ = (
        CheckConstraint("length(sha256) = 64", name="sha256"),
        CheckConstraint("size >= 0", name="size"),
    )

    sha256: Mapped[Sha256] = mapped_column(primary_key=True)
    size: Mapped[int] = mapped_column(BigInteger)
    created: Mapped[Moment]


class VersionFile(Model):
    """A file of a version."""

    __tablename__ = "version_file"
    __table_args__ = (Index(None, "sha256"),)

    version_id: Mapped[int] = mapped_column(ForeignKey("version.id"), primary_key=True)
    name: Mapped[Name] = mapped_column(primary_key=True)
    sha256: Mapped[Sha256] = mapped_column(ForeignKey("blob.sha256"))


class Lineage(Model):
    """A parent of a version. It is older than its child, so there is no way round in a circle."""

    __tablename__ = "lineage"
    __table_args__ = (
        CheckConstraint("parent_id < child_id", name="parent_is_older"),
        Index(None, "parent_id"),
    )

    child_id: Mapped[int] = mapped_column(ForeignKey("version.id"), primary_key=True)
    parent_id: Mapped[int] = mapped_column(ForeignKey("version.id"), primary_key=True)
    position: Mapped[int]


class Alias(Model):
    """A name that points to a version of its adapter."""

    __tablename__ = "alias"
    __table_args__ = (
        ForeignKeyConstraint(["adapter_id", "number"], ["version.adapter_id", "version.number"]),
        CheckConstraint("name <> 'latest'", name="not_latest"),
        CheckConstraint("trim(name, '0123456789') <> ''", name="not_a_number"),
        Index(None, "adapter_id", "number"),
    )

    adapter_id: Mapped[int] = mapped_column(ForeignKey("adapter.id"), primary_key=True)
    name: Mapped[Name] = mapped_column(primary_key=True)
    number: Mapped[int]


class AliasHistory(Model):
    """A move of an alias: from `previous` (null: it was new) to `number` (null: it was removed)."""

    __tablename__ = "alias_history"
    __table_args__ = (
        ForeignKeyConstraint(["adapter_id", "number"], ["version.adapter_id", "version.number"]),
        ForeignKeyConstraint(["adapter_id", "previous"], ["version.adapter_id", "version.number"]),
        CheckConstraint("number IS NOT NULL OR previous IS NOT NULL", name="moved"),
        Index(None, "adapter_id"),
    )

    id: Mapped[Id]
    adapter_id: Mapped[int] = mapped_column(ForeignKey("adapter.id"))
    name: Mapped[Name]
    number: Mapped[int | None]
    previous: Mapped[int | None]
    author: Mapped[Line]
    note: Mapped[Line | None]
    created: Mapped[Moment]


class Metric(Model):
    """A measurement of a version: those given when it was added, and every later one."""

    __tablename__ = "metric"
    __table_args__ = (
        CheckConstraint("samples >= 0", name="samples"),
        Index(None, "version_id"),
        Index(None, "name", "value"),
    )

    id: Mapped[Id]
    version_id: Mapped[int] = mapped_column(ForeignKey("version.id"))
    name: Mapped[Name]
    value: Mapped[float] = mapped_column(Double)
    dataset: Mapped[Line | None]
    samples: Mapped[int | None] = mapped_column(BigInteger)
    author: Mapped[Line]
    created: Mapped[Moment]


class Publication(Model):
    """A version as it was written to a remote."""

    __tablename__ = "publication"
    __table_args__ = (Index(None, "version_id"),)

    id: Mapped[Id]
    version_id: Mapped[int] = mapped_column(ForeignKey("version.id"))
    remote: Mapped[Line]
    revision: Mapped[Line]
    author: Mapped[Line]
    created: Mapped[Moment]
