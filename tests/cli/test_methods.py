"""`hub methods`."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import Any

import pytest

from hub.cli.methods import describe_options, parse_meanings
from hub.discovery import installed_methods
from tests.cli.conftest import Run

Read = Callable[..., Any]
BUILT_IN = ["houlsby", "lora"]


def test_methods_are_listed_with_their_papers(run: Run, read: Read) -> None:
    result = run("methods")
    assert result.stdout.splitlines()[0].split() == ["METHOD", "FROM", "PAPER"]
    for name in BUILT_IN:
        assert installed_methods().get(name).paper in result.stdout
    rows = read("methods")["methods"]
    assert [row["name"] for row in rows] == BUILT_IN
    assert rows[0].keys() == {"name", "distribution", "paper", "fault"}


@pytest.mark.parametrize("name", BUILT_IN)
def test_every_option_is_explained(name: str, run: Run, read: Read) -> None:
    document = read(f"methods {name}")
    assert document.keys() == {"name", "distribution", "paper", "options"}
    fields = dataclasses.fields(installed_methods().get(name).config)
    assert [option["name"] for option in document["options"]] == [field.name for field in fields]
    shown = run(f"methods {name}").stdout
    for option in document["options"]:
        assert option.keys() == {"name", "default", "required", "meaning"}
        assert option["meaning"]
        assert option["meaning"] in shown


def test_a_broken_plugin_is_listed_with_its_fault(broken: str, run: Run, read: Read) -> None:
    result = run("methods")
    assert [line.split()[0] for line in result.stdout.splitlines()] == ["METHOD", broken, *BUILT_IN]
    assert result.stderr == (
        "note: plugin 'broken' of hub-broken 2.0 can't be imported: "
        "ModuleNotFoundError: No module named 'nothing_of_that_name'\n"
    )
    fault = read("methods")["methods"][0]
    assert fault["paper"] is None
    assert "can't be imported" in fault["fault"]


@pytest.mark.parametrize(
    ("name", "expected"),
    [("lra", "no method 'lra'; installed: houlsby, lora; did you mean 'lora'?")],
)
def test_an_unknown_method_names_a_close_one(
    name: str, expected: str, fail: Callable[..., str]
) -> None:
    assert fail(f"methods {name}") == expected


def test_a_broken_method_is_one_line(broken: str, fail: Callable[..., str]) -> None:
    assert "can't be imported" in fail(f"methods {broken}")


def test_meanings_go_on_below_and_may_be_shared() -> None:
    docstring = """What it is made of.

    r: the rank,
        1 or more.
    alpha, beta: a scaling; see: nothing.

    rest: none of these.
    """
    assert parse_meanings(docstring) == {
        "r": "the rank, 1 or more.",
        "alpha": "a scaling; see: nothing.",
        "beta": "a scaling; see: nothing.",
        "rest": "none of these.",
    }


def test_options_tell_which_are_required() -> None:
    @dataclasses.dataclass
    class Config:
        """size: how big."""

        size: int
        names: tuple[str, ...] = dataclasses.field(default_factory=tuple)

    size, names = describe_options(Config)
    assert (size["required"], size["meaning"]) == (True, "how big.")
    assert (names["required"], names["default"], names["meaning"]) == (False, (), "")
