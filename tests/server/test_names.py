"""Names of files and refs, whatever they are made of."""

from __future__ import annotations

from pathlib import Path, PurePosixPath, PureWindowsPath

from hypothesis import given
from hypothesis import strategies as st

from hub.server.names import check_path, check_ref
from hub.server.refusals import Refusal

PARTS = st.sampled_from(["a", "..", ".", "", ".git", "C:", "\\", "~", "b.txt", "ü", "\0", "nul"])
PATHS = st.one_of(st.text(max_size=30), st.lists(PARTS, max_size=5).map("/".join))


@given(PATHS)
def test_a_path_that_is_taken_stays_in_its_folder(path: str) -> None:
    try:
        check_path(path)
    except Refusal as refusal:
        assert refusal.status == 400
        refusal.headers["X-Error-Message"].encode("ascii")
        return
    for kind in (PurePosixPath, PureWindowsPath):
        joined = kind("/folder") / path
        assert joined.is_relative_to("/folder")
        assert ".." not in joined.parts
        assert joined.as_posix() == f"/folder/{path}"
    assert Path("/folder", path).resolve().is_relative_to("/folder")


@given(st.text(max_size=30))
def test_a_ref_that_is_taken_is_one_for_git_too(name: str) -> None:
    try:
        check_ref(name)
    except Refusal:
        return
    assert not name.startswith(("-", "/", ".", "refs/"))
    assert not name.endswith(("/", ".", ".lock"))
    assert not set(name) & set(" ~^:?*[\\\t\n")
    assert ".." not in name
