"""A push: what each file is sent as, and the commit."""

from __future__ import annotations

import base64
import binascii
from collections.abc import Callable, Mapping
from contextlib import ExitStack
from typing import Any, Self

from starlette.concurrency import run_in_threadpool
from starlette.requests import Request
from starlette.responses import JSONResponse, Response

from hub.server.accounts import User
from hub.server.answers import Json, name_url
from hub.server.cards import LARGEST, CardError, parse_card
from hub.server.desk import (
    Desk,
    parse_json,
    read_json,
    read_lines,
    read_part,
    take_objects,
    take_size,
    take_text,
)
from hub.server.lfs import find_uploaded
from hub.server.names import check_path
from hub.server.objects import Incoming, Object
from hub.server.records import Commit, Entry, Repo, Tree
from hub.server.refusals import Refusal, bad_request, revision_not_found

_LARGE = 10 * 1024 * 1024  # bytes, from which the Hub lists any file as LFS
_SAMPLE = 512  # bytes, what the client shows of a file before it sends it
_WEIGHTS = (
    *(".safetensors", ".bin", ".pt", ".pth", ".ckpt", ".onnx", ".gguf", ".h5", ".msgpack"),
    *(".model", ".npy", ".npz", ".pkl", ".pickle", ".joblib", ".arrow", ".parquet"),
    *(".zip", ".gz", ".tar", ".7z", ".zst"),
)


def is_lfs(path: str, size: int, sample: bytes) -> bool:
    """Whether a file is listed as LFS: weights, binaries and what is large, as on the Hub."""
    return size > 0 and (
        path.lower().endswith(_WEIGHTS) or size > _LARGE or b"\0" in sample[:_SAMPLE]
    )


async def preupload(request: Request) -> Response:
    fields = await read_json(request)
    return await run_in_threadpool(_preupload, request, fields)


def _preupload(request: Request, fields: Mapping[str, Any]) -> Response:
    desk = Desk.of(request)
    repo, _ = desk.find_writable(request)
    _refuse_pull_request(request)
    tree = desk.storage.read_tree(repo, desk.find_commit(repo, read_part(request, "revision")))
    files: list[Json] = []
    for file in take_objects(fields, "files"):
        path = check_path(take_text(file, "path"))
        lfs = take_size(file) >= desk.lfs_from
        described: Json = {
            "path": path,
            "uploadMode": "lfs" if lfs else "regular",
            "shouldIgnore": False,
        }
        entry = tree.get(path)
        if entry is not None:
            # The client compares with the sha256 of what it sends as LFS, git's id otherwise.
            described["oid"] = entry.object.sha256 if lfs else entry.object.git
        files.append(described)
    return JSONResponse({"files": files})


