"""Writing a version's files to a folder, whole or not at all."""

from __future__ import annotations

import contextlib
import shutil
import uuid
from collections.abc import Iterator
from pathlib import Path

from hub_registry.blobs import BlobStore
from hub_registry.errors import AlreadyExists
from hub_registry.names import check_name
from hub_registry.records import Version
from hub_registry.storage import storage_errors, sync_folder

OTHERWISE = "choose another folder"


def export_version(blobs: BlobStore, version: Version, folder: Path) -> Path:
    """Write every file, verified, to a folder that is new or empty. Raises AlreadyExists,
    CorruptBlob, StorageError."""
    with make_new_folder(folder) as temporary:
        for name, entry in version.files.items():
            # A file name out of a database that somebody else wrote must not lead elsewhere.
            target = temporary / check_name(name, "file")
            with storage_errors(folder.absolute(), "write", OTHERWISE):
                blobs.copy(entry, target, f"{version.reference} {name}")
    return folder.absolute()


@contextlib.contextmanager
def make_new_folder(folder: Path) -> Iterator[Path]:
    """A temporary folder beside `folder`, which is given that name when all went well. Raises
    AlreadyExists where there is a file or a folder that is not empty, StorageError."""
    folder = folder.absolute()
    with storage_errors(folder, "read", OTHERWISE):
        if folder.exists() and not folder.is_dir():
            raise AlreadyExists(f"can't export to {folder}: it is a file; give another folder")
        if folder.is_dir() and any(folder.iterdir()):
            raise AlreadyExists(
                f"can't export to {folder}: it is not empty; empty it or give another folder"
            )
    with storage_errors(folder.parent, "write", OTHERWISE):
        folder.parent.mkdir(parents=True, exist_ok=True)
    temporary = folder.parent / f".{folder.name}.{uuid.uuid4().hex[:12]}"
    with contextlib.ExitStack() as stack:
        stack.callback(shutil.rmtree, temporary, ignore_errors=True)
        with storage_errors(folder, "write", OTHERWISE):
            temporary.mkdir()
        yield temporary
        with storage_errors(folder, "write", OTHERWISE):
            sync_folder(temporary)
            temporary.rename(folder)
            sync_folder(folder.parent)
