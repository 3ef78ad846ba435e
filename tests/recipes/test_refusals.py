"""What can't be registered as a composition, and what is said then."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

import hub
from hub.errors import BaseMismatch
from hub_registry import BadName, RegistryError, UnknownReference
from tests.recipes.conftest import Make
from tests.tiny import build_tiny


@pytest.mark.parametrize(
    ("leaf", "kind", "said"),
    [
        ("./folder", RegistryError, "./folder is a folder.*`hub import ./folder --name NAME`"),
        (Path("run"), RegistryError, "`hub import ./run --name NAME`"),
        ("some/where", RegistryError, "some/where is a folder"),
        ("hf://org/de@main", RegistryError, "at a remote.*`hub pull org/de@main`"),
        ("it", UnknownReference, "there is no adapter 'it'"),
        ("de@9", UnknownReference, "'de' has no version 9"),
        ("de@staging", UnknownReference, "no alias 'staging'"),
        ("de@", BadName, "'de@' is not a reference"),
    ],
)
def test_a_leaf_that_is_no_version_is_refused_with_the_way_out(
    registry: hub.Registry, leaf: Any, kind: type[Exception], said: str
) -> None:
    for tree in (hub.Stack("fr", leaf), hub.Fuse("fr", by=leaf)):
        with pytest.raises(kind, match=said) as caught:
            registry.add(tree, name="both")
        assert "\n" not in str(caught.value)
    assert len(registry.list()) == 3


def test_an_adapter_that_was_never_registered_is_refused(
    registry: hub.Registry, make: Make, tmp_path: Path
) -> None:
    new, loaded = make(8), hub.load(make(9).save(tmp_path / "saved"))
    for adapter in (new, loaded):
        with pytest.raises(
            RegistryError, match=r"<Adapter lora.*; register it first: registry.add"
        ):
            registry.add(hub.Stack("fr", adapter), name="both")
    registry.add(new, name="new")
    assert registry.add(hub.Stack("fr", new), name="both").parents == ("fr@1", "new@1")


def test_an_adapter_that_learned_since_is_refused(registry: hub.Registry) -> None:
    adapter = registry.load("de@1")
    assert isinstance(adapter, hub.Adapter)
    with torch.no_grad():
        next(iter(adapter.tensors.values())).view(-1)[0] += 1
    with pytest.raises(RegistryError, match="is not what de@1 is in this registry; register it"):
        registry.add(hub.Stack("fr", adapter), name="both")
    assert registry.list("both") == []


def test_a_label_of_another_registry_is_not_taken_for_a_version_here(
    registry: hub.Registry, other: hub.Registry, make: Make, tmp_path: Path
) -> None:
    other.add(make(31), name="de")
    other.add(make(32), name="it")
    for reference in ("de@1", "it@1"):
        adapter = other.load(reference)
        with pytest.raises(RegistryError, match="register it first"):
            registry.add(hub.Stack(adapter), name="both")
    assert registry.list("both") == []


def test_what_is_no_composition_of_adapters_is_refused(registry: hub.Registry) -> None:
    registry.add(hub.Stack("de", "fr"), name="both")
    with pytest.raises(RegistryError, match=r"stack\(none\) has no adapter in it"):
        registry.add(hub.Stack(None), name="nothing")
    with pytest.raises(RegistryError, match="both@1 is a composition and leads a fuse"):
        registry.add(hub.Fuse("de", "fr", by="both"), name="fused")
    with pytest.raises(RegistryError, match="leave parents out"):
        registry.add(hub.Stack("de"), name="more", parents=["fr"])
    with pytest.raises(RegistryError, match="leave the base out"):
        registry.add(hub.Stack("de"), name="more", base=registry.get("de").base)
    with pytest.raises(RegistryError, match="can't be given other names"):
        registry.add(hub.Stack("de"), name="more", names={"de": "german"})
    with pytest.raises(BadName):
        registry.add(hub.Stack("de"), name="a b")
    assert len(registry.list()) == 4


def test_parts_for_different_bases_are_refused(registry: hub.Registry) -> None:
    stranger = hub.Adapter.create("lora", build_tiny("llama", seed=5), r=1)
    registry.add(stranger, name="stranger")
    with pytest.raises(BaseMismatch, match=r"de@2 was made for .* and stranger@1 for .*one base"):
        registry.add(hub.Stack("de", "stranger"), name="both")
    registry.add(hub.Stack("stranger"), name="inner")
    with pytest.raises(BaseMismatch):
        registry.add(hub.Stack("de", hub.Average("fr", "inner")), name="both")
    assert registry.list("both") == []