async def commit(request: Request) -> Response:
    desk = Desk.of(request)
    repo, user = await run_in_threadpool(desk.find_writable, request)
    _refuse_pull_request(request)
    branch = read_part(request, "revision").removeprefix("refs/heads/")
    header: Mapping[str, Any] | None = None
    largest = max(desk.lfs_from, _LARGE)
    with Push(desk, repo, branch) as push:
        async for line in read_lines(request, limit=largest * 4 // 3 + 64 * 1024):
            if line.strip():
                key, value = _parse_operation(line)
                if key == "header":
                    header = value
                else:
                    await run_in_threadpool(push.add, key, value)
        if header is None:
            raise bad_request("the commit has no header")
        made = await run_in_threadpool(push.finish, header, user)
    url = name_url(request, repo, "commit", made.oid)
    return JSONResponse({"success": True, "commitOid": made.oid, "commitUrl": url})


class Push:
    """The operations of one commit; bytes that came with it are gone at the end of `with`,
    unless `finish` made the commit.
    """

    def __init__(self, desk: Desk, repo: Repo, branch: str) -> None:
        self._storage = desk.storage
        self._repo = repo
        self._branch = branch
        self._changes: list[Callable[[Tree], None]] = []
        self._arrived: list[tuple[Incoming, Object]] = []
        self._places = ExitStack()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *raised: object) -> None:
        self._places.close()

    def add(self, key: str, value: Mapping[str, Any]) -> None:
        """One operation, as a line of the commit says it."""
        path = check_path(take_text(value, "path").removesuffix("/"))
        if key == "file":
            content = _decode_content(value)
            if path == "README.md":
                _check_card(content)
            lfs = is_lfs(path, len(content), content)
            self._add_file(path, Entry(self._receive(content), lfs))
        elif key == "lfsFile":
            found = find_uploaded(self._storage, self._repo, value)
            if path == "README.md" and found.size <= LARGEST:
                _check_card(self._storage.objects.find(found.sha256).read_bytes())
            self._add_file(path, Entry(found, lfs=True))
        elif key in ("deletedFile", "deletedFolder"):
            is_folder = key == "deletedFolder"
            self._changes.append(lambda tree: self._delete(tree, path, is_folder))
        else:
            raise bad_request(f"{key} is no operation of a commit here")

    def finish(self, header: Mapping[str, Any], user: User) -> Commit:
        parent = take_text(header, "parentCommit", "").lower()

        def change(head: Commit, tree: Tree) -> Tree:
            if not head.oid.startswith(parent):
                raise Refusal(
                    412,
                    f"a commit has happened since {parent}: {self._branch} of {self._repo.id} "
                    f"is at {head.oid}; read it and try again",
                )
            for apply in self._changes:
                apply(tree)
            _check_tree(tree)
            return tree

        made = self._storage.commit(
            self._repo,
            self._branch,
            change,
            arrived=self._arrived,
            title=take_text(header, "summary", ""),
            description=take_text(header, "description", ""),
            author=user.name,
        )
        if made is None:
            raise revision_not_found(self._repo.id, self._branch)
        return made

    def _receive(self, content: bytes) -> Object:
        incoming = self._places.enter_context(self._storage.objects.receive(len(content)))
        incoming.write(content)
        self._arrived.append((incoming, arrived := incoming.finish()))
        return arrived

    def _add_file(self, path: str, entry: Entry) -> None:
        self._changes.append(lambda tree: tree.update({path: entry}))

    def _delete(self, tree: Tree, path: str, is_folder: bool) -> None:
        gone = [
            file for file in tree if (file.startswith(f"{path}/") if is_folder else file == path)
        ]
        if not gone:
            # The client looks for these words, to say that a folder's name ends in '/'.
            message = f"A file with this name doesn't exist in {self._repo.id}: {path}"
            raise Refusal(404, message, code="EntryNotFound")
        for file in gone:
            del tree[file]


def _parse_operation(line: bytes) -> tuple[str, Mapping[str, Any]]:
    operation = parse_json(line)
    value = operation.get("value")
    if not isinstance(value, dict):
        raise bad_request("a line of the commit has no value")
    return take_text(operation, "key"), value


def _check_tree(tree: Tree) -> None:
    for path in tree:
        parts = path.split("/")
        for end in range(1, len(parts)):
            if (parent := "/".join(parts[:end])) in tree:
                raise bad_request(f"{parent} can't be a file and the folder of {path}")


def _decode_content(value: Mapping[str, Any]) -> bytes:
    content, encoding = take_text(value, "content"), take_text(value, "encoding", "utf-8")
    if encoding == "utf-8":
        return content.encode()
    try:
        return base64.b64decode(content, validate=True)
    except (binascii.Error, ValueError) as error:
        raise bad_request(f"the content of {value.get('path')} is no base64") from error


def _check_card(readme: bytes) -> None:
    try:
        parse_card(readme)
    except CardError as error:
        raise bad_request(f"README.md is refused: {error}") from error


def _refuse_pull_request(request: Request) -> None:
    if "create_pr" in request.query_params:
        raise bad_request("this server has no pull requests, push to a branch")
