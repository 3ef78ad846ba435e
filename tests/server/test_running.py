"""The server in its thread: ready when entered, gone when left."""

from __future__ import annotations

import importlib
import sys
import threading
from pathlib import Path

import httpx2
import pytest
from huggingface_hub import HfApi
from huggingface_hub.errors import HfHubHTTPError
from starlette.responses import PlainTextResponse
from starlette.types import ASGIApp, Receive, Scope, Send

import hub.server
from hub.errors import PackageMissing, RemoteError
from hub.server import HubServer


def test_a_server_answers_once_entered_and_no_more_once_left(served: Path) -> None:
    before = set(threading.enumerate())
    with HubServer(served) as server:
        assert httpx2.get(f"{server.url}/api/models").json() == []
        assert server.url.startswith("http://127.0.0.1:")
    with pytest.raises(httpx2.ConnectError):
        httpx2.get(f"{server.url}/api/models")
    assert "hub-server" not in {thread.name for thread in set(threading.enumerate()) - before}


def test_a_server_can_be_entered_again_at_its_port(served: Path) -> None:
    server = HubServer(served)
    with server:
        first = server.url
        HfApi(endpoint=first, token="t").create_repo("ana/sst2")
    with server:
        assert server.url == first
        assert HfApi(endpoint=first, token="t").repo_exists("ana/sst2")


def test_a_port_that_is_taken_is_said(served: Path) -> None:
    with HubServer(served) as server:
        port = int(server.url.rpartition(":")[2])
        with pytest.raises(RemoteError, match="choose another port"), HubServer(served, port=port):
            pass


def test_an_application_can_be_wrapped(served: Path) -> None:
    def break_downloads(app: ASGIApp) -> ASGIApp:
        async def wrapped(scope: Scope, receive: Receive, send: Send) -> None:
            broken = scope["type"] == "http" and "/resolve/" in scope["path"]
            answer = PlainTextResponse("out of order", 503) if broken else app
            await answer(scope, receive, send)

        return wrapped

    with HubServer(served, wrap=break_downloads) as server:
        api = HfApi(endpoint=server.url, token="t")
        api.create_repo("ana/sst2")
        api.upload_file(path_or_fileobj=b"1", path_in_repo="a", repo_id="ana/sst2")
        assert api.list_repo_files("ana/sst2") == ["a"]
        with pytest.raises(HfHubHTTPError):
            api.get_hf_file_metadata(url=f"{server.url}/ana/sst2/resolve/main/a")


def test_a_missing_package_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "uvicorn", None)
    with pytest.raises(PackageMissing, match=r"uvicorn.*pefthub\[serve\]"):
        importlib.reload(hub.server)
    monkeypatch.undo()
    importlib.reload(hub.server)
