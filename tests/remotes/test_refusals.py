"""What can't be done is one line that names the thing, what is there, and the way out."""

from __future__ import annotations

import socket
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from huggingface_hub import HfApi, constants

import hub
from hub.errors import FileError, RemoteError
from hub.remotes import repositories
from hub.server import HubServer
from hub_registry import UnknownReference

Point = Callable[[str], None]
SECRET = "hf_never-to-be-seen"


@pytest.fixture
def silent() -> Iterator[str]:
    """The address of a server that takes connections and never answers."""
    with socket.create_server(("127.0.0.1", 0)) as listener:
        yield f"http://127.0.0.1:{listener.getsockname()[1]}"


@pytest.fixture
def other_service() -> Iterator[str]:
    """The address of a web server that is no Hub."""
    with socket.create_server(("127.0.0.1", 0)) as listener:

        def answer() -> None:
            with listener.accept()[0] as connection:
                connection.recv(65536)
                page = b"<html>sign in</html>"
                head = b"HTTP/1.1 200 OK\r\nConnection: close\r\nContent-Length: %d\r\n\r\n"
                connection.sendall(head % len(page) + page)

        thread = threading.Thread(target=answer)
        thread.start()
        yield f"http://127.0.0.1:{listener.getsockname()[1]}"
        thread.join()


def refuse_pull(other: hub.Registry, remote: str | Path, said: str, **options: Any) -> None:
    """Pulling fails with one line, and the registry is as it was."""
    with pytest.raises(RemoteError, match=said) as caught:
        hub.pull(remote, registry=other, **options)
    check_line(caught.value)
    assert other.list() == []


def refuse_push(registry: hub.Registry, remote: str | Path, said: str, **options: Any) -> None:
    """Pushing fails with one line, and nothing is noted."""
    with pytest.raises(RemoteError, match=said) as caught:
        hub.push("sst2@1", remote, registry=registry, **options)
    check_line(caught.value)
    assert registry.publications("sst2") == []


def check_line(error: Exception) -> None:
    text = str(error)
    assert text and "\n" not in text and not text.endswith(".")
    assert SECRET not in text


@pytest.mark.parametrize(
    "remote",
    ["sst2", "ana/b/c", "ana//sst2", "-ana/sst2", "ana/sst2@", "@main", "", "a b/c", "ana/..x"],
)
def test_bad_repository_name(other: hub.Registry, online: HubServer, remote: str) -> None:
    refuse_pull(other, remote, "names no repository|name a branch")


def test_repository_that_is_not_there(other: hub.Registry, online: HubServer) -> None:
    refuse_pull(other, "ana/nothing", f"{online.url} has no repository ana/nothing.*check the name")


def test_repository_without_an_adapter(other: hub.Registry, api: HfApi) -> None:
    api.create_repo("ana/empty")
    refuse_pull(other, "ana/empty", "no adapter: it has no adapter_config.json; it holds nothing")


def test_revision_that_is_not_there(
    sst2: hub.Adapter, other: hub.Registry, online: HubServer
) -> None:
    hub.push("sst2@1", "ana/sst2")
    refuse_pull(other, "ana/sst2@v9", "ana/sst2 has no revision 'v9'; it has main")
    refuse_pull(other, f"ana/sst2@{'0' * 40}", "has no revision")


def test_push_to_a_commit(sst2: hub.Adapter, registry: hub.Registry, online: HubServer) -> None:
    refuse_push(registry, f"ana/sst2@{'0' * 40}", "push to a branch")


@pytest.mark.parametrize("token", [SECRET, "rob-reads"])
def test_token_that_may_not_write(
    sst2: hub.Adapter, registry: hub.Registry, api: HfApi, token: str
) -> None:
    said = "wants a valid token" if token == SECRET else "no permission to write to ana/sst2"
    refuse_push(registry, "ana/sst2", said, token=token)
    api.create_repo("ana/sst2")
    refuse_push(registry, "ana/sst2", said, token=token)
    assert api.list_repo_files("ana/sst2") == []


