"""`hub.combine`: what may be combined, what is refused, and what the result says of itself."""

from __future__ import annotations

import json
import logging
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

import hub
from hub.errors import BaseMismatch
from hub_registry.errors import RegistryError, UnknownReference
from tests.snapshots import run, shake_adapter
from tests.tiny import build_tiny, make_inputs


@pytest.fixture(scope="module")
def model() -> Any:
    return build_tiny("llama")


def make(model: Any, seed: int = 1, method: str = "lora", **options: Any) -> hub.Adapter:
    if method == "lora":
        options = {"r": 2, **options}
    return shake_adapter(hub.Adapter.create(method, model, **options), seed=seed, scale=0.2)


def answer(model: Any, adapter: hub.Adapter) -> torch.Tensor:
    with hub.attach(model, adapter, trainable=False):
        return run(model)


def test_the_result_says_what_it_is(model: Any, tmp_path: Path) -> None:
    registry = hub.Registry()
    a, b = make(model, 1), make(model, 2)
    first = registry.add(a, name="a", task="sums")
    folder = b.save(tmp_path / "b")
    combined = hub.combine(
        ["a@1", folder, a, make(model, 3)],
        how="dare_ties_svd",
        weights=[1, -0.5, 0.25, 2],
        density=0.5,
        majority_sign_method="frequency",
        svd_rank=3,
        seed=4,
    )
    expected = {
        "parents": ["a@1"],
        "digests": {"a@1": first.digest},
        "combination": {
            "parts": ["a@1", "./b", "a@1", "lora"],
            "how": "dare_ties_svd",
            "weights": [1.0, -0.5, 0.25, 2.0],
            "density": 0.5,
            "majority_sign_method": "frequency",
            "svd_rank": 3,
            "seed": 4,
        },
    }
    assert combined.lineage == expected
    assert (combined.method, combined.reference, combined.fresh) == ("lora", None, False)
    assert (combined.base, combined.task_type, combined.metrics) == (a.base, "CAUSAL_LM", {})
    assert combined.task is None  # only one says sums
    combined.save(tmp_path / "combined")
    assert json.loads((tmp_path / "combined/hub.json").read_text())["lineage"] == expected
    version = registry.add(combined, name="combined")
    assert version.parents == ("a@1",)
    assert hub.load("combined@1").lineage == expected


def test_the_versions_among_the_parts_are_the_parents(model: Any, tmp_path: Path) -> None:
    """Where they are versions of this registry, of that content, and nobody says otherwise."""
    registry, other = hub.Registry(), hub.Registry(home=tmp_path / "other")
    for seed, name in enumerate("abc", 1):
        registry.add(make(model, seed), name=name)
    combined = hub.combine(["b@1", "a"], how="linear")
    folder = combined.save(tmp_path / "ba")
    version = registry.add(combined, name="ba")
    assert version.parents == ("b@1", "a@1")
    assert version.parents == tuple(hub.load("ba").lineage["parents"])
    assert registry.add(hub.combine(["b", "a@1"], how="linear"), name="ba") == version
    assert registry.add(folder, name="ba") == version
    assert registry.add(folder, name="again").parents == ("b@1", "a@1")
    assert registry.add(hub.combine(["a", "b"], how="svd"), name="c", parents=["c"]).parents == (
        "c@1",
    )
    registry.export("a@1", tmp_path / "a")
    other.add(tmp_path / "a", name="a")
    other.add(make(model, 4), name="b")
    assert other.add(folder, name="ba").parents == ("a@1",)


def test_parents_that_come_later_change_no_version(model: Any, tmp_path: Path) -> None:
    registry, other = hub.Registry(), hub.Registry(home=tmp_path / "other")
    registry.add(make(model, 1), name="a")
    folder = hub.combine(["a"], how="linear").save(tmp_path / "one")
    version = other.add(folder, name="one")
    other.add(registry.export("a", tmp_path / "a"), name="a")
    assert other.add(folder, name="one") == version
    assert version.parents == ()


