"""What the errors of the Hub's client mean, in one line each, with the way out."""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from typing import Literal

from hub.errors import RemoteError

TOKEN = re.compile(r"[\x21-\x7e]+")
LONGEST = 300  # characters of what a server says that are repeated

Doing = Literal["read", "write to"]


def explain_error(
    error: BaseException,
    doing: Doing,
    repo: str,
    revision: str | None,
    endpoint: str,
    list_refs: Callable[[], Sequence[str]],
) -> str:
    """One line on what `error` means for reading or writing `repo`.

    list_refs: the branches and tags that there are, asked for where the revision is not one.
    """
    from huggingface_hub import errors

    if isinstance(error, errors.RevisionNotFoundError):
        there = ", ".join(list_refs())
        return f"{repo} has no revision {revision!r}" + (f"; it has {there}" if there else "")
    if "/xet-write-token/" in str(error):
        return f"{endpoint} does not take uploads through xet; set HF_HUB_DISABLE_XET=1"
    if (told := explain_refusal(error, doing, repo, endpoint)) is not None:
        return told
    cause = error.__cause__
    wrappers = errors.LocalEntryNotFoundError | ValueError | RuntimeError
    if isinstance(error, wrappers) and cause is not None:
        return explain_error(cause, doing, repo, revision, endpoint, list_refs)
    if isinstance(error, errors.OfflineModeIsEnabled):
        return f"HF_HUB_OFFLINE is set, so {repo} can't be reached; unset it to {doing} it"
    if isinstance(error, errors.FileMetadataError | ValueError | LookupError | TypeError):
        return (
            f"{endpoint} does not answer as a Hub does ({squeeze(str(error))}); "
            "check HF_ENDPOINT, or whether a proxy stands in between"
        )
    if is_transport_error(error):
        unsure = "; if it was a push, push again: nothing is committed twice"
        slow = "did not answer in time" if "Timeout" in type(error).__name__ else "can't be reached"
        return (
            f"{endpoint} {slow} ({squeeze(str(error)) or type(error).__name__}); "
            "check the network, or HF_ENDPOINT where it is set"
        ) + (unsure if doing == "write to" else "")
    if isinstance(error, OSError):
        return (
            f"can't {doing} {repo} through the Hub's cache on this machine: "
            f"{error.strerror or squeeze(str(error))}; HF_HOME moves the cache"
        )
    return f"can't {doing} {repo}: {type(error).__name__}: {squeeze(str(error))}"


def explain_refusal(error: BaseException, doing: Doing, repo: str, endpoint: str) -> str | None:
    """One line on an answer that says no; None where `error` is another kind of error."""
    from huggingface_hub import errors

    if not isinstance(error, errors.HfHubHTTPError):
        return None
    status = error.response.status_code
    said = f" ({squeeze(error.server_message)})" if error.server_message else ""
    if isinstance(error, errors.GatedRepoError):
        return f"{repo} is gated and this token has no access; ask for it on {endpoint}/{repo}"
    if isinstance(error, errors.RepositoryNotFoundError):
        return (
            f"{endpoint} has no repository {repo}, or it is private and needs another token; "
            "check the name, or log in with `hf auth login` or HF_TOKEN"
        )
    if isinstance(error, errors.RemoteEntryNotFoundError):
        return f"{repo} lacks a file that it listed{said}; try again"
    return {
        401: f"{endpoint} wants a valid token{said}; log in with `hf auth login`, or set HF_TOKEN",
        403: f"no permission to {doing} {repo}{said}; use a token that has it",
        409: f"{repo} was changed meanwhile{said}; try again",
        412: f"{repo} was changed meanwhile{said}; push again",
        429: f"{endpoint} was asked too often{said}; try again in some minutes",
    }.get(status) or f"{endpoint} answered {status} for {repo}{said}" + (
        "; try again later" if status >= 500 else ""
    )


def is_transport_error(error: BaseException) -> bool:
    """Whether the client's HTTP library failed, httpx or what comes after it."""
    from huggingface_hub.errors import HfHubHTTPError

    http_error = HfHubHTTPError.__bases__[0]
    return isinstance(error, http_error | ConnectionError | TimeoutError)


def check_token(token: str | None) -> str | None:
    """The token, or None where there is none. Raises RemoteError where it can't be one."""
    token = (token or "").strip()
    if token and not TOKEN.fullmatch(token):
        raise RemoteError(
            "the token holds spaces or characters that no token has; copy it anew from "
            "the Hub's settings"
        )
    return token or None


def squeeze(text: str) -> str:
    """A text as one short line."""
    line = " ".join(text.split()).rstrip(".")
    return line if len(line) <= LONGEST else line[:LONGEST] + "..."
