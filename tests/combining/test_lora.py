"""LoRA combined: every variant, against sums and decompositions of the dense changes, and peft."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import peft
import pytest
import torch

import hub
from tests.snapshots import run, shake_adapter
from tests.tiny import build_tiny, make_inputs

SUMS: list[tuple[str, dict[str, Any]]] = [
    ("linear", {}),
    ("cat", {}),
    ("dare_linear", {"density": 1.0}),
    ("magnitude_prune", {"density": 1.0}),
]
# What gives one adapter at weight 1 back.
IDENTITIES = [
    *SUMS,
    ("svd", {}),
    ("ties", {}),
    ("ties", {"density": 1, "majority_sign_method": "frequency"}),
    ("dare_ties", {"density": 1.0}),
    ("ties_svd", {}),
    ("dare_linear_svd", {"density": 1.0}),
    ("dare_ties_svd", {"density": 1.0}),
    ("magnitude_prune_svd", {"density": 1.0}),
]
VARIANTS: dict[str, dict[str, Any]] = {
    "plain": {"r": 4, "alpha": 12},
    "rslora": {"r": 4, "alpha": 12, "rslora": True, "targets": "attention"},
    "patterns": {
        "r": 4,
        "rank_pattern": {r".*\.0\..*": 2},
        "alpha_pattern": {r".*\.1\..*": 3},
        "rslora": True,
    },
    "embeddings": {"r": 3, "alpha": 5, "targets": ("embed_tokens", "lm_head", "q_proj")},
    "dora": {"r": 4, "alpha": 6, "dora": True, "targets": "feedforward"},
    "dora-embeddings": {"r": 3, "dora": True, "targets": ("embed_tokens", "v_proj")},
}


@pytest.fixture(scope="module")
def model() -> Any:
    return build_tiny("llama")


def make(model: Any, seed: int = 1, **options: Any) -> hub.Adapter:
    """A LoRA as if it had been trained."""
    adapter = shake_adapter(hub.Adapter.create("lora", model, **options), seed=seed, scale=0.2)
    with torch.no_grad():
        for name, tensor in adapter.tensors.items():
            if name.endswith("magnitude_vector"):
                tensor.abs_().add_(0.5)
    return adapter


def find_changes(adapter: hub.Adapter, scaling: Any = None) -> dict[str, torch.Tensor]:
    """s B A of every module, dense, in float64, by its path."""
    scaling = scaling or (lambda path: adapter.config.alpha / adapter.config.r)
    changes = {}
    for name, A in adapter.tensors.items():
        for first, second in (
            (".lora_A.weight", ".lora_B.weight"),
            (".lora_embedding_A", ".lora_embedding_B"),
        ):
            if name.endswith(first):
                path = name.removesuffix(first)
                B = adapter.tensors[path + second]
                changes[path] = scaling(path) * (B.detach().double() @ A.detach().double())
    return changes


def add_changes(
    parts: Sequence[dict[str, torch.Tensor]], weights: Sequence[float]
) -> dict[str, torch.Tensor]:
    """The weighted sum of each module's, those of one that a part lacks being zero."""
    total: dict[str, torch.Tensor] = {}
    for changes, weight in zip(parts, weights, strict=True):
        for path, change in changes.items():
            total[path] = total.get(path, 0) + weight * change
    return total


def answer(model: Any, adapter: hub.Adapter) -> torch.Tensor:
    with hub.attach(model, adapter, trainable=False):
        return run(model)


@pytest.mark.parametrize("variant", VARIANTS)
def test_one_adapter_at_weight_1_is_itself_by_every_rule(model: Any, variant: str) -> None:
    adapter = make(model, **VARIANTS[variant])
    expected = answer(model, adapter)
    assert not torch.allclose(expected, run(model), atol=1e-2)
    for how, options in IDENTITIES:
        same = hub.combine([adapter], how=how, weights=[1.0], **options)
        torch.testing.assert_close(answer(model, same), expected, atol=1e-5, rtol=1e-5, msg=how)


def test_one_adapter_at_another_weight_is_that_share_of_it_by_every_rule(model: Any) -> None:
    adapter = make(model, r=4, alpha=12)
    for how, options in IDENTITIES:
        found = find_changes(hub.combine([adapter], how=how, weights=[-0.5], **options))
        for path, change in find_changes(adapter).items():
            torch.testing.assert_close(found[path], -0.5 * change, atol=1e-5, rtol=1e-4, msg=how)


