"""Operators in operators, drawn at random, equal what they mean, computed separately."""

from __future__ import annotations

import itertools
from functools import cache
from typing import Any

import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

import hub
from hub.composition import Operator, Part, walk
from hub.errors import AttachError
from tests.composition.batches import measure
from tests.composition.matrix import METHODS, build_base
from tests.composition.reference import Meaningless, evaluate, expand
from tests.snapshots import shake_adapter

CLOSE = 2e-5  # of the largest value
IDS = torch.randint(5, 90, (6, 5), generator=torch.Generator().manual_seed(6))
PLAIN = ["lora", "ia3", "houlsby"]
OTHERS = ["parallel", "llama_adapter", "full", "prefix", "prompt"]


@cache
def make_leaf(method: str, seed: int) -> hub.Adapter:
    """One of a few adapters, so that some stand in a tree more than once."""
    adapter = hub.Adapter.create(method, build_base("llama"), **METHODS[method])
    shaken: hub.Adapter = shake_adapter(adapter, seed=seed, scale=0.2)
    return shaken


@cache
def make_leader(parts: tuple[Part, ...], seed: int) -> hub.Adapter:
    """A fusion for these parts, as if it had been trained; for others where none can be made."""
    for made_for in (parts, (make_leaf("houlsby", 1),)):
        try:
            by = hub.Fuse.create(build_base("llama"), *made_for, size=4).by
        except AttachError:  # they put virtual tokens in front, or nothing of them acts
            continue
        break
    assert isinstance(by, hub.Adapter)
    shaken: hub.Adapter = shake_adapter(by, seed=seed, scale=0.1)
    return shaken


def draw_leaves(methods: list[str]) -> st.SearchStrategy[Part]:
    adapters = st.builds(make_leaf, st.sampled_from(methods), st.integers(1, 2))
    return st.one_of(st.none(), adapters)


@st.composite
def draw_operators(draw: Any, inner: st.SearchStrategy[Part]) -> Operator:
    parts = draw(st.lists(inner, min_size=1, max_size=3))
    kinds = ["Stack", "Average", "Split", "BatchSplit", "Parallel", "Fuse"]
    kind = draw(st.sampled_from(kinds))
    if kind == "Fuse":
        return hub.Fuse(*parts, by=make_leader(tuple(parts), draw(st.integers(1, 2))))
    if kind == "Average":
        weights = [draw(st.sampled_from([-1.0, 0.5, 1.0])) for _ in parts]
        weights[0] = 3.0  # so that they never add up to nothing
        return hub.Average(*parts, weights=weights)
    if kind == "Split":
        at = draw(st.permutations([1, 2, 3, 4]))
        return hub.Split(*parts, at=sorted(at[: len(parts) - 1]))
    return getattr(hub, kind)(*parts)  # type: ignore[no-any-return]


def draw_trees(methods: list[str]) -> st.SearchStrategy[Operator]:
    trees = st.recursive(draw_leaves(methods), draw_operators, max_leaves=6)
    return trees.filter(lambda tree: isinstance(tree, Operator))  # type: ignore[return-value]


def expand_split(tree: Part) -> list[Part]:
    """The routes of a composition: what its `BatchSplit` rows choose from, with every `Parallel`
    still in it."""
    if not isinstance(tree, Operator):
        return [tree]
    choices = [expand_split(part) for part in tree.parts]
    if isinstance(tree, hub.BatchSplit):
        return [line for lines in choices for line in lines]
    return [tree.rebuild(line) for line in itertools.product(*choices)]


def evaluate_rows(tree: Operator, rows: list[int]) -> Tensor:
    """What each row means by itself, and the same for every copy of the batch."""
    routes = expand_split(tree)
    lines = [expand(routes[number]) for number in rows]
    copies = {len(line) for line in lines} - {1}
    if len(copies) > 1:
        raise Meaningless("rows that are repeated differently often")
    found = []
    for copy in range(copies.pop() if copies else 1):
        for row, line in enumerate(lines):
            part = line[copy] if len(line) > 1 else line[0]
            found.append(evaluate(build_base("llama"), part, IDS[row : row + 1])[0])
    return torch.stack(found)


def find_meaning(tree: Operator, rows: list[int]) -> Tensor | None:
    """What the rows mean; None where they have no meaning."""
    try:
        return evaluate_rows(tree, rows)
    except Meaningless:
        return None


def is_meaningful(tree: Operator) -> bool:
    """Whether all that rows may be routed to has a meaning."""
    return all(find_meaning(tree, [n]) is not None for n in range(len(expand_split(tree))))


def check(tree: Operator, data: st.DataObject) -> None:
    """Attach a composition, and hold every row against what it means."""
    model = build_base("llama")
    chosen = st.lists(st.integers(0, len(expand_split(tree)) - 1), min_size=1, max_size=4)
    rows = data.draw(chosen) if any(isinstance(n, hub.BatchSplit) for n in walk(tree)) else [0, 0]
    expected = find_meaning(tree, rows)
    try:
        attachment = hub.attach(model, tree, rows=rows, trainable=False)
    except AttachError:
        assert expected is None or not is_meaningful(tree)
        return
    assert expected is not None
    with attachment, torch.no_grad():
        found = model(input_ids=IDS[: len(rows)]).logits
    assert measure(found, expected) < CLOSE


@settings(max_examples=30, deadline=None)
@given(draw_trees(PLAIN), st.data())
def test_any_tree_of_operators_equals_what_it_means(tree: Operator, data: st.DataObject) -> None:
    check(tree, data)


@settings(max_examples=30, deadline=None)
@given(draw_trees(PLAIN + OTHERS), st.data())
def test_any_tree_over_every_kind_of_method_equals_what_it_means_or_is_refused(
    tree: Operator, data: st.DataObject
) -> None:
    check(tree, data)
