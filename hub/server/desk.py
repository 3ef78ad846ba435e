"""What every handler asks first: who it is, which repo, which commit, what was sent."""

from __future__ import annotations

import json
import secrets
from collections.abc import AsyncIterator, Mapping
from dataclasses import dataclass, field
from typing import Any
from urllib.parse import unquote

from starlette.requests import Request

from hub.server.accounts import Accounts, User
from hub.server.names import is_encodable
from hub.server.records import Commit, Repo
from hub.server.refusals import Refusal, bad_request, repo_not_found, revision_not_found
from hub.server.storage import Storage

_LARGEST_JSON = 64 * 1024 * 1024  # bytes


@dataclass(frozen=True)
class Desk:
    """What the handlers share. `lfs_from` is the size in bytes at which preupload says LFS."""

    storage: Storage
    accounts: Accounts
    lfs_from: int
    signing_key: bytes = field(default_factory=lambda: secrets.token_bytes(32), repr=False)

    @staticmethod
    def of(request: Request) -> Desk:
        desk: Desk = request.app.state.desk
        return desk

    def find_readable(self, request: Request) -> Repo:
        """The repo in the request's path, or a refusal when the caller may not see it."""
        user = self.accounts.identify(request)
        namespace, name = read_part(request, "namespace"), read_part(request, "name")
        repo = self.storage.find_repo(namespace, name)
        hidden = repo is not None and repo.private
        if repo is None or (hidden and not (user is not None and user.belongs_to(namespace))):
            raise repo_not_found(f"{namespace}/{name}", known_user=user is not None)
        return repo

    def find_writable(self, request: Request) -> tuple[Repo, User]:
        """The repo in the request's path and who writes, or a refusal when they may not."""
        repo = self.find_readable(request)
        return repo, self.accounts.require_writer(request, repo.namespace)

    def find_commit(self, repo: Repo, revision: str) -> Commit:
        commit = self.storage.resolve(repo, revision)
        if commit is None:
            raise revision_not_found(repo.id, revision)
        return commit


def read_part(request: Request, name: str) -> str:
    """A part of the path, decoded here since routes match the path as it was sent."""
    return unquote(request.path_params[name])


def read_flag(request: Request, name: str) -> bool:
    return request.query_params.get(name, "").lower() in ("1", "true")


async def read_body(request: Request, limit: int = _LARGEST_JSON) -> bytes:
    parts = []
    size = 0
    async for chunk in request.stream():
        size += len(chunk)
        if size > limit:
            raise Refusal(413, f"the body is over {limit} bytes")
        parts.append(chunk)
    return b"".join(parts)


async def read_json(request: Request) -> Mapping[str, Any]:
    return parse_json(await read_body(request))


async def read_lines(request: Request, limit: int) -> AsyncIterator[bytes]:
    """The body's lines as they come, so that one of them is held at a time."""
    pending: list[bytes] = []
    size = 0
    async for chunk in request.stream():
        *ended, rest = chunk.split(b"\n")
        for line in ended:
            yield b"".join([*pending, line])
            pending, size = [], 0
        size += len(rest)
        if size > limit:
            raise Refusal(413, f"a line of the body is over {limit} bytes")
        pending.append(rest)
    yield b"".join(pending)


def parse_json(body: bytes) -> Mapping[str, Any]:
    try:
        parsed = json.loads(body)
    except (ValueError, RecursionError) as error:
        raise bad_request("the body is no JSON") from error
    if not isinstance(parsed, dict):
        raise bad_request("the body is no JSON object")
    return parsed


def take_text(fields: Mapping[str, Any], key: str, default: str | None = None) -> str:
    value = fields.get(key)
    value = default if value is None else value
    if not isinstance(value, str) or not is_encodable(value):
        raise bad_request(f"{key} is missing or is no text")
    return value


def take_size(fields: Mapping[str, Any], key: str = "size") -> int:
    value = fields.get(key)
    if not isinstance(value, int) or isinstance(value, bool) or not 0 <= value < 2**63:
        raise bad_request(f"{key} is missing or is no number of bytes")
    return value


def take_objects(fields: Mapping[str, Any], key: str) -> list[Mapping[str, Any]]:
    value = fields.get(key)
    if not isinstance(value, list) or not all(isinstance(each, dict) for each in value):
        raise bad_request(f"{key} is missing or is no list of objects")
    return value
