"""What is on the disk: the same after a restart, whole after a kill, refused when torn."""

from __future__ import annotations

import os
import sqlite3
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import closing
from pathlib import Path

import pytest
from huggingface_hub import HfApi

from hub.errors import RemoteError
from hub.server import HubServer, User
from hub.server.records import Commit, Entry, Repo, Tree
from hub.server.storage import Storage

ReadFiles = Callable[[Path], dict[str, bytes]]


@pytest.fixture
def storage(served: Path) -> Storage:
    return Storage(served)


@pytest.fixture
def repo(storage: Storage) -> Repo:
    made = storage.create_repo("ana", "sst2", private=False, author="ana")
    assert made is not None
    return made


@pytest.fixture
def database(served: Path, repo: Repo) -> Iterator[sqlite3.Connection]:
    """The server's database, as someone else writes to it."""
    with closing(sqlite3.connect(served / "hub.db")) as connection:
        connection.execute("PRAGMA foreign_keys = ON")
        yield connection


def keep(storage: Storage, repo: Repo, content: bytes) -> Entry:
    with storage.objects.receive(len(content)) as incoming:
        incoming.write(content)
        arrived = incoming.finish()
        storage.keep(repo, incoming, arrived)
    return Entry(arrived, lfs=False)


def push(storage: Storage, repo: Repo, path: str, entry: Entry) -> Commit:
    made = storage.commit(
        repo, "main", lambda head, tree: {**tree, path: entry}, title="", description="", author=""
    )
    assert made is not None
    return made


def test_a_restart_serves_the_same(
    served: Path, folder: Path, tmp_path: Path, read_files: ReadFiles
) -> None:
    def look(api: HfApi) -> list[str]:
        info = api.model_info("ana/sst2", files_metadata=True)
        refs, commits = api.list_repo_refs("ana/sst2"), api.list_repo_commits("ana/sst2")
        return [repr(info), repr(refs), repr(commits)]

    tokens = {"t": User("ana")}
    with HubServer(served, tokens) as server:
        api = HfApi(endpoint=server.url, token="t")
        api.create_repo("ana/sst2", private=True)
        api.upload_folder(repo_id="ana/sst2", folder_path=folder)
        api.create_tag("ana/sst2", tag="v1")
        before = look(api)
    with HubServer(served, tokens) as server:
        api = HfApi(endpoint=server.url, token="t")
        assert look(api) == before
        found = api.snapshot_download("ana/sst2", revision="v1", cache_dir=tmp_path / "cache")
        assert read_files(Path(found)) == read_files(folder)


def test_two_servers_over_one_folder_show_the_same(served: Path) -> None:
    with HubServer(served) as first, HubServer(served) as second:
        one, two = (HfApi(endpoint=each.url, token="t") for each in (first, second))
        one.create_repo("ana/sst2")
        two.upload_file(path_or_fileobj=b"2", path_in_repo="two", repo_id="ana/sst2")
        one.upload_file(path_or_fileobj=b"1", path_in_repo="one", repo_id="ana/sst2")
        assert two.list_repo_files("ana/sst2") == ["one", "two"]


def test_equal_bytes_are_kept_once(storage: Storage, repo: Repo, served: Path) -> None:
    for path in ("a", "b"):
        push(storage, repo, path, keep(storage, repo, b"same"))
    assert [path.name for path in (served / "objects").rglob("*") if path.is_file()] == [
        keep(storage, repo, b"same").object.sha256
    ]


def test_a_change_that_fails_leaves_the_branch_as_it_was(storage: Storage, repo: Repo) -> None:
    head = push(storage, repo, "a", keep(storage, repo, b"1"))

    def fail(head: Commit, tree: Tree) -> Tree:
        tree.clear()
        raise RuntimeError

    with pytest.raises(RuntimeError):
        storage.commit(repo, "main", fail, title="", description="", author="")
    assert storage.resolve(repo, "main") == head
    assert list(storage.read_tree(repo, head)) == ["a"]


KILLED = """
import os, sys
from pathlib import Path
from hub.server.storage import Storage

storage = Storage(Path(sys.argv[1]))
repo = storage.find_repo("ana", "sst2")
storage.commit(repo, "main", lambda *_: os._exit(9), title="", description="", author="")
"""


def test_a_kill_before_the_commit_leaves_the_branch_as_it_was(
    storage: Storage, repo: Repo, served: Path
) -> None:
    head = push(storage, repo, "a", keep(storage, repo, b"1"))
    killed = subprocess.run([sys.executable, "-c", KILLED, served], timeout=60)
    assert killed.returncode == 9
    assert storage.resolve(repo, "main") == head
    push(storage, repo, "b", keep(storage, repo, b"2"))


def test_what_a_killed_upload_left_is_swept_once_it_is_old(served: Path) -> None:
    storage = Storage(served)
    old, young = served / "incoming" / "old", served / "incoming" / "young"
    for path in (old, young):
        path.write_bytes(b"half")
    os.utime(old, (time.time() - 48 * 3600,) * 2)
    storage = Storage(served)
    assert (old.exists(), young.exists()) == (False, True)
    assert storage.list_repos() == []


@pytest.mark.parametrize(
    "statement",
    [
        "INSERT INTO entry SELECT repo, oid, 'a', 'nothing', 0 FROM revision",
        "INSERT INTO entry VALUES (1, 'no commit', 'a', 'nothing', 0)",
        "INSERT INTO ref VALUES (1, 'branch', 'b', 'no commit')",
        "INSERT INTO ref SELECT repo, 'pr', 'b', oid FROM revision",
        "INSERT INTO repo (namespace, name, private, created) VALUES ('ana', 'sst2', 0, '')",
        "DELETE FROM object",
        "UPDATE revision SET parent = 'no commit'",
    ],
)
def test_a_torn_state_is_refused_by_the_database(
    storage: Storage, repo: Repo, database: sqlite3.Connection, statement: str
) -> None:
    push(storage, repo, "kept", keep(storage, repo, b"1"))
    with pytest.raises(sqlite3.IntegrityError):
        database.execute(statement)
        database.commit()


def test_a_folder_of_another_version_is_refused(served: Path, repo: Repo) -> None:
    with closing(sqlite3.connect(served / "hub.db")) as connection:
        connection.execute("PRAGMA user_version = 99")
    with pytest.raises(RemoteError, match="schema 99"):
        Storage(served)


def test_a_folder_that_is_none_is_refused(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(RemoteError, match="choose a folder"):
        HubServer(tmp_path / "file")
    broken = tmp_path / "broken"
    broken.mkdir()
    (broken / "hub.db").write_bytes(b"not a database" * 100)
    with pytest.raises(RemoteError, match="choose a folder"):
        HubServer(broken)
