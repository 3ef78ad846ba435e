"""Who asks, and what they may do."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal

from starlette.requests import Request

from hub.server.refusals import Refusal


@dataclass(frozen=True)
class User:
    """Whom a token stands for.

    `role` "read" reads, "write" also pushes, creates and deletes. `namespaces` are those, beside
    the user's own, whose private repos the user sees and where the role counts; None is all.
    """

    name: str
    role: Literal["read", "write"] = "write"
    namespaces: frozenset[str] | None = None

    def belongs_to(self, namespace: str) -> bool:
        return self.namespaces is None or namespace == self.name or namespace in self.namespaces


LOCAL = User("local")


class Accounts:
    """The tokens of a server. With None, it is open: every caller is the user `local`."""

    def __init__(self, tokens: Mapping[str, User] | None) -> None:
        self._tokens = None if tokens is None else dict(tokens)

    def identify(self, request: Request) -> User | None:
        """The user, or None without a token; 401 for a token that is not known."""
        if self._tokens is None:
            return LOCAL
        header = request.headers.get("authorization")
        if header is None:
            return None
        scheme, _, token = header.partition(" ")
        user = self._tokens.get(token.strip()) if scheme.lower() == "bearer" else None
        if user is None:
            # The client tells a bad token from a missing repo by these very words.
            raise Refusal(401, "Invalid credentials in Authorization header")
        return user

    def require_writer(self, request: Request, namespace: str) -> User:
        """The user, when they may write in `namespace`; 401 without a token, 403 otherwise."""
        user = self.identify(request)
        if user is None:
            raise Refusal(401, "writing needs a token: log in or set HF_TOKEN")
        if user.role != "write":
            raise Refusal(403, f"the token of {user.name} may only read, use one that may write")
        if not user.belongs_to(namespace):
            raise Refusal(403, f"{user.name} may not write in the namespace {namespace}")
        return user
