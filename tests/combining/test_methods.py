"""Every method combined, against what its equation makes of the weights; and what is refused."""

from __future__ import annotations

import copy
import importlib
import sys
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import peft
import pytest
import torch
from peft.utils import merge_utils

import hub
from hub.discovery import installed_methods
from tests.snapshots import run, shake_adapter
from tests.tiny import build_tiny, make_inputs

ROOT = Path(__file__).parents[2]
OPTIONS: dict[str, dict[str, Any]] = {
    "bitfit": {},
    "diff": {},
    "full": {},
    "houlsby": {"size": 4, "layer_norms": True},
    "ia3": {},
    "llama_adapter": {"tokens": 3, "layers": 1},
    "parallel": {"size": 4},
    "pfeiffer": {"size": 4},
    "prefix": {"tokens": 3, "projection": True, "hidden_size": 8},
    "prompt": {"tokens": 3},
    "ptuning": {"tokens": 3, "encoder": "lstm", "hidden_size": 8},
}
KINDS = {"llama_adapter": "llama", "prefix": "llama"}


def make(model: Any, method: str, seed: int = 1, **options: Any) -> hub.Adapter:
    """An adapter as if it had been trained."""
    torch.manual_seed(seed)
    adapter = hub.Adapter.create(method, model, **{**OPTIONS[method], **options})
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for name, tensor in adapter.tensors.items():
            if not name.endswith((".gate", ".group")):
                tensor.add_(torch.randn(tensor.shape, generator=generator) * 0.1)
    return adapter


def answer(model: Any, adapter: hub.Adapter) -> torch.Tensor:
    with hub.attach(model, adapter, trainable=False):
        return run(model)


def merge(model: Any, adapter: hub.Adapter) -> dict[str, torch.Tensor]:
    """The parameters of a model with the adapter folded in, in float64."""
    folded = copy.deepcopy(model)
    with hub.attach(folded, adapter, trainable=False) as attachment:
        attachment.merge()
        return {
            name: tensor.detach().double().clone()
            for name, tensor in folded.named_parameters()
            if not name.startswith("hub_adapters")
        }


@pytest.mark.parametrize("kind", ["gpt2", "t5"])
@pytest.mark.parametrize("method", ["lora", "ia3", "bitfit", "full", "diff"])
def test_linear_is_the_weighted_sum_of_what_merging_changes(kind: str, method: str) -> None:
    if (kind, method) == ("t5", "bitfit"):
        kind = "bert"  # T5 has no biases
    model = build_tiny(kind)
    if method == "lora":
        parts = [
            shake_adapter(hub.Adapter.create("lora", model, r=r), seed=r, scale=0.1) for r in (2, 3)
        ]
    else:
        parts = [make(model, method, seed) for seed in (1, 2)]
    weights = [0.8, -1.3]
    bare = {name: tensor.detach().double() for name, tensor in model.named_parameters()}
    expected = copy.deepcopy(bare)
    for part, weight in zip(parts, weights, strict=True):
        for name, tensor in merge(model, part).items():
            expected[name] += weight * (tensor - bare[name])
    found = merge(model, hub.combine(parts, how="linear", weights=weights))
    torch.testing.assert_close(found, expected, atol=1e-5, rtol=1e-5)
    assert any(not torch.allclose(tensor, bare[name]) for name, tensor in found.items())


def read_rows(adapter: hub.Adapter) -> torch.Tensor:
    """The virtual tokens, or keys and values, that an adapter's files hold for peft."""
    from safetensors.torch import load

    return load(adapter.format()["adapter_model.safetensors"])["prompt_embeddings"]


@pytest.mark.parametrize("method", ["prompt", "ptuning", "prefix"])
@pytest.mark.parametrize("kind", ["llama", "t5"])
def test_virtual_positions_are_mixed_as_they_serve(method: str, kind: str) -> None:
    model = build_tiny(kind)
    a, b = (make(model, method, seed) for seed in (1, 2))
    combined = hub.combine([a, b], how="linear", weights=[0.7, 0.3])
    expected = 0.7 * read_rows(a) + 0.3 * read_rows(b)
    torch.testing.assert_close(read_rows(combined), expected)
    torch.testing.assert_close(
        answer(model, hub.combine([a], how="linear", weights=[1.0])), answer(model, a)
    )
    assert set(combined.tensors) == {"prompt_embeddings"}


@pytest.mark.parametrize("options", [{"projection": False}, {"hidden_size": 5}])
def test_prefixes_combine_whatever_made_them(options: dict[str, Any]) -> None:
    model = build_tiny("llama")
    a, b = make(model, "prefix"), make(model, "prefix", 2, **options)
    combined = hub.combine([a, b], how="linear")
    torch.testing.assert_close(read_rows(combined), (read_rows(a) + read_rows(b)) / 2)


