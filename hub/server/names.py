"""Which names a repo, a branch, a tag and a file may have.

A file's name is a path on every machine that downloads it, so one that could leave the folder
there is refused here.
"""

from __future__ import annotations

import re

from hub.server.refusals import bad_request

_NAME = re.compile(r"[A-Za-z0-9_](?:[A-Za-z0-9._-]{0,94}[A-Za-z0-9_])?")
_DIGEST = re.compile(r"[0-9a-f]{64}")
_COMMIT = re.compile(r"[0-9a-fA-F]{40}")
_DRIVE = re.compile(r"[A-Za-z]:")
_RESERVED_NAMESPACES = frozenset({"api", "datasets", "models", "spaces"})
_RESERVED_FOLDERS = frozenset({".git", ".cache"})
_NOT_IN_A_REF = frozenset(" ~^:?*[\\\x7f") | {chr(code) for code in range(32)}


def check_namespace(name: str) -> str:
    """`name`, a user's or an organization's, or a 400."""
    if name in _RESERVED_NAMESPACES:
        raise bad_request(f"{name!r} can't name a namespace: addresses of the API begin with it")
    return check_repo_name(name, "namespace")


def check_repo_name(name: str, what: str = "repo") -> str:
    """`name`, a repo's, or a 400 that says `what` it can't name."""
    if not _NAME.fullmatch(name) or ".." in name or "--" in name or name.endswith(".git"):
        raise bad_request(
            f"{name!r} can't name a {what}: letters, digits, '-', '_' and '.', at most 96, "
            "with no '--', '..' or '.git' at the end"
        )
    return name


def check_ref(name: str) -> str:
    """`name`, a branch's or a tag's, or a 400: git's rules, and nothing that reads as a commit."""
    parts = name.split("/")
    if (
        not name
        or _COMMIT.fullmatch(name)
        or not is_encodable(name)
        or ".." in name
        or "@{" in name
        or name in ("@", "HEAD")
        or parts[0] == "refs"
        or name.startswith("-")
        or any(not p or p.startswith(".") or p.endswith((".", ".lock")) for p in parts)
        or any(character in _NOT_IN_A_REF for character in name)
        or len(name) > 255
    ):
        raise bad_request(f"{name!r} can't name a branch or a tag: git would refuse it too")
    return name


def check_path(path: str) -> str:
    """`path`, a file's or a folder's name in a repo, or a 400."""
    parts = path.split("/")
    if (
        not is_encodable(path)
        or "\\" in path
        or any(ord(character) < 32 or ord(character) == 127 for character in path)
        or any(part in ("", ".", "..") for part in parts)
        or any(part.lower() in _RESERVED_FOLDERS for part in parts)
        or any(len(part.encode()) > 255 for part in parts)
        or _DRIVE.match(path)
    ):
        raise bad_request(
            f"{path!r} can't name a file: a relative path with '/', and no empty part, '.', '..', "
            "'.git', '.cache', drive letter, '\\' or control character"
        )
    return path


def check_digest(oid: str) -> str:
    """`oid`, an LFS object's sha256 in lower-case hex, or a 400."""
    if not _DIGEST.fullmatch(oid):
        raise bad_request(f"{oid!r} is no sha256 in lower-case hex")
    return oid


def is_encodable(name: str) -> bool:
    """False for the lone surrogates that JSON can carry and UTF-8 can't."""
    try:
        name.encode()
    except UnicodeEncodeError:
        return False
    return True
