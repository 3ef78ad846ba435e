"""Who may do what: private repos, tokens that read, tokens that are not known."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import httpx2
import pytest
from huggingface_hub import HfApi
from huggingface_hub.errors import HfHubHTTPError, RepositoryNotFoundError

from hub.server import HubServer

Connect = Callable[..., HfApi]


@pytest.fixture
def private(connect: Connect) -> HfApi:
    """ana's client, with one file in her private repo."""
    api = connect()
    api.create_repo("ana/private", private=True)
    api.upload_file(path_or_fileobj=b"1", path_in_repo="a.txt", repo_id="ana/private")
    return api


@pytest.mark.parametrize(("token", "status"), [(None, 401), ("eve-writes", 404)])
def test_a_private_repo_is_not_found_by_who_may_not_see_it(
    private: HfApi, connect: Connect, tmp_path: Path, token: str | None, status: int
) -> None:
    stranger = connect(token)
    with pytest.raises(RepositoryNotFoundError) as refused:
        stranger.model_info("ana/private")
    assert refused.value.response.status_code == status
    with pytest.raises(RepositoryNotFoundError):
        stranger.hf_hub_download("ana/private", "a.txt", cache_dir=tmp_path)
    with pytest.raises(RepositoryNotFoundError):
        stranger.upload_file(path_or_fileobj=b"2", path_in_repo="b", repo_id="ana/private")
    assert "ana/private" not in {model.id for model in stranger.list_models()}


def test_a_private_repo_looks_like_one_that_is_not_there(private: HfApi, connect: Connect) -> None:
    def ask(repo: str) -> tuple[int, str]:
        answer = httpx2.get(f"{private.endpoint}/api/models/{repo}")
        return answer.status_code, answer.text.replace(repo, "repo")

    assert ask("ana/private") == ask("ana/nowhere")


def test_a_token_that_reads_reads_and_does_not_write(
    private: HfApi, connect: Connect, tmp_path: Path
) -> None:
    reader = connect("rob-reads")
    found = reader.hf_hub_download("ana/private", "a.txt", cache_dir=tmp_path)
    assert Path(found).read_bytes() == b"1"
    attempts: list[Callable[[], object]] = [
        lambda: reader.upload_file(path_or_fileobj=b"2", path_in_repo="b", repo_id="ana/private"),
        lambda: reader.create_repo("rob/mine"),
        lambda: reader.delete_repo("ana/private"),
        lambda: reader.create_tag("ana/private", tag="v1"),
        lambda: reader.create_branch("ana/private", branch="b"),
        lambda: reader.update_repo_settings("ana/private", private=False),
        lambda: reader.auth_check("ana/private", write=True),
    ]
    for attempt in attempts:
        with pytest.raises(HfHubHTTPError, match="may only read") as refused:
            attempt()
        assert refused.value.response.status_code == 403
    assert reader.list_repo_files("ana/private") == ["a.txt"]


def test_who_writes_elsewhere_does_not_write_here(api: HfApi, connect: Connect) -> None:
    stranger = connect("eve-writes")
    assert stranger.list_repo_files("ana/sst2") == []
    for attempt in (
        lambda: stranger.upload_file(path_or_fileobj=b"2", path_in_repo="b", repo_id="ana/sst2"),
        lambda: stranger.create_repo("ana/more"),
        lambda: stranger.delete_repo("ana/sst2"),
    ):
        with pytest.raises(HfHubHTTPError, match="may not write in the namespace ana") as refused:
            attempt()
        assert refused.value.response.status_code == 403


def test_nobody_writes_without_a_token(api: HfApi, connect: Connect) -> None:
    nobody = connect(None)
    assert nobody.list_repo_files("ana/sst2") == []
    with pytest.raises(HfHubHTTPError, match="needs a token") as refused:
        nobody.upload_file(path_or_fileobj=b"2", path_in_repo="b", repo_id="ana/sst2")
    assert refused.value.response.status_code == 401


def test_a_token_that_is_not_known_is_told_so(api: HfApi, connect: Connect) -> None:
    unknown = connect("made-up")
    with pytest.raises(HfHubHTTPError, match="Invalid user token"):
        unknown.whoami()
    with pytest.raises(HfHubHTTPError, match="Invalid credentials") as refused:
        unknown.model_info("ana/sst2")
    assert not isinstance(refused.value, RepositoryNotFoundError)


def test_whoami_tells_name_role_and_organizations(connect: Connect) -> None:
    told = connect().whoami()
    assert told["name"] == "ana"
    assert [organization["name"] for organization in told["orgs"]] == ["team"]
    assert told["auth"]["accessToken"]["role"] == "write"
    assert connect("rob-reads").whoami()["auth"]["accessToken"]["role"] == "read"


def test_a_private_repo_can_be_opened_and_closed(api: HfApi, connect: Connect) -> None:
    api.update_repo_settings("ana/sst2", private=True)
    assert not connect(None).repo_exists("ana/sst2")
    api.update_repo_settings("ana/sst2", private=False)
    assert connect(None).repo_exists("ana/sst2")


def test_a_server_without_tokens_is_open(served: Path) -> None:
    with HubServer(served) as server:
        nobody = HfApi(endpoint=server.url, token=False)
        assert nobody.create_repo("sst2", private=True).repo_id == "local/sst2"
        nobody.upload_file(path_or_fileobj=b"1", path_in_repo="a", repo_id="local/sst2")
        assert nobody.list_repo_files("local/sst2") == ["a"]


def test_a_page_in_a_browser_gets_nothing(served: Path) -> None:
    with HubServer(served) as server:
        body = b'{"name": "planted"}'
        url = f"{server.url}/api/repos/create"
        assert httpx2.post(url, content=body, headers={"Origin": "http://evil"}).status_code == 403
        assert httpx2.post(url, content=body, headers={"Host": "evil.test"}).status_code == 400
        assert httpx2.post(url, content=body).status_code == 200
