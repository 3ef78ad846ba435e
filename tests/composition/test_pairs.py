"""Every ordered pair of methods under every operator equals what the operator means, computed
separately, or is refused with a reason that the page of compositions gives."""

from __future__ import annotations

from functools import cache
from importlib.metadata import entry_points
from typing import Any

import pytest
import torch

import hub
from hub.errors import AttachError
from tests.composition.matrix import (
    BASES,
    METHODS,
    OPERATORS,
    Refused,
    attach_pair,
    build_base,
    find_reason,
    format_column,
    format_table,
    list_pairs,
    make_adapter,
    read_columns,
    read_table,
)
from tests.composition.reference import Meaningless, evaluate

IDS = torch.randint(5, 90, (2, 5), generator=torch.Generator().manual_seed(3))
CLOSE = 1e-5  # of the largest value


@cache
def evaluate_alone(kind: str, method: str, seed: int) -> torch.Tensor:
    """What one adapter gives by itself."""
    return evaluate(build_base(kind), make_adapter(kind, method, seed), IDS)


def evaluate_pair(kind: str, one: str, two: str, tree: Any) -> torch.Tensor:
    """What a pair means: where rows choose, the second part for the first row."""
    if not isinstance(tree, hub.BatchSplit | hub.Parallel):
        return evaluate(build_base(kind), tree, IDS)
    first, second = evaluate_alone(kind, one, 1), evaluate_alone(kind, two, 2)
    if isinstance(tree, hub.Parallel):
        return torch.cat([first, second])
    return torch.stack([second[0], first[1]])


def measure(found: torch.Tensor, expected: torch.Tensor) -> float:
    """How far apart, as a share of the largest value."""
    assert found.shape == expected.shape
    return float((found - expected).abs().max() / expected.abs().max())


@pytest.mark.parametrize("kind", BASES)
def test_each_method_alone_equals_its_equation(kind: str) -> None:
    model = build_base(kind)
    with torch.no_grad():
        bare = model(input_ids=IDS).logits
    for method in METHODS if kind == "bert" else sorted(BASES[kind]):
        expected = evaluate_alone(kind, method, 1)
        assert measure(expected, bare) > 100 * CLOSE, method
        with hub.attach(model, make_adapter(kind, method, 1), trainable=False), torch.no_grad():
            assert measure(model(input_ids=IDS).logits, expected) < CLOSE, method


@pytest.mark.parametrize("operator", OPERATORS)
def test_pairs_equal_what_they_mean_or_are_refused_as_the_page_says(operator: str) -> None:
    wrong, refused = {}, Refused()
    for kind in BASES:
        model = build_base(kind)
        for one, two, tree in list_pairs(kind, operator):
            try:
                expected = evaluate_pair(kind, one, two, tree)
            except Meaningless:
                with pytest.raises(AttachError) as raised:
                    attach_pair(model, tree)
                refused[one, two] = find_reason(raised.value)
                continue
            with attach_pair(model, tree), torch.no_grad():
                apart = measure(model(input_ids=IDS).logits, expected)
            if not apart < CLOSE:
                wrong[kind, one, two] = f"{apart:.1e}"
    assert not wrong
    assert read_columns()[operator] == format_column(refused)


def test_page_has_every_method_and_reason() -> None:
    installed = {entry.name for entry in entry_points(group="hub")}
    assert set(METHODS) == installed - {"fusion"}  # which only ever leads a fuse
    columns = read_columns()
    assert columns.pop("method") == list(METHODS)
    assert read_table() == format_table(columns)
