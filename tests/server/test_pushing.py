"""A push, as the real client does it: bytes, commits, and what is refused."""

from __future__ import annotations

import base64
import hashlib
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import httpx2
import pytest
from huggingface_hub import (
    CommitOperationAdd,
    CommitOperationCopy,
    CommitOperationDelete,
    HfApi,
)
from huggingface_hub.errors import (
    BadRequestError,
    EntryNotFoundError,
    HfHubHTTPError,
    RevisionNotFoundError,
)

from hub.server import HubServer, User

ReadFiles = Callable[[Path], dict[str, bytes]]
SendCommit = Callable[..., httpx2.Response]


def as_file(path: str, content: bytes = b"x") -> tuple[str, object]:
    encoded = base64.b64encode(content).decode()
    return "file", {"path": path, "content": encoded, "encoding": "base64"}


def test_a_pushed_folder_downloads_with_equal_bytes(
    api: HfApi, folder: Path, tmp_path: Path, read_files: ReadFiles
) -> None:
    commit = api.upload_folder(repo_id="ana/sst2", folder_path=folder)
    found = api.snapshot_download("ana/sst2", cache_dir=tmp_path / "cache")
    assert read_files(Path(found)) == read_files(folder)
    assert api.model_info("ana/sst2").sha == commit.oid


def test_the_listing_is_the_same_however_a_file_was_pushed(api: HfApi, folder: Path) -> None:
    api.upload_folder(repo_id="ana/sst2", folder_path=folder)
    content = (folder / "adapter_model.safetensors").read_bytes()
    info = api.model_info("ana/sst2", files_metadata=True)
    siblings = {sibling.rfilename: sibling for sibling in info.siblings or []}
    weights, config = siblings["adapter_model.safetensors"], siblings["adapter_config.json"]
    assert weights.lfs is not None
    assert weights.lfs.sha256 == hashlib.sha256(content).hexdigest()
    assert weights.size == weights.lfs.size == len(content)
    assert config.lfs is None
    text = (folder / "adapter_config.json").read_bytes()
    assert config.blob_id == hashlib.sha1(b"blob %d\0%b" % (len(text), text)).hexdigest()


def test_the_client_finds_its_own_checksums_in_the_listing(api: HfApi, folder: Path) -> None:
    api.upload_folder(repo_id="ana/sst2", folder_path=folder)
    verification = api.verify_repo_checksums("ana/sst2", local_dir=folder)
    assert verification.checked_count == 4
    assert not verification.mismatches
    assert not verification.missing_paths


def test_pushing_the_same_again_makes_no_commit(api: HfApi, folder: Path) -> None:
    first = api.upload_folder(repo_id="ana/sst2", folder_path=folder)
    again = api.upload_folder(repo_id="ana/sst2", folder_path=folder)
    assert again.oid == first.oid
    assert len(api.list_repo_commits("ana/sst2")) == 2


def test_a_commit_sent_twice_is_one_commit(api: HfApi, send_commit: SendCommit) -> None:
    first = send_commit(as_file("a.txt")).json()["commitOid"]
    assert send_commit(as_file("a.txt")).json()["commitOid"] == first
    assert len(api.list_repo_commits("ana/sst2")) == 2


def test_a_changed_file_makes_a_commit_on_the_one_before(api: HfApi, folder: Path) -> None:
    first = api.upload_folder(repo_id="ana/sst2", folder_path=folder)
    (folder / "adapter_config.json").write_text("{}")
    second = api.upload_folder(
        repo_id="ana/sst2", folder_path=folder, commit_message="second", commit_description="why"
    )
    newest, before, _ = api.list_repo_commits("ana/sst2")
    assert (newest.commit_id, before.commit_id) == (second.oid, first.oid)
    assert (newest.title, newest.message, newest.authors) == ("second", "why", ["ana"])


def test_deleted_files_and_folders_are_gone_from_the_next_commit_alone(
    api: HfApi, folder: Path
) -> None:
    full = api.upload_folder(repo_id="ana/sst2", folder_path=folder)
    api.create_commit(
        "ana/sst2",
        [CommitOperationDelete("notes/"), CommitOperationDelete("README.md")],
        commit_message="less",
    )
    left = {"adapter_config.json", "adapter_model.safetensors"}
    assert set(api.list_repo_files("ana/sst2")) == left
    assert set(api.list_repo_files("ana/sst2", revision=full.oid)) == {
        *left,
        "README.md",
        "notes/día 1.txt",
    }


def test_deleting_what_is_not_there_is_refused(api: HfApi) -> None:
    with pytest.raises(EntryNotFoundError, match="doesn't exist"):
        api.delete_file("gone.txt", "ana/sst2")


def test_a_file_is_copied_without_being_sent(api: HfApi, folder: Path, tmp_path: Path) -> None:
    api.upload_folder(repo_id="ana/sst2", folder_path=folder)
    weights = "adapter_model.safetensors"
    api.create_commit(
        "ana/sst2", [CommitOperationCopy(weights, "old.safetensors")], commit_message="copy"
    )
    copied = api.hf_hub_download("ana/sst2", "old.safetensors", cache_dir=tmp_path / "cache")
    assert Path(copied).read_bytes() == (folder / weights).read_bytes()


