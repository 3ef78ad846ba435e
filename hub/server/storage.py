"""Repos, their commits and their refs, in a folder.

    {folder}/hub.db     repos, commits, files of each commit, branches, tags
    {folder}/objects/   the bytes, by sha256

A push puts its bytes in place first, and then one transaction writes the commit and moves the
branch: after a kill at any point the branch is as before or as after.
"""

from __future__ import annotations

import sqlite3
from collections.abc import Callable, Sequence
from pathlib import Path

from hub.errors import RemoteError
from hub.server.database import Database
from hub.server.objects import Incoming, Object, ObjectFolder
from hub.server.records import Commit, Entry, Repo, Tree, make_commit, tell_time

MAIN = "main"


class Storage:
    """The state of a server. Every method is one transaction, and safe from any thread."""

    def __init__(self, folder: Path) -> None:
        """Raises `RemoteError` when the folder can't be used."""
        try:
            self.objects = ObjectFolder(folder)
            self._database = Database(folder / "hub.db")
        except (OSError, sqlite3.Error) as error:
            raise RemoteError(
                f"{folder} can't hold what is served: {error}; choose a folder that is writable"
            ) from error

    # Repos

    def create_repo(self, namespace: str, name: str, *, private: bool, author: str) -> Repo | None:
        """The new repo with an empty first commit on main, or None when the name is taken."""
        created = tell_time()
        with self._database.write() as connection:
            cursor = connection.execute(
                "INSERT INTO repo (namespace, name, private, created) VALUES (?, ?, ?, ?)"
                " ON CONFLICT DO NOTHING RETURNING key",
                (namespace, name, private, created),
            )
            row = cursor.fetchone()
            if row is None:
                return None
            repo = Repo(row[0], namespace, name, private, created)
            first = make_commit(MAIN, None, {}, "initial commit", "", author)
            _insert_commit(connection, repo, first, {})
            _set_ref(connection, repo, "branch", MAIN, first.oid)
        return repo

    def find_repo(self, namespace: str, name: str) -> Repo | None:
        with self._database.read() as connection:
            row = connection.execute(
                "SELECT key, namespace, name, private, created FROM repo"
                " WHERE namespace = ? AND name = ?",
                (namespace, name),
            ).fetchone()
        return None if row is None else _read_repo(row)

    def list_repos(self) -> list[Repo]:
        with self._database.read() as connection:
            rows = connection.execute(
                "SELECT key, namespace, name, private, created FROM repo ORDER BY key"
            ).fetchall()
        return [_read_repo(row) for row in rows]

    def set_private(self, repo: Repo, private: bool) -> None:
        with self._database.write() as connection:
            connection.execute("UPDATE repo SET private = ? WHERE key = ?", (private, repo.key))

    def delete_repo(self, repo: Repo) -> None:
        with self._database.write() as connection:
            rows = connection.execute(
                "SELECT sha256 FROM object WHERE repo = ?", (repo.key,)
            ).fetchall()
            connection.execute("DELETE FROM repo WHERE key = ?", (repo.key,))
        for (sha256,) in rows:
            # In a transaction of its own each, so that nobody places these bytes meanwhile.
            with self._database.write() as connection:
                if not connection.execute(
                    "SELECT 1 FROM object WHERE sha256 = ?", (sha256,)
                ).fetchone():
                    self.objects.remove(sha256)

    # Bytes

    def keep(self, repo: Repo, incoming: Incoming, arrived: Object) -> None:
        """Put finished bytes in place, for `repo` to refer to."""
        with self._database.write() as connection:
            self._place(connection, repo, incoming, arrived)

    def find_object(self, repo: Repo, sha256: str) -> Object | None:
        with self._database.read() as connection:
            row = connection.execute(
                "SELECT sha256, size, git FROM object WHERE repo = ? AND sha256 = ?",
                (repo.key, sha256),
            ).fetchone()
        return None if row is None else Object(*row)

    # Revisions

    def resolve(self, repo: Repo, revision: str) -> Commit | None:
        """The commit of a branch, a tag, a full ref, or a commit's id of 7 digits or more."""
        with self._database.read() as connection:
            for kind, prefix in (("branch", "refs/heads/"), ("tag", "refs/tags/")):
                row = connection.execute(
                    "SELECT oid FROM ref WHERE repo = ? AND kind = ? AND name = ?",
                    (repo.key, kind, revision.removeprefix(prefix)),
                ).fetchone()
                if row is not None:
                    return _read_commit(connection, repo, row[0])
            if len(revision) < 7 or not set(revision.lower()) <= set("0123456789abcdef"):
                return None
            rows = connection.execute(
                "SELECT oid FROM revision WHERE repo = ? AND substr(oid, 1, ?) = ?",
                (repo.key, len(revision), revision.lower()),
            ).fetchall()
            return _read_commit(connection, repo, rows[0][0]) if len(rows) == 1 else None

    def read_tree(self, repo: Repo, commit: Commit) -> Tree:
        """Every file of a commit, by path, in order."""
        with self._database.read() as connection:
            return _read_tree(connection, repo, commit.oid)

    def list_commits(self, repo: Repo, commit: Commit) -> list[Commit]:
        """`commit` and what came before it, newest first."""
        with self._database.read() as connection:
            rows = connection.execute(
                """
                WITH RECURSIVE history (oid, depth) AS (
                    VALUES (?, 0)
                    UNION ALL
                    SELECT revision.parent, depth + 1 FROM history
                    JOIN revision ON revision.repo = ? AND revision.oid = history.oid
                    WHERE revision.parent IS NOT NULL
                )
                SELECT oid, parent, title, description, author, date FROM history
                JOIN revision USING (oid) WHERE repo = ? ORDER BY depth
                """,
                (commit.oid, repo.key, repo.key),
            ).fetchall()
        return [Commit(*row) for row in rows]

    def list_refs(self, repo: Repo, kind: str) -> dict[str, str]:
        """Name to commit, of the branches or the tags."""
        with self._database.read() as connection:
            rows = connection.execute(
                "SELECT name, oid FROM ref WHERE repo = ? AND kind = ? ORDER BY name",
                (repo.key, kind),
            ).fetchall()
        return dict(rows)

    def add_ref(self, repo: Repo, kind: str, name: str, commit: Commit) -> bool:
        """False when the name is taken."""
        with self._database.write() as connection:
            cursor = connection.execute(
                "INSERT INTO ref (repo, kind, name, oid) VALUES (?, ?, ?, ?)"
                " ON CONFLICT DO NOTHING",
                (repo.key, kind, name, commit.oid),
            )
            return cursor.rowcount == 1

    def remove_ref(self, repo: Repo, kind: str, name: str) -> bool:
        """False when there is none."""
        with self._database.write() as connection:
            cursor = connection.execute(
                "DELETE FROM ref WHERE repo = ? AND kind = ? AND name = ?", (repo.key, kind, name)
            )
            return cursor.rowcount == 1

    def commit(
        self,
        repo: Repo,
        branch: str,
        change: Callable[[Commit, Tree], Tree],
        *,
        arrived: Sequence[tuple[Incoming, Object]] = (),
        title: str,
        description: str,
        author: str,
    ) -> Commit | None:
        """Move `branch` on to the tree that `change` makes of its head; None when there is none.

        `change` runs while no other writer can, so what it saw is what the commit stands on; what
        it raises leaves all as it was. A tree that is the head's makes no commit. `arrived` are
        finished bytes that the tree refers to and that are not kept yet.
        """
        with self._database.write() as connection:
            row = connection.execute(
                "SELECT oid FROM ref WHERE repo = ? AND kind = 'branch' AND name = ?",
                (repo.key, branch),
            ).fetchone()
            if row is None:
                return None
            head = _read_commit(connection, repo, row[0])
            tree = _read_tree(connection, repo, head.oid)
            changed = change(head, dict(tree))
            if changed == tree:
                return head
            made = make_commit(branch, head.oid, changed, title, description, author)
            for incoming, found in arrived:
                self._place(connection, repo, incoming, found)
            _insert_commit(connection, repo, made, changed)
            _set_ref(connection, repo, "branch", branch, made.oid)
        return made

    def _place(
        self, connection: sqlite3.Connection, repo: Repo, incoming: Incoming, arrived: Object
    ) -> None:
        # The row first: it is refused when the repo is gone, and then no bytes are left behind.
        connection.execute(
            "INSERT INTO object (repo, sha256, size, git) VALUES (?, ?, ?, ?)"
            " ON CONFLICT DO NOTHING",
            (repo.key, arrived.sha256, arrived.size, arrived.git),
        )
        self.objects.place(incoming, arrived)


