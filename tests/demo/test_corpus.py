"""What the demo reads, and what nothing in it reads but to measure."""

from __future__ import annotations

from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from hub.demo.corpus import PACKAGES, cut_windows, hold_out, read_library, read_topics
from hub.demo.tasks import make_english_task, make_packages_task
from hub.errors import DataError


def test_every_package_has_modules_to_learn_from_and_modules_held_out() -> None:
    library = read_library()
    for modules in (library.seen, library.held_out):
        assert {path.partition("/")[0] for path in modules} >= set(PACKAGES)
    assert not library.seen.keys() & library.held_out.keys()
    assert {path.partition("/")[0] for path in library.held_out} == set(PACKAGES)


def test_the_base_never_reads_the_reference_or_tests() -> None:
    folders = {part for path in read_library().seen for part in Path(path).parts[:-1]}
    assert not folders & {"pydoc_data", "test", "tests", "idle_test", "site-packages"}


def test_snippets_held_out_stand_in_no_module_that_is_read() -> None:
    library = read_library()
    task = make_packages_task(library)
    read = "\0".join(library.seen.values())
    held_out = [row["text"] for row in task.held_out]
    # Short licence headers and the like stand in many modules; they say nothing of the package.
    shared = [text for text in held_out if text in read]
    assert len(shared) <= len(held_out) // 100
    assert not set(held_out) & {row["text"] for row in task.rows}


def test_each_package_has_as_many_snippets() -> None:
    task = make_packages_task(read_library())
    for rows in (task.rows, task.held_out):
        counts = [sum(row["package"] == package for row in rows) for package in PACKAGES]
        assert len(set(counts)) == 1
        assert counts[0] >= 100


def test_no_paragraph_of_a_topic_held_out_is_learned() -> None:
    learned, held_out = read_topics()
    told = {" ".join(p.split()) for topic in learned for p in topic.paragraphs}
    assert told
    assert not told & {" ".join(p.split()) for topic in held_out for p in topic.paragraphs}
    assert not {topic.name for topic in learned} & {topic.name for topic in held_out}


def test_the_tasks_are_the_same_every_time() -> None:
    assert make_english_task() == make_english_task()
    assert make_packages_task(read_library()) == make_packages_task(read_library())


def test_a_python_without_its_source_is_refused(tmp_path: Path) -> None:
    (tmp_path / "os.py").write_text("import sys\n")
    with pytest.raises(DataError, match="1 modules with source, too little text"):
        read_library(tmp_path)


@given(st.dictionaries(st.text(min_size=1), st.integers(0, 10_000)), st.floats(0, 1))
def test_what_is_held_out_never_exceeds_its_share(sizes: dict[str, int], share: float) -> None:
    chosen = hold_out(sizes, share)
    large = sum(size for size in sizes.values() if size >= 1500)
    assert sum(sizes[name] for name in chosen) <= share * large
    assert hold_out(dict(reversed(sizes.items())), share) == chosen


@given(st.lists(st.text("ab ", max_size=30)), st.integers(1, 80))
def test_windows_without_overlap_are_the_text(lines: list[str], size: int) -> None:
    text = "".join(f"{line}\n" for line in lines)
    windows = list(cut_windows(text, size))
    assert text.startswith("".join(windows))
    assert all(len(window) >= size for window in windows)
    assert len(text) - len("".join(windows)) < size
