"""Both methods on models of every kind: attach, train, save, load on a fresh copy, detach."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

import hub
from tests.snapshots import run, take_snapshot
from tests.tiny import SMALL, build_tiny, make_inputs

KINDS = sorted(SMALL)
METHODS: list[tuple[str, dict[str, Any]]] = [
    ("lora", {"r": 4}),
    ("houlsby", {"size": 4, "layer_norms": True}),
]


def train_steps(model: Any, attachment: Any, steps: int = 2) -> list[float]:
    """Plain optimizer steps on one batch; the losses."""
    inputs = make_inputs(model)
    labels = inputs.get("decoder_input_ids", inputs["input_ids"])
    optimizer = torch.optim.AdamW(attachment.parameters(), lr=1e-2)
    losses = []
    model.train()
    for _ in range(steps):
        optimizer.zero_grad()
        loss = model(**inputs, labels=labels).loss
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    model.eval()
    return losses


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize(("method", "options"), METHODS, ids=[name for name, _ in METHODS])
def test_life_of_an_adapter_is_right_and_leaves_no_trace(
    kind: str, method: str, options: dict[str, Any], tmp_path: Path
) -> None:
    model = build_tiny(kind)
    before = take_snapshot(model)
    bare = run(model)
    torch.manual_seed(0)
    adapter = hub.Adapter.create(method, model, **options)
    assert take_snapshot(model) == before

    with hub.attach(model, adapter) as attachment:
        started = {name: tensor.detach().clone() for name, tensor in adapter.tensors.items()}
        train_steps(model, attachment)
        learning = run(model)
        for name, tensor in adapter.tensors.items():
            assert not torch.equal(tensor, started[name]), f"{name} did not learn"
    assert take_snapshot(model) == before
    with hub.attach(model, adapter, trainable=False):
        trained = run(model)
    # torch multiplies by a weight that learns in another order, so this is not to the last bit.
    torch.testing.assert_close(trained, learning, rtol=1e-5, atol=1e-5)
    assert not torch.equal(trained, bare)

    adapter.save(tmp_path / "adapter")
    fresh = build_tiny(kind)
    loaded = hub.load(tmp_path / "adapter")
    with hub.attach(fresh, loaded) as attachment:
        assert torch.equal(run(fresh), trained)
        assert list(attachment.parameters()) == []
        with attachment.disabled():
            assert torch.equal(run(fresh), bare)
        assert torch.equal(run(fresh), trained)
    assert take_snapshot(fresh).outputs == before.outputs
