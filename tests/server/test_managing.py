"""Repos, branches and tags: made, listed, deleted."""

from __future__ import annotations

import json
from pathlib import Path

import httpx2
import pytest
from huggingface_hub import HfApi
from huggingface_hub.errors import (
    BadRequestError,
    HfHubHTTPError,
    RepositoryNotFoundError,
    RevisionNotFoundError,
)
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from hub.server import HubServer

FIELDS = st.sampled_from(
    [
        *("key", "value", "name", "type", "organization", "private", "visibility", "content"),
        *("files", "path", "size", "oid", "objects", "operation", "tag", "startingPoint"),
        *("summary", "parentCommit", "encoding"),
    ]
)
ENDPOINTS = [
    ("POST", "/api/repos/create"),
    ("DELETE", "/api/repos/delete"),
    ("POST", "/api/validate-yaml"),
    ("PUT", "/api/models/ana/sst2/settings"),
    ("POST", "/api/models/ana/sst2/branch/b"),
    ("POST", "/api/models/ana/sst2/tag/main"),
    ("POST", "/api/models/ana/sst2/preupload/main"),
    ("POST", "/api/models/ana/sst2/commit/main"),
    ("POST", "/api/models/ana/sst2/paths-info/main"),
    ("POST", "/ana/sst2.git/info/lfs/objects/batch"),
    ("POST", "/ana/sst2/lfs/verify"),
]


def test_a_repo_is_made_once(api: HfApi) -> None:
    assert api.create_repo("ana/sst2", exist_ok=True).repo_id == "ana/sst2"
    with pytest.raises(HfHubHTTPError) as refused:
        api.create_repo("ana/sst2")
    assert refused.value.response.status_code == 409


def test_a_new_repo_has_a_commit_and_no_files(api: HfApi) -> None:
    assert api.list_repo_files("ana/sst2") == []
    (commit,) = api.list_repo_commits("ana/sst2")
    assert commit.commit_id == api.model_info("ana/sst2").sha


def test_a_repo_without_a_namespace_is_the_users(api: HfApi) -> None:
    assert api.create_repo("mnli").repo_id == "ana/mnli"


def test_only_models_are_kept(api: HfApi) -> None:
    with pytest.raises(BadRequestError, match="models alone"):
        api.create_repo("ana/data", repo_type="dataset")


@pytest.mark.parametrize("name", ["..", "a/b", "a..b", "a--b", "x.git", "-a", "a ", "a" * 97, ""])
def test_a_repo_name_that_is_none_is_refused(server: HubServer, name: str) -> None:
    refused = httpx2.post(
        f"{server.url}/api/repos/create",
        json={"name": name, "organization": "ana"},
        headers={"Authorization": "Bearer ana-writes"},
    )
    assert refused.status_code == 400
    assert "can't name a repo" in refused.json()["error"]


def test_a_namespace_that_begins_addresses_is_refused(served: Path) -> None:
    with HubServer(served) as server, pytest.raises(BadRequestError, match="namespace"):
        HfApi(endpoint=server.url, token="t").create_repo("api/models")


def test_a_deleted_repo_is_gone_with_its_bytes(api: HfApi, folder: Path, shared: Path) -> None:
    api.upload_folder(repo_id="ana/sst2", folder_path=folder)
    api.create_repo("ana/other")
    api.upload_file(
        path_or_fileobj=folder / "adapter_config.json",
        path_in_repo="adapter_config.json",
        repo_id="ana/other",
    )
    api.delete_repo("ana/sst2")
    assert not api.repo_exists("ana/sst2")
    kept = [path.read_bytes() for path in (shared / "objects").rglob("*") if path.is_file()]
    assert kept == [(folder / "adapter_config.json").read_bytes()]
    with pytest.raises(RepositoryNotFoundError):
        api.delete_repo("ana/sst2")
    api.delete_repo("ana/sst2", missing_ok=True)


