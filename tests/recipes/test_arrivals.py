"""Compositions from a folder, on their way into another registry."""

from __future__ import annotations

from pathlib import Path

import pytest

import hub
from hub_registry import AlreadyExists, BadName, RegistryError, UnknownReference
from tests.recipes.conftest import Make, edit


def test_an_imported_folder_becomes_versions(
    registry: hub.Registry, other: hub.Registry, folder: Path
) -> None:
    version = other.add(folder, name="mean", note="from a colleague")
    assert {v.reference: v.digest for v in other.list()} == {
        v.reference: v.digest for v in registry.list()
    }
    assert version.parents == ("both@1", "de@2", "fr@1")
    assert other.get("both").task == "qa"
    assert other.add(folder, name="mean") == version
    assert registry.add(folder, name="mean") == registry.get("mean@1")
    assert (len(registry.list()), len(other.list())) == (5, 5)


def test_parts_of_one_name_keep_their_order(
    registry: hub.Registry, other: hub.Registry, tmp_path: Path
) -> None:
    registry.add(hub.Stack("de@2", "fr", "de@1"), name="both")
    version = other.add(registry.export("both", tmp_path / "both"), name="both")
    assert version.parents == ("de@2", "fr@1", "de@1")
    assert other.get("de@1").digest == registry.get("de@1").digest


def test_an_imported_folder_takes_another_task_and_other_names(
    other: hub.Registry, make: Make, folder: Path
) -> None:
    other.add(make(41), name="de")
    with pytest.raises(
        AlreadyExists, match=r"de@2, a part of .*can't come as de: .*--part de=NAME"
    ):
        other.add(folder, name="mean")
    with pytest.raises(UnknownReference, match="no part 'it'; its parts are both, de, fr"):
        other.add(folder, name="mean", names={"it": "x"})
    with pytest.raises(BadName):
        other.add(folder, name="mean", names={"de": "a b"})
    assert len(other.list()) == 1
    version = other.add(folder, name="mean", task="irony", names={"de": "german"})
    assert (version.task, version.parents) == ("irony", ("both@1", "german@2", "fr@1"))
    assert repr(other.load("mean")).startswith("average(stack(german@1, fr@1), german@2")
    assert len(other.list("de")) == 1


def test_a_part_may_be_the_next_version_of_what_is_here(
    registry: hub.Registry, other: hub.Registry, make: Make, folder: Path
) -> None:
    other.add(make(41), name="de")
    version = other.add(folder, name="mean", names={"de": "de"})
    assert version.parents == ("both@1", "de@3", "fr@1")
    assert other.get("de@2").digest == registry.get("de@1").digest


def test_a_part_that_differs_in_its_moment_alone_is_a_version_of_its_own(
    registry: hub.Registry, other: hub.Registry, folder: Path, tmp_path: Path
) -> None:
    registry.export("fr", tmp_path / "fr")
    edit(tmp_path / "fr" / "hub.json", created="2020-02-02T02:02:02+00:00")
    assert other.add(tmp_path / "fr", name="fr").digest != registry.get("fr").digest
    version = other.add(folder, name="mean", names={"fr": "fr"})
    assert version.parents == ("both@1", "de@2", "fr@2")
    assert other.get("fr@2").digest == registry.get("fr@1").digest
    assert other.verify() == []
    other.load(version)


def test_a_name_that_was_not_needed_is_told(
    registry: hub.Registry, other: hub.Registry, folder: Path, caplog: pytest.LogCaptureFixture
) -> None:
    other.add(folder, name="mean", names={"fr": "french"})
    assert caplog.messages == []
    other.add(folder, name="mean", names={"fr": "french"})
    assert caplog.messages == []
    there = other.add(folder, name="mean", names={"fr": "french", "de": "german"})
    assert caplog.messages == [
        f"mean@1 is here already, {there.config['composition']}, so nothing is renamed: de=german "
        "was not needed"
    ]
    assert {version.adapter for version in other.list()} == {"de", "french", "both", "mean"}


def test_an_adapter_has_no_parts_to_name(other: hub.Registry, make: Make, tmp_path: Path) -> None:
    with pytest.raises(RegistryError, match="de can't be given other names"):
        other.add(make(1).save(tmp_path / "one"), name="one", names={"de": "german"})