@pytest.mark.filterwarnings("ignore:The density")
@pytest.mark.parametrize("method", ["bitfit", "houlsby", "ia3", "parallel", "pfeiffer", "full"])
@pytest.mark.parametrize("how", ["linear", "ties", "magnitude_prune"])
def test_mixing_acts_on_how_far_tensors_are_from_no_change(method: str, how: str) -> None:
    """Against peft's arithmetic on those differences."""
    neutral = 1.0 if method == "ia3" else 0.0
    model = build_tiny("gpt2")
    parts = [make(model, method, seed) for seed in (1, 2, 3)]
    options: dict[str, Any] = {} if how == "linear" else {"density": 0.6}
    weights = [0.9] * 3
    combined = hub.combine(parts, how=how, weights=weights, **options)
    assert combined.tensors.keys() == parts[0].tensors.keys()
    rule = {
        "linear": merge_utils.task_arithmetic,
        "ties": merge_utils.ties,
        "magnitude_prune": merge_utils.magnitude_prune,
    }[how]
    for name, tensor in combined.tensors.items():
        ds = [part.tensors[name].detach() - neutral for part in parts]
        expected = rule(ds, torch.tensor(weights), *options.values()) + neutral
        torch.testing.assert_close(tensor.detach(), expected, msg=name)


def test_llama_adapters_are_mixed_with_their_gates() -> None:
    model = build_tiny("llama")
    a, b = (make(model, "llama_adapter", seed) for seed in (1, 2))
    combined = hub.combine([a, b], how="linear", weights=[0.5, 1.0])
    for name, tensor in combined.tensors.items():
        torch.testing.assert_close(tensor, 0.5 * a.tensors[name] + b.tensors[name])
    kept = hub.combine([a], how="magnitude_prune", weights=[1.0], density=0.5)
    gates = [tensor for name, tensor in kept.tensors.items() if name.endswith("gate")]
    assert gates and all(gate.item() != 0 for gate in gates)  # the one value that there is


@pytest.mark.parametrize("how", ["linear", "ties"])
def test_differences_that_were_pruned_stay_sparse(how: str) -> None:
    model = build_tiny("gpt2")
    parts = [prune(make(model, "diff", seed, density=0.1)) for seed in (1, 2)]
    combined = hub.combine(parts, how=how, weights=[1.0, 2.0])
    changed = 0
    for name, tensor in combined.tensors.items():
        if name.endswith(".w"):
            a, b = (part.tensors[name].detach() for part in parts)
            if how == "linear":
                torch.testing.assert_close(tensor.detach(), a + 2 * b)
            assert not tensor[(a == 0) & (b == 0)].any()
            changed += int((tensor != 0).sum())
    assert changed
    size = {name: len(data) for name, data in combined.format().items()}
    dense = sum(4 * tensor.numel() for name, tensor in combined.tensors.items() if ".w" in name)
    assert size["adapter_model.safetensors"] < dense
    again = hub.Adapter.parse(combined.format(), Path("x"))
    assert torch.equal(answer(model, again), answer(model, combined))
    modules: Mapping[Any, Any] = {}
    with hub.attach(model, again, trainable=True) as attachment:
        modules = attachment.modules(again)
        training = installed_methods().call(
            "hub_train", "diff", adapter=again, modules=modules, steps=3
        )
    assert training == hub.Training()  # its places are decided


def prune(adapter: hub.Adapter) -> hub.Adapter:
    """As training leaves it: the largest differences kept, the gates of the others shut."""
    with torch.no_grad():
        for name, tensor in adapter.tensors.items():
            if name.endswith(".w"):
                kept = tensor.abs() >= tensor.abs().flatten().quantile(0.9)
                tensor.mul_(kept)
                adapter.tensors[name.removesuffix("w") + "gate"].copy_((kept * 2.0 - 1) * 1e4)
                adapter.tensors[name.removesuffix("w") + "group"].fill_(1e4)
    return adapter


def test_ia3_of_other_projections_leaves_them_as_they_are(tmp_path: Path) -> None:
    model = build_tiny("llama")
    a = make(model, "ia3", 1, targets=("k_proj",), feedforward=())
    b = make(model, "ia3", 2, targets=("k_proj", "down_proj"))
    combined = hub.combine([a, b], how="linear", weights=[0.6, 0.4])
    for name, tensor in combined.tensors.items():
        expected = 1 + 0.4 * (b.tensors[name] - 1)
        if name in a.tensors:
            expected = expected + 0.6 * (a.tensors[name] - 1)
        torch.testing.assert_close(tensor.detach(), expected.detach())
    combined.save(tmp_path)
    read = peft.PeftModel.from_pretrained(build_tiny("llama"), str(tmp_path)).eval()
    torch.testing.assert_close(
        run(read, **make_inputs(model)), answer(model, combined), rtol=0, atol=1e-5
    )


