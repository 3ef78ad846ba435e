"""A server over a folder of the test's own, and the real client to it."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from pathlib import Path

import httpx2
import pytest
from huggingface_hub import HfApi, constants
from huggingface_hub.utils import disable_progress_bars

from hub.server import HubServer, User
from hub.server.storage import Storage

TOKENS = {
    "ana-writes": User("ana", namespaces=frozenset({"team"})),
    "rob-reads": User("rob", "read", namespaces=frozenset({"ana"})),
    "eve-writes": User("eve", namespaces=frozenset()),
}

Connect = Callable[..., HfApi]


@pytest.fixture(autouse=True)
def _quiet_client(monkeypatch: pytest.MonkeyPatch) -> None:
    disable_progress_bars()
    monkeypatch.delenv("HF_TOKEN", raising=False)


@pytest.fixture
def without_xet(monkeypatch: pytest.MonkeyPatch) -> None:
    """What HF_HUB_DISABLE_XET=1 does in a new process."""
    monkeypatch.setattr(constants, "HF_HUB_DISABLE_XET", True)


@pytest.fixture
def served(tmp_path: Path) -> Path:
    """The folder for a server that a test starts itself."""
    return tmp_path / "served"


@pytest.fixture(scope="session")
def shared(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of `server`."""
    return tmp_path_factory.mktemp("shared")


@pytest.fixture(scope="session")
def _running(shared: Path) -> Iterator[HubServer]:
    with HubServer(shared, TOKENS) as running:
        yield running


@pytest.fixture
def server(_running: HubServer, shared: Path) -> Iterator[HubServer]:
    """One for all tests, since to stop one takes longer than most tests; empty for each."""
    yield _running
    storage = Storage(shared)
    for repo in storage.list_repos():
        storage.delete_repo(repo)


@pytest.fixture
def connect(server: HubServer) -> Connect:
    """A client with one of the tokens; None is nobody."""

    def make(token: str | None = "ana-writes") -> HfApi:
        return HfApi(endpoint=server.url, token=False if token is None else token)

    return make


@pytest.fixture
def api(connect: Connect) -> HfApi:
    """ana's client, with an empty repo ana/sst2 there."""
    made = connect()
    made.create_repo("ana/sst2")
    return made


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A small adapter's files: a card, a configuration, weights, and one in a folder."""
    path = tmp_path / "adapter"
    (path / "notes").mkdir(parents=True)
    (path / "README.md").write_text(
        "---\nbase_model: org/tiny\ntags: [sentiment]\nlanguage: en\nlicense: mit\n---\n# sst2\n"
    )
    (path / "adapter_config.json").write_text('{"peft_type": "LORA"}\n')
    (path / "adapter_model.safetensors").write_bytes(bytes(range(256)) * 40)
    (path / "notes" / "día 1.txt").write_text("größer\n")
    return path


def read_files(folder: Path) -> dict[str, bytes]:
    return {
        path.relative_to(folder).as_posix(): path.read_bytes()
        for path in folder.rglob("*")
        if path.is_file() and ".cache" not in path.parts
    }


@pytest.fixture(name="read_files")
def _read_files() -> Callable[[Path], dict[str, bytes]]:
    """Every file of a folder by its name in it."""
    return read_files


@pytest.fixture
def send_commit(server: HubServer) -> Callable[..., httpx2.Response]:
    """A commit of operations (key, value) to ana/sst2, as no client of good will sends it."""

    def send(
        *operations: tuple[str, object], to: str = server.url, **header: str
    ) -> httpx2.Response:
        first = {"summary": "by hand", **header}
        lines: list[dict[str, object]] = [{"key": "header", "value": first}]
        lines += [{"key": key, "value": value} for key, value in operations]
        return httpx2.post(
            f"{to}/api/models/ana/sst2/commit/main",
            content="\n".join(json.dumps(line) for line in lines),
            headers={"Authorization": "Bearer ana-writes"},
        )

    return send
