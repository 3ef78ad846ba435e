"""The bytes of the files, each kept once under its sha256.

{folder}/objects/ab/ab12...   what has come whole
{folder}/incoming/            what is still coming
"""

from __future__ import annotations

import hashlib
import os
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path

_LEFT_OVER_AFTER = 24 * 3600.0  # seconds


@dataclass(frozen=True)
class Object:
    """Bytes by what they are: `sha256`, `size` in bytes, and `git`, git's own id of them."""

    sha256: str
    size: int
    git: str


class Incoming:
    """Bytes on their way to the disk, hashed as they come. `size` is what was announced."""

    def __init__(self, path: Path, size: int) -> None:
        self.path = path
        self.size = size
        self.received = 0
        self._sha256 = hashlib.sha256()
        self._git = hash_git_header(size)
        self._file = path.open("wb")

    def write(self, chunk: bytes) -> None:
        self.received += len(chunk)
        self._sha256.update(chunk)
        self._git.update(chunk)
        self._file.write(chunk)

    def finish(self) -> Object:
        """Sync to the disk; what came, whether or not it was what was announced."""
        self._file.flush()
        os.fsync(self._file.fileno())
        self._file.close()
        return Object(self._sha256.hexdigest(), self.received, self._git.hexdigest())

    def discard(self) -> None:
        self._file.close()
        self.path.unlink(missing_ok=True)


class ObjectFolder:
    """The folder of objects. It knows bytes; which repo has which is in the database."""

    def __init__(self, folder: Path) -> None:
        self._objects = folder / "objects"
        self._incoming = folder / "incoming"
        for needed in (self._objects, self._incoming):
            needed.mkdir(parents=True, exist_ok=True)
        self._sweep()

    def find(self, sha256: str) -> Path:
        return self._objects / sha256[:2] / sha256

    @contextmanager
    def receive(self, size: int) -> Iterator[Incoming]:
        """A place for `size` bytes; gone at the end unless `place` moved it."""
        descriptor, name = tempfile.mkstemp(dir=self._incoming)
        os.close(descriptor)
        incoming = Incoming(Path(name), size)
        try:
            yield incoming
        finally:
            incoming.discard()

    def place(self, incoming: Incoming, arrived: Object) -> None:
        """Move finished bytes to where they are found: whole, or not at all."""
        target = self.find(arrived.sha256)
        target.parent.mkdir(exist_ok=True)
        incoming.path.replace(target)
        _sync_folder(target.parent)

    def remove(self, sha256: str) -> None:
        self.find(sha256).unlink(missing_ok=True)

    def _sweep(self) -> None:
        """Remove what a killed server left; younger files may be another server's."""
        for path in self._incoming.iterdir():
            with suppress(FileNotFoundError):
                if time.time() - path.stat().st_mtime > _LEFT_OVER_AFTER:
                    path.unlink()


def hash_git_header(size: int) -> hashlib._Hash:
    """git's id of a file of `size` bytes, before its bytes."""
    return hashlib.sha1(b"blob %d\0" % size, usedforsecurity=False)


def _sync_folder(folder: Path) -> None:
    if os.name == "nt":  # Windows opens no folder, and has no need to
        return
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
