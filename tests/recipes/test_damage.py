"""Recipes and parts that are not as they were written."""

from __future__ import annotations

import json
import sqlite3
from contextlib import closing
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

import hub
from hub.errors import FileError
from hub.recipes.recipe import RECIPE, Recipe, format_recipe, parse_recipe
from hub_registry import CorruptBlob
from tests.recipes.conftest import Make, edit, find_part

WEIGHTS = "adapter_model.safetensors"


def damage(registry: hub.Registry, reference: str, filename: str) -> None:
    """Flip a byte of a stored file."""
    path = registry.blobs.find_path(registry.get(reference).files[filename].sha256)
    path.chmod(0o644)
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 1
    path.write_bytes(data)


@pytest.mark.parametrize(("reference", "name"), [("both@1", RECIPE), ("fr@1", WEIGHTS)])
def test_damage_in_the_store_is_found_and_mended(
    registry: hub.Registry, tmp_path: Path, reference: str, name: str
) -> None:
    registry.add(hub.Stack("de", "fr"), name="both")
    registry.export("both", tmp_path / "whole")
    damage(registry, reference, name)
    with pytest.raises(CorruptBlob, match=f"{reference} {name} is damaged"):
        registry.load("both")
    for attempt in (
        lambda: registry.export("both", tmp_path / "again"),
        lambda: hub.push("both", tmp_path / "remote"),
    ):
        with pytest.raises(CorruptBlob):
            attempt()
    assert not (tmp_path / "again").exists()
    assert not (tmp_path / "remote").exists()
    [fault] = registry.verify(["both@1"])
    assert (fault.reference, fault.filename) == (reference, name)
    assert len(registry.verify()) == 1
    assert registry.add(tmp_path / "whole", name="both").reference == "both@1"
    assert registry.verify() == []


def test_verify_of_a_composition_reads_its_parts_and_no_others(registry: hub.Registry) -> None:
    registry.add(hub.Stack("fr"), name="inner")
    registry.add(hub.Stack("inner"), name="outer")
    damage(registry, "de@1", WEIGHTS)
    assert registry.verify(["outer"]) == []
    damage(registry, "fr@1", WEIGHTS)
    assert [fault.reference for fault in registry.verify(["outer"])] == ["fr@1"]


def test_a_parent_that_is_not_what_the_recipe_says_is_found(registry: hub.Registry) -> None:
    registry.add(hub.Stack("de@1", "fr"), name="both")
    assert registry.database.path is not None
    with closing(sqlite3.connect(registry.database.path)) as connection, connection:
        ids = dict(connection.execute("SELECT digest, id FROM version").fetchall())
        one, two = (ids[registry.get(name).digest] for name in ("de@1", "de@2"))
        for trigger in connection.execute("SELECT name FROM sqlite_master WHERE type = 'trigger'"):
            connection.execute(f"DROP TRIGGER {trigger[0]}")
        connection.execute("UPDATE lineage SET parent_id = ? WHERE parent_id = ?", (two, one))
    with pytest.raises(FileError, match=r"both@1/composition\.json is made of other parts than de"):
        registry.load("both")
    for faults in (registry.verify(), registry.verify(["both"])):
        assert [(fault.reference, fault.filename) for fault in faults] == [("both@1", RECIPE)]


def test_a_sweep_leaves_compositions_and_parts(registry: hub.Registry) -> None:
    registry.add(hub.Stack("de", "fr"), name="both")
    assert registry.sweep(older_than=0).blobs == 0
    assert isinstance(registry.load("both"), hub.Stack)


@pytest.mark.parametrize(
    ("fields", "said"),
    [
        (
            {"composition": "average(1, 2, 3; 0.5, 0.25, 0.2)"},
            "is not what was written: the sha256",
        ),
        ({"composition": "stack(1, 2, 3)"}, "is not what was written"),
        ({"task": "irony"}, "is not what was written"),
        ({"parts": []}, "it has no parts"),
        ({"parts": [{"digest": "0" * 64, "version": None}]}, "is not what was written"),
        ({"parts": [{"digest": "../../etc", "version": None}]}, "not a sha256 in hex"),
        ({"parts": [{"digest": "0" * 64}]}, "lacks what it must say: 'version'"),
        ({"parts": "none"}, "lacks what it must say"),
        ({"parts": None}, "lacks what it must say"),
        ({"composition": None}, "composition is None, not text"),
        ({"sha256": 3}, "sha256 is 3, not text"),
        ({"version": 3}, "version is 3, not text"),
        ({"format": 2}, "has format 2, this pefthub reads 1; upgrade pefthub"),
    ],
)
def test_an_edited_recipe_is_found(
    other: hub.Registry, folder: Path, fields: dict[str, Any], said: str
) -> None:
    edit(folder / RECIPE, **fields)
    for attempt in (lambda: hub.load(folder), lambda: other.add(folder, name="mean")):
        with pytest.raises(FileError, match=said) as caught:
            attempt()
        assert str(folder / RECIPE) in str(caught.value)
        assert "\n" not in str(caught.value)
    assert other.list() == []


