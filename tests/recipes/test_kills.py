"""An arrival that was killed half-way: what it left is whole, and repeated it ends as any other."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

import hub
from hub_registry import AlreadyExists
from tests.recipes.conftest import Make

Arrive = Callable[[hub.Registry], Any]


class Killed(BaseException):
    """No process goes on after it."""


class Dying(hub.Registry):
    """A registry whose process is killed after it wrote so many times."""

    left = 0

    def add_files(self, *args: Any, **says: Any) -> Any:
        version = super().add_files(*args, **says)
        self._count()
        return version

    def record_publication(self, *args: Any) -> None:
        super().record_publication(*args)
        self._count()

    def _count(self) -> None:
        self.left -= 1
        if self.left == 0:
            raise Killed


@pytest.fixture
def untouched(made: Path, tmp_path: Path) -> hub.Registry:
    """Another one, where nothing is killed."""
    return hub.Registry(home=shutil.copytree(made / "empty", tmp_path / "untouched"))


def read_all(registry: hub.Registry) -> tuple[Any, ...]:
    versions = registry.list()
    said = {v.reference: (v.digest, v.parents, v.task, v.note, v.base) for v in versions}
    return said, {name: registry.publications(name) for name in {v.adapter for v in versions}}


def repeat(arrive: Arrive, writes: int, other: hub.Registry, untouched: hub.Registry) -> None:
    """Kill what arrives after so many writes, and hold its repetition against what was not."""
    dying = Dying(home=other.home)
    dying.left = writes
    with pytest.raises(Killed):
        arrive(dying)
    assert other.verify() == []
    assert read_all(other) != ({}, {})
    arrive(other)
    arrive(untouched)
    assert read_all(other) == read_all(untouched)


@pytest.mark.parametrize("writes", range(1, 6))
def test_a_killed_import_ends_when_it_is_repeated(
    other: hub.Registry, untouched: hub.Registry, folder: Path, writes: int
) -> None:
    repeat(lambda r: r.add(folder, name="mean", note="theirs"), writes, other, untouched)
    assert len(other.list()) == 5


@pytest.mark.parametrize("writes", range(1, 11))
def test_a_killed_pull_ends_when_it_is_repeated(
    other: hub.Registry, untouched: hub.Registry, folder: Path, tmp_path: Path, writes: int
) -> None:
    hub.push("mean", tmp_path / "shared")
    repeat(lambda r: hub.pull(tmp_path / "shared", registry=r), writes, other, untouched)
    assert len(other.list()) == 5


@pytest.mark.parametrize("writes", range(1, 7))
def test_a_killed_pull_of_what_is_called_as_a_part_ends_when_it_is_repeated(
    registry: hub.Registry,
    other: hub.Registry,
    untouched: hub.Registry,
    tmp_path: Path,
    writes: int,
) -> None:
    registry.add(hub.Stack("de@2", "fr"), name="de")
    hub.push("de@3", tmp_path / "shared")
    repeat(lambda r: hub.pull(tmp_path / "shared", registry=r), writes, other, untouched)
    assert other.get("de@2").parents == ("de@1", "fr@1")


def test_what_a_killed_arrival_left_takes_nothing_else(
    other: hub.Registry, folder: Path, make: Make
) -> None:
    """A name is another's as soon as one of its versions does not arrive."""
    dying = Dying(home=other.home)
    dying.left = 1
    with pytest.raises(Killed):
        dying.add(folder, name="mean")
    [left] = other.list()
    other.add(make(41), name=left.adapter)
    with pytest.raises(AlreadyExists, match=rf"is here already \({left.adapter}@2\)"):
        other.add(folder, name="mean")
    assert len(other.list()) == 2
