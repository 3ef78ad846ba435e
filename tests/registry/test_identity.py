from __future__ import annotations

import json
import math
import struct
from dataclasses import replace
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from hub_registry import BadIdentity, BaseIdentity, TensorSample, compare

FLOATS = st.floats(width=32, allow_nan=False, allow_infinity=False, min_value=-100, max_value=100)


def round_to(value: float, precision: str) -> float:
    """Round half to even, as torch converts; written by the bits, not by our code."""
    if precision == "float16":
        return float(struct.unpack("<e", struct.pack("<e", value))[0])
    bits = struct.unpack("<I", struct.pack("<f", value))[0]
    if precision == "bfloat16":
        bits = (bits + 0x7FFF + ((bits >> 16) & 1)) & 0xFFFF0000
    return float(struct.unpack("<f", struct.pack("<I", bits))[0])


def make_base(
    values: tuple[float, ...], precision: str = "float32", **changes: Any
) -> BaseIdentity:
    held = tuple(round_to(value, precision) for value in values)
    sample = {"layers.0.weight": TensorSample((4, 8), held)}
    return BaseIdentity("llama", precision, **({"sample": sample} | changes))


VALUES = (0.0123456, -0.98765, 1.0000001, 3.3333333e-7, -0.25)


@given(st.lists(FLOATS, max_size=16), st.dictionaries(st.text(), st.text(), max_size=3))
def test_an_identity_survives_its_json(values: list[float], files: dict[str, str]) -> None:
    sample = {"a": TensorSample((len(values),), tuple(values)), "b": TensorSample((), (math.inf,))}
    identity = BaseIdentity("gpt2", "bfloat16", repo="o/r", files=files, sample=sample)
    again = BaseIdentity.from_json(json.loads(json.dumps(identity.to_json())))
    assert again == identity
    assert again.digest == identity.digest
    assert hash(again) == hash(identity)


def test_a_sample_is_written_as_base64_of_float32() -> None:
    assert TensorSample((2,), (1.0, -2.0)).to_json() == {
        "shape": [2],
        "precision": "float32",
        "values": "AACAPwAAAMA=",
    }


def test_the_digest_does_not_depend_on_the_order() -> None:
    one, two = TensorSample((1,), (1.0,)), TensorSample((1,), (2.0,))
    left = BaseIdentity("llama", "float32", sample={"a": one, "b": two})
    right = BaseIdentity("llama", "float32", sample={"b": two, "a": one})
    assert left.digest == right.digest
    assert left.digest != replace(left, precision="bfloat16").digest


def test_an_identity_keeps_its_own_mappings() -> None:
    files = {"model.safetensors": "0" * 64}
    identity = BaseIdentity("llama", "float32", files=files)
    files.clear()
    assert identity.files


@pytest.mark.parametrize(
    "value",
    [
        None,
        [],
        {},
        {"architecture": "llama"},
        {"architecture": "llama", "precision": 3},
        {"architecture": "llama", "precision": "float32", "shape": 1},
        {"architecture": "llama", "precision": "float32", "repo": 1},
        {"architecture": "llama", "precision": "float32", "files": []},
        {"architecture": "llama", "precision": "float32", "files": {"a": 1}},
        {"architecture": "llama", "precision": "float32", "sample": {"a": {}}},
        {"architecture": "llama", "precision": "float32", "sample": {"a": None}},
        {"architecture": "llama", "precision": "float32",
         "sample": {"a": {"shape": [1], "values": "???"}}},
        {"architecture": "llama", "precision": "float32",
         "sample": {"a": {"shape": [1], "values": "AAA="}}},
    ],
)  # fmt: skip
def test_json_that_is_no_identity_is_refused(value: Any) -> None:
    with pytest.raises(BadIdentity):
        BaseIdentity.from_json(value)


def test_the_label_names_the_repo_or_the_architecture() -> None:
    assert make_base(VALUES, repo="org/repo", revision="abcdef0123").label == "org/repo@abcdef0"
    assert make_base(VALUES, repo="org/repo").label == "org/repo"
    assert make_base(VALUES).label.startswith("llama (32 parameters, ")
    assert BaseIdentity("llama", "float32").label == "llama"


