"""A store of bytes named by their sha256, in a local folder.

A blob is written to a temporary file while it is hashed, synced, and only then given its name,
so that a name never stands for half a file. Every read hashes what it reads.
"""

from __future__ import annotations

import contextlib
import hashlib
import os
import uuid
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO

from hub_registry.errors import CorruptBlob, RegistryError
from hub_registry.records import FileEntry
from hub_registry.storage import link_file, make_folder, storage_errors, sync_folder

_CHUNK = 1 << 20


@dataclass(frozen=True)
class StagedBlob:
    """Bytes on their way in: hashed and synced, in a temporary file."""

    path: Path
    entry: FileEntry


class BlobStore:
    """Blobs in `folder`, as `ab/abcdef...`, and what is being written in `folder/tmp`."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.temporary = folder / "tmp"

    def find_path(self, sha256: str) -> Path:
        """Where the blob is, or would be."""
        return self.folder / sha256[:2] / sha256

    def stage(self, source: Path | bytes) -> StagedBlob:
        """Copy and hash. Raises StorageError, or RegistryError where `source` is no file."""
        make_folder(self.temporary)
        path = self.temporary / uuid.uuid4().hex
        try:
            with _open_source(source) as chunks:
                return StagedBlob(path, _write_chunks(chunks, path))
        except BaseException:
            _remove_quietly(path)
            raise

    def place(self, staged: StagedBlob) -> bool:
        """Give a staged blob its name; say whether it was not there before. A damaged blob of
        that name is replaced. Raises StorageError."""
        path = self.find_path(staged.entry.sha256)
        make_folder(path.parent)
        with storage_errors(path, "write"):
            placed = link_file(staged.path, path)
            if not placed and self.find_damage(staged.entry):
                staged.path.replace(path)
            sync_folder(path.parent)
            sync_folder(self.folder)
        return placed

    def discard(self, staged: StagedBlob) -> None:
        """Remove the temporary file; what can't be removed is left to the sweep."""
        _remove_quietly(staged.path)

    def remove_temporary(self, path: Path) -> None:
        """Remove what a killed process left. Raises StorageError."""
        with storage_errors(path, "remove"):
            path.unlink(missing_ok=True)

    def remove(self, sha256: str) -> None:
        """Remove a blob. Raises StorageError."""
        path = self.find_path(sha256)
        with storage_errors(path, "remove"):
            path.unlink(missing_ok=True)

    def read(self, entry: FileEntry, what: str) -> bytes:
        """The bytes, verified. Raises CorruptBlob, where `what` names them, and StorageError."""
        path = self.find_path(entry.sha256)
        with _corrupt_when_missing(path, what), storage_errors(path, "read"):
            content = path.read_bytes()
        _check_digest(path, hashlib.sha256(content).hexdigest(), len(content), entry, what)
        return content

    def copy(self, entry: FileEntry, target: Path, what: str) -> None:
        """Write the bytes to `target`, verified and synced. Raises CorruptBlob, StorageError, and
        OSError where `target` can't be written."""
        path = self.find_path(entry.sha256)
        sha256, size = hashlib.sha256(), 0
        with contextlib.ExitStack() as stack:
            with _corrupt_when_missing(path, what), storage_errors(path, "read"):
                source = stack.enter_context(path.open("rb"))
            handle = stack.enter_context(target.open("wb"))
            for chunk in _read_chunks(source, path):
                handle.write(chunk)
                sha256.update(chunk)
                size += len(chunk)
            handle.flush()
            os.fsync(handle.fileno())
        _check_digest(path, sha256.hexdigest(), size, entry, what)

    def find_damage(self, entry: FileEntry) -> str | None:
        """Read a blob and say what is wrong with it. Raises StorageError when it can't be read."""
        path = self.find_path(entry.sha256)
        sha256, size = hashlib.sha256(), 0
        try:
            with (
                _corrupt_when_missing(path, "blob"),
                storage_errors(path, "read"),
                path.open("rb") as source,
            ):
                for chunk in _read_chunks(source, path):
                    sha256.update(chunk)
                    size += len(chunk)
            _check_digest(path, sha256.hexdigest(), size, entry, "blob")
        except CorruptBlob as error:
            return str(error)
        return None

    def find_all(self) -> Iterator[tuple[str, os.stat_result]]:
        """Every blob's sha256, and what the system says of its file. Raises StorageError."""
        with storage_errors(self.folder, "read"):
            for path in sorted(self.folder.glob("??/*")):
                with contextlib.suppress(FileNotFoundError):
                    yield path.name, path.stat()

    def find_temporary(self) -> Iterator[tuple[Path, os.stat_result]]:
        """Every temporary file; after a kill they stay behind. Raises StorageError."""
        with storage_errors(self.temporary, "read"):
            for path in sorted(self.temporary.glob("*")):
                with contextlib.suppress(FileNotFoundError):
                    yield path, path.stat()


@contextlib.contextmanager
def _open_source(source: Path | bytes) -> Iterator[Iterator[bytes]]:
    if isinstance(source, bytes):
        yield iter([source])
        return
    with contextlib.ExitStack() as stack:
        with storage_errors(source, "read"):
            if not source.is_file():
                there = "it is not a file" if source.exists() else "it does not exist"
                raise RegistryError(f"can't add {source}: {there}; give the path of a file")
            handle = stack.enter_context(source.open("rb"))
        yield _read_chunks(handle, source)


def _write_chunks(chunks: Iterator[bytes], path: Path) -> FileEntry:
    """Write a new file, synced, and say what is in it."""
    sha256, size = hashlib.sha256(), 0
    with storage_errors(path, "write"):
        handle = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o666)
        with os.fdopen(handle, "wb") as target:
            for chunk in chunks:
                target.write(chunk)
                sha256.update(chunk)
                size += len(chunk)
            target.flush()
            os.fsync(handle)
            # Nothing writes to a blob again; let the system say so to who tries.
            path.chmod(os.fstat(handle).st_mode & 0o444)
    return FileEntry(sha256.hexdigest(), size)


def _read_chunks(source: BinaryIO, path: Path) -> Iterator[bytes]:
    while True:
        with storage_errors(path, "read"):
            chunk = source.read(_CHUNK)
        if not chunk:
            return
        yield chunk


def _check_digest(path: Path, sha256: str, size: int, entry: FileEntry, what: str) -> None:
    if (sha256, size) == (entry.sha256, entry.size):
        return
    there = (
        f"{size} bytes instead of {entry.size}"
        if size != entry.size
        else f"sha256 {sha256[:12]} instead of {entry.sha256[:12]}"
    )
    raise CorruptBlob(
        f"{what} is damaged: {path} has {there}; add or pull the same files again to repair it"
    )


@contextlib.contextmanager
def _corrupt_when_missing(path: Path, what: str) -> Iterator[None]:
    try:
        yield
    except RegistryError as error:
        if not isinstance(error.__cause__, FileNotFoundError):
            raise
        raise CorruptBlob(
            f"{what} is lost: {path} is missing; add or pull the same files again to repair it"
        ) from error


def _remove_quietly(path: Path) -> None:
    with contextlib.suppress(OSError):
        path.unlink(missing_ok=True)
