"""Compositions as values: equal by all their parts, hashable, and read from what they print."""

from __future__ import annotations

import copy
import json
import pickle
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

import hub
from hub.composition import Operator, Part, replace_leaves
from hub.errors import AttachError
from hub.printing import print_leaf
from tests.tiny import build_tiny

references = st.one_of(
    st.sampled_from(["de@2", "sst2@production", "none", "stack", "./a b", "hf://org/repo@rev"]),
    st.text(min_size=1).filter(lambda text: not text.startswith("<")),
)
numbers = st.floats(-1e3, 1e3, allow_nan=False)


@st.composite
def operators(draw: Any, inner: st.SearchStrategy[Part]) -> Operator:
    parts = draw(st.lists(inner, min_size=1, max_size=4))
    kind = draw(st.sampled_from(["Stack", "Parallel", "BatchSplit", "Split", "Average", "Fuse"]))
    if kind == "Split":
        at = draw(st.sets(st.integers(1, 99), min_size=len(parts) - 1, max_size=len(parts) - 1))
        return hub.Split(*parts, at=sorted(at))
    if kind == "Average":
        weights = draw(st.lists(numbers, min_size=len(parts), max_size=len(parts)))
        weights[0] = abs(weights[0]) + sum(map(abs, weights[1:])) + 1
        return hub.Average(*parts, weights=weights)
    if kind == "Fuse":
        return hub.Fuse(*parts, by=draw(references))
    return getattr(hub, kind)(*parts)  # type: ignore[no-any-return]


trees = st.recursive(st.one_of(st.none(), references), operators, max_leaves=12)


@given(trees)
def test_what_a_composition_prints_is_read_as_itself(tree: Part) -> None:
    printed = repr(tree) if isinstance(tree, Operator) else print_leaf(tree)
    read = hub.parse_composition(printed)
    assert read == tree
    assert hash(read) == hash(tree)


@given(trees, trees)
def test_compositions_are_equal_where_they_print_the_same_alone(one: Part, two: Part) -> None:
    assert (one == two) == (repr(one) == repr(two))


@given(trees, st.data())
def test_one_other_leaf_makes_another_composition(tree: Part, data: Any) -> None:
    places = iter(range(99))
    count = sum(1 for _ in tree.leaves()) if isinstance(tree, Operator) else 1
    chosen = data.draw(st.integers(0, count - 1))
    changed = replace_leaves(tree, lambda leaf: f"{leaf}!" if next(places) == chosen else leaf)
    assert changed != tree
    assert replace_leaves(tree, lambda leaf: leaf) == tree


@pytest.mark.parametrize(
    ("one", "other"),
    [
        (hub.Stack("a"), hub.Stack("a", "b")),
        (hub.Stack("a", "b"), hub.Stack("b", "a")),
        (hub.Stack("a", hub.Stack("b")), hub.Stack("a", "b")),
        (hub.Stack("a", "b"), hub.Parallel("a", "b")),
        (hub.Average("a", "b", weights=[1, 2]), hub.Average("a", "b")),
        (hub.Split("a", "b", at=3), hub.Split("a", "b", at=4)),
        (hub.Fuse("a", "b", by="c"), hub.Fuse("a", "b", by="d")),
        (hub.Stack("a"), "a"),
        (hub.Stack(None), hub.Stack("none")),
    ],
)
def test_other_parts_order_nesting_and_settings_make_another_composition(
    one: Part, other: Part
) -> None:
    assert one != other
    assert len({one, other}) == 2


@given(trees)
def test_a_composition_is_the_same_when_it_was_pickled(tree: Part) -> None:
    assert pickle.loads(pickle.dumps(tree)) == tree
    assert copy.deepcopy(tree) == tree


@given(trees)
def test_an_operator_is_what_its_kind_makes_of_its_parts_and_settings(tree: Part) -> None:
    if isinstance(tree, Operator):
        assert tree.make(tree.parts, tree.settings) == tree
        assert tree.rebuild(tree.parts) == tree == tree.rebuild(tree.children)


def test_other_children_of_a_fuse_may_lead_it() -> None:
    fuse = hub.Fuse("a", "b", by="c")
    assert fuse.rebuild(["x", "y"]) == hub.Fuse("x", "y", by="c")
    assert fuse.rebuild(["x", "y", "z"]) == hub.Fuse("x", "y", by="z")


@pytest.mark.parametrize(
    ("operator", "name"),
    [
        *((hub.Stack("a"), name) for name in ("parts", "settings", "children")),
        (hub.Split("a", "b", at=3), "at"),
        (hub.Average("a", "b"), "weights"),
        (hub.Average("a", "b"), "shares"),
        (hub.Fuse("a", "b", by="c"), "by"),
    ],
)
def test_what_an_operator_is_can_not_be_set(operator: Operator, name: str) -> None:
    with pytest.raises(AttributeError, match=name):
        setattr(operator, name, getattr(operator, name))


def test_weights_from_the_largest_to_the_least_have_shares() -> None:
    assert hub.Average("a", "b", weights=[3e38, 3e38]).shares == (0.5, 0.5)
    assert hub.Average("a", "b", weights=[1e-320, 0]).shares == (1, 0)
    assert hub.Average("a", "b", weights=[3e38, 1]).shares == pytest.approx((1, 1 / 3e38))


