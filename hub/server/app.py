"""The routes of the server, as an ASGI application."""

from __future__ import annotations

import sqlite3
from collections.abc import Mapping
from pathlib import Path

from starlette.applications import Starlette
from starlette.datastructures import Headers
from starlette.exceptions import HTTPException
from starlette.middleware import Middleware
from starlette.middleware.trustedhost import TrustedHostMiddleware
from starlette.requests import ClientDisconnect, Request
from starlette.responses import JSONResponse, Response
from starlette.routing import Route
from starlette.types import ASGIApp, Receive, Scope, Send

from hub.server import lfs, managing, pushing, reading
from hub.server.accounts import Accounts, User
from hub.server.desk import Desk
from hub.server.refusals import Refusal, answer_refusal
from hub.server.storage import Storage

LFS_FROM = 1024**3  # bytes

_MODEL = "/api/models/{namespace}/{name}"
_REPO = "/{namespace}/{name}"

_ROUTES = [
    Route("/api/whoami-v2", reading.answer_whoami),
    Route("/api/agent-harnesses", reading.answer_harnesses),
    Route("/api/validate-yaml", managing.validate_card, methods=["POST"]),
    Route("/api/repos/create", managing.create_repo, methods=["POST"]),
    Route("/api/repos/delete", managing.delete_repo, methods=["DELETE"]),
    Route("/api/models", reading.answer_models),
    Route(_MODEL, reading.answer_model),
    Route(f"{_MODEL}/revision/{{revision}}", reading.answer_model),
    Route(f"{_MODEL}/tree/{{revision}}", reading.answer_tree),
    Route(f"{_MODEL}/tree/{{revision}}/{{path:path}}", reading.answer_tree),
    Route(f"{_MODEL}/paths-info/{{revision}}", reading.answer_paths, methods=["POST"]),
    Route(f"{_MODEL}/refs", reading.answer_refs),
    Route(f"{_MODEL}/commits/{{revision}}", reading.answer_commits),
    Route(f"{_MODEL}/auth-check", reading.answer_access),
    Route(f"{_MODEL}/auth-check/write", reading.answer_write_access),
    Route(f"{_MODEL}/settings", managing.change_settings, methods=["PUT"]),
    Route(f"{_MODEL}/branch/{{branch}}", managing.create_branch, methods=["POST"]),
    Route(f"{_MODEL}/branch/{{branch}}", managing.delete_branch, methods=["DELETE"]),
    Route(f"{_MODEL}/tag/{{ref}}", managing.create_tag, methods=["POST"]),
    Route(f"{_MODEL}/tag/{{ref}}", managing.delete_tag, methods=["DELETE"]),
    Route(f"{_MODEL}/preupload/{{revision}}", pushing.preupload, methods=["POST"]),
    Route(f"{_MODEL}/commit/{{revision}}", pushing.commit, methods=["POST"]),
    Route(f"{_MODEL}/xet-write-token/{{revision}}", reading.refuse_xet),
    Route(
        "/{namespace}/{name}.git/info/lfs/objects/batch",
        lfs.answer_batch,
        methods=["POST"],
    ),
    Route(f"{_REPO}/lfs/verify", lfs.verify_object, methods=["POST"]),
    Route(f"{_REPO}/lfs/objects/{{oid}}", lfs.receive_object, methods=["PUT"]),
    Route(f"{_REPO}/resolve/{{revision}}/{{path:path}}", reading.send_file),
]


def create_app(
    folder: Path, tokens: Mapping[str, User] | None = None, *, lfs_from: int = LFS_FROM
) -> Starlette:
    """The server over `folder`, which is made when it is not there.

    With no `tokens` it is open to every caller. Files of `lfs_from` bytes and more are pushed
    through LFS, which a client with hf_xet can only do with HF_HUB_DISABLE_XET=1.

    Raises `RemoteError` when the folder can't be used.
    """
    app = Starlette(
        routes=_ROUTES,
        middleware=[
            Middleware(TrustedHostMiddleware, allowed_hosts=["127.0.0.1", "localhost"]),
            Middleware(_NoPages),
            Middleware(_SentPath),
        ],
        exception_handlers={
            Refusal: answer_refusal,
            HTTPException: _answer_unrouted,
            sqlite3.IntegrityError: _answer_race,
            ClientDisconnect: _answer_nobody,
        },
    )
    app.state.desk = Desk(Storage(folder), Accounts(tokens), lfs_from)
    return app


class _NoPages:
    """Nothing is done for a page in a browser: any page could push to an open server here.

    The check of the host, beside this one, is for names that were made to point to this machine.
    """

    def __init__(self, app: ASGIApp) -> None:
        self._app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "http" and "origin" in Headers(scope=scope):
            answer = JSONResponse({"error": "this server is not for pages in a browser"}, 403)
            await answer(scope, receive, send)
        else:
            await self._app(scope, receive, send)


class _SentPath:
    """Routes match the path as it was sent, so that `feature%2Fx` is one part of it."""

    def __init__(self, app: ASGIApp) -> None:
        self._app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "http":
            scope = {**scope, "path": scope["raw_path"].decode("ascii", "replace")}
        await self._app(scope, receive, send)


def _answer_unrouted(request: Request, error: Exception) -> Response:
    if not isinstance(error, HTTPException):
        raise error
    message = f"this server has no {request.method} {request.url.path}"
    return JSONResponse({"error": message}, error.status_code, headers=error.headers)


def _answer_race(request: Request, error: Exception) -> Response:
    """A repo that another request deleted since this one found it."""
    return JSONResponse({"error": "the repo has changed meanwhile, try again"}, 409)


def _answer_nobody(request: Request, error: Exception) -> Response:
    """The client went away in the middle of its body."""
    return Response(status_code=400)
