"""docs/plugins.md names all that a method's author meets."""

from __future__ import annotations

import dataclasses
import inspect
import re
from pathlib import Path

import pytest

import hub
from hub.testing import SMALL, MethodContract

GUIDE = (Path(__file__).parents[2] / "docs" / "plugins.md").read_text()
NAMED = set(re.findall(r"`([a-z_]+)", GUIDE))


def list_public(kind: type) -> set[str]:
    """What is defined in a class, without what is Python's, pytest's or its own."""
    names = vars(kind).keys() | getattr(kind, "__annotations__", {}).keys()
    return {name for name in names if not name.startswith(("_", "test_", "pytest_"))}


@pytest.mark.parametrize("kind", [hub.Method, hub.Base], ids=["method", "base"])
def test_every_attribute_is_named(kind: type) -> None:
    assert sorted(list_public(kind) - NAMED) == []


def test_every_field_of_a_site_is_named() -> None:
    fields = {field.name for field in dataclasses.fields(hub.Site)} | {"owner"}
    assert sorted(fields - NAMED) == []


def test_every_attribute_of_the_contract_is_named() -> None:
    assert sorted(list_public(MethodContract) - NAMED - {"make_subject"}) == []


@pytest.mark.parametrize(
    ("kind", "name"), [(hub.Method, "method"), (hub.Base, "base")], ids=["method", "base"]
)
def test_functions_are_shown_with_their_arguments(kind: type, name: str) -> None:
    for function, value in vars(kind).items():
        if function.startswith("_") or not inspect.isfunction(value):
            continue
        arguments = [a for a in inspect.signature(value).parameters if a != "self"]
        shown = f"{function}({', '.join(arguments)})".replace("(options)", "(**options)")
        assert f"`{shown}`" in GUIDE, f"{name}: {shown}"


def test_the_words_of_the_core_are_named() -> None:
    assert {"extend", "before", "reads_stream"} <= NAMED


def test_the_models_of_the_example_are_there() -> None:
    (models,) = re.findall(r"models = (\(.*?\))", GUIDE)
    assert set(re.findall(r'"(\w+)"', models)) <= SMALL.keys()
