"""A repository on the Hugging Face Hub as a remote, through the Hub's own client.

HF_ENDPOINT, HF_TOKEN, HF_HOME, HF_HUB_CACHE and HF_HUB_OFFLINE mean what they mean everywhere,
since the client reads them. Offline, what its cache holds can still be read.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import TYPE_CHECKING

from hub.errors import RemoteError
from hub.files import CONFIG
from hub.recipes.bundles import list_files
from hub.recipes.recipe import RECIPE
from hub.remotes.explanations import Doing, check_token, explain_error
from hub.remotes.publications import Digest, Listing

if TYPE_CHECKING:
    from huggingface_hub import HfApi, ModelInfo

MAIN = "main"
PATIENCE = 30.0  # seconds that the Hub has for its first answer
COMMIT = re.compile(r"[0-9a-f]{40}")
SHA256 = re.compile(r"[0-9a-f]{64}")


class Repository:
    """A repository and one revision of it: a branch, a tag, or a commit hash."""

    def __init__(self, text: str, token: str | None = None) -> None:
        """`text` is "org/repo" or "org/repo@revision". Raises RemoteError where it is neither."""
        from huggingface_hub import HfApi
        from huggingface_hub.errors import HFValidationError
        from huggingface_hub.utils import validate_repo_id  # type: ignore[attr-defined]

        import hub

        repo, at, revision = text.removeprefix("hf://").partition("@")
        try:
            validate_repo_id(repo)
            if "/" not in repo:
                raise HFValidationError("a repository is in a namespace")
        except HFValidationError as error:
            raise RemoteError(
                f"{text!r} names no repository; write org/repo or org/repo@revision, "
                "and ./folder or file:///folder for a folder"
            ) from error
        if at and not revision:
            raise RemoteError(f"{text!r} ends with '@'; name a branch, a tag or a commit after it")
        self.repo = repo
        self.revision = revision or None
        self.label = self.remote = repo
        self.address = f"hf://{text.removeprefix('hf://')}"
        self.title = repo.rpartition("/")[2]
        self._token = check_token(token)
        self._api: HfApi = HfApi(
            token=self._token, library_name="pefthub", library_version=hub.__version__
        )

    def look(self) -> Listing:
        """What is there, at the commit that the revision means now. Raises RemoteError."""
        if is_offline():
            return self._look_in_cache()
        with self._explained("read"):
            return self._list_files(self._ask(self.revision))

    def look_to_write(self, private: bool) -> Listing | None:
        """What is there now; None where the repository or its branch is still to be made.

        Raises RemoteError, also where the repository is public and `private` is asked for.
        """
        from huggingface_hub import errors

        if self.revision is not None and COMMIT.fullmatch(self.revision):
            raise RemoteError(
                f"{self.repo}@{self.revision[:7]} is a commit, and a commit never changes; "
                "push to a branch"
            )
        with self._explained("write to"):
            try:
                info = self._ask(self.revision)
                there = True
            except errors.RevisionNotFoundError:
                info = self._ask(None)
                there = False
            except errors.GatedRepoError:
                raise
            except errors.RepositoryNotFoundError:
                return None
            if private and not info.private:
                raise RemoteError(
                    f"{self.repo} is there already and public; change its visibility on "
                    f"{self.name_url('')}, or push to another repository"
                )
            return self._list_files(info) if there else None

    def read(self, listing: Listing, name: str, *, again: bool = False) -> bytes:
        """A file's bytes at that commit, out of the client's cache or into it. Raises
        RemoteError."""
        if again and is_offline():
            raise RemoteError(
                f"{name} of {self.repo} was damaged in the Hub's cache on this machine and "
                "HF_HUB_OFFLINE is set; unset it to fetch the file anew"
            )
        with self._explained("read"):
            path = self._api.hf_hub_download(
                self.repo, name, revision=listing.revision, force_download=again
            )
            if not is_offline():
                self._remember(Path(path).parents[name.count("/")])
            return Path(path).read_bytes()

    def discard(self, listing: Listing, name: str) -> None:
        """Remove a file from the client's cache, so that no other program reads it either."""
        from huggingface_hub import try_to_load_from_cache

        found = try_to_load_from_cache(self.repo, name, revision=listing.revision)
        if isinstance(found, str):
            path = Path(found)
            for copy in (path.resolve(), path):
                with suppress(OSError):
                    copy.unlink(missing_ok=True)

    def write(
        self,
        contents: Mapping[str, bytes],
        gone: Iterable[str],
        before: Listing | None,
        message: str,
        private: bool,
    ) -> str:
        """Make one commit, on top of what was there `before`; its hash. Raises RemoteError."""
        from huggingface_hub import CommitOperationAdd, CommitOperationDelete

        operations: list[CommitOperationAdd | CommitOperationDelete] = [
            *(CommitOperationAdd(name, data) for name, data in contents.items()),
            *(CommitOperationDelete(name) for name in gone),
        ]
        with self._explained("write to"):
            if before is None:
                self._api.create_repo(self.repo, private=private or None, exist_ok=True)
                if self.revision not in (None, MAIN):
                    self._api.create_branch(self.repo, branch=self.revision, exist_ok=True)
            commit = self._api.create_commit(
                self.repo,
                operations,
                commit_message=message,
                revision=self.revision,
                parent_commit=before.revision if before is not None else None,
            )
        return str(commit.oid)

    def find_revision(self, listing: Listing, contents: Mapping[str, bytes]) -> str:
        """The commit that was looked at."""
        return listing.revision

    def name_url(self, revision: str) -> str:
        """The page of the repository, or of a commit of it."""
        page = f"{self._api.endpoint}/{self.repo}"
        return f"{page}/tree/{revision}" if revision else page

    def _ask(self, revision: str | None) -> ModelInfo:
        return self._api.model_info(
            self.repo, revision=revision, files_metadata=True, timeout=PATIENCE
        )

    def _list_files(self, info: ModelInfo) -> Listing:
        if info.sha is None:
            raise RemoteError(
                f"{self._api.endpoint} does not say which commit of {self.repo} it means; "
                "check HF_ENDPOINT"
            )
        files: dict[str, Digest | None] = {}
        for file in info.siblings or ():
            if file.lfs is not None:
                files[file.rfilename] = Digest("sha256", file.lfs.sha256)
            else:
                files[file.rfilename] = Digest("git", file.blob_id) if file.blob_id else None
        return Listing(info.sha, files)

    def _look_in_cache(self) -> Listing:
        """What the client's cache holds; a blob there is named by its digest."""
        from huggingface_hub import try_to_load_from_cache

        cached = (
            try_to_load_from_cache(self.repo, name, revision=self.revision)
            for name in (CONFIG, RECIPE)
        )
        found = next((path for path in cached if isinstance(path, str)), None)
        if found is None:
            at = f"@{self.revision}" if self.revision else ""
            raise RemoteError(
                f"HF_HUB_OFFLINE is set and the cache holds no adapter {self.repo}{at}; "
                "unset it to reach the Hub"
            )
        snapshot = Path(found).parent
        names = list_files(snapshot)
        return Listing(snapshot.name, {name: read_blob_name(snapshot / name) for name in names})

    def _remember(self, snapshot: Path) -> None:
        """Note in the client's cache which commit the branch or tag means, as its own downloads
        do, so that it is found offline. What is fetched here is asked for by its commit."""
        revision = self.revision or MAIN
        if not COMMIT.fullmatch(revision):
            ref = snapshot.parents[1] / "refs" / revision
            with suppress(OSError):
                ref.parent.mkdir(parents=True, exist_ok=True)
                ref.write_text(snapshot.name)

    @contextmanager
    def _explained(self, doing: Doing) -> Iterator[None]:
        """Turn whatever the client raises into one RemoteError that says what to do."""
        try:
            yield
        except RemoteError:
            raise
        except Exception as error:
            text = explain_error(
                error, doing, self.repo, self.revision, self._api.endpoint, self._list_refs
            )
            raise RemoteError(hide_token(text, self._token)) from error

    def _list_refs(self) -> list[str]:
        """The branches and tags of the repository; none where they can't be had."""
        with suppress(Exception):
            refs = self._api.list_repo_refs(self.repo)
            return [ref.name for ref in (*refs.branches, *refs.tags)]
        return []


def is_offline() -> bool:
    """Whether HF_HUB_OFFLINE is set."""
    from huggingface_hub import constants

    return constants.HF_HUB_OFFLINE


def hide_token(text: str, token: str | None) -> str:
    """The text without the token that is in use, should a server repeat it."""
    from huggingface_hub import get_token

    for secret in (token, get_token()):
        text = text.replace(secret, "***") if secret else text
    return text


def read_blob_name(path: Path) -> Digest | None:
    """The digest of a file in the client's cache: it links to a blob of that name."""
    name = path.resolve().name
    if SHA256.fullmatch(name):
        return Digest("sha256", name)
    return Digest("git", name) if COMMIT.fullmatch(name) else None
