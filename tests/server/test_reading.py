"""What is asked of repos: files, ranges, revisions, trees."""

from __future__ import annotations

from pathlib import Path

import httpx2
import pytest
from huggingface_hub import HfApi, get_hf_file_metadata, hf_hub_url, snapshot_download
from huggingface_hub.errors import (
    EntryNotFoundError,
    RemoteEntryNotFoundError,
    RevisionNotFoundError,
)
from huggingface_hub.file_download import http_get
from huggingface_hub.hf_api import RepoFile, RepoFolder

from hub.server import HubServer
from hub.server.storage import Storage


def test_every_kind_of_revision_gives_its_own_bytes(api: HfApi, tmp_path: Path) -> None:
    def push(content: bytes, branch: str = "main") -> str:
        return api.upload_file(
            path_or_fileobj=content, path_in_repo="a.txt", repo_id="ana/sst2", revision=branch
        ).oid

    def pull(revision: str) -> bytes:
        cache = tmp_path / "cache"
        found = api.hf_hub_download("ana/sst2", "a.txt", revision=revision, cache_dir=cache)
        return Path(found).read_bytes()

    first = push(b"first")
    api.create_tag("ana/sst2", tag="v1.0")
    api.create_branch("ana/sst2", branch="feature/x")
    push(b"second")
    push(b"third", "feature/x")
    revisions = {
        b"first": ["v1.0", "refs/tags/v1.0", first, first[:10]],
        b"second": ["main", "refs/heads/main"],
        b"third": ["feature/x"],
    }
    assert {content: {pull(each) for each in named} for content, named in revisions.items()} == {
        content: {content} for content in revisions
    }


def test_a_revision_that_is_not_there_is_not_found(api: HfApi, tmp_path: Path) -> None:
    for revision in ("nowhere", "0" * 40, "ffffff"):
        with pytest.raises(RevisionNotFoundError):
            api.model_info("ana/sst2", revision=revision)
        with pytest.raises(RevisionNotFoundError):
            snapshot_download(
                "ana/sst2", revision=revision, cache_dir=tmp_path, endpoint=api.endpoint
            )


def test_a_file_that_is_not_there_is_not_found_at_its_commit(api: HfApi, tmp_path: Path) -> None:
    with pytest.raises(RemoteEntryNotFoundError) as missing:
        api.hf_hub_download("ana/sst2", "gone.json", cache_dir=tmp_path)
    assert missing.value.response.headers["X-Repo-Commit"] == api.model_info("ana/sst2").sha
    assert not api.file_exists("ana/sst2", "gone.json")


def test_the_head_of_a_file_tells_digest_size_and_commit(api: HfApi, folder: Path) -> None:
    commit = api.upload_folder(repo_id="ana/sst2", folder_path=folder)
    (listed,) = api.get_paths_info("ana/sst2", "adapter_model.safetensors")
    assert isinstance(listed, RepoFile)
    assert listed.lfs is not None
    url = hf_hub_url("ana/sst2", "adapter_model.safetensors", endpoint=api.endpoint)
    metadata = get_hf_file_metadata(url, token="ana-writes")
    assert metadata.etag == listed.lfs.sha256
    assert metadata.size == listed.size == 10240
    assert metadata.commit_hash == commit.oid


def test_a_range_is_that_part_of_the_file(api: HfApi, server: HubServer) -> None:
    api.upload_file(path_or_fileobj=b"0123456789", path_in_repo="a.bin", repo_id="ana/sst2")
    url = f"{server.url}/ana/sst2/resolve/main/a.bin"
    part = httpx2.get(url, headers={"Range": "bytes=3-5"})
    assert (part.status_code, part.content) == (206, b"345")
    assert part.headers["Content-Range"] == "bytes 3-5/10"
    assert httpx2.get(url, headers={"Range": "bytes=-2"}).content == b"89"
    assert httpx2.get(url, headers={"Range": "bytes=10-"}).status_code == 416


def test_the_client_resumes_where_it_stopped(api: HfApi, tmp_path: Path) -> None:
    content = bytes(range(256)) * 4096
    api.upload_file(path_or_fileobj=content, path_in_repo="a.bin", repo_id="ana/sst2")
    url = hf_hub_url("ana/sst2", "a.bin", endpoint=api.endpoint)
    with (tmp_path / "a.bin").open("wb") as file:
        file.write(content[:1000])
        http_get(url, file, resume_size=1000, expected_size=len(content))
    assert (tmp_path / "a.bin").read_bytes() == content


def test_a_pushed_page_is_not_served_as_one(api: HfApi, server: HubServer) -> None:
    api.upload_file(path_or_fileobj=b"<script>", path_in_repo="a.html", repo_id="ana/sst2")
    answer = httpx2.get(f"{server.url}/ana/sst2/resolve/main/a.html")
    assert answer.headers["Content-Type"] == "application/octet-stream"
    assert answer.headers["X-Content-Type-Options"] == "nosniff"


def test_the_tree_lists_folders_by_level(api: HfApi, folder: Path) -> None:
    api.upload_folder(repo_id="ana/sst2", folder_path=folder)
    top = {entry.path: type(entry) for entry in api.list_repo_tree("ana/sst2")}
    assert top == {
        "README.md": RepoFile,
        "adapter_config.json": RepoFile,
        "adapter_model.safetensors": RepoFile,
        "notes": RepoFolder,
    }
    within = [entry.path for entry in api.list_repo_tree("ana/sst2", "notes")]
    assert within == ["notes/día 1.txt"]
    every = {entry.path for entry in api.list_repo_tree("ana/sst2", recursive=True)}
    assert every == {*top, *within}
    with pytest.raises(EntryNotFoundError):
        list(api.list_repo_tree("ana/sst2", "nowhere"))


def test_paths_info_leaves_out_what_is_not_there(api: HfApi, folder: Path) -> None:
    api.upload_folder(repo_id="ana/sst2", folder_path=folder)
    asked = ["notes/día 1.txt", "notes", "nowhere", "note"]
    assert {entry.path for entry in api.get_paths_info("ana/sst2", asked)} == {
        "notes/día 1.txt",
        "notes",
    }


def test_a_long_listing_comes_in_pages(api: HfApi, shared: Path) -> None:
    names = {f"{number}.txt" for number in range(1100)}
    head = api.upload_file(path_or_fileobj=b"1", path_in_repo="0.txt", repo_id="ana/sst2").oid
    storage = Storage(shared)
    repo = storage.find_repo("ana", "sst2")
    assert repo is not None
    storage.commit(
        repo,
        "main",
        lambda head, tree: dict.fromkeys(names, tree["0.txt"]),
        title="many",
        description="",
        author="ana",
    )
    assert set(api.list_repo_files("ana/sst2")) == names
    assert api.list_repo_files("ana/sst2", revision=head) == ["0.txt"]
    first = httpx2.get(f"{api.endpoint}/api/models/ana/sst2/tree/main")
    assert len(first.json()) == 1000
