"""What commands print: tables, JSON, and progress.

The result goes to stdout, everything else to stderr. On a terminal a table's line is cut at its
width; anywhere else nothing is left out.
"""

from __future__ import annotations

import json
import math
import shutil
import sys
import threading
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from datetime import UTC, datetime
from typing import Any, TextIO

import click

CLEAR = "\r\x1b[K"
GAP = "  "


def print_json(document: Mapping[str, Any]) -> None:
    """One JSON document. A number that is not finite becomes null; times are ISO 8601, in UTC."""
    click.echo(json.dumps(to_plain(document), indent=2, allow_nan=False))


def to_plain(value: Any) -> Any:
    """A value in the types that JSON has."""
    if isinstance(value, Mapping):
        return {str(key): to_plain(item) for key, item in value.items()}
    if isinstance(value, list | tuple | set | frozenset):
        return [to_plain(item) for item in value]
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    if isinstance(value, datetime):
        return value.astimezone(UTC).isoformat()
    return value if isinstance(value, str | int | bool | None) else str(value)


def print_table(head: Sequence[str], rows: Iterable[Sequence[str]], *, cut: bool = True) -> None:
    """A line for each row under a line of titles; nothing where there are no rows.

    cut: on a terminal, at its width.
    """
    table = [[clean(cell) for cell in row] for row in rows]
    if not table:
        return
    columns = zip(head, *table, strict=True)
    widths = [max(measure(cell) for cell in column) for column in columns]
    limit = shutil.get_terminal_size().columns if cut and is_terminal(sys.stdout) else None
    titles = format_row([title.upper() for title in head], widths, limit)
    click.echo(click.style(titles, bold=True))
    for row in table:
        click.echo(format_row(row, widths, limit))


def print_pairs(pairs: Mapping[str, str | None]) -> None:
    """A line for each name and value, indented; values that are None are left out."""
    shown = {name: clean(value) for name, value in pairs.items() if value is not None}
    width = max(map(measure, shown), default=0)
    for name, value in shown.items():
        click.echo(format_row(["", name, value], [0, width, 0]))


def format_row(cells: Sequence[str], widths: Sequence[int], limit: int | None = None) -> str:
    """The cells side by side, cut to `limit` columns."""
    line = GAP.join(
        cell + " " * (width - measure(cell)) for cell, width in zip(cells, widths, strict=True)
    ).rstrip()
    if limit is None or measure(line) <= limit:
        return line
    while measure(line) > limit - 1:
        line = line[:-1]
    return f"{line}…"


def measure(text: str) -> int:
    """How many columns of a terminal a text takes."""
    if text.isascii():
        return len(text)
    from unicodedata import combining, east_asian_width

    return sum(
        0 if combining(char) else 2 if east_asian_width(char) in "WF" else 1 for char in text
    )


def clean(text: str) -> str:
    """A text on one line, without what would move a terminal's cursor."""
    return "".join(char if char.isprintable() else "?" for char in " ".join(text.split()))


def format_time(moment: datetime) -> str:
    """To the minute, in the zone of the machine."""
    return f"{moment.astimezone():%Y-%m-%d %H:%M}"


def format_size(size: int) -> str:
    """Bytes, for people."""
    number = float(size)
    for unit in ("B", "kB", "MB"):
        if number < 1000:
            return f"{number:.0f} {unit}" if unit == "B" else f"{number:.1f} {unit}"
        number /= 1000
    return f"{number:.1f} GB"


def format_metrics(metrics: Mapping[str, float]) -> str:
    """Names and values, side by side."""
    return ", ".join(f"{name} {value:.4g}" for name, value in metrics.items())


def is_terminal(stream: TextIO | None) -> bool:
    """Whether somebody watches. Python has None for a stream that was closed before it began."""
    return stream is not None and not stream.closed and stream.isatty()


def say(text: str) -> None:
    """A line for people on stderr."""
    click.echo(text, err=True)


def notify(text: str) -> None:
    """Something to know that is no error, on stderr."""
    click.echo(f"{click.style('note:', fg='yellow')} {text}", err=True)


@contextmanager
def show_progress(what: str) -> Iterator[Callable[[str], None]]:
    """Say on stderr what takes more than a second, and for how long it has; nothing where that is
    no terminal. What is given to the callable is said too: how far it is."""
    if not is_terminal(sys.stderr):
        yield lambda text: None
        return
    started, ended, detail = time.monotonic(), threading.Event(), [""]

    def draw() -> None:
        width = shutil.get_terminal_size().columns - 1
        while not ended.wait(1):
            line = f"{what} {detail[0]}({time.monotonic() - started:.0f} s)"
            sys.stderr.write(f"{CLEAR}{line[:width]}")
            sys.stderr.flush()
        if time.monotonic() - started > 1:
            sys.stderr.write(CLEAR)
            sys.stderr.flush()

    thread = threading.Thread(target=draw, daemon=True)
    thread.start()
    try:
        yield lambda text: detail.__setitem__(0, f"{text} ")
    finally:
        ended.set()
        thread.join()
