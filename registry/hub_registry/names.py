"""Names of adapters, aliases and files, and references to versions: `sst2`, `sst2@3`,
`sst2@production`."""

from __future__ import annotations

import re
from dataclasses import dataclass

from hub_registry.errors import BadName

LATEST = "latest"

_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,127}")
_RULE = "letters, digits, '.', '_' and '-', beginning with a letter or digit, at most 128"


@dataclass(frozen=True)
class Reference:
    """A parsed reference: a number, an alias, or neither, which means the latest version."""

    name: str
    number: int | None = None
    alias: str | None = None

    def __str__(self) -> str:
        selector = self.alias if self.number is None else self.number
        return self.name if selector is None else f"{self.name}@{selector}"


def parse_reference(text: str) -> Reference:
    """Parse `name`, `name@number`, `name@alias` or `name@latest`. Raises BadName."""
    name, at, selector = text.partition("@")
    if not _NAME.fullmatch(name) or (at and not _NAME.fullmatch(selector)):
        raise BadName(f"'{text}' is not a reference; write name, name@number or name@alias")
    if selector.isdigit():
        return Reference(name, number=int(selector))
    return Reference(name, alias=None if selector in ("", LATEST) else selector)


def check_name(name: str, what: str = "adapter") -> str:
    """Return `name` if it may name a thing of this kind. Raises BadName."""
    if not _NAME.fullmatch(name):
        raise BadName(f"'{name}' is no {what} name; use {_RULE}")
    return name


def check_alias(alias: str) -> str:
    """Return `alias` if it may be one: no number, not "latest". Raises BadName."""
    check_name(alias, "alias")
    if alias.isdigit() or alias == LATEST:
        raise BadName(
            f"'{alias}' can't be an alias: name@{alias} already means something; use a word"
        )
    return alias


def check_text(text: str, what: str) -> str:
    """Return `text` if it is one line of 1 to 128 printable characters. Raises BadName."""
    if not (0 < len(text) <= 128 and text.isprintable() and text.strip() == text):
        raise BadName(f"{text!r} can't be a {what}; use one line of 1 to 128 printable characters")
    return text


def check_prose(text: str | None) -> None:
    """Raises BadName for text that no database takes: lone surrogates, null characters."""
    try:
        bad = text is not None and (b"\0" in text.encode())
    except UnicodeEncodeError:
        bad = True
    if bad:
        raise BadName(f"{text!r} can't be stored; use text without null or broken characters")