def test_the_same_weights_are_the_same() -> None:
    assert compare(make_base(VALUES), make_base(VALUES)).verdict == "same"
    assert compare(make_base(VALUES), make_base(VALUES)).reasons == ()


@pytest.mark.parametrize("precision", ["bfloat16", "float16"])
@given(st.lists(FLOATS, min_size=1, max_size=16))
def test_the_same_weights_in_another_precision_are_the_same_base(
    precision: str, values: list[float]
) -> None:
    expected, found = make_base(tuple(values)), make_base(tuple(values), precision)
    for comparison in (compare(expected, found), compare(found, expected)):
        assert comparison.verdict == "precision"
        assert precision in comparison.reasons[0]


@given(st.lists(FLOATS, min_size=1, max_size=16))
def test_two_roundings_of_the_same_weights_are_the_same_base(values: list[float]) -> None:
    left, right = make_base(tuple(values), "bfloat16"), make_base(tuple(values), "float16")
    assert compare(left, right).verdict == "precision"


@given(st.lists(FLOATS, min_size=1, max_size=16))
def test_weights_converted_twice_are_the_same_base(values: list[float]) -> None:
    published = make_base(tuple(values), "bfloat16")
    held = published.sample["layers.0.weight"].values
    assert compare(published, make_base(held, "float32")).verdict == "precision"
    assert compare(published, make_base(held, "float16")).verdict == "precision"


@pytest.mark.parametrize("precision", ["float32", "bfloat16", "float16"])
@pytest.mark.parametrize("position", range(len(VALUES)))
def test_one_other_value_is_another_base(precision: str, position: int) -> None:
    changed = list(VALUES)
    changed[position] = changed[position] * 1.05 + 1e-6
    comparison = compare(make_base(VALUES), make_base(tuple(changed), precision))
    assert comparison.verdict == "different"
    assert "layers.0.weight" in comparison.reasons[0]
    assert "1 of 1 sampled tensors" in comparison.reasons[0]


def test_a_step_of_training_in_one_precision_is_another_base() -> None:
    for precision, step in (("bfloat16", 2**-7), ("float16", 2**-10), ("float32", 1e-5)):
        expected = make_base((1.0, 0.5, 0.1), precision)
        found = make_base((1.0 + step, 0.5, 0.1), precision)
        assert compare(expected, found).verdict == "different", precision


def test_the_worst_tensor_is_named_with_both_values() -> None:
    sample = {"a": TensorSample((1,), (1.0,)), "b": TensorSample((1,), (1.0,))}
    other = {"a": TensorSample((1,), (1.5,)), "b": TensorSample((1,), (9.0,))}
    comparison = compare(make_base((), sample=sample), make_base((), sample=other))
    assert comparison.reasons == ("b holds 9, not 1 (2 of 2 sampled tensors differ)",)


@pytest.mark.parametrize("value", [math.nan, math.inf])
def test_a_value_that_is_no_number_is_another_base(value: float) -> None:
    sample = {"layers.0.weight": TensorSample((4, 8), (value, 1.0))}
    expected = make_base((1.0, 1.0))
    broken = make_base((), sample=sample)
    assert compare(expected, broken).verdict == "different"
    assert compare(broken, broken).verdict == "same"


def test_another_architecture_is_another_base() -> None:
    comparison = compare(make_base(VALUES), replace(make_base(VALUES), architecture="mistral"))
    assert comparison.verdict == "different"
    assert comparison.reasons == ("the architecture is mistral, not llama",)


def test_other_shapes_are_another_base() -> None:
    sample = {"layers.0.weight": TensorSample((8, 4), VALUES)}
    comparison = compare(make_base(VALUES), make_base((), sample=sample))
    assert comparison.verdict == "different"
    assert comparison.reasons == ("layers.0.weight has shape [8, 4], not [4, 8]",)


def test_other_tensors_are_another_base_but_for_a_head() -> None:
    weight = make_base(VALUES).sample["layers.0.weight"]
    with_head = make_base((), sample={"layers.0.weight": weight, "lm_head.weight": weight})
    assert compare(make_base(VALUES), with_head).verdict == "same"
    assert compare(with_head, make_base(VALUES)).verdict == "same"
    deeper = make_base((), sample={f"layers.{i}.weight": weight for i in range(7)})
    comparison = compare(make_base(VALUES), deeper)
    assert comparison.verdict == "different"
    assert "layers.1.weight" in comparison.reasons[0]
    assert "and 3 more tensors" in comparison.reasons[0]
    assert "missing" in compare(deeper, make_base(VALUES)).reasons[0]


