"""A stack of four methods from training to another machine."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

import hub
from hub.server import HubServer
from tests.snapshots import run, take_snapshot
from tests.tiny import build_tiny
from tests.training.tasks import ROWS, TEMPLATE, make_tokenizer

FOUR = {
    "lora": {"r": 4},
    "houlsby": {"size": 8},
    "prefix": {"tokens": 2},
    "prompt": {"tokens": 3},
}


def test_stack_trains_saves_pushes_pulls_and_gives_equal_logits(
    registry: hub.Registry,
    other: hub.Registry,
    online: HubServer,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    model = build_tiny("llama", initializer_range=0.3)
    before, bare = take_snapshot(model), run(model)
    parts = [hub.Adapter.create(method, model, **options) for method, options in FOUR.items()]
    stack = hub.Stack(*parts)
    result = hub.train(
        *(model, stack, ROWS),
        tokenizer=make_tokenizer(),
        template=TEMPLATE,
        eval_dataset=ROWS,
        max_steps=10,
        save_steps=10,
        learning_rate=2e-2,
    )
    assert result.loss < 0.7 * result.losses[0][1]
    assert take_snapshot(model) == before
    with hub.attach(model, stack, trainable=False):
        expected = run(model)
    assert not torch.allclose(expected, bare, atol=1e-2)

    for part in parts:
        registry.add(part, name=part.method)
        assert registry.get(part.method).metrics == result.metrics
    version = registry.add(stack, name="all", task="answers")
    assert version.parents == ("lora@1", "houlsby@1", "prefix@1", "prompt@1")
    hub.push("all@1", "ana/all")

    pulled = hub.pull("ana/all", registry=other)
    assert pulled.digest == version.digest
    monkeypatch.setenv("HUB_HOME", str(tmp_path / "other-home"))
    again = build_tiny("llama", initializer_range=0.3)
    for reference in (pulled.reference, "all", "hf://ana/all"):
        with hub.attach(again, reference) as attachment:
            assert torch.equal(run(again), expected)
            told = [part.lineage["training"]["within"] for part in attachment.active]
        assert told == [
            "stack(new, 2-houlsby, 3-prefix, 4-prompt)",
            "stack(1-lora, new, 3-prefix, 4-prompt)",
            "stack(1-lora, 2-houlsby, new, 4-prompt)",
            "stack(1-lora, 2-houlsby, 3-prefix, new)",
        ]
    assert torch.equal(run(again), bare)


def test_fuse_trains_pushes_pulls_and_gives_equal_logits(
    registry: hub.Registry,
    other: hub.Registry,
    online: HubServer,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    model = build_tiny("llama", initializer_range=0.3)
    for name, method in (("a", "houlsby"), ("b", "lora")):
        adapter = hub.Adapter.create(method, model, **FOUR[method])
        hub.train(
            *(model, adapter, ROWS),
            **dict(tokenizer=make_tokenizer(), template=TEMPLATE, max_steps=2, learning_rate=1e-2),
        )
        registry.add(adapter, name=name)
    fuse = hub.Fuse.create(model, "a", "b@1")
    assert isinstance(fuse.by, hub.Adapter)
    hub.train(
        *(model, fuse, ROWS),
        **dict(tokenizer=make_tokenizer(), template=TEMPLATE, max_steps=4, learning_rate=1e-2),
    )
    assert fuse.by.lineage["parents"] == ["a@1", "b@1"]
    registry.add(fuse.by, name="by", parents=["a@1", "b@1"])
    version = registry.add(fuse, name="fused")
    with hub.attach(model, fuse):
        expected = run(model)
    hub.push("fused@1", "ana/fused")
    hub.push("by@1", "ana/by")
    assert hub.pull("ana/fused", registry=other).digest == version.digest
    assert hub.pull("ana/by", registry=other).digest == registry.get("by").digest
    monkeypatch.setenv("HUB_HOME", str(tmp_path / "other-home"))
    for composition in ("fused", hub.parse_composition("fuse(a, b; by)")):
        with hub.attach(model, composition, trainable=False):  # type: ignore[arg-type]
            assert torch.equal(run(model), expected)
