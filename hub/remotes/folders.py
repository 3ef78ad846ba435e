"""A folder as a remote: a disk, a share, a mounted bucket.

The folder is the adapter's own, or the composition's, with the card beside its files, so that
everything that reads an adapter reads it as it is. It holds one version; pushing the next one of
the same name takes its place.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from contextlib import suppress
from pathlib import Path

from hub.errors import FileError, RemoteError
from hub.files import CONFIG, MANIFEST, TENSORS, read_file, write_files
from hub.recipes.arrivals import name_of
from hub.recipes.bundles import Contents, digest_contents, list_files
from hub.recipes.recipe import RECIPE
from hub.remotes.publications import Listing


class Folder:
    """A folder that holds one published adapter, or will."""

    def __init__(self, path: Path) -> None:
        self.path = path.absolute()
        self.label = str(path)
        self.remote = self.path.as_uri()
        self.address = f"./{self.path.name}"
        self.title = self.path.name
        self.repo = None

    def look(self) -> Listing:
        """What is there. Raises RemoteError where there is no folder."""
        try:
            if not self.path.is_dir():
                what = "is a file" if self.path.exists() else "does not exist"
                raise RemoteError(f"{self.label} {what}; give the folder of a published adapter")
            names = list_files(self.path)
        except OSError as error:
            raise RemoteError(f"can't read {self.label}: {error.strerror or error}") from error
        return Listing("", dict.fromkeys(names))

    def look_to_write(self, private: bool) -> Listing | None:
        """What is there now; None where the folder is still to be made. Raises RemoteError."""
        if private:
            raise RemoteError(
                f"{self.label} is a folder, and who may read it is up to its permissions; "
                "push without private"
            )
        return self.look() if self.path.exists() else None

    def read(self, listing: Listing, name: str, *, again: bool = False) -> bytes:
        """The bytes of a file. Raises FileError."""
        return read_file(self.path / name)

    def discard(self, listing: Listing, name: str) -> None:
        """Nothing: there is no copy of it on this side."""

    def write(
        self,
        contents: Mapping[str, bytes],
        gone: Iterable[str],
        before: Listing | None,
        message: str,
        private: bool,
    ) -> str:
        """Write the files; their content digest is the revision.

        Raises RemoteError, also where an adapter of another name is there: a folder has no
        history, and that one would be lost.
        """
        if before is not None and before.files.keys() & {CONFIG, TENSORS, RECIPE}:
            saying = [name for name in (RECIPE, MANIFEST) if name in before.files][:1]
            there = find_version({name: self.read(before, name) for name in saying})
            ours = find_version(contents)
            if there is None or ours is None or name_of(there) != name_of(ours):
                what = "composition" if RECIPE in before.files else "adapter"
                raise RemoteError(
                    f"{self.label} holds another {what} ({there or 'without a name'}); "
                    "choose another folder, or empty that one"
                )
        try:
            write_files(self.path, contents)
            for name in gone:
                remove_file(self.path, name)
        except (FileError, OSError) as error:
            raise RemoteError(f"can't publish in {self.label}: {error}") from error
        return digest_contents(contents)

    def find_revision(self, listing: Listing, contents: Mapping[str, bytes]) -> str:
        """The content digest of the adapter's files."""
        return digest_contents(contents)

    def name_url(self, revision: str) -> str:
        """The folder's address."""
        return self.remote


def remove_file(folder: Path, name: str) -> None:
    """Remove a file, and the folders in `folder` that it leaves empty. Raises OSError."""
    path = folder / name
    path.unlink(missing_ok=True)
    with suppress(OSError):
        for parent in path.parents[: name.count("/")]:
            parent.rmdir()


def find_version(contents: Contents) -> str | None:
    """The version that files were published from; None where they say none."""
    data = contents.get(RECIPE, contents.get(MANIFEST, b"{}"))
    try:
        document = json.loads(data)
    except ValueError:
        return None
    version = document.get("version") if isinstance(document, dict) else None
    return version if isinstance(version, str) else None