@pytest.mark.parametrize("text", ["", "[]", '{"format": NaN}', "\x80"])
def test_a_recipe_that_is_none_is_found(folder: Path, text: str) -> None:
    (folder / RECIPE).write_text(text, encoding="latin-1")
    with pytest.raises(FileError, match=r"mean/composition\.json"):
        hub.load(folder)


@pytest.mark.parametrize(
    "text",
    [
        *("stack(1, 3, 2)", "stack(2, 1, 3)", "stack(1, 2)", "stack(1, 2, 3, 4)", "stack(0, 1, 2)"),
        *("stack(1, 2, de@1)", "stack(1, 2, 03)", "1", "none", "stack(1", "", "heap(1, 2, 3)"),
        *("fuse(1, 2; 1)", "average(1, 2, 3; 1, -1, 0)"),
    ],
)
def test_a_recipe_whose_tree_is_none_is_found(other: hub.Registry, folder: Path, text: str) -> None:
    recipe = parse_recipe((folder / RECIPE).read_bytes(), folder / RECIPE)
    forged = Recipe(text, recipe.parts, recipe.task, recipe.version)
    (folder / RECIPE).write_bytes(format_recipe(forged))
    for attempt in (lambda: hub.load(folder), lambda: other.add(folder, name="mean")):
        with pytest.raises(
            FileError, match=r"mean/composition\.json: .*fetch the composition anew"
        ):
            attempt()
    assert other.list() == []


def test_a_composition_that_leads_a_fuse_is_found(other: hub.Registry, folder: Path) -> None:
    recipe = parse_recipe((folder / RECIPE).read_bytes(), folder / RECIPE)
    parts = (*recipe.parts[1:], recipe.parts[0])
    (folder / RECIPE).write_bytes(format_recipe(Recipe("fuse(1, 2; 3)", parts)))
    with pytest.raises(FileError, match="leads a fuse is one adapter, and 3 is none"):
        other.add(folder, name="mean")
    assert other.list() == []


@pytest.mark.parametrize("reference", ["both@1", "de@1", "fr@1"])
def test_a_missing_part_is_found(
    registry: hub.Registry, other: hub.Registry, folder: Path, reference: str
) -> None:
    part = find_part(registry, folder, reference)
    for path in part.iterdir():
        path.unlink()
    for attempt in (lambda: hub.load(folder), lambda: other.add(folder, name="mean")):
        with pytest.raises(FileError, match=r"has no adapter_config\.json, and the part"):
            attempt()
    assert other.list() == []


def test_a_part_in_anothers_place_is_found(
    registry: hub.Registry, other: hub.Registry, folder: Path
) -> None:
    one, two = (find_part(registry, folder, name) for name in ("de@1", "de@2"))
    one.rename(folder / "aside")
    two.rename(one)
    (folder / "aside").rename(two)
    with pytest.raises(FileError, match=r"is not the part de@. that composition\.json describes"):
        other.add(folder, name="mean")
    assert other.list() == []


@settings(deadline=None, max_examples=15, suppress_health_check=list(HealthCheck))
@given(data=st.data())
def test_any_flipped_byte_of_a_part_is_found(
    registry: hub.Registry, other: hub.Registry, folder: Path, data: st.DataObject
) -> None:
    paths = sorted(path for path in (folder / "parts").rglob("*") if path.is_file())
    path = data.draw(st.sampled_from(paths))
    kept = path.read_bytes()
    changed = bytearray(kept)
    position = data.draw(st.integers(0, len(kept) - 1))
    changed[position] ^= data.draw(st.integers(1, 255))
    path.write_bytes(changed)
    try:
        loaded = hub.load(folder)
    except FileError as error:
        assert path.parent.name in str(error)
    else:
        # Which version a part was written from is a label, and no part of its content.
        assert path.name in (RECIPE, "hub.json")
        assert repr(loaded) != "" and changed != kept
        assert json.loads(changed).keys() == json.loads(kept).keys()
        assert {**json.loads(changed), "version": 0, "parts": 0} == {
            **json.loads(kept),
            "version": 0,
            "parts": 0,
        }
    finally:
        path.write_bytes(kept)


def test_a_folder_of_both_kinds_is_refused(make: Make, folder: Path) -> None:
    make(1).save(folder)
    with pytest.raises(FileError, match=r"holds a composition .* and an adapter .*not meant"):
        hub.load(folder)
