"""The file system: its errors as ours, files that appear whole or not at all."""

from __future__ import annotations

import contextlib
import errno
import os
import shutil
from collections.abc import Iterator
from pathlib import Path

from hub_registry.errors import StorageError

_FULL = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)
_FORBIDDEN = (errno.EACCES, errno.EPERM)
_NO_LINKS = (errno.EPERM, errno.ENOTSUP, errno.EOPNOTSUPP, errno.ENOSYS, errno.EMLINK)


@contextlib.contextmanager
def storage_errors(path: Path, doing: str, otherwise: str | None = None) -> Iterator[None]:
    """Raise StorageError for an OSError inside: `doing` is "write", "read" or "remove".

    otherwise: the way out where `path` is not in HUB_HOME.
    """
    try:
        yield
    except OSError as error:
        raise StorageError(describe_os_error(error, path, doing, otherwise)) from error


def describe_os_error(error: OSError, path: Path, doing: str, otherwise: str | None = None) -> str:
    """One line: what could not be done to which path, why, and the way out."""
    if error.errno in _FULL:
        other = otherwise or "set HUB_HOME to another disk"
        way_out = f"{describe_space(path)}; free some space, or {other}"
        return f"can't {doing} {path}: {_name_error(error)}, {way_out}"
    if error.errno == errno.EROFS:
        way_out = f"make it writable, or {otherwise or 'set HUB_HOME to a folder that is'}"
    elif error.errno in _FORBIDDEN:
        other = otherwise or "set HUB_HOME to a folder of yours"
        way_out = f"ask who owns it to let you {doing} it, or {other}"
    elif error.errno in (errno.ENOTDIR, errno.EEXIST, errno.EISDIR):
        way_out = f"move away what is there, or {otherwise or 'set HUB_HOME to another folder'}"
    else:
        way_out = f"check the disk, or {otherwise or 'set HUB_HOME to another folder'}"
    return f"can't {doing} {path}: {_name_error(error)}; {way_out}"


def describe_space(path: Path) -> str:
    """How much room the disk of `path` has, as "12.3 MB are free"."""
    for folder in (path, *path.parents):
        with contextlib.suppress(OSError):
            return f"{shutil.disk_usage(folder).free / 1e6:.1f} MB are free"
    return "the free space is unknown"


def make_folder(folder: Path) -> None:
    """Make a folder and its parents where they are missing. Raises StorageError."""
    with storage_errors(folder, "write"):
        folder.mkdir(parents=True, exist_ok=True)


def link_file(source: Path, target: Path) -> bool:
    """Give `source` the name `target` too, unless that exists; say whether it was done.

    Where the file system knows no links, `source` is renamed, which would replace a file that
    another process put there in the same instant.
    """
    try:
        os.link(source, target)
    except FileExistsError:
        return False
    except OSError as error:
        if error.errno not in _NO_LINKS:
            raise
        if target.exists():
            return False
        source.rename(target)
    return True


def sync_folder(folder: Path) -> None:
    """Make the names in a folder survive a power cut."""
    if os.name != "posix":
        return
    handle = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def _name_error(error: OSError) -> str:
    return (error.strerror or str(error)).lower()