def test_ties_mixes_factors_by_the_square_roots(model: Any) -> None:
    """Of other ranks too, shorter ones ending in zeros; against each value's definition."""
    path, weights = "model.layers.1.mlp.up_proj", [1.0, -0.5]
    parts = [make(model, 1, r=2, alpha=4), make(model, 2, r=3, alpha=3)]
    combined = hub.combine(parts, how="ties", weights=weights, density=0.5)
    for factor, axis in (("A", 0), ("B", 1)):
        votes = []
        for part, weight, s in zip(parts, weights, (2.0, 1.0), strict=True):
            own = part.tensors[f"{path}.lora_{factor}.weight"].detach()
            least = own.abs().flatten().sort(descending=True).values[own.numel() // 2 - 1]
            root = abs(weight * s) ** 0.5 * (-1 if factor == "A" and weight < 0 else 1)
            rows = torch.where(own.abs() >= least, own * root, 0).movedim(axis, 0)
            votes.append(torch.cat([rows, torch.zeros(3 - len(rows), rows.shape[1])]))
        found = combined.tensors[f"{path}.lora_{factor}.weight"].movedim(axis, 0)
        for a, b, value in zip(*(t.flatten().tolist() for t in (*votes, found)), strict=True):
            # Where they don't agree one is zero, or the larger wins.
            expected = (a + b) / 2 if a * b > 0 else max(a, b, key=abs)
            assert value == pytest.approx(expected, abs=1e-6)


def test_one_adapter_on_experts_at_weight_1_is_itself(tmp_path: Path) -> None:
    model = build_tiny("mixtral")
    adapter = make(model, r=3, alpha=5, targets=("down_proj", "gate_up_proj", "q_proj"))
    expected = answer(model, adapter)
    for how, options in IDENTITIES:
        same = hub.combine([adapter], how=how, weights=[1], **options)
        torch.testing.assert_close(answer(model, same), expected, atol=1e-5, rtol=1e-5, msg=how)


@pytest.mark.parametrize(("how", "options"), SUMS, ids=[how for how, _ in SUMS])
def test_sums_are_exact(model: Any, how: str, options: dict[str, Any]) -> None:
    """Whatever the ranks, scalings, signs and modules of the parts are."""
    weights = [0.7, -1.5, 2.0]
    root = 3 / 5**0.5
    parts = [
        make(model, 1, r=4, alpha=12, targets="attention"),
        make(model, 2, r=5, alpha=3, rslora=True),
        make(model, 3, r=2, alpha=2, rank_pattern={"q_proj": 6}, targets=("q_proj", "lm_head")),
    ]
    changes = [
        find_changes(parts[0], lambda path: 3.0),
        find_changes(parts[1], lambda path: root),
        find_changes(parts[2], lambda path: 1 / 3 if path.endswith("q_proj") else 1.0),
    ]
    combined = hub.combine(parts, how=how, weights=weights, **options)
    expected = add_changes(changes, weights)
    found = find_changes(combined, lambda path: 1.0)
    assert found.keys() == expected.keys()
    for path, change in expected.items():
        torch.testing.assert_close(found[path], change, atol=1e-5, rtol=1e-5)
        assert combined.config.scaling(path) == 1
    ranks = {"q_proj": 15, "k_proj": 9, "gate_proj": 5, "lm_head": 2}
    for path in found:
        rank = ranks.get(path.rpartition(".")[2])
        assert rank in (None, combined.config.rank(path))


def test_left_out_weights_are_the_mean(model: Any) -> None:
    parts = [make(model, seed, r=2) for seed in (1, 2)]
    expected = add_changes([find_changes(part) for part in parts], [0.5, 0.5])
    for how in ("linear", "cat"):
        found = find_changes(hub.combine(parts, how=how))
        torch.testing.assert_close(found, expected, atol=1e-5, rtol=1e-5)
    assert hub.combine(parts, how="ties").lineage["combination"]["weights"] == [1.0, 1.0]


@pytest.mark.parametrize("rank", [None, 3, 100])
def test_svd_is_the_nearest_of_its_rank(model: Any, rank: int | None) -> None:
    parts = [make(model, 1, r=4, alpha=8, targets=("q_proj", "embed_tokens")), make(model, 2, r=2)]
    total = add_changes(
        [find_changes(parts[0], lambda path: 2.0), find_changes(parts[1], lambda path: 1.0)],
        [1.0, -0.5],
    )
    combined = hub.combine(parts, how="svd", weights=[1.0, -0.5], svd_rank=rank)
    found = find_changes(combined, lambda path: 1.0)
    for path, change in total.items():
        kept = rank or (4 if path.endswith(("q_proj", "embed_tokens")) else 2)
        U, S, V = torch.linalg.svd(change, full_matrices=False)
        nearest = U[:, :kept] @ torch.diag(S[:kept]) @ V[:kept]
        torch.testing.assert_close(found[path], nearest, atol=1e-5, rtol=1e-4)
    assert answer(model, combined).isfinite().all()


def test_pruned_and_drawn_factors_give_a_weighted_sum(model: Any) -> None:
    """The factors of each part are thinned, and none of one meets those of another."""
    a, b = make(model, 1, r=4, alpha=4), make(model, 2, r=4, alpha=8)
    path = "model.layers.0.self_attn.q_proj"

    def prune(tensor: torch.Tensor) -> torch.Tensor:
        flat = tensor.detach().flatten()
        least = flat.abs().sort(descending=True).values[int(0.3 * flat.numel()) - 1]
        return torch.where(tensor.abs() >= least, tensor, 0).detach()

    def multiply(adapter: hub.Adapter) -> torch.Tensor:
        A, B = (adapter.tensors[f"{path}.lora_{factor}.weight"] for factor in "AB")
        return prune(B) @ prune(A)

    pruned = hub.combine([a, b], how="magnitude_prune", density=0.3, weights=[1.0, -0.5])
    expected = multiply(a) - 0.5 * 2 * multiply(b)
    torch.testing.assert_close(find_changes(pruned)[path].float(), expected, atol=1e-5, rtol=1e-5)

    drawn = hub.combine([a, b], how="dare_linear", density=0.5, weights=[1.0, -0.5], seed=3)
    A, B = (drawn.tensors[f"{path}.lora_{factor}.weight"] for factor in "AB")
    for part, rows, weight in ((a, slice(0, 4), 1.0), (b, slice(4, 8), -1.0)):
        for factor, found in (("A", A[rows] / weight), ("B", B[:, rows])):
            own = part.tensors[f"{path}.lora_{factor}.weight"]
            kept = found != 0
            torch.testing.assert_close(found[kept], own[kept] / 0.5)
            assert 0.3 < kept.float().mean() < 0.7


def test_a_seed_repeats_dare_from_memory_and_from_files(model: Any, tmp_path: Path) -> None:
    parts = [make(model, seed, r=4) for seed in (1, 2)]
    options: dict[str, Any] = {"how": "dare_ties", "density": 0.5}
    one = hub.combine(parts, seed=7, **options)
    loaded = [hub.load(part.save(tmp_path / str(place))) for place, part in enumerate(parts)]
    for other in (hub.combine(parts, seed=7, **options), hub.combine(loaded, seed=7, **options)):
        assert all(torch.equal(tensor, other.tensors[name]) for name, tensor in one.tensors.items())
    other = hub.combine(parts, seed=8, **options)
    assert not all(torch.equal(t, other.tensors[name]) for name, t in one.tensors.items())
    torch.manual_seed(5)
    expected = torch.rand(3)
    torch.manual_seed(5)
    hub.combine(parts, how="dare_linear_svd", density=0.5)
    assert torch.equal(torch.rand(3), expected)  # the chances of everybody else are left alone


def combine_in_peft(model: Any, folders: Sequence[Path], **options: Any) -> Any:
    """What peft makes of the same adapters, as the active one."""
    wrapped = peft.PeftModel.from_pretrained(model, str(folders[0]), adapter_name="0")
    for place, folder in enumerate(folders[1:], 1):
        wrapped.load_adapter(str(folder), adapter_name=str(place))
    names = [str(place) for place in range(len(folders))]
    wrapped.add_weighted_adapter(names, adapter_name="combined", **options)
    wrapped.set_adapter("combined")
    return wrapped.eval()


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("kind", ["llama", "gpt2"])
@pytest.mark.parametrize(
    ("how", "weights", "options"),
    [
        ("cat", [0.7, -0.4], {}),
        ("svd", [0.7, 0.4], {"svd_rank": 5}),
        ("svd", [1.0, -1.0], {}),
        ("ties", [0.5, 0.5], {"density": 0.4}),
        ("ties", [1.0, 1.0], {"density": 0.9}),
        ("ties_svd", [1.0, 1.0], {"density": 0.5, "svd_rank": 16}),
        ("magnitude_prune_svd", [1.0, -0.5], {"density": 0.5, "svd_rank": 16}),
    ],
)
def test_pefts_are_equal_where_its_definition_is_ours(
    kind: str, how: str, weights: list[float], options: dict[str, Any], tmp_path: Path
) -> None:
    model = build_tiny(kind)
    parts = [make(model, seed, r=4, alpha=8) for seed in (1, 2)]
    folders = [part.save(tmp_path / str(place)) for place, part in enumerate(parts)]
    found = answer(model, hub.combine(parts, how=how, weights=weights, **options))
    inputs = make_inputs(model)
    theirs = combine_in_peft(
        build_tiny(kind), folders, weights=weights, combination_type=how, **options
    )
    # A random projection is near to a dense svd, not equal.
    near = 2e-2 if how.endswith("_svd") else 1e-5
    expected = run(theirs, **inputs)
    assert not torch.allclose(expected, run(model), atol=5e-2)
    torch.testing.assert_close(found, expected, atol=near, rtol=1e-5)


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize(
    ("kind", "options"),
    [
        ("llama", [{"r": 4, "alpha": 8}, {"r": 2, "rslora": True, "targets": "attention"}]),
        ("gpt2", [{"r": 4, "targets": ("c_attn", "wte")}, {"r": 2, "targets": ("c_fc", "wte")}]),
        ("llama", [{"r": 4, "dora": True}, {"r": 2, "dora": True, "rslora": True}]),
        ("bert/classification", [{"r": 4}, {"r": 3, "targets": "attention"}]),
        (
            "mixtral",
            [
                {"r": 2, "targets": ("q_proj", "down_proj", "gate_up_proj")},
                {"r": 3, "targets": ("q_proj", "down_proj")},
            ],
        ),
    ],
    ids=["ranks-and-modules", "embeddings", "dora", "head", "experts"],
)
@pytest.mark.parametrize("how", ["linear", "svd"])
def test_peft_reads_the_result_to_the_same_logits(
    kind: str, options: list[dict[str, Any]], how: str, tmp_path: Path
) -> None:
    name, _, task = kind.partition("/")
    model = build_tiny(name, task or None)
    parts = [make(model, seed, **each) for seed, each in enumerate(options, 1)]
    combined = hub.combine(parts, how=how, weights=[0.75, 0.25])
    expected = answer(model, combined)
    combined.save(tmp_path / "ours")
    loaded = hub.load(tmp_path / "ours")
    assert loaded.config == combined.config
    assert torch.equal(answer(model, loaded), expected)
    read = peft.PeftModel.from_pretrained(
        build_tiny(name, task or None), str(tmp_path / "ours")
    ).eval()
    torch.testing.assert_close(run(read, **make_inputs(model)), expected, rtol=0, atol=1e-5)


def test_a_result_combines_again(model: Any) -> None:
    a, b, c = (make(model, r, r=r, targets="all" if r > 1 else "attention") for r in (1, 2, 3))
    inner = hub.combine([a, b], how="cat", weights=[1.0, 2.0])
    twice = hub.combine([inner, c], how="cat", weights=[0.5, 1.0])
    once = hub.combine([a, b, c], how="cat", weights=[0.5, 1.0, 1.0])
    torch.testing.assert_close(answer(model, twice), answer(model, once), atol=1e-5, rtol=1e-5)


def test_magnitudes_are_averaged(model: Any) -> None:
    parts = [make(model, seed, r=2, dora=True, targets=("v_proj",)) for seed in (1, 2)]
    for how in ("linear", "cat", "svd"):
        combined = hub.combine(parts, how=how, weights=[0.25, 0.75])
        for name in parts[0].tensors:
            if name.endswith("lora_magnitude_vector"):
                a, b = (part.tensors[name] for part in parts)
                torch.testing.assert_close(combined.tensors[name], 0.25 * a + 0.75 * b)


@pytest.mark.parametrize(
    ("options", "how", "weights", "reason"),
    [
        ({"dora": True}, "linear", [1.0, 0.5], "weights that sum to 1, not 1.5"),
        ({"dora": True}, "ties", [0.5, 0.5], "magnitudes .dora. are lengths"),
        ({}, "linear", [0.5, 0.5], "v_proj has a magnitude in one and none in another"),
        (
            {"dora": True, "targets": ("q_proj",)},
            "cat",
            [0.5, 0.5],
            "has a magnitude in one and none in another",
        ),
    ],
)
def test_magnitudes_that_have_no_mean_are_refused(
    model: Any, options: dict[str, Any], how: str, weights: list[float], reason: str
) -> None:
    a = make(model, 1, r=2, dora=True, targets=("v_proj",))
    b = make(model, 2, r=2, **{"targets": ("v_proj",), **options})
    with pytest.raises(hub.ConfigError, match=reason) as caught:
        hub.combine([a, b], how=how, weights=weights)
    assert "\n" not in str(caught.value)


def test_factors_that_are_missing_are_named(model: Any) -> None:
    whole, half = make(model, r=2), make(model, 2, r=2)
    path = "model.layers.1.self_attn.q_proj"
    del half.tensors[f"{path}.lora_A.weight"]
    wrong = f"one of them has too few or too many tensors for {path};"
    with pytest.raises(hub.ConfigError, match=wrong):
        hub.combine([whole, half], how="linear")
    del half.tensors[f"{path}.lora_B.weight"]
    with pytest.raises(hub.ConfigError, match=wrong):
        hub.combine([whole, half], how="linear")
    whole.tensors[f"{path}.lora_magnitude_vector"] = torch.nn.Parameter(torch.ones(32))
    with pytest.raises(hub.ConfigError, match=wrong):
        hub.combine([whole], how="linear")
