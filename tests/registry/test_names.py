from __future__ import annotations

import re

import pytest
from hypothesis import given
from hypothesis import strategies as st

from hub_registry import BadName, Reference, parse_reference
from hub_registry.names import check_alias, check_name, check_prose, check_text

NAME = st.from_regex(r"[A-Za-z0-9][A-Za-z0-9._-]{0,127}", fullmatch=True)


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("sst2", Reference("sst2")),
        ("sst2@3", Reference("sst2", number=3)),
        ("sst2@production", Reference("sst2", alias="production")),
        ("sst2@latest", Reference("sst2")),
        ("v1.0@v2.0", Reference("v1.0", alias="v2.0")),
        ("7@7", Reference("7", number=7)),
    ],
)
def test_a_reference_parses(text: str, expected: Reference) -> None:
    assert parse_reference(text) == expected


@pytest.mark.parametrize(
    "text",
    ["", "@", "@3", "sst2@", "a@b@c", "a b", "../x", "a/b", "sst2\n", "sst2@3\n", "-a", ".a", "é",
     "a" * 129, "sst2@٣"],
)  # fmt: skip
def test_what_is_no_reference_is_refused_in_one_line(text: str) -> None:
    with pytest.raises(BadName, match="is not a reference") as caught:
        parse_reference(text)
    assert "name@number" in str(caught.value)


@given(NAME, NAME)
def test_a_reference_prints_as_it_parses(name: str, selector: str) -> None:
    reference = parse_reference(f"{name}@{selector}")
    assert parse_reference(str(reference)) == reference
    assert reference.name == name


@given(st.text(max_size=12))
def test_a_name_is_accepted_exactly_when_it_fits_the_rule(name: str) -> None:
    if re.fullmatch(r"[A-Za-z0-9][A-Za-z0-9._-]{0,127}", name):
        assert check_name(name) == name
    else:
        with pytest.raises(BadName):
            check_name(name)


@pytest.mark.parametrize("alias", ["3", "007", "latest", "", "a@b"])
def test_an_alias_that_means_something_else_is_refused(alias: str) -> None:
    with pytest.raises(BadName):
        check_alias(alias)


@pytest.mark.parametrize("alias", ["production", "v1.0", "3rd", "Latest"])
def test_an_alias_may_hold_dots_and_digits(alias: str) -> None:
    assert check_alias(alias) == alias


@pytest.mark.parametrize("task", ["", " a", "a\nb", "a" * 129, "\ud800"])
def test_a_task_of_more_than_a_line_is_refused(task: str) -> None:
    with pytest.raises(BadName, match="task"):
        check_text(task, "task")


@pytest.mark.parametrize("text", ["a\0b", "\udc80"])
def test_text_that_no_database_takes_is_refused(text: str) -> None:
    check_prose("two\nlines are fine: é")
    with pytest.raises(BadName):
        check_prose(text)
