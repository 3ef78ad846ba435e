"""What was trained has what it came from as its parents."""

from __future__ import annotations

from typing import Any

import hub
from tests.snapshots import shake_adapter
from tests.tiny import build_tiny
from tests.training.tasks import ROWS, TEMPLATE, make_tokenizer

MODEL = build_tiny("llama")


def train(composition: Any, trainable: Any = None) -> None:
    hub.train(
        MODEL,
        composition,
        ROWS,
        tokenizer=make_tokenizer(),
        template=TEMPLATE,
        max_steps=1,
        trainable=trainable,
    )


def make(seed: int) -> hub.Adapter:
    return shake_adapter(hub.Adapter.create("lora", MODEL, r=2), seed)  # type: ignore[no-any-return]


def test_the_versions_that_it_was_trained_from_and_within_are_its_parents() -> None:
    registry = hub.Registry()
    below, adapter = registry.add(make(1), name="below"), make(2)
    train(hub.Stack("below", adapter))
    first = registry.add(adapter, name="qa")
    assert first.parents == ("below@1",)
    assert adapter.lineage["digests"] == {"below@1": below.digest}
    train(hub.Stack("below", adapter), trainable=adapter)
    assert (adapter.reference, adapter.digest) == (None, None)
    train(adapter)
    second = registry.add(adapter, name="qa")
    assert second.parents == tuple(hub.load("qa").lineage["parents"]) == ("qa@1", "below@1")


def test_an_adapter_of_another_registry_is_no_parent(tmp_path: Any) -> None:
    registry, other = hub.Registry(), hub.Registry(home=tmp_path / "other")
    for seed, where in enumerate((registry, other)):
        where.add(make(seed), name="qa")
    adapter = other.load("qa")
    assert isinstance(adapter, hub.Adapter)
    train(adapter, trainable=True)
    assert adapter.lineage["parents"] == ["qa@1"]
    assert registry.add(adapter, name="qa").parents == ()
