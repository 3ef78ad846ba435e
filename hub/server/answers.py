"""The JSON that the Hub answers with, as its client reads it."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any
from urllib.parse import quote

from starlette.requests import Request
from starlette.responses import JSONResponse

from hub.server.cards import LARGEST, Card, CardError, derive_tags, find_library, parse_card
from hub.server.records import Commit, Entry, Repo, Tree, hash_tree
from hub.server.storage import Storage

Json = dict[str, Any]

PAGE = 1000  # items an answer has at most


def describe_model(
    storage: Storage, repo: Repo, commit: Commit, *, files: bool, blobs: bool
) -> Json:
    """A model at a commit; `files` lists its files, `blobs` with their sizes and digests."""
    tree = storage.read_tree(repo, commit)
    card = read_card(storage, tree)
    model: Json = {
        "_id": f"{repo.key:024x}",
        "id": repo.id,
        "modelId": repo.id,
        "author": repo.namespace,
        "sha": commit.oid,
        "createdAt": repo.created,
        "lastModified": commit.date,
        "private": repo.private,
        "gated": False,
        "disabled": False,
        "downloads": 0,
        "likes": 0,
        "tags": derive_tags(card, tree),
        "cardData": card,
        "usedStorage": sum(entry.object.size for entry in tree.values()),
    }
    library = find_library(card, tree)
    if library is not None:
        model["library_name"] = library
    if "pipeline_tag" in card:
        model["pipeline_tag"] = card["pipeline_tag"]
    if files:
        model["siblings"] = [_describe_sibling(path, entry, blobs) for path, entry in tree.items()]
    return model


def read_card(storage: Storage, tree: Tree) -> Card:
    """The metadata of a tree's README.md; empty when there is none that can be read."""
    entry = tree.get("README.md")
    if entry is None or entry.object.size > LARGEST:
        return {}
    try:
        return parse_card(storage.objects.find(entry.object.sha256).read_bytes())
    except (CardError, OSError):
        return {}


def describe_file(path: str, entry: Entry) -> Json:
    described: Json = {
        "type": "file",
        "oid": entry.oid,
        "size": entry.object.size,
        "path": path,
    }
    if entry.lfs:
        described["lfs"] = {
            "oid": entry.object.sha256,
            "size": entry.object.size,
            "pointerSize": len(entry.pointer),
        }
    return described


def describe_folder(tree: Tree, folder: str) -> Json:
    within = {path: entry for path, entry in tree.items() if path.startswith(f"{folder}/")}
    return {"type": "directory", "oid": hash_tree(within), "size": 0, "path": folder}


def list_folder(tree: Tree, folder: str, *, recursive: bool) -> list[Json]:
    """What is in a folder ("" is the root), by path; empty when there is no such folder."""
    prefix = f"{folder}/" if folder else ""
    folders: dict[str, None] = {}
    files: list[Json] = []
    for path, entry in tree.items():
        if not path.startswith(prefix):
            continue
        parents = path[len(prefix) :].split("/")[:-1]
        depth = len(parents) if recursive else 1
        for end in range(1, min(depth, len(parents)) + 1):
            folders[prefix + "/".join(parents[:end])] = None
        if recursive or not parents:
            files.append(describe_file(path, entry))
    listed = [describe_folder(tree, each) for each in folders]
    return sorted(listed + files, key=lambda item: str(item["path"]))


def describe_commit(commit: Commit) -> Json:
    return {
        "id": commit.oid,
        "title": commit.title,
        "message": commit.description,
        "authors": [{"user": commit.author}],
        "date": commit.date,
    }


def describe_refs(prefix: str, refs: dict[str, str]) -> list[Json]:
    return [
        {"name": name, "ref": f"{prefix}{name}", "targetCommit": oid} for name, oid in refs.items()
    ]


def answer_page(request: Request, items: Iterable[Json], size: int = PAGE) -> JSONResponse:
    """One page of `items`, with the Link to the next. The cursor is the number of items before."""
    every = list(items)
    cursor = request.query_params.get("cursor", "0")
    start = int(cursor) if cursor.isdecimal() else 0
    headers = {}
    if start + size < len(every):
        following = request.url.include_query_params(cursor=start + size)
        headers["Link"] = f'<{following}>; rel="next"'
    return JSONResponse(every[start : start + size], headers=headers)


def name_url(request: Request, repo: Repo, *rest: str) -> str:
    """The address of a repo, or of what is in it, as the client reached this server."""
    path = "/".join(quote(part, safe="") for part in (repo.namespace, repo.name, *rest))
    return f"{request.base_url}{path}"


def _describe_sibling(path: str, entry: Entry, blobs: bool) -> Json:
    sibling: Json = {"rfilename": path}
    if blobs:
        sibling |= {"size": entry.object.size, "blobId": entry.oid}
        if entry.lfs:
            sibling["lfs"] = {
                "sha256": entry.object.sha256,
                "size": entry.object.size,
                "pointerSize": len(entry.pointer),
            }
    return sibling
