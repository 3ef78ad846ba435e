"""Compositions in a registry: a version of its own, with its parts as parents, pinned."""

from __future__ import annotations

import logging
from pathlib import Path

import pytest

import hub
from hub.composition import Operator
from hub.errors import AttachError
from hub.recipes.recipe import RECIPE
from hub_registry import AlreadyExists, RegistryError
from tests.recipes.conftest import Make
from tests.tiny import build_tiny


def test_a_composition_is_a_version_with_its_parts_as_parents(
    registry: hub.Registry, fusion: hub.Adapter
) -> None:
    registry.add(fusion, name="fu")
    tree = hub.Fuse(
        hub.Split("fr", "de@1", at=3), hub.Average(None, "de@1", weights=[0.7, 0.3]), by="fu"
    )
    version = registry.add(tree, name="both", task="qa", note="first")
    assert (version.reference, version.kind, version.method) == ("both@1", "composition", "fuse")
    assert version.parents == ("fr@1", "de@1", "fu@1")
    pinned = "fuse(split(fr@1, de@1; 3), average(none, de@1; 0.7, 0.3); fu@1)"
    assert version.config == {"composition": pinned}
    assert version.base == registry.get("de@1").base
    assert (version.task, version.note) == ("qa", "first")
    assert list(version.files) == [RECIPE]


def test_an_alias_means_the_version_that_it_named(registry: hub.Registry, make: Make) -> None:
    registry.add(hub.Stack("de@production", "fr"), name="both")
    registry.alias("de@1", "production")
    registry.add(make(7), name="fr")
    assert registry.get("both").parents == ("de@2", "fr@1")
    loaded = registry.load("both")
    assert repr(loaded) == "stack(de@2, fr@1)"
    assert registry.add(hub.Stack("de@production", "fr"), name="both").parents == ("de@1", "fr@2")


def test_the_same_composition_is_the_same_version(registry: hub.Registry) -> None:
    first = registry.add(hub.Stack("de@production", "fr"), name="both", task="qa", note="first")
    for tree in (
        hub.Stack("de@2", "fr@1"),
        hub.Stack("de", registry.load("fr")),
        registry.load("both"),
        hub.parse_composition(first.config["composition"]),
    ):
        assert registry.add(tree, name="both", task="qa") == first
    with pytest.raises(AlreadyExists, match="both@1 has the same files with other note"):
        registry.add(hub.Stack("de", "fr"), name="both", task="qa", note="second")
    assert [version.number for version in registry.list("both")] == [1]


@pytest.mark.parametrize(
    "tree",
    [
        hub.Stack("fr", "de"),
        hub.Stack("de", "fr", "fr"),
        hub.Stack("de", hub.Stack("fr")),
        hub.Stack("de@1", "fr"),
        hub.Stack("de", "fr", None),
        hub.Parallel("de", "fr"),
        hub.Average("de", "fr"),
        hub.Average("de", "fr", weights=[1, 2]),
        hub.Split("de", "fr", at=1),
        hub.Split("de", "fr", at=2),
    ],
    ids=str,
)
def test_another_composition_is_another_version(registry: hub.Registry, tree: Operator) -> None:
    versions = [registry.add(tree, name="both") for tree in (hub.Stack("de", "fr"), tree)]
    assert [version.number for version in versions] == [1, 2]
    assert versions[0].digest != versions[1].digest
    assert registry.add(tree, name="both", task="qa").number == 3


def test_the_digest_is_the_same_where_the_numbers_are_others(
    registry: hub.Registry, other: hub.Registry, make: Make, tmp_path: Path
) -> None:
    ours = registry.add(hub.Stack("de@1", hub.Average("fr", "de@2")), name="both", task="qa")
    for seed, name in [(5, "deutsch"), (2, "french"), (1, "deutsch"), (0, "deutsch")]:
        registry.export({0: "de@1", 1: "de@2", 2: "fr@1"}[seed], tmp_path / str(seed)) if (
            seed < 5
        ) else make(seed).save(tmp_path / str(seed))
        other.add(tmp_path / str(seed), name=name)
    tree = hub.Stack("deutsch@3", hub.Average("french", "deutsch@2"))
    theirs = other.add(tree, name="zusammen", task="qa")
    assert theirs.digest == ours.digest
    assert theirs.parents == ("deutsch@3", "french@1", "deutsch@2")
    assert other.read(theirs, RECIPE) == registry.read(ours, RECIPE)


def test_a_composition_may_be_a_part(registry: hub.Registry) -> None:
    registry.add(hub.Stack("de", "fr"), name="both")
    registry.alias("both@1", "production")
    version = registry.add(hub.Average("both@production", "de", None), name="mean")
    assert version.parents == ("both@1", "de@2")
    assert version.config == {"composition": "average(both@1, de@2, none)"}
    assert version.base == registry.get("de").base
    loaded = hub.load("mean")
    assert repr(loaded) == "average(stack(de@2, fr@1), de@2, none)"
    one, _, two, _ = loaded.leaves()  # type: ignore[union-attr]
    assert one is two


def test_a_version_may_be_made_of_an_older_one_of_its_name(registry: hub.Registry) -> None:
    for _ in range(4):
        version = registry.add(hub.Stack("de", "fr"), name="de")
    assert version.reference == "de@6"
    assert repr(registry.load("de")).count("de@2") == 1
    assert repr(registry.load("de")).count("fr@1") == 4


def test_a_part_whose_base_is_unknown_is_noted(
    registry: hub.Registry, make: Make, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    folder = make(8).save(tmp_path / "peft")
    (folder / "hub.json").unlink()
    registry.add(folder, name="peft")
    with caplog.at_level(logging.WARNING, "hub"):
        version = registry.add(hub.Stack("peft", "de"), name="both")
    assert "peft@1 does not say which base it was made for" in caplog.text
    assert version.base == registry.get("de").base
    assert registry.add(hub.Stack("peft"), name="alone").base == registry.get("peft").base


def test_the_same_base_in_another_precision_is_one_base(registry: hub.Registry) -> None:
    half = hub.Adapter.create("lora", build_tiny("llama").bfloat16(), r=1)
    registry.add(half, name="half")
    assert registry.add(hub.Stack("de", "half"), name="both").base == registry.get("de").base


def test_a_composition_may_be_given_as_it_is_written(registry: hub.Registry) -> None:
    text = "stack(de@production, average(fr, none; 0.7, 0.3))"
    version = registry.add(text, name="both")
    tree = hub.parse_composition(text)
    assert isinstance(tree, hub.Stack)
    assert registry.add(tree, name="both").reference == version.reference == "both@1"
    assert repr(hub.load(f" {text}")) == version.config["composition"] == repr(hub.load("both"))
    with pytest.raises(AttachError, match="is no composition: at 9"):
        registry.add("stack(de", name="both")
    with pytest.raises(RegistryError, match="leave the base out"):
        registry.add(text, name="both", base=version.base)


def test_metrics_and_aliases_are_a_versions_own(registry: hub.Registry) -> None:
    registry.add(hub.Stack("de", "fr"), name="both")
    registry.record_metric("both@1", "accuracy", 0.5, dataset="test.jsonl", samples=8)
    registry.alias("both@1", "production")
    version = registry.get("both@production")
    assert (version.metrics, version.aliases) == ({"accuracy": 0.5}, ("production",))
    [row] = [row for row in registry.adapters() if row.name == "both"]
    assert (row.kind, row.method) == ("composition", "stack")
    assert [event.kind for event in registry.log("both")] == ["alias", "metric", "version"]
