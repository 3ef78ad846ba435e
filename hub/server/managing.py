"""Making, changing and deleting repos, branches and tags."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from starlette.concurrency import run_in_threadpool
from starlette.requests import Request
from starlette.responses import JSONResponse, Response

from hub.server.accounts import User
from hub.server.answers import name_url
from hub.server.cards import CardError, parse_card
from hub.server.desk import Desk, parse_json, read_body, read_json, read_part, take_text
from hub.server.names import check_namespace, check_ref, check_repo_name
from hub.server.refusals import Refusal, bad_request, repo_not_found, revision_not_found
from hub.server.storage import MAIN


async def create_repo(request: Request) -> Response:
    fields = await read_json(request)
    return await run_in_threadpool(_create_repo, request, fields)


def _create_repo(request: Request, fields: Mapping[str, Any]) -> Response:
    desk = Desk.of(request)
    namespace, name, user = _read_target(request, fields)
    repo = desk.storage.create_repo(
        check_namespace(namespace),
        check_repo_name(name),
        private=_read_private(fields),
        author=user.name,
    )
    if repo is None:
        taken = desk.storage.find_repo(namespace, name)
        url = name_url(request, taken) if taken else None
        raise Refusal(409, f"there is a repo {namespace}/{name} already", body={"url": url})
    return JSONResponse({"url": name_url(request, repo), "name": repo.id, "id": repo.id})


async def delete_repo(request: Request) -> Response:
    fields = await read_json(request)
    return await run_in_threadpool(_delete_repo, request, fields)


def _delete_repo(request: Request, fields: Mapping[str, Any]) -> Response:
    desk = Desk.of(request)
    namespace, name, _ = _read_target(request, fields)
    repo = desk.storage.find_repo(namespace, name)
    if repo is None:
        raise repo_not_found(f"{namespace}/{name}", known_user=True)
    desk.storage.delete_repo(repo)
    return JSONResponse({})


async def change_settings(request: Request) -> Response:
    fields = await read_json(request)
    return await run_in_threadpool(_change_settings, request, fields)


def _change_settings(request: Request, fields: Mapping[str, Any]) -> Response:
    desk = Desk.of(request)
    repo, _ = desk.find_writable(request)
    if not fields.keys() <= {"visibility", "private"}:
        raise bad_request("visibility is the only setting of a repo here")
    private = _read_private(fields)
    desk.storage.set_private(repo, private)
    return JSONResponse({"private": private})


async def validate_card(request: Request) -> Response:
    """The client asks before it pushes a README.md."""
    content = take_text(await read_json(request), "content")
    try:
        parse_card(content.encode())
    except CardError as error:
        return JSONResponse({"errors": [{"message": str(error)}], "warnings": []}, 400)
    return JSONResponse({"errors": [], "warnings": []})


async def create_branch(request: Request) -> Response:
    body = await read_body(request)
    fields = parse_json(body) if body else {}
    return await run_in_threadpool(_create_branch, request, fields)


def _create_branch(request: Request, fields: Mapping[str, Any]) -> Response:
    branch = check_ref(read_part(request, "branch"))
    return _add_ref(request, "branch", branch, take_text(fields, "startingPoint", MAIN))


async def create_tag(request: Request) -> Response:
    fields = await read_json(request)
    return await run_in_threadpool(_create_tag, request, fields)


def _create_tag(request: Request, fields: Mapping[str, Any]) -> Response:
    tag = check_ref(take_text(fields, "tag"))
    return _add_ref(request, "tag", tag, read_part(request, "ref"))


def delete_branch(request: Request) -> Response:
    branch = read_part(request, "branch")
    if branch == MAIN:
        raise Refusal(403, f"the branch {MAIN} can't be deleted, delete the repo instead")
    return _remove_ref(request, "branch", branch)


def delete_tag(request: Request) -> Response:
    return _remove_ref(request, "tag", read_part(request, "ref"))


def _add_ref(request: Request, kind: str, name: str, revision: str) -> Response:
    desk = Desk.of(request)
    repo, _ = desk.find_writable(request)
    commit = desk.find_commit(repo, revision)
    if not desk.storage.add_ref(repo, kind, name, commit):
        raise Refusal(409, f"{repo.id} has a {kind} {name} already, at another commit or this one")
    return JSONResponse({"name": name, "targetCommit": commit.oid}, 201)


def _remove_ref(request: Request, kind: str, name: str) -> Response:
    desk = Desk.of(request)
    repo, _ = desk.find_writable(request)
    if not desk.storage.remove_ref(repo, kind, name):
        raise revision_not_found(repo.id, name)
    return JSONResponse({})


def _read_target(request: Request, fields: Mapping[str, Any]) -> tuple[str, str, User]:
    """The repo that is meant, and the user who may write there; 400 for no model's."""
    kind = take_text(fields, "type", "model")
    if kind != "model":
        raise bad_request(f"this server keeps models alone, no {kind}")
    name = take_text(fields, "name")
    user = Desk.of(request).accounts.identify(request)
    namespace = take_text(fields, "organization", user.name if user is not None else "")
    return namespace, name, Desk.of(request).accounts.require_writer(request, namespace)


def _read_private(fields: Mapping[str, Any]) -> bool:
    private = fields.get("private") is True
    visibility = take_text(fields, "visibility", "private" if private else "public")
    if visibility not in ("private", "public"):
        raise bad_request(f"visibility is private or public, not {visibility}")
    return visibility == "private"
