"""Metadata in a README.md: read as JSON has it, or refused in one line."""

from __future__ import annotations

import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from hub.server.cards import CardError, derive_tags, parse_card


@pytest.mark.parametrize("newline", ["\n", "\r\n"])
def test_a_card_is_what_is_between_the_lines(newline: str) -> None:
    lines = ["---", "tags:", "- a", "- b", "---", "# Title", "---", "not: this", "---", ""]
    assert parse_card(newline.join(lines).encode()) == {"tags": ["a", "b"]}


@pytest.mark.parametrize("readme", [b"", b"# Title\n", b"---\n---\n", b"---\nunended: 1\n"])
def test_a_readme_without_metadata_has_an_empty_card(readme: bytes) -> None:
    assert parse_card(readme) == {}


def test_dates_and_what_is_no_number_are_as_json_has_them() -> None:
    card = parse_card(b"---\nday: 2026-01-02\nloss: .nan\nbest: .inf\n---\n")
    assert card == {"day": "2026-01-02", "loss": None, "best": None}


@pytest.mark.parametrize(
    ("metadata", "why"),
    [
        ("a: [", "no YAML"),
        ("- a", "is a list"),
        ("tags: {a: b}", "tags is"),
        ("tags: [1]", "tags is"),
        ("base_model: 3", "base_model is"),
        ("license: [mit]", "license is"),
        ("a: &x [1]\nb: *x", "YAML alias"),
        ("a: !!python/name:os.system", "no YAML"),
        ("? [a]\n: b", "no YAML"),
        ("[" * 200_000, "nested more than"),
        ("a: " + "b" * 300_000, "over 262144 characters"),
    ],
)
def test_metadata_that_can_not_be_read_is_refused_in_one_line(metadata: str, why: str) -> None:
    with pytest.raises(CardError, match=why) as refused:
        parse_card(f"---\n{metadata}\n---\n".encode())
    assert "\n" not in str(refused.value)


@given(st.binary(max_size=200))
def test_any_metadata_is_read_as_json_or_refused(content: bytes) -> None:
    try:
        card = parse_card(b"---\n" + content + b"\n---\n")
    except CardError:
        return
    json.dumps(card, allow_nan=False)
    derive_tags(card, ["README.md"])


def test_the_relation_to_the_base_is_the_cards_or_the_files() -> None:
    card = {"base_model": ["a/b"]}
    assert "base_model:adapter:a/b" in derive_tags(card, ["adapter_config.json"])
    assert "base_model:finetune:a/b" in derive_tags(card, ["model.safetensors"])
    merged = {**card, "base_model_relation": "merge"}
    assert "base_model:merge:a/b" in derive_tags(merged, ["adapter_config.json"])
