"""What other libraries get wrong where adapters act together, and must not happen here."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

import hub
from hub.composition import Part
from hub.errors import AttachError, BaseMismatch
from tests.composition.batches import OPTIONS, attach_alone, measure
from tests.snapshots import shake_adapter, take_snapshot
from tests.tiny import build_tiny, make_inputs

IDS = torch.randint(5, 90, (2, 6), generator=torch.Generator().manual_seed(1))
CLOSE = 1e-5


@pytest.fixture
def model() -> Any:
    return build_tiny("llama", initializer_range=0.1)


def make(model: Any, method: str, seed: int = 1, **options: Any) -> hub.Adapter:
    adapter = hub.Adapter.create(method, model, **{**OPTIONS[method], **options})
    shaken: hub.Adapter = shake_adapter(adapter, seed=seed, scale=0.2)
    return shaken


def run(model: Any) -> Tensor:
    with torch.no_grad():
        logits: Tensor = model(input_ids=IDS).logits
    return logits


def run_with(model: Any, part: Part) -> Tensor:
    with attach_alone(model, part):
        return run(model)


@pytest.mark.parametrize("method", list(OPTIONS))
def test_rows_with_different_adapters_are_not_all_given_one(method: str) -> None:
    """Other libraries give every row the last one, for what is not LoRA."""
    model = build_tiny("bert")
    one, two = make(model, method, seed=1), make(model, method, seed=2)
    first, second = run_with(model, one), run_with(model, two)
    assert not torch.allclose(first, second)
    for rows, expected in (([0, 1], (first, second)), ([1, 0], (second, first))):
        with hub.attach(model, hub.BatchSplit(one, two), rows=rows, trainable=False):
            found = run(model)
        for row, logits in enumerate(expected):
            assert measure(found[row], logits[row]) < CLOSE


@pytest.mark.parametrize("other", ["prompt", "prefix", "ptuning"])
def test_lora_beside_virtual_tokens_is_saved_and_applied_whole(
    model: Any, other: str, tmp_path: Path
) -> None:
    lora, front = make(model, "lora"), make(model, other)
    both = run_with(model, hub.Stack(lora, front))
    for part in (lora, front, None):
        assert not torch.allclose(both, run_with(model, part))
    for name, part in (("lora", lora), ("front", front)):
        part.save(tmp_path / name)
    again = hub.Stack(hub.load(tmp_path / "front"), str(tmp_path / "lora"))
    assert measure(run_with(build_like(model), again), both) < CLOSE


def build_like(model: Any) -> Any:
    """The same base, loaded once more."""
    twin = build_tiny("llama", initializer_range=0.1)
    twin.load_state_dict(model.state_dict())
    return twin


def test_a_stack_of_lora_keeps_every_part_on_grouped_queries(model: Any) -> None:
    assert model.config.num_key_value_heads < model.config.num_attention_heads
    parts = [make(model, "lora", seed=seed, targets="attention") for seed in range(3)]
    stacked = run_with(model, hub.Stack(*parts))
    merged = build_like(model)
    for part in parts:
        with torch.no_grad():
            for name, A in part.tensors.items():
                if name.endswith("lora_A.weight"):
                    path = name.removesuffix(".lora_A.weight")
                    B = part.tensors[f"{path}.lora_B.weight"]
                    merged.get_submodule(path).weight += B @ A
    assert measure(stacked, run(merged)) < CLOSE


def test_four_methods_in_a_stack_learn_and_are_loaded_to_equal_logits(
    model: Any, tmp_path: Path
) -> None:
    methods = ["lora", "houlsby", "prefix", "prompt"]
    parts = [make(model, method) for method in methods]
    before = take_snapshot(model)
    with hub.attach(model, hub.Stack(*parts), trainable=True) as attachment:
        started = [parameter.detach().clone() for parameter in attachment.parameters()]
        optimizer = torch.optim.SGD(attachment.parameters(), lr=0.1)
        for _ in range(2):
            optimizer.zero_grad()
            model(input_ids=IDS, labels=IDS).loss.backward()
            optimizer.step()
        learned = list(attachment.parameters())
        assert all(not torch.equal(a, b) for a, b in zip(started, learned, strict=True))
    assert take_snapshot(model) == before
    expected = run_with(model, hub.Stack(*parts))
    for method, part in zip(methods, parts, strict=True):
        part.save(tmp_path / method)
    loaded = hub.Stack(*(str(tmp_path / method) for method in methods))
    with hub.attach(build_like(model), loaded) as attachment:
        assert list(attachment.parameters()) == []
        assert torch.equal(run(attachment._model), expected)


@pytest.mark.parametrize("method", ["prompt", "prefix", "lora", "houlsby"])
def test_a_loaded_part_learns_further_beside_others(
    model: Any, method: str, tmp_path: Path
) -> None:
    make(model, method).save(tmp_path / "part")
    loaded, other = hub.load(tmp_path / "part"), make(model, "ia3")
    assert isinstance(loaded, hub.Adapter)
    with hub.attach(model, hub.Stack(other, loaded), trainable=[loaded]):
        model.train()(input_ids=IDS, labels=IDS).loss.backward()
    assert all(tensor.grad is not None for tensor in loaded.tensors.values())
    assert all(tensor.grad is None for tensor in other.tensors.values())


@pytest.mark.parametrize("reentrant", [True, False])
def test_a_prefix_in_a_stack_learns_under_gradient_checkpointing(
    model: Any, reentrant: bool
) -> None:
    prefix, lora = make(model, "prefix"), make(model, "lora")
    found = []
    for checkpointing in (False, True):
        model.train()
        if checkpointing:
            model.activation_checkpointing_enable({"use_reentrant": reentrant})
            model.enable_input_require_grads()
        with hub.attach(model, hub.Stack(prefix, lora), trainable=True):
            model(input_ids=IDS, labels=IDS).loss.backward()
        found.append({n: t.grad for part in (prefix, lora) for n, t in part.tensors.items()})
        for part in (prefix, lora):
            for tensor in part.tensors.values():
                tensor.grad = None
    for name, gradient in found[0].items():
        torch.testing.assert_close(found[1][name], gradient, rtol=1e-4, atol=1e-6)


def test_what_is_frozen_is_not_unfrozen_by_being_routed_to(model: Any) -> None:
    frozen, learning = make(model, "lora"), make(model, "houlsby")
    with hub.attach(
        model, hub.BatchSplit(frozen, learning), rows=[0, 1], trainable=[learning]
    ) as attachment:
        for rows in ([1, 1], [0, 0], [0, 1], None):
            if rows is None:
                with attachment.disabled():
                    run(model)
            else:
                attachment.route(rows)
            live = attachment.modules(frozen).values()
            assert not any(p.requires_grad for module in live for p in module.parameters())
            learned = {id(tensor) for tensor in learning.tensors.values()}
            assert {id(p) for p in model.parameters() if p.requires_grad} == learned


def test_a_name_with_a_dot_is_a_name(model: Any, tmp_path: Path) -> None:
    registry = hub.Registry()
    parts = [make(model, "lora"), make(model, "prompt")]
    for name, part in zip(("v1.0", "b.c.d"), parts, strict=True):
        registry.add(part, name=name)
    expected, alone = run_with(model, hub.Stack(*parts)), run_with(model, parts[0])
    read = hub.parse_composition("stack(v1.0@1, b.c.d)")
    with hub.attach(model, read) as attachment:  # type: ignore[arg-type]
        assert measure(run(model), expected) < CLOSE
        attachment.route(attachment.add("v1.0"))
        assert measure(run(model), alone) < CLOSE


def test_a_stack_with_one_part_for_another_base_is_refused_whole(model: Any) -> None:
    before = take_snapshot(model)
    other = make(build_tiny("llama", seed=3), "ia3")
    for composition in (
        hub.Stack(make(model, "lora"), other),
        hub.Parallel(make(model, "prompt"), hub.Average(other, None)),
    ):
        with pytest.raises(BaseMismatch):
            hub.attach(model, composition)
        assert take_snapshot(model) == before


def test_a_key_that_names_a_base_parameter_changes_no_base(model: Any) -> None:
    before = take_snapshot(model)
    bad, good = make(model, "lora"), make(model, "houlsby")
    bad.tensors["model.layers.0.mlp.down_proj.weight"] = torch.nn.Parameter(torch.zeros(32, 48))
    for composition in (hub.Stack(good, bad), hub.BatchSplit(good, bad)):
        with pytest.raises(AttachError, match="no place in it"):
            hub.attach(model, composition, rows=0)
        assert take_snapshot(model) == before
    with hub.attach(model, good) as attachment:
        with pytest.raises(AttachError, match="no place in it"):
            attachment.add(bad)
        del bad.tensors["model.layers.0.mlp.down_proj.weight"]
        attachment.route([attachment.add(bad), 0])
        run(model)
    assert take_snapshot(model) == before


def test_a_missing_half_of_a_pair_leaves_nothing_behind_and_the_right_retry_works(
    model: Any,
) -> None:
    broken = make(model, "lora")
    taken = broken.tensors.pop("model.layers.1.mlp.up_proj.lora_B.weight")
    with hub.attach(model, make(model, "ia3"), trainable=False) as attachment:
        before = take_snapshot(model)
        for _ in range(2):
            with pytest.raises(AttachError, match=r"lacks model\.layers\.1\.mlp\.up_proj"):
                attachment.add(hub.Stack(make(model, "prompt"), broken))
            assert take_snapshot(model) == before
        broken.tensors["model.layers.1.mlp.up_proj.lora_B.weight"] = taken
        attachment.route(attachment.add(broken, trainable=False))
        found = run(model)
    assert measure(found, run_with(model, broken)) < CLOSE


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_a_merged_composition_is_undone_bit_for_bit_in_half_precision(dtype: torch.dtype) -> None:
    model = build_tiny("llama").to(dtype)
    before = take_snapshot(model)
    lora, ia3, full = (make(model, method) for method in ("lora", "ia3", "full"))
    tree = hub.Stack(ia3, hub.Average(lora, hub.Stack(full, lora), None, weights=[2, -1, 3]))
    with hub.attach(model, tree, trainable=False) as attachment:
        expected = run(model)
        for _ in range(2):
            attachment.merge()
            assert not torch.equal(run(model), expected)
            attachment.unmerge()
            assert torch.equal(run(model), expected)
        attachment.merge()
    assert take_snapshot(model) == before


def test_what_a_forward_gives_does_not_depend_on_how_many_are_resident(model: Any) -> None:
    lora = make(model, "lora")
    inputs = make_inputs(model)
    with hub.attach(model, lora, trainable=False) as attachment, torch.no_grad():
        expected = model(**inputs).logits
        for seed in range(6):
            attachment.add(make(model, ["prompt", "lora", "ia3"][seed % 3], seed=seed))
            assert torch.equal(model(**inputs).logits, expected)
