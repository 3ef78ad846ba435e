"""What a remote is: where published adapters are read from and written to."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Literal, Protocol


@dataclass(frozen=True)
class Digest:
    """The digest of a file as a remote tells it; "git" is the sha1 of git's own blobs."""

    algorithm: Literal["sha256", "git"]
    value: str

    def of(self, data: bytes) -> str:
        """The same digest of these bytes."""
        if self.algorithm == "sha256":
            return hashlib.sha256(data).hexdigest()
        header = b"blob %d\0" % len(data)
        return hashlib.sha1(header + data, usedforsecurity=False).hexdigest()


@dataclass(frozen=True)
class Listing:
    """The files of a remote at one revision, with their digests where the remote knows them."""

    revision: str
    files: Mapping[str, Digest | None]


@dataclass(frozen=True)
class Publication:
    """An adapter as it is at a remote.

    remote: "org/repo", or "file:///folder". revision: a commit hash, or a folder's content digest.
    changed: False where a push found all of it there already and made no commit.
    """

    remote: str
    revision: str
    url: str
    changed: bool = True


class Remote(Protocol):
    """A repository on a Hub, or a folder. Every method raises RemoteError or FileError.

    label: what errors call it. remote: what a publication says. address: what `hub.load` takes.
    title: the last part of its name. repo: its name on the Hub, None for a folder.
    """

    label: str
    remote: str
    address: str
    title: str

    @property
    def repo(self) -> str | None: ...

    def look(self) -> Listing:
        """What is there, at one revision from here on."""

    def look_to_write(self, private: bool) -> Listing | None:
        """What is there now, where it may be written; None where it is still to be made."""

    def read(self, listing: Listing, name: str, *, again: bool = False) -> bytes:
        """A file's bytes, unchecked. `again`: not out of a cache."""

    def discard(self, listing: Listing, name: str) -> None:
        """Forget the copy of a file that a cache of this machine holds."""

    def write(
        self,
        contents: Mapping[str, bytes],
        gone: Iterable[str],
        before: Listing | None,
        message: str,
        private: bool,
    ) -> str:
        """Write files and remove those that are `gone`, at once; the new revision."""

    def find_revision(self, listing: Listing, contents: Mapping[str, bytes]) -> str:
        """The revision that holds these contents already."""

    def name_url(self, revision: str) -> str:
        """Where a person can look at it."""
