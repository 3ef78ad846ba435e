"""Compositions that come back from a registry, or from a folder."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

import hub
from hub.composition import Operator, Part, replace_leaves, walk
from hub.recipes.recipe import RECIPE
from hub_registry import AlreadyExists
from tests.recipes.conftest import Make, assert_equal_tensors, find_part
from tests.snapshots import run, shake_adapter
from tests.tiny import build_tiny


def test_a_loaded_composition_has_each_part_once(registry: hub.Registry) -> None:
    registry.add(hub.BatchSplit("de@1", None, hub.Stack("de@1", "fr")), name="both")
    loaded = hub.load("both@1")
    assert isinstance(loaded, hub.BatchSplit)
    de, nothing, again, fr = loaded.leaves()
    assert isinstance(de, hub.Adapter) and isinstance(fr, hub.Adapter)
    assert (de is again, nothing) == (True, None)
    assert_equal_tensors(de, registry.load("de@1"))
    assert_equal_tensors(fr, registry.load("fr@1"))
    assert hub.parse_composition(repr(loaded)) == hub.BatchSplit(
        "de@1", None, hub.Stack("de@1", "fr@1")
    )


def test_a_registered_stack_acts_as_its_parts_do(
    registry: hub.Registry, make: Make, model: Any
) -> None:
    parts = [
        make(11),
        make(12, "houlsby", size=2),
        make(13, "prefix", tokens=2),
        make(14, "prompt", tokens=3),
    ]
    for part in parts:
        registry.add(part, name=part.method)
    registry.add(hub.Stack(*parts), name="all")
    with hub.attach(model, hub.Stack(*parts)):
        expected = run(model)
    with hub.attach(model, "all@1") as attachment:
        assert torch.equal(run(model), expected)
        assert [adapter.reference for adapter in attachment.active] == [
            *("lora@1", "houlsby@1", "prefix@1", "prompt@1")
        ]
    assert not torch.equal(run(model), expected)


def test_a_long_chain_of_compositions_loads(registry: hub.Registry) -> None:
    registry.add(hub.Stack("fr"), name="chain")
    for _ in range(20):
        registry.add(hub.Stack("chain", "de"), name="chain")
    loaded = registry.load("chain")
    assert len({id(leaf) for leaf in loaded.leaves()}) == 2  # type: ignore[union-attr]
    assert sum(isinstance(node, hub.Stack) for node in walk(loaded)) == 21


def test_no_depth_is_too_deep_for_a_recipe(registry: hub.Registry) -> None:
    tree: Part = "de"
    for _ in range(1500):
        tree = hub.Stack(tree, "fr")
    assert isinstance(tree, Operator)
    registry.add(tree, name="deep")
    assert hub.parse_composition(repr(registry.load("deep"))) == replace_leaves(
        tree, lambda leaf: {"de": "de@2", "fr": "fr@1"}[str(leaf)]
    )


def test_a_part_may_bring_a_trained_head(registry: hub.Registry) -> None:
    model = build_tiny("bert", "classification")
    one, two = (shake_adapter(hub.Adapter.create("lora", model, r=1), seed=s) for s in (1, 2))
    for name, adapter in (("one", one), ("two", two)):
        registry.add(adapter, name=name)
    registry.add(hub.BatchSplit("one", "two"), name="clients")
    loaded = registry.load("clients")
    assert [leaf.heads for leaf in loaded.leaves()] == [one.heads, two.heads]  # type: ignore[union-attr]
    assert one.heads


def test_an_exported_composition_loads_from_its_folder(
    registry: hub.Registry, folder: Path
) -> None:
    assert sorted(path.name for path in (folder / "parts").iterdir()) == sorted(
        registry.get(name).digest for name in ("both@1", "de@1", "de@2", "fr@1")
    )
    assert sorted(path.name for path in folder.iterdir()) == [RECIPE, "parts"]
    loaded = hub.load(folder)
    expected = registry.load("mean")
    assert (
        repr(loaded) == repr(expected) == "average(stack(de@1, fr@1), de@2, fr@1; 0.5, 0.25, 0.25)"
    )
    assert isinstance(loaded, Operator) and isinstance(expected, Operator)
    leaves = list(loaded.leaves())
    assert leaves[1] is leaves[3]
    for one, two in zip(leaves, expected.leaves(), strict=True):
        assert_equal_tensors(one, two)  # type: ignore[arg-type]


def test_a_part_of_a_folder_is_an_adapter_as_any_other(
    registry: hub.Registry, folder: Path
) -> None:
    part = hub.load(find_part(registry, folder, "de@2"))
    assert isinstance(part, hub.Adapter)
    assert part.reference == "de@2"


def test_other_files_in_the_folder_do_not_matter(registry: hub.Registry, folder: Path) -> None:
    (folder / "notes.txt").write_text("mine")
    (folder / "parts" / "notes.txt").write_text("mine")
    find_part(registry, folder, "de@1").joinpath("README.md").write_text("mine")
    assert isinstance(hub.load(folder), hub.Average)


def test_export_takes_a_new_or_an_empty_folder(registry: hub.Registry, folder: Path) -> None:
    with pytest.raises(AlreadyExists, match="it is not empty"):
        registry.export("mean", folder)


references = st.sampled_from(["de@1", "de@2", "de", "de@production", "fr", "fr@1", "both"])


@st.composite
def operators(draw: Any, inner: st.SearchStrategy[Part]) -> Operator:
    parts = draw(st.lists(inner, min_size=1, max_size=4))
    kind = draw(st.sampled_from([hub.Stack, hub.Parallel, hub.BatchSplit, "split", "mean", "fuse"]))
    if kind == "split":
        return hub.Split(*parts, at=range(1, len(parts)))
    if kind == "mean":
        weights = draw(st.lists(st.floats(-9, 9), min_size=len(parts), max_size=len(parts)))
        return hub.Average(*parts, weights=[*weights[:-1], 99.5])
    if kind == "fuse":
        return hub.Fuse(*parts, by="fu")
    return kind(*parts)  # type: ignore[no-any-return]


trees = operators(st.recursive(st.one_of(st.none(), references), operators, max_leaves=8))


@settings(deadline=None, max_examples=15, suppress_health_check=list(HealthCheck))
@given(tree=trees)
def test_any_composition_comes_back_from_the_registry(
    registry: hub.Registry,
    other: hub.Registry,
    fusion: hub.Adapter,
    tmp_path_factory: pytest.TempPathFactory,
    tree: Operator,
) -> None:
    registry.add(hub.Stack("de@1", "fr"), name="both")
    registry.add(fusion, name="fu")
    if all(leaf is None for leaf in tree.leaves()):
        return
    place = tmp_path_factory.mktemp("any")
    version = registry.add(tree, name="any")
    pinned = {"de": "de@2", "de@production": "de@2", "fr": "fr@1", "both": "both@1", "fu": "fu@1"}
    expected = replace_leaves(tree, lambda leaf: pinned.get(str(leaf), leaf))
    assert hub.parse_composition(version.config["composition"]) == expected
    assert version.parents == tuple(
        dict.fromkeys(leaf for leaf in expected.leaves() if leaf is not None)  # type: ignore[union-attr]
    )
    inlined = replace_leaves(
        expected, lambda leaf: hub.Stack("de@1", "fr@1") if leaf == "both@1" else leaf
    )
    assert hub.parse_composition(repr(registry.load(version))) == inlined
    names = {part.adapter: part.adapter for part in registry.collect(version.parents)}
    arrived = other.add(registry.export(version, place / "folder"), name="any", names=names)
    assert arrived.digest == version.digest
    assert len(arrived.parents) == len(version.parents)
    assert registry.add(tree, name="any") == version