@pytest.mark.parametrize(
    "lineage",
    [
        {"parents": ["a@1"]},
        {"parents": ["a@1"], "digests": {"a@1": "0" * 64}},
        {"parents": ["a@1"], "digests": ["a@1"]},
        {"parents": {"a@1": 1}, "digests": {"a@1": 1}},
        {"parents": [["a@1"], None, "b@1", "./a b", "@"], "digests": {"b@1": "0", "./a b": "0"}},
    ],
    ids=str,
)
def test_what_only_calls_itself_a_parent_is_none(model: Any, lineage: dict[str, Any]) -> None:
    registry = hub.Registry()
    registry.add(make(model, 1), name="a")
    adapter = make(model, 2)
    adapter.lineage = lineage
    assert registry.add(adapter, name="one").parents == ()
    assert hub.load("one").lineage == lineage


@pytest.mark.parametrize(
    ("how", "options", "said"),
    [
        ("linear", {}, {}),
        ("svd", {}, {}),
        ("ties", {}, {"density": 1.0, "majority_sign_method": "total"}),
        ("dare_linear", {"density": 1}, {"density": 1, "seed": 0}),
        ("magnitude_prune", {"density": 0.25}, {"density": 0.25}),
    ],
)
def test_lineage_has_what_has_an_effect(
    model: Any, how: str, options: dict[str, Any], said: dict[str, Any]
) -> None:
    lineage = hub.combine([make(model)], how=how, **options).lineage
    assert lineage["combination"] == {"parts": ["lora"], "how": how, "weights": [1.0], **said}
    assert "parents" not in lineage


def test_parts_share_their_task(model: Any) -> None:
    parts = [make(model, seed) for seed in (1, 2)]
    for part in parts:
        part.task = "sums"
    assert hub.combine(parts, how="linear").task == "sums"


def test_it_serves_like_one_that_was_loaded_and_learns_when_asked(model: Any) -> None:
    combined = hub.combine([make(model, seed) for seed in (1, 2)], how="linear")
    with hub.attach(model, combined) as attachment:
        assert list(attachment.parameters()) == []
    model = build_tiny("llama")
    with hub.attach(model, combined, trainable=True) as attachment:
        inputs = make_inputs(model)
        model(**inputs, labels=inputs["input_ids"]).loss.backward()
        assert all(p.grad is not None and p.grad.any() for p in attachment.parameters())


@pytest.mark.parametrize("how", ["linear", "svd", "ties"])
@pytest.mark.parametrize("method", ["lora", "ia3", "prompt"])
def test_parts_stay_as_they_are_and_share_no_memory(model: Any, method: str, how: str) -> None:
    if how == "svd" and method != "lora":
        how = "magnitude_prune"
    part = make(model, 1, method)
    kept = {name: tensor.detach().clone() for name, tensor in part.tensors.items()}
    options = {"density": 1} if how == "magnitude_prune" else {}
    combined = hub.combine([part], how=how, weights=[1.0], **options)
    with torch.no_grad():
        for tensor in combined.tensors.values():
            tensor.add_(1)
    assert all(torch.equal(tensor, kept[name]) for name, tensor in part.tensors.items())
    assert all(tensor.requires_grad for tensor in part.tensors.values())


def test_half_precision_is_combined_in_float32(model: Any) -> None:
    a, b = make(model, 1), make(model, 2)
    halves = [
        hub.Adapter(
            "lora", part.config, {n: t.detach().bfloat16() for n, t in part.tensors.items()},
            base=part.base,
        )
        for part in (a, b)
    ]  # fmt: skip
    combined = hub.combine(halves, how="svd")
    assert {tensor.dtype for tensor in combined.tensors.values()} == {torch.float32}
    expected = answer(model, hub.combine([a, b], how="svd"))
    torch.testing.assert_close(answer(model, combined), expected, atol=2e-2, rtol=0)


def test_parts_of_another_base_are_refused(model: Any) -> None:
    a = make(model)
    b = make(build_tiny("llama", seed=5), 2)
    with pytest.raises(BaseMismatch, match=r"which is another base: .*; take adapters of one"):
        hub.combine([a, b], how="linear")
    c = make(build_tiny("llama", num_hidden_layers=3), 2)
    with pytest.raises(BaseMismatch, match=r"lora \(part 1\) was made for .* and lora \(part 3\)"):
        hub.combine([a, a, c], how="linear")