def _read_repo(row: tuple[int, str, str, int, str]) -> Repo:
    key, namespace, name, private, created = row
    return Repo(key, namespace, name, bool(private), created)


def _read_commit(connection: sqlite3.Connection, repo: Repo, oid: str) -> Commit:
    row = connection.execute(
        "SELECT oid, parent, title, description, author, date FROM revision"
        " WHERE repo = ? AND oid = ?",
        (repo.key, oid),
    ).fetchone()
    return Commit(*row)


def _read_tree(connection: sqlite3.Connection, repo: Repo, oid: str) -> Tree:
    rows = connection.execute(
        "SELECT path, sha256, size, git, lfs FROM entry JOIN object USING (repo, sha256)"
        " WHERE repo = ? AND oid = ? ORDER BY path",
        (repo.key, oid),
    )
    return {path: Entry(Object(*found), bool(lfs)) for path, *found, lfs in rows}


def _insert_commit(connection: sqlite3.Connection, repo: Repo, commit: Commit, tree: Tree) -> None:
    connection.execute(
        "INSERT INTO revision (repo, oid, parent, title, description, author, date)"
        " VALUES (?, ?, ?, ?, ?, ?, ?)",
        (
            repo.key,
            commit.oid,
            commit.parent,
            commit.title,
            commit.description,
            commit.author,
            commit.date,
        ),
    )
    connection.executemany(
        "INSERT INTO entry (repo, oid, path, sha256, lfs) VALUES (?, ?, ?, ?, ?)",
        [
            (repo.key, commit.oid, path, entry.object.sha256, entry.lfs)
            for path, entry in tree.items()
        ],
    )


def _set_ref(connection: sqlite3.Connection, repo: Repo, kind: str, name: str, oid: str) -> None:
    connection.execute(
        "INSERT INTO ref (repo, kind, name, oid) VALUES (?, ?, ?, ?)"
        " ON CONFLICT (repo, kind, name) DO UPDATE SET oid = excluded.oid",
        (repo.key, kind, name, oid),
    )