@pytest.mark.parametrize("method", ["ia3", "prompt", "ptuning", "prefix", "llama_adapter"])
def test_peft_reads_the_result_to_the_same_logits(method: str, tmp_path: Path) -> None:
    model = build_tiny("llama")
    parts = [make(model, method, seed) for seed in (1, 2)]
    combined = hub.combine(parts, how="ties", density=0.8)
    expected = answer(model, combined)
    combined.save(tmp_path)
    assert torch.equal(answer(model, hub.load(tmp_path)), expected)
    read = peft.PeftModel.from_pretrained(build_tiny("llama"), str(tmp_path)).eval()
    found = run(read, **make_inputs(model))[:, -expected.shape[1] :]
    torch.testing.assert_close(found, expected, rtol=0, atol=1e-5)


@pytest.mark.parametrize(
    ("method", "options", "reason"),
    [
        ("prompt", {"tokens": 5}, "tokens is 3 in one and 5 in another"),
        ("prefix", {"tokens": 5}, "tokens is 3 in one and 5 in another"),
        ("ptuning", {"tokens": 5}, "tokens is 3 in one and 5 in another"),
        ("houlsby", {"size": 5}, "size is 4 in one and 5 in another"),
        ("pfeiffer", {"activation": "gelu"}, "activation is 'relu' in one and 'gelu' in another"),
        ("parallel", {"scale": 2.0}, "scale is 4.0 in one and 2.0 in another"),
        ("bitfit", {"layers": (0,)}, "layers is None in one and .0,. in another"),
        ("full", {"exclude": ("wte",)}, "exclude is .. in one and .'wte',. in another"),
        ("ia3", {"targets": ("c_proj",), "feedforward": ()}, "is .1, 128. in one and .32, 1. in"),
        ("llama_adapter", {"layers": 2}, "layers is 1 in one and 2 in another"),
    ],
)
def test_parts_that_differ_are_refused(method: str, options: dict[str, Any], reason: str) -> None:
    model = build_tiny("llama" if method in KINDS else "gpt2")
    a, b = make(model, method), make(model, method, 2, **options)
    with pytest.raises(hub.ConfigError, match=reason) as caught:
        hub.combine([a, b], how="linear")
    assert f"can't combine {method} (part 1) and {method} (part 2): {method}: " in str(caught.value)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("method", OPTIONS)
@pytest.mark.parametrize("how", ["cat", "svd", "ties_svd"])
def test_only_factors_can_be_put_side_by_side(method: str, how: str) -> None:
    model = build_tiny("llama" if method in KINDS else "gpt2")
    with pytest.raises(hub.ConfigError, match=f"{method}: how is '{how}', .* choose from linear"):
        hub.combine([make(model, method)], how=how)


def test_a_tensor_that_one_part_lacks_is_named() -> None:
    model = build_tiny("gpt2")
    a, b = make(model, "bitfit"), make(model, "bitfit", 2)
    name = list(b.tensors)[3]
    del b.tensors[name]
    with pytest.raises(hub.ConfigError, match=f"one of them lacks the tensor '{name}'"):
        hub.combine([a, b], how="linear")


@pytest.fixture
def _vera(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """The method of the tutorial, installed."""
    info = tmp_path / "hub_vera-1.0.dist-info"
    info.mkdir()
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: hub-vera\nVersion: 1.0\n")
    (info / "entry_points.txt").write_text("[hub]\nvera = hub_vera\n")
    monkeypatch.syspath_prepend(str(tmp_path))
    monkeypatch.syspath_prepend(str(ROOT / "docs" / "examples" / "vera"))
    importlib.invalidate_caches()
    installed_methods.cache_clear()
    yield
    sys.modules.pop("hub_vera", None)
    installed_methods.cache_clear()


@pytest.mark.usefixtures("_vera")
def test_a_method_that_says_nothing_is_refused_with_the_reason() -> None:
    model = build_tiny("llama")
    parts = [hub.Adapter.create("vera", model, r=4) for _ in range(2)]
    with pytest.raises(hub.ConfigError, match="vera: the method does not say at which value"):
        hub.combine(parts, how="linear")


@pytest.mark.usefixtures("_vera")
def test_a_method_that_says_its_neutral_values_combines(monkeypatch: pytest.MonkeyPatch) -> None:
    vera = installed_methods().get("vera")
    monkeypatch.setattr(type(vera), "neutral", lambda self, config, name: 0.0, raising=False)
    model = build_tiny("llama")
    parts = [hub.Adapter.create("vera", model, r=4) for _ in range(2)]
    combined = hub.combine(parts, how="linear", weights=[0.5, -2])
    for name, tensor in combined.tensors.items():
        a, b = (part.tensors[name] for part in parts)
        torch.testing.assert_close(tensor.detach(), (0.5 * a - 2 * b).detach())
