"""Diff pruning: its gates against the paper's formulas, its places and its files."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import datasets
import pytest
import torch
from safetensors.torch import load_file, save_file

import hub
from hub.errors import ConfigError
from hub_diff import DiffConfig, Gated, hub_load, hub_train, list_values, open_gates
from tests.snapshots import run, take_snapshot
from tests.tiny import build_tiny, make_inputs
from tests.training.tasks import ROWS, TEMPLATE, make_tokenizer

CONFIG = DiffConfig(penalty=1.0)


def train(model: Any, adapter: Any, steps: int, rate: float = 1e-2) -> list[float]:
    """Train by the method's own hook, as the trainer does; the density after each step."""
    with hub.attach(model, adapter, trainable=True) as attachment:
        modules = attachment.modules(adapter)
        part = hub_train(adapter, modules, steps)
        values = list(list_values(modules.values()))
        optimizer = torch.optim.Adam(attachment.parameters(), lr=rate)
        model.train()
        seen = []
        for step in range(1, steps + 1):
            optimizer.zero_grad()
            loss = model(**make_inputs(model, seed=step)).logits.square().mean()
            if part.penalty is not None:
                loss = loss + part.penalty()
            loss.backward()
            optimizer.step()
            if part.after_step is not None:
                part.after_step(step)
            drawn = [part.draw(noisy=False) != 0 for part in values]
            seen.append(sum(int(d.sum()) for d in drawn) / sum(d.numel() for d in drawn))
        model.eval()
    return seen


def list_places(adapter: Any) -> dict[str, torch.Tensor]:
    return {name: t > 0 for name, t in adapter.tensors.items() if name.endswith(".gate")}


def test_gates_are_hard_concrete() -> None:
    # Louizos et al., 2018, equations 10 to 12, with temperature one.
    torch.manual_seed(0)
    a = torch.full((200_000,), 0.5)
    z = open_gates(a, noisy=True)
    assert z.min() == 0
    assert z.max() == 1
    # P(z = 0) = P(s <= -l / (r - l)), and s is logistic around a.
    shut = 1 / (1 + math.exp(0.5 - math.log(1.5 / 1.5)))
    assert (z == 0).float().mean().item() == pytest.approx(shut, abs=5e-3)
    expected = min(1, max(0, 1 / (1 + math.exp(-0.5)) * 3 - 1.5))
    assert open_gates(a[:1], noisy=False).item() == pytest.approx(expected, abs=1e-6)


def test_penalty_is_the_expected_number_of_open_gates() -> None:
    part = Gated((10,), DiffConfig(structured=False))
    assert part.count_open().item() == pytest.approx(10 / (1 + math.exp(-5)), rel=1e-6)
    structured = Gated((10,), DiffConfig())
    assert structured.count_open().item() == pytest.approx(11 / (1 + math.exp(-5)), rel=1e-6)


def test_the_papers_values_are_the_defaults() -> None:
    # The paper and its code: lambda = 1.25e-7, a starts at 5, 0.5% of the parameters.
    config = DiffConfig()
    assert (config.penalty, config.density) == (1.25e-7, 0.005)
    assert all(bool((a == 5).all()) for a in Gated((3,), config).list_gates())


@pytest.mark.parametrize("kind", ["llama", "gpt2", "bert", "t5"])
def test_new_adapter_changes_nothing(kind: str) -> None:
    model = build_tiny(kind)
    bare = run(model)
    with hub.attach(model, hub.Adapter.create("diff", model)):
        assert torch.equal(run(model), bare)


@pytest.mark.parametrize("kind", ["gpt2", "bert"])
def test_training_ends_with_as_many_as_asked(kind: str) -> None:
    model = build_tiny(kind)
    before = take_snapshot(model)
    adapter = hub.Adapter.create("diff", model, density=0.02)
    seen = train(model, adapter, steps=6, rate=1e-3)
    assert take_snapshot(model) == before
    assert min(seen[:2]) > 0.5
    assert seen[2:] == pytest.approx([0.02] * 4, rel=0.01)
    count = sum(p.numel() for p in model.parameters())
    places = list_places(adapter)
    assert sum(int(p.sum()) for p in places.values()) == round(0.02 * count)
    with hub.attach(model, adapter):
        assert not torch.allclose(run(model), run(build_tiny(kind)), atol=1e-3)