def test_a_repo_made_again_has_nothing_of_the_one_before(api: HfApi, folder: Path) -> None:
    before = api.upload_folder(repo_id="ana/sst2", folder_path=folder)
    api.delete_repo("ana/sst2")
    api.create_repo("ana/sst2")
    assert api.list_repo_files("ana/sst2") == []
    assert not api.revision_exists("ana/sst2", before.oid)


def test_refs_tell_where_branches_and_tags_are(api: HfApi) -> None:
    start = api.model_info("ana/sst2").sha
    api.create_branch("ana/sst2", branch="feature/x")
    head = api.upload_file(path_or_fileobj=b"1", path_in_repo="a", repo_id="ana/sst2").oid
    api.create_tag("ana/sst2", tag="v1.0")
    api.create_tag("ana/sst2", tag="start", revision="feature/x", tag_message="where it began")
    refs = api.list_repo_refs("ana/sst2", include_pull_requests=True)
    assert {ref.name: (ref.ref, ref.target_commit) for ref in refs.branches} == {
        "feature/x": ("refs/heads/feature/x", start),
        "main": ("refs/heads/main", head),
    }
    assert {ref.name: (ref.ref, ref.target_commit) for ref in refs.tags} == {
        "start": ("refs/tags/start", start),
        "v1.0": ("refs/tags/v1.0", head),
    }
    assert refs.pull_requests == []


def test_a_tag_stays_where_it_is_while_its_branch_moves_on(api: HfApi) -> None:
    api.create_tag("ana/sst2", tag="v1")
    tagged = api.model_info("ana/sst2", revision="v1").sha
    api.upload_file(path_or_fileobj=b"1", path_in_repo="a", repo_id="ana/sst2")
    assert api.model_info("ana/sst2", revision="v1").sha == tagged
    with pytest.raises(HfHubHTTPError) as refused:
        api.create_tag("ana/sst2", tag="v1")
    assert refused.value.response.status_code == 409
    api.create_tag("ana/sst2", tag="v1", exist_ok=True)


def test_a_deleted_tag_or_branch_is_gone(api: HfApi) -> None:
    api.create_tag("ana/sst2", tag="v1")
    api.create_branch("ana/sst2", branch="b")
    api.delete_tag("ana/sst2", tag="v1")
    api.delete_branch("ana/sst2", branch="b")
    for revision in ("v1", "b"):
        assert not api.revision_exists("ana/sst2", revision)
    with pytest.raises(RevisionNotFoundError):
        api.delete_tag("ana/sst2", tag="v1")
    with pytest.raises(RevisionNotFoundError):
        api.create_tag("ana/sst2", tag="v1", revision="b")


def test_main_can_not_be_deleted(api: HfApi) -> None:
    with pytest.raises(HfHubHTTPError, match="can't be deleted"):
        api.delete_branch("ana/sst2", branch="main")


@pytest.mark.parametrize("tag", ["", "a b", "a..b", "-a", "refs/pr/1", "a/", "x.lock", "0" * 40])
def test_a_tag_that_git_would_refuse_is_refused(api: HfApi, tag: str) -> None:
    with pytest.raises(BadRequestError, match="can't name a branch or a tag"):
        api.create_tag("ana/sst2", tag=tag)


def test_what_the_server_does_not_know_is_said(api: HfApi) -> None:
    with pytest.raises(HfHubHTTPError, match="this server has no POST") as refused:
        api.super_squash_history("ana/sst2")
    assert refused.value.response.status_code == 404


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=8),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(FIELDS, inner, max_size=4),
    max_leaves=8,
)


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture], deadline=None)
@given(st.sampled_from(ENDPOINTS), st.dictionaries(FIELDS, JSON, max_size=6) | JSON)
def test_no_body_breaks_the_server(
    api: HfApi, server: HubServer, endpoint: tuple[str, str], body: object
) -> None:
    method, path = endpoint
    answer = httpx2.request(
        method,
        f"{server.url}{path}",
        content=json.dumps(body),
        headers={"Authorization": "Bearer ana-writes"},
    )
    assert answer.status_code < 500
