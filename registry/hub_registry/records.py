"""What the registry answers with: plain frozen values, detached from any database."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import Any, Literal

from hub_registry.identity import BaseIdentity


@dataclass(frozen=True)
class FileEntry:
    """The sha256 (hex) of a file's bytes, and their number."""

    sha256: str
    size: int


@dataclass(frozen=True)
class Version:
    """One immutable, numbered state of a named adapter.

    `digest` is `digest_files` of its files, the same in every registry. `metrics` holds the last
    value recorded under each name, and `aliases` what points here, both as of the reading.
    `parents` are references in this registry, in the order they were given.
    """

    adapter: str
    number: int
    digest: str
    kind: str
    method: str
    task: str | None
    base: BaseIdentity
    config: Mapping[str, Any]
    metrics: Mapping[str, float]
    created: datetime
    author: str
    note: str | None
    files: Mapping[str, FileEntry]
    parents: tuple[str, ...]
    aliases: tuple[str, ...]

    @property
    def reference(self) -> str:
        """`name@number`."""
        return f"{self.adapter}@{self.number}"


@dataclass(frozen=True)
class AdapterRow:
    """A line of a listing: a name, and what its latest version is. `base` is the label of its
    base identity, `aliases` the number that each of them points to."""

    name: str
    latest: int
    kind: str
    method: str
    task: str | None
    base: str
    aliases: Mapping[str, int]
    created: datetime


@dataclass(frozen=True)
class Event:
    """Something that happened to an adapter: `what` is a line for people, `reference` the version
    that it concerns."""

    when: datetime
    who: str
    kind: Literal["version", "alias", "metric", "publication"]
    reference: str
    what: str
    note: str | None = None


@dataclass(frozen=True)
class Fault:
    """Something that `verify` found wrong, with the version and the file where there is one."""

    problem: str
    reference: str | None = None
    filename: str | None = None
    path: Path | None = None


@dataclass(frozen=True)
class Finding:
    """Something that `check` looked at: the subject, how it is, and a line for people."""

    level: Literal["ok", "warning", "error"]
    subject: str
    text: str


@dataclass(frozen=True)
class Swept:
    """What `sweep` removed: temporary files, blobs of no version, and bytes in all."""

    temporary: int
    blobs: int
    size: int


def digest_files(files: Mapping[str, str]) -> str:
    """The content digest of a version: the sha256 of what `sha256sum` prints for its files, a
    line `{sha256}  {name}` each, sorted by name."""
    lines = [f"{sha256}  {name}\n" for name, sha256 in sorted(files.items())]
    return hashlib.sha256("".join(lines).encode()).hexdigest()