def test_equal_weights_need_not_be_said() -> None:
    assert hub.Average("a", "b") == hub.Average("a", "b", weights=[1, 1.0])


def test_adapters_are_equal_to_themselves_alone_and_print_by_their_reference() -> None:
    model = build_tiny("llama")
    one, two = (hub.Adapter.create("lora", model, r=1) for _ in range(2))
    assert hub.Stack(one) == hub.Stack(one)
    assert hub.Stack(one) != hub.Stack(two)
    assert repr(hub.Stack(one)) == "stack(<lora>)"
    one.reference = "sst2@3"
    assert repr(hub.Stack(one)) == "stack(sst2@3)"


def test_no_depth_is_too_deep() -> None:
    one: Part = "a"
    two: Part = "a"
    for _ in range(5000):
        one, two = hub.Stack(one, "b"), hub.Stack(two, "b")
    assert one == two
    assert hub.parse_composition(repr(one)) == two
    assert copy.copy(one) == one


def test_a_path_is_kept_as_the_text_that_names_its_folder() -> None:
    assert hub.Stack(Path("x"), Path("/y")) == hub.Stack("./x", "/y")


@pytest.mark.parametrize("kind", [hub.Stack, hub.Parallel, hub.BatchSplit, hub.Average])
@pytest.mark.parametrize("parts", [(), (3,), ("",), (["a"],)])
def test_what_is_no_part_is_refused(kind: Callable[..., Part], parts: tuple[Any, ...]) -> None:
    with pytest.raises(AttachError, match=f"^{kind.name} "):  # type: ignore[attr-defined]
        kind(*parts)


def test_a_list_of_parts_is_to_be_unpacked_and_a_model_not_printed() -> None:
    with pytest.raises(AttachError, match="given its parts one by one; unpack the list"):
        hub.Stack(["a", "b"])  # type: ignore[arg-type]
    with pytest.raises(AttachError, match="not of a LlamaForCausalLM") as raised:
        hub.Stack(build_tiny("llama"), "a")
    assert "\n" not in str(raised.value)


def test_numbers_of_tensors_and_arrays_are_numbers() -> None:
    split = hub.Split("a", "b", at=3)
    for at in (np.int64(3), torch.tensor(3), torch.tensor([3]), [np.int32(3)]):
        assert hub.Split("a", "b", at=at) == split
    mean = hub.Average("a", "b", weights=[0.5, 0.25])
    for weights in (np.array([0.5, 0.25]), torch.tensor([0.5, 0.25]), [np.float32(0.5), 0.25]):
        assert hub.Average("a", "b", weights=weights) == mean
        assert repr(hub.Average("a", "b", weights=weights)) == repr(mean)


@pytest.mark.parametrize("given", [None, 5, ["a"], b"a"])
def test_a_composition_is_read_from_text(given: Any) -> None:
    with pytest.raises(AttachError, match="is read from text, not from a"):
        hub.parse_composition(given)


@pytest.mark.parametrize(
    ("make", "complaint"),
    [
        (lambda: hub.Average("a", "b", weights=[1]), "2 parts and 1 weights"),
        (lambda: hub.Average("a", "b", weights=[1, -1]), "add up to 0"),
        (lambda: hub.Average("a", "b", weights=[1, float("nan")]), "finite"),
        (lambda: hub.Average("a", "b", weights=[10**400, 1]), "finite"),
        (lambda: hub.Average("a", "b", weights=[1e308, 1e308]), "at most 3.4e\\+38"),
        (lambda: hub.Average("a", "b", "c", weights=[1e30, -1e30, 1e-30]), "add up to 0"),
        (lambda: hub.Split("a", "b", at=[3, 4]), "2 parts and 2 positions"),
        (lambda: hub.Split("a", "b", at=0), "whole numbers from 1"),
        (lambda: hub.Split("a", "b", "c", at=[4, 3]), "rising"),
        (lambda: hub.Fuse("a", "b", by=hub.Stack("c")), "holds the trained"),  # type: ignore[arg-type]
    ],
)
def test_settings_that_mean_nothing_are_refused(make: Callable[[], Any], complaint: str) -> None:
    with pytest.raises(AttachError, match=complaint):
        make()


@pytest.mark.parametrize(
    ("text", "complaint"),
    [
        ("", "at 1 there is the end"),
        ("stack(", "at 7 there is the end, where a part is due"),
        ("stack()", "at 7"),
        ("stack(a", "the end, where '\\)'"),
        ("stack(a))", "where the end is due"),
        ("stack(a b)", "at 9 there is 'b"),
        ("stack(a,)", "at 9"),
        ('stack("a', "at 7"),
        ("heap(a)", "no heap; there are stack, parallel"),
        ("stack(a; 1)", "no settings"),
        ("average(a, b; 1, x)", "'1, x' is no list of"),
        ("average(a, b; 1)", "2 parts and 1 weights"),
        ("split(a, b)", "2 parts and 0 positions"),
        ("fuse(a, b)", "what leads it"),
        ("stack(<lora>)", "never saved"),
    ],
)
def test_text_that_is_no_composition_is_refused_with_the_place(text: str, complaint: str) -> None:
    with pytest.raises(AttachError, match=complaint) as raised:
        hub.parse_composition(text)
    assert json.dumps(text)[1:-1].replace('\\"', '"') in str(raised.value)
