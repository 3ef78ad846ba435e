"""What a user types to name a folder."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

import hub
from hub.errors import FileError
from hub.references import locate_folder


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("file:///a%20b/c", Path("/a b/c")),
        ("file://localhost/a", Path("/a")),
        ("./a", Path("a")),
        ("~/a", Path.home() / "a"),
    ],
)
def test_a_folder_is_found(text: str, expected: Path) -> None:
    assert locate_folder(text) == expected


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("file://shared/x", "three slashes, write file:///shared/x"),
        ("file://shared", "write file:///shared"),
        ("file://", "write file:///folder"),
        ("~nobody-of-that-name/x", "write the whole path"),
    ],
)
def test_another_machine_or_user_is_refused(text: str, said: str) -> None:
    with pytest.raises(FileError, match=said):
        locate_folder(text)
    with pytest.raises(FileError, match=said):
        hub.load(text)


@pytest.mark.parametrize(("value", "name"), [(None, "NoneType"), (5, "int")])
def test_what_is_no_reference_is_named(value: Any, name: str) -> None:
    with pytest.raises(FileError, match=f"a {name} names no adapter"):
        hub.load(value)
