"""What the server keeps: repos, commits, and the files in a commit."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import UTC, datetime

from hub.server.objects import Object, hash_git_header


@dataclass(frozen=True)
class Repo:
    key: int
    namespace: str
    name: str
    private: bool
    created: str

    @property
    def id(self) -> str:
        return f"{self.namespace}/{self.name}"


@dataclass(frozen=True)
class Commit:
    oid: str
    parent: str | None
    title: str
    description: str
    author: str
    date: str


@dataclass(frozen=True)
class Entry:
    """A file in a commit. `lfs` says how it is listed; the bytes are kept the same way."""

    object: Object
    lfs: bool

    @property
    def pointer(self) -> bytes:
        """What git holds in place of an LFS file."""
        return (
            "version https://git-lfs.github.com/spec/v1\n"
            f"oid sha256:{self.object.sha256}\nsize {self.object.size}\n"
        ).encode()

    @property
    def oid(self) -> str:
        """git's id of what git holds."""
        if not self.lfs:
            return self.object.git
        digest = hash_git_header(len(self.pointer))
        digest.update(self.pointer)
        return digest.hexdigest()


Tree = dict[str, Entry]


def make_commit(
    branch: str, parent: str | None, tree: Tree, title: str, description: str, author: str
) -> Commit:
    """A commit made now, whose id is the hash of all that it says."""
    date = tell_time()
    content = [branch, parent, title, description, author, date, hash_tree(tree)]
    oid = hashlib.sha1(json.dumps(content).encode(), usedforsecurity=False).hexdigest()
    return Commit(oid, parent, title, description, author, date)


def hash_tree(tree: Mapping[str, Entry]) -> str:
    """An id of 40 hex digits for a set of files."""
    content = sorted((path, entry.oid) for path, entry in tree.items())
    return hashlib.sha1(json.dumps(content).encode(), usedforsecurity=False).hexdigest()


def tell_time() -> str:
    """Now, as the Hub writes it."""
    return datetime.now(UTC).strftime("%Y-%m-%dT%H:%M:%S.%fZ")