def test_every_two_parts_are_of_one_base(model: Any) -> None:
    """The first tells too little of its base to differ from any, and the others differ."""
    a, b, c = make(model), make(model, 2), make(build_tiny("llama", seed=5), 3)
    assert a.base is not None
    a.base = replace(a.base, sample={})
    for parts in ([a, b, c], [b, c, a], [b, a, c]):
        with pytest.raises(BaseMismatch, match="take adapters of one base"):
            hub.combine(parts, how="linear")
    assert hub.combine([a, b], how="linear").base is a.base


def test_the_same_base_in_another_precision_is_the_same(model: Any) -> None:
    a, b = make(model), make(build_tiny("llama").bfloat16(), 2)
    combined = hub.combine([a, b], how="linear")
    assert combined.base == a.base
    assert answer(model, combined).isfinite().all()


def test_a_base_that_is_not_known_is_noted(model: Any, caplog: pytest.LogCaptureFixture) -> None:
    a, b = make(model), make(model, 2)
    b.base = None
    for parts in ([a, b], [b, a]):
        caplog.clear()
        with caplog.at_level(logging.WARNING, logger="hub"):
            combined = hub.combine(parts, how="linear")
        assert "does not say which base it was made for" in caplog.text
        assert combined.base == a.base
    assert hub.combine([b], how="linear").base is None


def test_different_methods_are_refused(model: Any) -> None:
    with pytest.raises(hub.ConfigError, match=r"lora is lora and ia3 is ia3, .* hub\.Stack"):
        hub.combine([make(model), make(model, method="ia3")], how="linear")


@pytest.mark.parametrize(
    ("options", "reason"),
    [
        ({"how": "mean"}, "how is 'mean'; choose from linear, ties, .*cat, svd"),
        ({"how": "linear", "weights": [1.0]}, "weights is .1.0.; give a list of 2"),
        ({"how": "linear", "weights": 1.0}, "weights is 1.0; give a list of 2"),
        ({"how": "linear", "weights": [1.0, float("nan")]}, "weights has nan; weights are"),
        ({"how": "linear", "weights": [1.0, "x"]}, "weights has 'x'; weights are finite"),
        ({"how": "linear", "weights": [1.0, True]}, "weights has True; weights are finite"),
        ({"how": "linear", "weights": [10**400, 1]}, "weights are finite numbers"),
        ({"how": "linear", "weights": [1e39, 1]}, r"of at most 3.4e\+38"),
        ({"how": "linear", "density": 0.5}, "density does nothing with how='linear'"),
        ({"how": "dare_linear"}, "density is None; how='dare_linear' takes the share"),
        ({"how": "magnitude_prune"}, "density is None; how='magnitude_prune' takes"),
        ({"how": "ties", "density": 0}, "density is 0; how='ties' takes the share"),
        ({"how": "ties", "density": 1.5}, "density is 1.5; .* above 0 to 1"),
        ({"how": "ties", "density": "all"}, "density is 'all'"),
        ({"how": "ties", "majority_sign_method": "mean"}, "'mean'; choose from total, frequency"),
        ({"how": "cat", "majority_sign_method": "total"}, "does nothing with how='cat'"),
        ({"how": "svd", "svd_rank": 0}, "svd_rank is 0; it is a whole number from 1"),
        ({"how": "svd", "svd_rank": 2.0}, "svd_rank is 2.0; it is a whole number from 1"),
        ({"how": "cat", "svd_rank": 4}, "svd_rank does nothing with how='cat'"),
        ({"how": "dare_ties", "density": 1, "seed": -1}, "seed is -1; it is a whole number"),
        ({"how": "ties", "seed": 1}, "seed does nothing with how='ties'"),
    ],
)
def test_options_that_can_not_be_are_refused(
    model: Any, options: dict[str, Any], reason: str
) -> None:
    with pytest.raises(hub.ConfigError, match=reason) as caught:
        hub.combine([make(model), make(model, 2)], **options)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("how", ["linear", "cat", "svd", "ties_svd", "magnitude_prune_svd"])