def test_a_stale_parent_is_refused_and_changes_nothing(api: HfApi) -> None:
    stale = api.model_info("ana/sst2").sha
    head = api.upload_file(path_or_fileobj=b"1", path_in_repo="a.txt", repo_id="ana/sst2").oid
    with pytest.raises(HfHubHTTPError, match="commit has happened") as refused:
        api.upload_file(
            path_or_fileobj=b"2", path_in_repo="a.txt", repo_id="ana/sst2", parent_commit=stale
        )
    assert refused.value.response.status_code == 412
    assert api.model_info("ana/sst2").sha == head
    api.upload_file(
        path_or_fileobj=b"2", path_in_repo="a.txt", repo_id="ana/sst2", parent_commit=head
    )


def test_two_who_push_at_once_both_have_their_commit(api: HfApi) -> None:
    def push(who: int) -> str:
        pushed = [
            api.upload_file(
                path_or_fileobj=f"{who} {turn}".encode(),
                path_in_repo=f"{who}-{turn}.txt",
                repo_id="ana/sst2",
            ).oid
            for turn in range(4)
        ]
        return pushed[-1]

    with ThreadPoolExecutor(2) as pool:
        last = set(pool.map(push, range(2)))
    commits = api.list_repo_commits("ana/sst2")
    assert commits[0].commit_id in last
    assert len(commits) == 9
    assert set(api.list_repo_files("ana/sst2")) == {
        f"{who}-{turn}.txt" for who in range(2) for turn in range(4)
    }


def test_of_two_on_one_parent_only_one_gets_through(api: HfApi) -> None:
    parent = api.model_info("ana/sst2").sha

    def push(who: int) -> int:
        try:
            api.upload_file(
                path_or_fileobj=f"{who}".encode(),
                path_in_repo="a.txt",
                repo_id="ana/sst2",
                parent_commit=parent,
            )
        except HfHubHTTPError as error:
            return error.response.status_code
        return 200

    with ThreadPoolExecutor(4) as pool:
        assert sorted(pool.map(push, range(4))) == [200, 412, 412, 412]


@pytest.mark.parametrize(
    "path",
    [
        *("../x", "a/../../x", "/x", "a//b", ".", "a/.", "", "a/"),
        *("..\\x", "C:/x", "c:x", ".git/config", "a/.GIT/hooks", ".cache/x", "a\0b", "a\nb"),
        *("\ud800", "a" * 256),
    ],
)
def test_a_name_that_could_leave_the_folder_is_refused(
    api: HfApi, send_commit: SendCommit, path: str
) -> None:
    refused = send_commit(as_file(path))
    if path == "a/":  # a folder's slash is the client's own way to write
        assert refused.status_code == 200
        return
    assert refused.status_code == 400
    assert "can't name a file" in refused.json()["error"] or path == "\ud800"
    assert api.list_repo_files("ana/sst2") == []


def test_a_file_can_not_be_a_folder_too(api: HfApi, send_commit: SendCommit) -> None:
    refused = send_commit(as_file("a"), as_file("a/b"))
    assert refused.status_code == 400
    assert "can't be a file and the folder" in refused.json()["error"]
    assert api.list_repo_files("ana/sst2") == []


@pytest.mark.parametrize(
    ("operation", "status"),
    [
        (("file", {"path": "a", "content": "not base64", "encoding": "base64"}), 400),
        (("file", {"path": "a"}), 400),
        (("file", "a"), 400),
        (("rename", {"path": "a"}), 400),
        (("lfsFile", {"path": "a", "oid": "0" * 64, "size": 1}), 404),
        (("lfsFile", {"path": "a", "oid": "../../../etc/passwd", "size": 1}), 400),
    ],
)
def test_an_operation_that_can_not_be_done_is_refused_whole(
    api: HfApi, send_commit: SendCommit, operation: tuple[str, object], status: int
) -> None:
    assert send_commit(as_file("good.txt"), operation).status_code == status
    assert api.list_repo_files("ana/sst2") == []


def test_a_readme_whose_metadata_is_broken_is_refused(api: HfApi, send_commit: SendCommit) -> None:
    broken = b"---\ntags: [a\n---\n"
    with pytest.raises(ValueError, match="no YAML"):
        api.upload_file(path_or_fileobj=broken, path_in_repo="README.md", repo_id="ana/sst2")
    assert send_commit(as_file("README.md", broken)).status_code == 400


def test_a_push_to_a_branch_that_is_not_there_is_refused(api: HfApi) -> None:
    with pytest.raises(RevisionNotFoundError):
        api.upload_file(
            path_or_fileobj=b"1", path_in_repo="a", repo_id="ana/sst2", revision="nowhere"
        )


def test_a_pull_request_is_refused_and_main_stays(api: HfApi) -> None:
    head = api.model_info("ana/sst2").sha
    addition = CommitOperationAdd("a.txt", b"1")
    with pytest.raises(BadRequestError, match="no pull requests"):
        api.create_commit("ana/sst2", [addition], commit_message="pr", create_pr=True)
    assert api.model_info("ana/sst2").sha == head


def test_a_line_larger_than_a_file_may_be_is_refused(served: Path, send_commit: SendCommit) -> None:
    large = as_file("a.txt", bytes(11 * 1024**2))
    with HubServer(served, {"ana-writes": User("ana")}, lfs_from=1) as server:
        HfApi(endpoint=server.url, token="ana-writes").create_repo("ana/sst2")
        assert send_commit(large, to=server.url).status_code == 413
