"""Large files on their own way: the batch, the signed upload, and the check after it."""

from __future__ import annotations

import hashlib
import hmac
import time
from collections.abc import Mapping
from typing import Any
from urllib.parse import urlencode

from starlette.concurrency import run_in_threadpool
from starlette.requests import Request
from starlette.responses import JSONResponse, Response

from hub.server.answers import Json, name_url
from hub.server.desk import Desk, read_json, read_part, take_objects, take_size, take_text
from hub.server.names import check_digest
from hub.server.objects import Object
from hub.server.records import Repo
from hub.server.refusals import Refusal, bad_request
from hub.server.storage import Storage

_URL_LIFETIME = 3600  # seconds in which an upload may begin


async def answer_batch(request: Request) -> Response:
    fields = await read_json(request)
    return await run_in_threadpool(_answer_batch, request, fields)


def _answer_batch(request: Request, fields: Mapping[str, Any]) -> Response:
    desk = Desk.of(request)
    repo, _ = desk.find_writable(request)
    if fields.get("operation") != "upload":
        raise bad_request("LFS objects are uploaded by batch here; files are read by resolve")
    objects: list[Json] = []
    for wanted in take_objects(fields, "objects"):
        oid, size = check_digest(take_text(wanted, "oid")), take_size(wanted)
        described: Json = {"oid": oid, "size": size}
        if desk.storage.find_object(repo, oid) is None:
            described["authenticated"] = True
            described["actions"] = {
                "upload": {"href": _sign_upload(request, repo, oid, size)},
                "verify": {"href": name_url(request, repo, "lfs", "verify")},
            }
        objects.append(described)
    return JSONResponse(
        {"transfer": "basic", "objects": objects, "hash_algo": "sha256"},
        media_type="application/vnd.git-lfs+json",
    )


async def receive_object(request: Request) -> Response:
    """The bytes of an LFS object. The client sends no token here: the URL is signed."""
    desk = Desk.of(request)
    oid, query = check_digest(read_part(request, "oid")), request.query_params
    repo = await run_in_threadpool(
        desk.storage.find_repo, read_part(request, "namespace"), read_part(request, "name")
    )
    size, until = query.get("size", ""), query.get("until", "")
    if repo is None or not hmac.compare_digest(
        _sign(desk, repo, oid, size, until).encode(), query.get("signature", "").encode()
    ):
        raise Refusal(403, "this upload was not asked for, or the server was restarted since")
    if int(until) < time.time():
        raise Refusal(403, "this upload was asked for too long ago, push again")
    with desk.storage.objects.receive(int(size)) as incoming:
        async for chunk in request.stream():
            incoming.write(chunk)
            if incoming.received > incoming.size:
                raise bad_request(f"more than the announced {size} bytes came")
        arrived = await run_in_threadpool(incoming.finish)
        if (arrived.sha256, arrived.size) != (oid, incoming.size):
            raise bad_request(
                f"{arrived.size} bytes with sha256 {arrived.sha256} came, "
                f"and {size} with {oid} were announced"
            )
        await run_in_threadpool(desk.storage.keep, repo, incoming, arrived)
    return Response(status_code=200)


async def verify_object(request: Request) -> Response:
    fields = await read_json(request)
    return await run_in_threadpool(_verify_object, request, fields)


def _verify_object(request: Request, fields: Mapping[str, Any]) -> Response:
    desk = Desk.of(request)
    repo, _ = desk.find_writable(request)
    find_uploaded(desk.storage, repo, fields)
    return JSONResponse({})


def find_uploaded(storage: Storage, repo: Repo, fields: Mapping[str, Any]) -> Object:
    """The object that `fields` names, when this repo has it; 404 otherwise."""
    oid = check_digest(take_text(fields, "oid"))
    found = storage.find_object(repo, oid)
    if found is None or fields.get("size") not in (None, found.size):
        raise Refusal(404, f"the LFS object {oid} was not uploaded to {repo.id} with that size")
    return found


def _sign_upload(request: Request, repo: Repo, oid: str, size: int) -> str:
    until = str(int(time.time()) + _URL_LIFETIME)
    signature = _sign(Desk.of(request), repo, oid, str(size), until)
    query = urlencode({"size": size, "until": until, "signature": signature})
    return f"{name_url(request, repo, 'lfs', 'objects', oid)}?{query}"


def _sign(desk: Desk, repo: Repo, *parts: str) -> str:
    message = "\n".join((str(repo.key), *parts)).encode()
    return hmac.new(desk.signing_key, message, hashlib.sha256).hexdigest()