def test_equal_files_settle_it() -> None:
    files = {"model.safetensors": "0" * 64}
    left = make_base((1.0,), files=files)
    assert compare(left, make_base((), sample={}, files=files)).verdict == "same"
    assert compare(left, make_base((), sample={}, files=files)).reasons == ()


def test_other_files_without_samples_are_another_base() -> None:
    left = make_base((), sample={}, files={"model.safetensors": "0" * 64})
    right = make_base((), sample={}, files={"model.safetensors": "1" * 64})
    comparison = compare(left, right)
    assert comparison.verdict == "different"
    assert "model.safetensors" in comparison.reasons[0]


def test_the_same_weights_in_other_files_are_the_same() -> None:
    left = make_base(VALUES, files={"model.safetensors": "0" * 64})
    right = make_base(VALUES, files={"model.safetensors": "1" * 64})
    assert compare(left, right).verdict == "same"


def test_nothing_known_is_unverified() -> None:
    bare = make_base((), sample={})
    for comparison in (compare(bare, make_base(VALUES)), compare(make_base(VALUES), bare)):
        assert comparison.verdict == "unverified"
        assert comparison.reasons
    head = make_base((), sample={"lm_head.weight": TensorSample((1,), (1.0,))})
    other = make_base((), sample={"head.weight": TensorSample((1,), (1.0,))})
    assert compare(head, other).verdict == "unverified"


def test_a_part_of_the_files_is_not_enough() -> None:
    one = {"model-00001.safetensors": "0" * 64}
    two = one | {"model-00002.safetensors": "1" * 64}
    left, right = make_base((), sample={}, files=two), make_base((), sample={}, files=one)
    assert compare(left, right).verdict == "unverified"


def test_a_quantized_base_is_compared_by_what_was_left_alone() -> None:
    norm = {"norm.weight": TensorSample((8,), VALUES)}
    whole = make_base((), sample={**make_base(VALUES).sample, **norm})
    quantized = make_base((), sample=norm, quantization="bnb-nf4")
    comparison = compare(whole, quantized)
    assert comparison.verdict == "precision"
    assert "bnb-nf4" in comparison.reasons[0]
    other = make_base((), sample={"norm.weight": TensorSample((8,), (2.0,) * 5)},
                      quantization="bnb-nf4")  # fmt: skip
    assert compare(whole, other).verdict == "different"


def test_a_quantized_value_is_within_its_error_of_the_same_weight() -> None:
    errors = (0.5,) * len(VALUES)
    near = tuple(value + 0.4 for value in VALUES)
    whole, quantized, other = (
        make_base((), sample={"w": TensorSample((4, 8), values, "float32", slack)}, **changes)
        for values, slack, changes in (
            (VALUES, (), {}),
            (near, errors, {"quantization": "bnb-nf4"}),
            (tuple(value + 0.6 for value in VALUES), errors, {"quantization": "bnb-nf4"}),
        )
    )
    assert compare(whole, quantized).verdict == compare(quantized, whole).verdict == "precision"
    assert compare(whole, other).verdict == compare(other, whole).verdict == "different"
    # Quantized alike, the same weights come out the same.
    assert compare(quantized, other).verdict == "different"
    assert compare(quantized, replace(other, quantization="bnb-int8")).verdict == "precision"
    assert BaseIdentity.from_json(json.loads(json.dumps(quantized.to_json()))) == quantized


def test_errors_without_their_values_are_refused() -> None:
    with pytest.raises(BadIdentity, match="2 values and 1 errors"):
        TensorSample((2,), (1.0, 2.0), "float32", (0.1,))


def test_another_tokenizer_is_said_and_changes_no_verdict() -> None:
    left, right = make_base(VALUES, tokenizer="a" * 64), make_base(VALUES, tokenizer="b" * 64)
    comparison = compare(left, right)
    assert comparison.verdict == "same"
    assert comparison.reasons == ("the tokenizer is bbbbbbbbbbbb, not aaaaaaaaaaaa",)
    assert compare(left, make_base(VALUES)).reasons == ()