@pytest.mark.parametrize(("at", "step"), [(0.0, 1), (0.5, 2), (1.0, 4)])
def test_places_are_fixed_when_asked(at: float, step: int) -> None:
    model = build_tiny("llama")
    adapter = hub.Adapter.create("diff", model, density=0.01, prune_at=at)
    with hub.attach(model, adapter, trainable=True) as attachment:
        modules = attachment.modules(adapter)
        part = hub_train(adapter, modules, 4)
        assert part.after_step is not None
        fixed = []
        for number in range(1, 5):
            part.after_step(number)
            fixed.append(all(values.decided for values in list_values(modules.values())))
    assert fixed == [number >= step for number in range(1, 5)]


def test_only_what_is_kept_learns_on(tmp_path: Path) -> None:
    model = build_tiny("llama")
    adapter = hub.Adapter.create("diff", model, density=0.02)
    train(model, adapter, steps=2)
    loaded = hub.load(adapter.save(tmp_path / "adapter"))
    places = list_places(loaded)
    before = {name: tensor.detach().clone() for name, tensor in loaded.tensors.items()}
    assert train(model, loaded, steps=3) == pytest.approx([0.02] * 3, rel=0.02)
    assert all(torch.equal(places[name], now) for name, now in list_places(loaded).items())
    moved = [
        name for name, tensor in loaded.tensors.items() if not torch.equal(tensor, before[name])
    ]
    assert moved
    assert all(name.endswith(".w") for name in moved)


def test_a_strong_penalty_closes_gates() -> None:
    def count(penalty: float) -> float:
        model = build_tiny("llama")
        torch.manual_seed(0)
        adapter = hub.Adapter.create("diff", model, penalty=penalty, prune_at=1.0, density=1.0)
        return train(model, adapter, steps=6)[-2]

    assert count(0.0) > 0.8
    assert count(10.0) < 0.1


def test_files_are_sparse_and_come_back(tmp_path: Path) -> None:
    model = build_tiny("gpt2")
    adapter = hub.Adapter.create("diff", model)
    train(model, adapter, steps=2)
    with hub.attach(model, adapter):
        expected = run(model)
    folder = adapter.save(tmp_path / "adapter")
    written = load_file(folder / "adapter_model.safetensors")
    count = sum(p.numel() for p in model.parameters())
    values = [t for name, t in written.items() if name.endswith(".values")]
    assert sum(t.numel() for t in values) == round(0.005 * count)
    assert sum(t.nbytes for t in written.values()) < 0.05 * 4 * count
    loaded = hub.load(folder)
    with hub.attach(model, loaded):
        assert torch.equal(run(model), expected)
    again = loaded.save(tmp_path / "again")
    assert (again / "adapter_model.safetensors").read_bytes() == (
        folder / "adapter_model.safetensors"
    ).read_bytes()


def test_training_prunes_and_only_the_pruned_can_be_the_best(tmp_path: Path) -> None:
    model = build_tiny("llama")
    adapter = hub.Adapter.create("diff", model, density=1e-4)
    result = hub.train(
        model,
        adapter,
        datasets.Dataset.from_list(ROWS),
        tokenizer=make_tokenizer(),
        template=TEMPLATE,
        eval_dataset=datasets.Dataset.from_list(ROWS),
        max_steps=6,
        save_steps=1,
        output=tmp_path / "run",
    )
    measured = {step: values["perplexity"] for step, values in result.evaluations}
    assert min(measured, key=lambda step: measured[step]) < 3
    assert result.best_step is not None
    assert result.best_step >= 3
    kept = sum(int(places.sum()) for places in list_places(adapter).values())
    assert kept == round(1e-4 * sum(p.numel() for p in model.parameters()))
    before = load_file(tmp_path / "run" / "checkpoint-6" / "adapter_model.safetensors")
    assert any(name.endswith(".places") for name in before)


