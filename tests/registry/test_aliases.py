from __future__ import annotations

from collections.abc import Callable

import pytest

from hub_registry import BadName, Registry, UnknownReference, Version

Add = Callable[..., Version]


def test_an_alias_moves_and_is_removed_and_all_is_remembered(registry: Registry, add: Add) -> None:
    add()
    add(content=b"two")
    registry.alias("sst2@1", "production", note="go")
    assert registry.get("sst2@production").number == 1
    registry.alias("sst2", "production")
    assert registry.get("sst2@production").number == 2
    registry.unalias("sst2", "production", note="stop")
    with pytest.raises(UnknownReference):
        registry.get("sst2@production")
    moves = [event for event in registry.log("sst2") if event.kind == "alias"]
    assert [(move.what, move.reference, move.note) for move in moves] == [
        ("removed alias production from version 2", "sst2@2", "stop"),
        ("moved alias production from version 1 to 2", "sst2@2", None),
        ("set alias production to version 1", "sst2@1", "go"),
    ]


def test_an_alias_that_is_there_already_is_not_moved(registry: Registry, add: Add) -> None:
    add()
    registry.alias("sst2@1", "production")
    registry.alias("sst2@production", "production")
    assert len(registry.log("sst2")) == 2


def test_each_adapter_has_its_own_aliases(registry: Registry, add: Add) -> None:
    add()
    add(name="other")
    registry.alias("sst2", "v1.0")
    registry.alias("other", "v1.0")
    registry.alias("other", "best")
    assert registry.get("sst2@v1.0").adapter == "sst2"
    assert registry.get("other").aliases == ("best", "v1.0")


@pytest.mark.parametrize("alias", ["3", "latest", "a b", ""])
def test_an_alias_that_is_none_is_refused(registry: Registry, add: Add, alias: str) -> None:
    add()
    with pytest.raises(BadName):
        registry.alias("sst2", alias)


def test_an_alias_needs_its_version_and_removal_its_alias(registry: Registry, add: Add) -> None:
    add()
    with pytest.raises(UnknownReference, match="no version 9"):
        registry.alias("sst2@9", "production")
    with pytest.raises(UnknownReference, match="'sst2' has no alias 'best'; its aliases are none"):
        registry.unalias("sst2", "best")
    with pytest.raises(UnknownReference, match="no adapter 'other'"):
        registry.unalias("other", "best")


def test_an_alias_in_an_empty_home_makes_no_registry(registry: Registry) -> None:
    for change in (lambda: registry.alias("sst2@1", "best"), lambda: registry.unalias("sst2", "x")):
        with pytest.raises(UnknownReference):
            change()
    assert not registry.home.exists()
