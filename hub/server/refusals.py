"""What the server says no with: a status, and the headers by which the Hub's client knows why."""

from __future__ import annotations

from starlette.requests import Request
from starlette.responses import JSONResponse, Response


class Refusal(Exception):
    """A request that is not done, as the answer that says so. It never leaves the server.

    `code` is the Hub's X-Error-Code, from which the client chooses its exception; `body` is added
    to the JSON of the answer.
    """

    def __init__(
        self,
        status: int,
        message: str,
        *,
        code: str | None = None,
        headers: dict[str, str] | None = None,
        body: dict[str, object] | None = None,
    ) -> None:
        super().__init__(message)
        self.status = status
        self.message = message
        self.headers = dict(headers or {})
        self.body = dict(body or {})
        # A header is one line of Latin-1, and a message can quote what the client sent.
        printable = message.encode("ascii", "backslashreplace").decode().replace("\n", " ")
        self.headers["X-Error-Message"] = "".join(c for c in printable if c.isprintable())
        if code is not None:
            self.headers["X-Error-Code"] = code


def bad_request(message: str) -> Refusal:
    return Refusal(400, message)


def repo_not_found(repo_id: str, *, known_user: bool) -> Refusal:
    """Also for a private repo that the user may not see: its existence is not told.

    Without a token the Hub says 401, since logging in may help.
    """
    message = f"no repo {repo_id} here, or it is private and this token may not read it"
    return Refusal(404 if known_user else 401, message, code="RepoNotFound")


def revision_not_found(repo_id: str, revision: str) -> Refusal:
    message = f"{repo_id} has no branch, tag or commit {revision}"
    return Refusal(404, message, code="RevisionNotFound")


def entry_not_found(repo_id: str, path: str, commit: str) -> Refusal:
    message = f"{repo_id} has no file {path} at {commit}"
    return Refusal(404, message, code="EntryNotFound", headers={"X-Repo-Commit": commit})


def answer_refusal(request: Request, refusal: Exception) -> Response:
    if not isinstance(refusal, Refusal):
        raise refusal
    return JSONResponse(
        {"error": refusal.message, **refusal.body}, refusal.status, headers=refusal.headers
    )
