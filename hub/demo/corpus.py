"""The text that every machine has: the source of Python's standard library, and its reference.

Some modules of some packages and some topics of the reference are held out: neither the tokenizer
nor the base nor any task ever reads them. Which ones follows from their names alone, so it is the
same in every run; the library itself differs from one version of Python to the next.
"""

from __future__ import annotations

import hashlib
import re
import sysconfig
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from functools import cache
from pathlib import Path

from hub.errors import DataError

# Packages of some size that no distribution of Python leaves out.
PACKAGES = ("asyncio", "email", "multiprocessing", "xml")
# What is not always installed, tests, and what is a table or another program rather than a module.
LEFT_OUT = frozenset(
    {
        "__phello__",
        "dist-packages",
        "encodings",
        "ensurepip",
        "idle_test",
        "lib2to3",
        "pydoc_data",
        "site-packages",
        "test",
        "tests",
        "turtledemo",
    }
)
TABLES = ("html/entities.py", "_sysconfigdata")
SMALLEST = 1500  # bytes of a module that is worth holding out
ENOUGH = 1_000_000  # bytes of source below which there is nothing to learn from


@dataclass(frozen=True)
class Library:
    """The standard library's modules, by path ("email/utils.py"), with their source.

    seen: what the tokenizer, the base and the tasks may read.
    held_out: what only measures, all of it from `PACKAGES`.
    """

    seen: Mapping[str, str]
    held_out: Mapping[str, str]


@dataclass(frozen=True)
class Topic:
    """A topic of Python's reference: its name, its title, and its paragraphs."""

    name: str
    title: str
    paragraphs: tuple[str, ...]


@cache
def read_library(root: Path | None = None) -> Library:
    """The standard library of the Python that runs. Raises DataError where its source is not there.

    root: another folder of modules to read instead.
    """
    root = root or Path(sysconfig.get_path("stdlib"))
    sources = {path: read_source(root / path) for path in find_modules(root)}
    if sum(map(len, sources.values())) < ENOUGH:
        raise DataError(
            f"{root} has {len(sources)} modules with source, too little text to learn from; run "
            "the demo with a Python whose standard library is there as .py files"
        )
    held_out = {
        path
        for package in PACKAGES
        for path in hold_out({p: len(s) for p, s in sources.items() if p.startswith(f"{package}/")})
    }
    return Library(
        {path: source for path, source in sources.items() if path not in held_out},
        {path: source for path, source in sources.items() if path in held_out},
    )


def find_modules(root: Path) -> list[str]:
    """The paths of the modules to read, in alphabetical order."""
    paths = (path.relative_to(root) for path in root.rglob("*.py"))
    return sorted(
        path.as_posix()
        for path in paths
        if not any(is_left_out(folder) for folder in path.parts[:-1])
        and not path.as_posix().startswith(TABLES)
    )


def is_left_out(folder: str) -> bool:
    """Whether a folder's modules are not read; ``config-3.12-...`` is a build's settings."""
    return folder in LEFT_OUT or folder.startswith(("config-", "."))


def read_source(path: Path) -> str:
    """A module's text, whatever its encoding says."""
    return path.read_text(encoding="utf-8", errors="replace")


def hold_out(sizes: Mapping[str, int], share: float = 0.3) -> list[str]:
    """Names that make up about `share` of all, in an order that only the names decide."""
    large = {name: size for name, size in sizes.items() if size >= SMALLEST}
    room = share * sum(large.values())
    chosen = []
    for name in sorted(large, key=scatter):
        if large[name] <= room:
            chosen.append(name)
            room -= large[name]
    return chosen


def scatter(name: str) -> str:
    """A number as good as random for each name, always the same."""
    return hashlib.sha256(name.encode()).hexdigest()


def read_topics() -> tuple[list[Topic], list[Topic]]:
    """The topics of Python's reference to learn from, and those held out.

    The reference tells some sections twice, alone and in their chapter; a paragraph is kept once,
    and where one of them is held out, there.
    """
    from pydoc_data.topics import topics

    held_out = hold_out({name: len(text) for name, text in topics.items()}, 0.2)
    told: set[str] = set()
    measured = [read_topic(name, topics[name], told) for name in held_out]
    learned = [read_topic(n, topics[n], told) for n in sorted(topics.keys() - set(held_out))]
    return [t for t in learned if t.paragraphs], [t for t in measured if t.paragraphs]


def read_topic(name: str, text: str, told: set[str]) -> Topic:
    """A topic without the paragraphs that were `told` before; its own are added to them."""
    title, *paragraphs = re.split(r"\n\s*\n", text.strip())
    new = {" ".join(p.split()): p for p in paragraphs}
    kept = [paragraph for plain, paragraph in new.items() if plain and plain not in told]
    told.update(new)
    return Topic(name, title.splitlines()[0], tuple(kept))


def cut_windows(text: str, size: int, *, overlap: bool = False) -> Iterator[str]:
    """Pieces of whole lines with at least `size` characters; what is left over is left out.

    overlap: let each begin in the middle of the one before it, not at its end.
    """
    lines = text.splitlines(keepends=True)
    start = 0
    while start < len(lines):
        end, length = start, 0
        while end < len(lines) and length < size:
            length += len(lines[end])
            end += 1
        if length < size:
            return
        yield "".join(lines[start:end])
        start = max(start + 1, (start + end) // 2) if overlap else end
