"""Compositions as text, where one may be given."""

from __future__ import annotations

import hub
from hub.composition import is_written
from tests.tiny import build_tiny


def test_text_that_begins_as_an_operator_is_a_composition() -> None:
    for text in ("stack(a)", " average (a; 2)", "fuse(", "batchsplit(a, none)"):
        assert is_written(text)
    for text in ("stack", "stack@1", "./stack(a)", "/stack(a)", "stacks(a)", "(a)", "", "none"):
        assert not is_written(text)
    model = build_tiny("llama")
    hub.Registry().add(hub.Adapter.create("lora", model, r=1), name="de")
    with hub.attach(model, "stack(de@1, average(de, none))") as attachment:
        assert repr(attachment.active) == repr((hub.load("de@1"),))
        assert repr(attachment.lines) == "(stack(de@1, average(de@1, none)),)"