def test_an_adapter_in_training_comes_back_whole(tmp_path: Path) -> None:
    model = build_tiny("llama")
    adapter = hub.Adapter.create("diff", model, prune_at=1.0)
    with hub.attach(model, adapter):
        model.train()
        model(**make_inputs(model)).logits.square().mean().backward()
        with torch.no_grad():
            for tensor in adapter.tensors.values():
                assert tensor.grad is not None
                tensor.copy_(tensor - tensor.grad)
        model.eval()
    loaded = hub.load(adapter.save(tmp_path / "adapter"))
    assert loaded.tensors.keys() == adapter.tensors.keys()
    assert all(torch.equal(t, adapter.tensors[name]) for name, t in loaded.tensors.items())


@pytest.mark.parametrize("kind", ["gpt2", "bert", "t5"])
def test_merged_equals_attached(kind: str) -> None:
    model = build_tiny(kind)
    before = take_snapshot(model)
    adapter = hub.Adapter.create("diff", model, density=0.1)
    train(model, adapter, steps=2)
    with hub.attach(model, adapter) as attachment:
        expected = run(model)
        attachment.merge()
        torch.testing.assert_close(run(model), expected, rtol=1e-4, atol=1e-5)
    assert take_snapshot(model) == before


@pytest.mark.parametrize(
    ("change", "value"),
    [
        ("places", torch.tensor([0, 10_000_000], dtype=torch.int32)),
        ("places", torch.tensor([-1, 3], dtype=torch.int32)),
        ("places", torch.tensor([3, 3], dtype=torch.int32)),
        ("places", torch.tensor([1], dtype=torch.int32)),
        ("values", torch.tensor([1.0])),
    ],
)
def test_places_that_can_not_be_are_refused(change: str, value: torch.Tensor) -> None:
    tensors = {
        "m.weight.places": torch.tensor([1, 3], dtype=torch.int32),
        "m.weight.values": torch.tensor([0.5, 0.7]),
        "m.weight.shape": torch.tensor([2, 2]),
    }
    loaded = hub_load({}, tensors)
    assert loaded is not None
    assert torch.equal(loaded[1]["m.weight.w"], torch.tensor([[0, 0.5], [0, 0.7]]))
    with pytest.raises(ConfigError, match=r"diff: m\.weight has . values at . places, which are"):
        hub_load({}, {**tensors, f"m.weight.{change}": value})


def test_a_part_that_is_missing_does_not_fit(tmp_path: Path) -> None:
    model = build_tiny("llama")
    adapter = hub.Adapter.create("diff", model)
    train(model, adapter, steps=1)
    folder = adapter.save(tmp_path / "adapter")
    (folder / "hub.json").unlink()
    path = folder / "adapter_model.safetensors"
    tensors = load_file(path)
    del tensors["base_model.model.lm_head.weight.shape"]
    save_file(tensors, path)
    with pytest.raises(hub.HubError, match="does not fit this model"):
        hub.attach(model, hub.load(folder))


@pytest.mark.parametrize(
    ("options", "text"),
    [
        ({"density": 0.0}, r"diff: density is 0.0; it must be in \(0, 1\]"),
        ({"density": 1.5}, r"diff: density is 1.5; it must be in \(0, 1\]"),
        ({"prune_at": -0.1}, r"diff: prune_at is -0.1; it must be in \[0, 1\]"),
        ({"penalty": -1.0}, "diff: penalty is -1.0; it must be a finite number from 0"),
        ({"penalty": float("nan")}, "diff: penalty is nan"),
        ({"gate_speed": 0.5}, "diff: gate_speed is 0.5; it must be a finite number from 1"),
        ({"structured": "yes"}, "structured is 'yes'; it must be"),
        ({"exclude": ["nosuch"]}, r"exclude=\('nosuch',\) matches none of the 21 modules, such"),
        ({"exclude": ".*"}, r"exclude='\.\*' leaves none of the 21 modules"),
        ({"sparsity": 0.5}, "diff has no option 'sparsity'"),
    ],
)
def test_wrong_options_are_named(options: dict[str, Any], text: str) -> None:
    with pytest.raises(ConfigError, match=text):
        hub.Adapter.create("diff", build_tiny("llama"), **options)