def test_what_is_too_large_for_float32_is_refused(model: Any, how: str) -> None:
    parts = [make(model, seed) for seed in (1, 2)]
    for part in parts:
        for tensor in part.tensors.values():
            tensor.data *= 100
    density: dict[str, Any] = {"density": 0.5} if how.startswith("magnitude") else {}
    with pytest.raises(hub.ConfigError, match="give smaller weights") as caught:
        hub.combine(parts, how=how, weights=[3e38, 3e38], **density)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("parts", "error", "reason"),
    [
        ([], hub.ConfigError, "combine takes a list of adapters or references, at least one"),
        ("sst2@1", hub.ConfigError, "combine takes a list of adapters or references"),
        ([3], hub.ConfigError, "int is no adapter; only adapters can be"),
        (["none@1"], UnknownReference, "none"),
        (["./none"], hub.HubError, "none does not exist"),
        (["both@1"], RegistryError, "both@1 is a composition, .* name a part of it"),
    ],
)
def test_what_is_no_adapter_is_refused(
    model: Any, parts: Any, error: type[Exception], reason: str
) -> None:
    registry = hub.Registry()
    for seed in (1, 2):
        registry.add(make(model, seed), name="a")
    registry.add(hub.Stack("a@1", "a@2"), name="both")
    with pytest.raises(error, match=reason):
        hub.combine(parts, how="linear")


@pytest.fixture(scope="module")
def classifier() -> Any:
    return build_tiny("bert", "classification")


def test_heads_are_averaged(classifier: Any) -> None:
    a, b = make(classifier, 1), make(classifier, 2)
    for part in (a, b):
        part.lineage["labels"] = ["bad", "good"]
    for weights, share in (([1.0, 1.0], 0.5), ([0.6, 0.2], 0.75)):
        combined = hub.combine([a, b], how="linear", weights=weights)
        assert combined.heads == ("classifier",)
        assert combined.lineage["labels"] == ["bad", "good"]
        for name in ("classifier.weight", "classifier.bias"):
            expected = share * a.tensors[name] + (1 - share) * b.tensors[name]
            torch.testing.assert_close(combined.tensors[name], expected)
        assert answer(classifier, combined).isfinite().all()


def test_one_head_is_kept_as_it_is(classifier: Any) -> None:
    a, b = make(classifier, 1), make(classifier, 2)
    for path in b.heads:
        b.tensors = {n: t for n, t in b.tensors.items() if not n.startswith(f"{path}.")}
    b.heads, b.task_type = (), "FEATURE_EXTRACTION"
    combined = hub.combine([b, a], how="linear", weights=[1.0, -2.0])
    assert (combined.heads, combined.task_type) == (("classifier",), "SEQ_CLS")
    assert torch.equal(combined.tensors["classifier.weight"], a.tensors["classifier.weight"])


@pytest.mark.parametrize("weights", [[1.0, -0.5], [0.0, 0.0]])
def test_heads_that_have_no_mean_are_refused(classifier: Any, weights: list[float]) -> None:
    parts = [make(classifier, seed) for seed in (1, 2)]
    with pytest.raises(hub.ConfigError, match="trained heads 'classifier', which are averaged"):
        hub.combine(parts, how="linear", weights=weights)


def test_heads_for_other_classes_are_refused(classifier: Any) -> None:
    a, b = make(classifier, 1), make(classifier, 2)
    a.lineage["labels"], b.lineage["labels"] = ["bad", "good"], ["no", "yes"]
    with pytest.raises(hub.ConfigError, match=r"for the classes .'bad', 'good'. and .'no', 'yes'"):
        hub.combine([a, b], how="linear")
    c = make(build_tiny("bert", "classification", num_labels=3), 2)
    with pytest.raises(hub.ConfigError, match="heads 'classifier' of different shapes"):
        hub.combine([a, c], how="linear")
