"""The server in a thread of this process."""

from __future__ import annotations

import socket
import threading
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from types import TracebackType
from typing import Self

import uvicorn
from starlette.types import ASGIApp

from hub.errors import RemoteError
from hub.server.accounts import User
from hub.server.app import LFS_FROM, create_app

_HOST = "127.0.0.1"
_PATIENCE = 10  # seconds for the server to start, and to stop


class HubServer:
    """The server over a folder, at `url` from `with` on until its end.

    `port` 0 takes a free one. `wrap` is given the ASGI application and returns the one that is
    served, for a middleware around it.
    """

    def __init__(
        self,
        folder: Path,
        tokens: Mapping[str, User] | None = None,
        port: int = 0,
        *,
        lfs_from: int = LFS_FROM,
        wrap: Callable[[ASGIApp], ASGIApp] | None = None,
    ) -> None:
        """Raises `RemoteError` when the folder can't be used."""
        app: ASGIApp = create_app(folder, tokens, lfs_from=lfs_from)
        self._app = app if wrap is None else wrap(app)
        self._port = port
        self._server: uvicorn.Server | None = None
        self._thread: threading.Thread | None = None

    @property
    def url(self) -> str:
        """Without a slash at its end; the port is known once the server runs."""
        return f"http://{_HOST}:{self._port}"

    def __enter__(self) -> Self:
        """Raises `RemoteError` when the port is taken or the server does not start."""
        # With the protocol said: asyncio turns Nagle's algorithm off for such sockets alone, and
        # with it on every answer waits 40 ms.
        listener = socket.socket(socket.AF_INET, socket.SOCK_STREAM, socket.IPPROTO_TCP)
        try:
            listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            listener.bind((_HOST, self._port))
        except OSError as error:
            listener.close()
            raise RemoteError(
                f"{_HOST}:{self._port} can't be listened on: {error.strerror}; "
                "choose another port, or 0 for a free one"
            ) from error
        self._port = listener.getsockname()[1]
        config = uvicorn.Config(
            self._app,
            lifespan="off",
            ws="none",
            log_config=None,
            log_level="warning",
            access_log=False,
            timeout_graceful_shutdown=1,
        )
        self._server = uvicorn.Server(config)
        self._thread = threading.Thread(
            target=self._server.run, args=([listener],), name="hub-server", daemon=True
        )
        self._thread.start()
        deadline = time.monotonic() + _PATIENCE
        while not self._server.started:
            if not self._thread.is_alive() or time.monotonic() > deadline:
                self._stop()
                listener.close()
                raise RemoteError(f"the server at {self.url} did not start, its log says why")
            time.sleep(0.005)
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self._stop()

    def _stop(self) -> None:
        if self._server is not None and self._thread is not None:
            self._server.should_exit = True
            self._thread.join(_PATIENCE)
        self._server = self._thread = None
