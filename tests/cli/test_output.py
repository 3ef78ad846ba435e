"""Tables, JSON, progress and colours, in a pipe and on a terminal."""

from __future__ import annotations

import json
import os
import pty
import subprocess
import sys
from collections.abc import Callable
from datetime import UTC, datetime
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from hub.cli.output import (
    clean,
    format_row,
    format_size,
    measure,
    print_json,
    print_pairs,
    print_table,
    show_progress,
)
from tests.cli.conftest import Add

TEXT = st.text(max_size=30)


def test_table_is_aligned(capsys: pytest.CaptureFixture[str]) -> None:
    print_table(("a", "long title"), [("é", "x"), ("日本", "y"), ("a\nb\t\x1b[31m", "z")])
    assert capsys.readouterr().out.splitlines() == [
        "A          LONG TITLE",
        "é          x",
        "日本       y",
        "a b ?[31m  z",
    ]


def test_table_without_rows_is_nothing(capsys: pytest.CaptureFixture[str]) -> None:
    print_table(("a",), [])
    assert capsys.readouterr().out == ""


def test_pairs_leave_out_what_is_none(capsys: pytest.CaptureFixture[str]) -> None:
    print_pairs({"a": "1", "long": None, "bcd": "2"})
    assert capsys.readouterr().out == "  a    1\n  bcd  2\n"


@given(st.lists(st.tuples(TEXT, TEXT), min_size=1), st.integers(min_value=1, max_value=40))
def test_rows_are_whole_or_cut_to_fit(rows: list[tuple[str, str]], limit: int) -> None:
    table = [[clean(cell) for cell in row] for row in rows]
    widths = [max(map(measure, column)) for column in zip(*table, strict=True)]
    for row in table:
        whole, cut = format_row(row, widths), format_row(row, widths, limit)
        assert whole.startswith(row[0].rstrip())
        assert whole.endswith(row[1].rstrip())
        assert measure(cut) <= limit
        assert cut in (whole, f"{whole[: len(cut) - 1]}…")


@given(st.text())
def test_clean_text_is_one_printable_line(text: str) -> None:
    assert clean(text).isprintable()
    assert clean(clean(text)) == clean(text)


@pytest.mark.parametrize(
    ("size", "text"),
    [(0, "0 B"), (999, "999 B"), (1000, "1.0 kB"), (12_345_678, "12.3 MB"), (5e12, "5000.0 GB")],
)
def test_sizes_have_the_unit_for_people(size: int, text: str) -> None:
    assert format_size(size) == text


def test_json_has_no_numbers_that_it_lacks(capsys: pytest.CaptureFixture[str]) -> None:
    moment = datetime(2026, 1, 2, tzinfo=UTC)
    print_json({"a": float("inf"), "b": (1, Path("x")), "c": {"d": moment}, "e": True})
    document = json.loads(capsys.readouterr().out, parse_constant=pytest.fail)
    assert document == {
        "a": None,
        "b": [1, "x"],
        "c": {"d": "2026-01-02T00:00:00+00:00"},
        "e": True,
    }


def test_progress_is_silent_where_there_is_no_terminal(
    capsys: pytest.CaptureFixture[str],
) -> None:
    with show_progress("looking") as tell:
        tell("1 of 2")
    assert capsys.readouterr() == ("", "")


def run_on_terminal(words: list[str], columns: int = 60, **env: str) -> str:
    """What a command writes on a terminal of that width."""
    master, slave = pty.openpty()
    done = subprocess.Popen(
        [sys.executable, *words],
        stdin=subprocess.DEVNULL,
        stdout=slave,
        stderr=slave,
        env={**os.environ, "COLUMNS": str(columns), **env},
    )
    os.close(slave)
    output = b""
    while True:
        try:
            part = os.read(master, 4096)
        except OSError:  # the other side is closed
            break
        if not part:
            break
        output += part
    os.close(master)
    assert done.wait() == 0
    return output.decode()


@pytest.fixture
def hub_list(add: Add) -> list[str]:
    """`hub list`, where there is a line too long for a terminal."""
    add("name-" * 20)
    return [str(Path(sys.executable).with_name("hub")), "list"]


@pytest.mark.parametrize("env", [{}, {"NO_COLOR": "1"}])
def test_terminal_has_cut_lines_and_colours(env: dict[str, str], hub_list: list[str]) -> None:
    shown = run_on_terminal(hub_list, **env)
    assert ("\x1b[1m" in shown) is (not env)
    lines = shown.replace("\x1b[1m", "").replace("\x1b[0m", "").splitlines()
    assert [len(line) for line in lines] == [60, 60]
    assert lines[1].endswith("…")


def test_pipe_has_whole_lines_and_no_colours(
    hub_list: list[str], run: Callable[..., object]
) -> None:
    done = subprocess.run([sys.executable, *hub_list], capture_output=True, text=True, check=True)
    assert "\x1b" not in done.stdout
    assert "…" not in done.stdout
    assert "name-" * 20 in done.stdout


def test_progress_is_shown_on_a_terminal_after_a_second() -> None:
    code = """
import time
from hub.cli.output import show_progress
with show_progress("looking"):
    pass
with show_progress("reading") as tell:
    tell("3 of 4")
    time.sleep(1.2)
print("done")
"""
    shown = run_on_terminal(["-c", code])
    assert "looking" not in shown
    assert "reading 3 of 4 (1 s)" in shown
    assert shown.endswith("\r\x1b[Kdone\r\n")
