"""What is asked of repos without changing them."""

from __future__ import annotations

from typing import Any
from urllib.parse import parse_qs

from starlette.concurrency import run_in_threadpool
from starlette.requests import Request
from starlette.responses import FileResponse, JSONResponse, Response

from hub.server.answers import (
    PAGE,
    Json,
    answer_page,
    describe_commit,
    describe_file,
    describe_folder,
    describe_model,
    describe_refs,
    list_folder,
)
from hub.server.desk import Desk, read_body, read_flag, read_part
from hub.server.records import Commit, Repo
from hub.server.refusals import Refusal, bad_request, entry_not_found
from hub.server.storage import MAIN

# What a list of models says of each when no more is asked.
_LISTED = frozenset({"_id", "id", "modelId", "private", "downloads", "likes", "createdAt"}) | {
    *("tags", "pipeline_tag", "library_name"),
}
_LISTED_IN_FULL = _LISTED | {"author", "sha", "lastModified", "gated", "disabled", "siblings"}
_SORTS = {"lastModified": "lastModified", "createdAt": "createdAt"}


def answer_whoami(request: Request) -> Response:
    user = Desk.of(request).accounts.identify(request)
    if user is None:
        raise Refusal(401, "who you are needs a token: log in or set HF_TOKEN")
    return JSONResponse(
        {
            "type": "user",
            "id": user.name,
            "name": user.name,
            "fullname": user.name,
            "orgs": [{"type": "org", "name": name} for name in sorted(user.namespaces or ())],
            "auth": {
                "type": "access_token",
                "accessToken": {"displayName": user.name, "role": user.role},
            },
        }
    )


def answer_harnesses(request: Request) -> Response:
    """The client asks once a day which agents there are; here, none."""
    return JSONResponse({"standardEnvVars": [], "harnesses": {}})


def answer_model(request: Request) -> Response:
    desk = Desk.of(request)
    repo = desk.find_readable(request)
    revision = read_part(request, "revision") if "revision" in request.path_params else MAIN
    commit = desk.find_commit(repo, revision)
    blobs = read_flag(request, "blobs")
    model = describe_model(desk.storage, repo, commit, files=True, blobs=blobs)
    return JSONResponse(_select(request, model, frozenset(model)))


def answer_models(request: Request) -> Response:
    desk = Desk.of(request)
    user = desk.accounts.identify(request)
    models = [
        describe_model(desk.storage, repo, desk.find_commit(repo, MAIN), files=True, blobs=False)
        for repo in desk.storage.list_repos()
        if not repo.private or (user is not None and user.belongs_to(repo.namespace))
    ]
    sort = _SORTS.get(request.query_params.get("sort", ""), "lastModified")
    models = [model for model in models if _matches(request, model)]
    models.sort(key=lambda model: str(model[sort]), reverse=True)
    limit = request.query_params.get("limit", "")
    size = max(1, min(int(limit), PAGE)) if limit.isdecimal() else PAGE
    keys = _LISTED_IN_FULL if read_flag(request, "full") else _LISTED
    if read_flag(request, "cardData"):
        keys |= {"cardData"}
    return answer_page(request, [_select(request, model, keys) for model in models], size)


def answer_tree(request: Request) -> Response:
    repo, commit = _find(request)
    folder = read_part(request, "path") if "path" in request.path_params else ""
    folder = folder.strip("/")
    tree = Desk.of(request).storage.read_tree(repo, commit)
    listed = list_folder(tree, folder, recursive=read_flag(request, "recursive"))
    if folder and not listed:
        raise entry_not_found(repo.id, folder, commit.oid)
    return answer_page(request, listed)


async def answer_paths(request: Request) -> Response:
    fields = parse_qs((await read_body(request)).decode("ascii", "replace"))
    repo, commit = await run_in_threadpool(_find, request)
    tree = await run_in_threadpool(Desk.of(request).storage.read_tree, repo, commit)
    found: list[Json] = []
    for asked in fields.get("paths", []):
        path = asked.strip("/")
        if path in tree:
            found.append(describe_file(path, tree[path]))
        elif any(other.startswith(f"{path}/") for other in tree):
            found.append(describe_folder(tree, path))
    return JSONResponse(found)


def answer_refs(request: Request) -> Response:
    desk = Desk.of(request)
    repo = desk.find_readable(request)
    refs: dict[str, Any] = {
        "branches": describe_refs("refs/heads/", desk.storage.list_refs(repo, "branch")),
        "converts": [],
        "tags": describe_refs("refs/tags/", desk.storage.list_refs(repo, "tag")),
    }
    if "include_prs" in request.query_params:
        refs["pullRequests"] = []
    return JSONResponse(refs)


def answer_commits(request: Request) -> Response:
    repo, commit = _find(request)
    commits = Desk.of(request).storage.list_commits(repo, commit)
    return answer_page(request, [describe_commit(each) for each in commits])


def answer_access(request: Request) -> Response:
    Desk.of(request).find_readable(request)
    return JSONResponse({"read": True})


def answer_write_access(request: Request) -> Response:
    Desk.of(request).find_writable(request)
    return JSONResponse({"write": True})


def send_file(request: Request) -> Response:
    """A file's bytes, or a range of them; HEAD tells size, digest and commit."""
    desk = Desk.of(request)
    repo, commit = _find(request)
    path = read_part(request, "path")
    entry = desk.storage.read_tree(repo, commit).get(path)
    if entry is None:
        raise entry_not_found(repo.id, path, commit.oid)
    stored = desk.storage.objects.find(entry.object.sha256)
    if not stored.is_file():
        raise Refusal(500, f"the bytes of {path} in {repo.id} are gone from this server's disk")
    etag = f'"{entry.object.sha256 if entry.lfs else entry.object.git}"'
    headers = {
        "ETag": etag,
        "X-Repo-Commit": commit.oid,
        # What is pushed is no page of this server's, whatever it says it is.
        "X-Content-Type-Options": "nosniff",
    }
    if entry.lfs:
        headers |= {"X-Linked-ETag": etag, "X-Linked-Size": str(entry.object.size)}
    return FileResponse(stored, headers=headers, media_type="application/octet-stream")


def refuse_xet(request: Request) -> Response:
    raise bad_request("this server has no xet: set HF_HUB_DISABLE_XET=1 to push a file this large")


def _find(request: Request) -> tuple[Repo, Commit]:
    desk = Desk.of(request)
    repo = desk.find_readable(request)
    return repo, desk.find_commit(repo, read_part(request, "revision"))


def _matches(request: Request, model: Json) -> bool:
    query = request.query_params
    return (
        query.get("author", model["author"]) == model["author"]
        and query.get("search", "").lower() in model["id"].lower()
        and set(query.getlist("filter")) <= set(model["tags"])
        and query.get("pipeline_tag") in (None, model.get("pipeline_tag"))
    )


def _select(request: Request, model: Json, keys: frozenset[str]) -> Json:
    """The parts of `model` that the request asks for by `expand`, or else `keys`."""
    expand = request.query_params.getlist("expand")
    chosen = frozenset(("_id", "id", "modelId", *expand)) if expand else keys
    return {key: value for key, value in model.items() if key in chosen}
