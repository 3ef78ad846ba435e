"""LFS objects: asked for, put at a signed address, and referred to by a commit."""

from __future__ import annotations

import hashlib
import time
from collections.abc import Callable
from http.client import HTTPConnection
from pathlib import Path
from urllib.parse import urlsplit

import httpx2
import pytest
from huggingface_hub import HfApi

from hub.server import HubServer

ReadFiles = Callable[[Path], dict[str, bytes]]
SendCommit = Callable[..., httpx2.Response]

# The client hands its file to httpx2 in a way that httpx2 is about to drop.
lfs_upload = pytest.mark.filterwarnings(
    "ignore:Use 'content=<...>' to upload raw bytes/text content:DeprecationWarning"
)


@lfs_upload
def test_a_push_through_lfs_downloads_with_equal_bytes(
    served: Path, folder: Path, tmp_path: Path, read_files: ReadFiles, without_xet: None
) -> None:
    (folder / "adapter_model.safetensors").write_bytes(b"\x00\x01weights" * 700_000)
    (folder / "empty.bin").touch()
    with HubServer(served, lfs_from=1) as server:
        api = HfApi(endpoint=server.url, token="any")
        api.create_repo("ana/sst2")
        api.upload_folder(repo_id="ana/sst2", folder_path=folder)
        found = api.snapshot_download("ana/sst2", cache_dir=tmp_path / "cache")
        assert read_files(Path(found)) == read_files(folder)
        assert not list((served / "incoming").iterdir())


@lfs_upload
def test_pushing_the_same_again_through_lfs_makes_no_commit(
    served: Path, folder: Path, without_xet: None
) -> None:
    with HubServer(served, lfs_from=1) as server:
        api = HfApi(endpoint=server.url, token="any")
        api.create_repo("ana/sst2")
        first = api.upload_folder(repo_id="ana/sst2", folder_path=folder)
        assert api.upload_folder(repo_id="ana/sst2", folder_path=folder).oid == first.oid


def ask_upload(server: HubServer, content: bytes) -> tuple[str, str]:
    """The sha256 of `content`, and where it may be put."""
    oid = hashlib.sha256(content).hexdigest()
    batch = httpx2.post(
        f"{server.url}/ana/sst2.git/info/lfs/objects/batch",
        json={"operation": "upload", "objects": [{"oid": oid, "size": len(content)}]},
        headers={"Authorization": "Bearer ana-writes"},
    ).json()
    return oid, batch["objects"][0]["actions"]["upload"]["href"]


def begin_upload(url: str, size: int, part: bytes, incoming: Path) -> HTTPConnection:
    """A PUT of `size` bytes of which the server has taken `part`."""
    address = urlsplit(url)
    connection = HTTPConnection(address.netloc, timeout=10)
    connection.putrequest("PUT", f"{address.path}?{address.query}")
    connection.putheader("Content-Length", str(size))
    connection.endheaders(part)
    wait_until(lambda: bool(list(incoming.iterdir())))
    return connection


def wait_until(condition: Callable[[], bool]) -> None:
    deadline = time.monotonic() + 10
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.005)


def test_lfs_bytes_that_are_not_what_was_announced_are_refused(
    api: HfApi, server: HubServer, shared: Path, send_commit: SendCommit
) -> None:
    oid, url = ask_upload(server, b"right")
    assert httpx2.put(url, content=b"wrong").status_code == 400
    assert httpx2.put(url, content=b"longer than said").status_code == 400
    assert httpx2.put(url.replace("size=5", "size=6"), content=b"right!").status_code == 403
    assert not list((shared / "incoming").iterdir())
    assert httpx2.put(url, content=b"right").status_code == 200
    pushed = send_commit(("lfsFile", {"path": "a.bin", "oid": oid, "size": 5}))
    assert pushed.status_code == 200


def test_an_upload_asked_for_too_long_ago_is_refused(
    api: HfApi, server: HubServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("hub.server.lfs._URL_LIFETIME", -10)
    _, url = ask_upload(server, b"right")
    assert httpx2.put(url, content=b"right").status_code == 403


def test_an_upload_broken_off_leaves_nothing(
    api: HfApi, server: HubServer, shared: Path, send_commit: SendCommit
) -> None:
    incoming = shared / "incoming"
    oid, url = ask_upload(server, b"right")
    begin_upload(url, 5, b"ri", incoming).close()
    wait_until(lambda: not list(incoming.iterdir()))
    refused = send_commit(("lfsFile", {"path": "a.bin", "oid": oid, "size": 5}))
    assert refused.status_code == 404


def test_an_upload_to_a_repo_deleted_meanwhile_is_refused(
    api: HfApi, server: HubServer, shared: Path
) -> None:
    _, url = ask_upload(server, b"right")
    connection = begin_upload(url, 5, b"ri", shared / "incoming")
    api.delete_repo("ana/sst2")
    connection.send(b"ght")
    assert connection.getresponse().status == 409
    connection.close()
    assert not [path for path in (shared / "objects").rglob("*") if path.is_file()]


def test_the_sha256_of_another_repos_file_does_not_give_the_file(
    api: HfApi, send_commit: SendCommit
) -> None:
    api.create_repo("ana/secret", private=True)
    api.upload_file(path_or_fileobj=b"key", path_in_repo="a.bin", repo_id="ana/secret")
    oid = hashlib.sha256(b"key").hexdigest()
    refused = send_commit(("lfsFile", {"path": "a.bin", "oid": oid, "size": 3}))
    assert refused.status_code == 404
