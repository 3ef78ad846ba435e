"""A server over a folder of the test's own, the real client to it, and tiny adapters."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from huggingface_hub import HfApi, constants
from huggingface_hub.utils import disable_progress_bars
from starlette.types import ASGIApp, Message, Receive, Scope, Send

import hub
from hub.server import HubServer, User
from tests.tiny import build_tiny

TOKENS = {
    "ana-writes": User("ana", namespaces=frozenset({"team"})),
    "rob-reads": User("rob", "read", namespaces=frozenset({"ana"})),
    "eve-writes": User("eve", namespaces=frozenset()),
}
OPTIONS: dict[str, dict[str, Any]] = {"lora": dict(r=2, alpha=4), "houlsby": dict(size=3)}

Make = Callable[..., hub.Adapter]


class Meddler:
    """A middleware that counts requests and changes the bodies of files on their way out."""

    def __init__(self) -> None:
        self.app: ASGIApp | None = None
        self.asked: list[tuple[str, str]] = []
        self.flips: dict[str, int] = {}  # by a file's name: how many downloads arrive damaged
        self.statuses: dict[str, int] = {}  # by the end of a path: the answer to every request

    def wrap(self, app: ASGIApp) -> ASGIApp:
        self.app = app
        return self

    def count(self, method: str, part: str) -> int:
        return sum(verb == method and part in path for verb, path in self.asked)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        assert self.app is not None
        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return
        path = scope["path"]
        self.asked.append((scope["method"], path))
        for end, status in self.statuses.items():
            if path.endswith(end):
                await send({"type": "http.response.start", "status": status, "headers": []})
                await send({"type": "http.response.body", "body": b""})
                return
        name = path.rpartition("/")[2]
        flipping = scope["method"] == "GET" and "/resolve/" in path and self.flips.get(name, 0) > 0
        if flipping:
            self.flips[name] -= 1

        async def send_flipped(message: Message) -> None:
            if flipping and message["type"] == "http.response.body" and message.get("body"):
                body = bytearray(message["body"])
                body[len(body) // 2] ^= 1
                message = {**message, "body": bytes(body)}
            await send(message)

        await self.app(scope, receive, send_flipped)


@pytest.fixture
def meddler() -> Meddler:
    return Meddler()


@pytest.fixture
def served(tmp_path: Path) -> Path:
    return tmp_path / "served"


@pytest.fixture
def server(served: Path, meddler: Meddler) -> Iterator[HubServer]:
    with HubServer(served, TOKENS, wrap=meddler.wrap) as running:
        yield running


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """What HF_HOME, HF_TOKEN and their like do in a new process: ana, and a cache of her own."""
    path = tmp_path / "hf-home"
    disable_progress_bars()
    monkeypatch.setenv("HF_TOKEN", "ana-writes")
    monkeypatch.setattr(constants, "HF_HOME", str(path))
    monkeypatch.setattr(constants, "HF_TOKEN_PATH", str(path / "token"))
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(path / "hub"))
    harnesses = str(path / "harnesses.json")
    monkeypatch.setattr(constants, "AGENT_HARNESSES_PATH", harnesses, raising=False)
    return path / "hub"


@pytest.fixture
def set_endpoint(monkeypatch: pytest.MonkeyPatch) -> Callable[[str], None]:
    """What HF_ENDPOINT does in a new process."""

    def change(url: str) -> None:
        monkeypatch.setattr(constants, "ENDPOINT", url)
        template = f"{url}/{{repo_id}}/resolve/{{revision}}/{{filename}}"
        monkeypatch.setattr(constants, "HUGGINGFACE_CO_URL_TEMPLATE", template)

    return change


@pytest.fixture
def online(server: HubServer, set_endpoint: Callable[[str], None]) -> HubServer:
    """The server, where the client looks for it."""
    set_endpoint(server.url)
    return server


@pytest.fixture
def api(online: HubServer) -> HfApi:
    return HfApi(endpoint=online.url, token="ana-writes")


@pytest.fixture(scope="session")
def model() -> Any:
    return build_tiny("llama")


@pytest.fixture
def make_adapter(model: Any) -> Make:
    """A new adapter with weights of its own for each seed, as if it had been trained."""

    def make(method: str = "lora", seed: int = 0) -> hub.Adapter:
        adapter = hub.Adapter.create(method, model, **OPTIONS[method])
        generator = torch.Generator().manual_seed(seed)
        for tensor in adapter.tensors.values():
            tensor.data.copy_(torch.randn(tensor.shape, generator=generator) * 0.1)
        return adapter

    return make


@pytest.fixture
def registry() -> hub.Registry:
    return hub.Registry()


@pytest.fixture
def other(tmp_path: Path) -> hub.Registry:
    """A registry on another machine."""
    return hub.Registry(home=tmp_path / "other-home")


@pytest.fixture
def sst2(registry: hub.Registry, make_adapter: Make) -> hub.Adapter:
    """sst2@1 in the registry."""
    adapter = make_adapter()
    adapter.metrics = {"accuracy": 0.913}
    registry.add(adapter, name="sst2", task="sentiment")
    return adapter


def assert_equal_tensors(left: hub.Adapter, right: hub.Adapter) -> None:
    assert left.tensors.keys() == right.tensors.keys()
    assert all(torch.equal(left.tensors[name], right.tensors[name]) for name in left.tensors)


@pytest.fixture(name="assert_equal_tensors")
def _assert_equal_tensors() -> Callable[[hub.Adapter, hub.Adapter], None]:
    return assert_equal_tensors