def test_namespace_of_somebody_else(
    sst2: hub.Adapter, registry: hub.Registry, online: HubServer
) -> None:
    refuse_push(registry, "rob/sst2", "no permission to write to rob/sst2")


def test_no_token(
    sst2: hub.Adapter,
    registry: hub.Registry,
    online: HubServer,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.delenv("HF_TOKEN")
    refuse_push(registry, "ana/sst2", "wants a valid token .*log in")


@pytest.mark.parametrize("token", [f"{SECRET}\x07{SECRET}", f"{SECRET} {SECRET}", f"{SECRET}é"])
def test_token_that_can_not_be_one(
    sst2: hub.Adapter, registry: hub.Registry, online: HubServer, token: str
) -> None:
    refuse_push(registry, "ana/sst2", "characters that no token has", token=token)


def test_token_of_the_environment_is_not_repeated(
    other: hub.Registry, online: HubServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HF_TOKEN", SECRET)
    refuse_pull(other, "ana/sst2", "wants a valid token")


def test_server_that_is_not_there(
    sst2: hub.Adapter, registry: hub.Registry, other: hub.Registry, set_endpoint: Point
) -> None:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        url = f"http://127.0.0.1:{listener.getsockname()[1]}"
    set_endpoint(url)
    refuse_pull(other, "ana/sst2", f"{url} can't be reached .*check the network, or HF_ENDPOINT")
    refuse_push(registry, "ana/sst2", f"{url} can't be reached .*push again")


def test_server_that_does_not_answer(
    other: hub.Registry, set_endpoint: Point, silent: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    set_endpoint(silent)
    monkeypatch.setattr(repositories, "PATIENCE", 0.2)
    refuse_pull(other, "ana/sst2", f"{silent} did not answer in time")


def test_server_that_is_no_hub(
    other: hub.Registry, set_endpoint: Point, other_service: str
) -> None:
    set_endpoint(other_service)
    refuse_pull(other, "ana/sst2", f"{other_service} does not answer as a Hub does .*HF_ENDPOINT")


@pytest.mark.parametrize(
    ("status", "said"),
    [(429, "was asked too often"), (403, "no permission to read ana/sst2"), (418, "answered 418")],
)
def test_server_that_says_no(
    other: hub.Registry, online: HubServer, meddler: Any, status: int, said: str
) -> None:
    meddler.statuses["/api/models/ana/sst2"] = status
    refuse_pull(other, "ana/sst2", said)


def test_failing_commit_notes_nothing(
    sst2: hub.Adapter, registry: hub.Registry, api: HfApi, meddler: Any
) -> None:
    meddler.statuses["/commit/main"] = 503
    refuse_push(registry, "ana/sst2", "answered 503 for ana/sst2; try again later")
    meddler.statuses.clear()
    assert hub.push("sst2@1", "ana/sst2").changed


def test_push_does_not_overtake_another(sst2: hub.Adapter, api: HfApi) -> None:
    hub.push("sst2@1", "ana/sst2")
    remote = repositories.Repository("ana/sst2")
    before = remote.look_to_write(private=False)
    api.upload_file(path_or_fileobj=b"# Theirs", path_in_repo="README.md", repo_id="ana/sst2")
    with pytest.raises(RemoteError, match=r"ana/sst2 was changed meanwhile .*; push again"):
        remote.write({"README.md": b"# Ours"}, [], before, "late", private=False)
    assert Path(api.hf_hub_download("ana/sst2", "README.md")).read_text() == "# Theirs"


def test_offline_says_so(
    sst2: hub.Adapter,
    registry: hub.Registry,
    other: hub.Registry,
    online: HubServer,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    refuse_push(registry, "ana/sst2", "HF_HUB_OFFLINE is set.*unset it to write to it")
    refuse_pull(other, "ana/sst2@v1", "the cache holds no adapter ana/sst2@v1")


def test_unknown_version_is_not_pushed(registry: hub.Registry, api: HfApi) -> None:
    with pytest.raises(UnknownReference):
        hub.push("sst2@1", "ana/sst2")
    assert not api.repo_exists("ana/sst2")


def test_damaged_folder_is_not_pushed(sst2: hub.Adapter, api: HfApi, tmp_path: Path) -> None:
    sst2.save(tmp_path / "saved")
    (tmp_path / "saved" / "adapter_config.json").write_text("{}")
    with pytest.raises(FileError):
        hub.push(tmp_path / "saved", "ana/sst2")
    assert not api.repo_exists("ana/sst2")


def test_folder_that_is_not_there(other: hub.Registry, tmp_path: Path) -> None:
    refuse_pull(other, tmp_path / "nothing", "nothing does not exist")
    (tmp_path / "file").touch()
    refuse_pull(other, tmp_path / "file", "file is a file")
    (tmp_path / "empty").mkdir()
    refuse_pull(other, f"file://{tmp_path}/empty", "it holds nothing")


def test_folder_of_another_adapter_is_not_replaced(
    sst2: hub.Adapter, registry: hub.Registry, make_adapter: Any, tmp_path: Path
) -> None:
    make_adapter(seed=4).save(tmp_path / "run")
    kept = {path.name: path.read_bytes() for path in (tmp_path / "run").iterdir()}
    refuse_push(registry, tmp_path / "run", "holds another adapter .without a name.")
    registry.add(make_adapter(seed=4), name="de")
    hub.push("de@1", tmp_path / "shared")
    refuse_push(registry, tmp_path / "shared", r"holds another adapter \(de@1\)")
    assert {path.name: path.read_bytes() for path in (tmp_path / "run").iterdir()} == kept


def test_next_version_takes_the_place_of_the_one_before_in_a_folder(
    sst2: hub.Adapter,
    registry: hub.Registry,
    other: hub.Registry,
    make_adapter: Any,
    tmp_path: Path,
) -> None:
    first = hub.push("sst2@1", tmp_path / "shared")
    assert first.revision == registry.get("sst2@1").digest
    assert not hub.push("sst2@1", tmp_path / "shared").changed
    second = registry.add(make_adapter(seed=2), name="sst2")
    assert hub.push("sst2@2", tmp_path / "shared").revision == second.digest
    assert hub.pull(tmp_path / "shared", registry=other).digest == second.digest
    assert sorted(path.name for path in (tmp_path / "shared").iterdir()) == [
        "README.md",
        "adapter_config.json",
        "adapter_model.safetensors",
        "hub.json",
    ]


def test_private_folder_is_refused(
    sst2: hub.Adapter, registry: hub.Registry, tmp_path: Path
) -> None:
    refuse_push(registry, tmp_path / "shared", "push without private", private=True)
    assert not (tmp_path / "shared").exists()


@pytest.mark.filterwarnings("ignore:Use 'content=:DeprecationWarning")
def test_server_without_xet_that_wants_large_files_apart(
    sst2: hub.Adapter,
    registry: hub.Registry,
    other: hub.Registry,
    set_endpoint: Point,
    monkeypatch: pytest.MonkeyPatch,
    tmp_path: Path,
) -> None:
    with HubServer(tmp_path / "served", lfs_from=1000) as server:
        set_endpoint(server.url)
        refuse_push(registry, "ana/sst2", "set HF_HUB_DISABLE_XET=1")
        monkeypatch.setattr(constants, "HF_HUB_DISABLE_XET", True)
        assert hub.push("sst2@1", "ana/sst2").changed
        assert hub.pull("ana/sst2", registry=other).digest == registry.get("sst2@1").digest
        assert not hub.push("sst2@1", "ana/sst2").changed
