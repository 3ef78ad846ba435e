"""A folder as a remote: a disk, a share, a mounted bucket.

The folder is the adapter's own, with the card beside its files, so that everything that reads an
adapter reads it as it is. It holds one version; pushing the next one of the same name takes its
place.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable, Mapping
from pathlib import Path

from hub.errors import FileError, RemoteError
from hub.files import CONFIG, FILES, MANIFEST, TENSORS, edit_manifest, read_file, write_files
from hub.remotes.publications import Listing
from hub_registry import digest_files


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
            names = sorted(path.name for path in self.path.iterdir() if path.is_file())
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
        if before is not None and before.files.keys() & {CONFIG, TENSORS}:
            there = find_version(self._read_manifest(before))
            ours = find_version(contents.get(MANIFEST))
            if there is None or ours is None or name_of(there) != name_of(ours):
                raise RemoteError(
                    f"{self.label} holds another adapter ({there or 'without a name'}); "
                    "choose another folder, or empty that one"
                )
        try:
            for name in gone:
                (self.path / name).unlink(missing_ok=True)
            write_files(self.path, contents)
        except (FileError, OSError) as error:
            raise RemoteError(f"can't publish in {self.label}: {error}") from error
        return digest_contents(contents)

    def find_revision(self, listing: Listing, contents: Mapping[str, bytes]) -> str:
        """The content digest of the adapter's files."""
        return digest_contents(contents)

    def name_url(self, revision: str) -> str:
        """The folder's address."""
        return self.remote

    def _read_manifest(self, listing: Listing) -> bytes | None:
        return self.read(listing, MANIFEST) if MANIFEST in listing.files else None


def digest_contents(contents: Mapping[str, bytes]) -> str:
    """The content digest of an adapter's files, the same as that of the version in a registry:
    without the card, and without the number that `hub.json` says outside of one."""
    files = {name: contents[name] for name in FILES if name in contents}
    if MANIFEST in files:
        files[MANIFEST] = edit_manifest(files[MANIFEST], version=None)
    return digest_files({name: hashlib.sha256(data).hexdigest() for name, data in files.items()})


def find_version(manifest: bytes | None) -> str | None:
    """The reference that a `hub.json` was published from; None where it says none."""
    try:
        document = json.loads(manifest) if manifest is not None else {}
    except ValueError:
        return None
    version = document.get("version") if isinstance(document, dict) else None
    return version if isinstance(version, str) else None


def name_of(reference: str) -> str:
    """The name in a reference."""
    return reference.partition("@")[0]
