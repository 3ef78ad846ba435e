"""Ties, dare and pruning against their definitions, one value at a time; and svd against a dense
one."""

from __future__ import annotations

import math
import statistics
from collections.abc import Sequence

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from peft.utils import merge_utils

from hub.combining.arithmetic import add_weighted, keep_largest, keep_some, merge_by_sign
from hub.combining.factors import compress_factors, compress_matrix, put_side_by_side

VALUES = st.floats(-4, 4, width=32).map(lambda value: round(value, 2))
WEIGHTS = st.floats(-2, 2, width=32).map(lambda value: round(value, 2))
DENSITIES = st.floats(0.05, 1)


@st.composite
def draw_parts(draw: st.DrawFn) -> tuple[list[list[float]], list[float]]:
    """A few rows of equal length, and a weight for each."""
    count, length = draw(st.integers(1, 4)), draw(st.integers(1, 8))
    rows = [draw(st.lists(VALUES, min_size=length, max_size=length)) for _ in range(count)]
    return rows, draw(st.lists(WEIGHTS, min_size=count, max_size=count))


def sign(value: float) -> int:
    return (value > 0) - (value < 0)


def merge_values(values: Sequence[float], weights: Sequence[float], majority: str) -> float:
    """TIES at one place, as its section 4.2 says it; a weight scales its part before all else."""
    votes = [value * weight for value, weight in zip(values, weights, strict=True)]
    # Sums are exact, so that what cancels does.
    elected = sign(math.fsum(votes))
    if majority == "frequency" and sum(map(sign, votes)) != 0:
        elected = sign(sum(map(sign, votes)))
    agreeing = [vote for vote in votes if elected and sign(vote) == elected]
    return statistics.fmean(agreeing) if agreeing else 0.0


@given(draw_parts(), st.sampled_from(["total", "frequency"]))
def test_ties_is_its_definition_at_every_place(
    parts: tuple[list[list[float]], list[float]], majority: str
) -> None:
    rows, weights = parts
    found = merge_by_sign([torch.tensor(row).double() for row in rows], weights, majority)  # type: ignore[arg-type]
    for place, value in enumerate(found.tolist()):
        column = [row[place] for row in torch.tensor(rows).double().tolist()]
        total = math.fsum(v * w for v, w in zip(column, weights, strict=True))
        if abs(total) > 1e-9:  # else rounding decides
            assert value == pytest.approx(merge_values(column, weights, majority), abs=1e-9)


def test_ties_elects_what_the_weights_make_of_the_parts() -> None:
    """A part that is subtracted votes for the other sign, and one of weight 0 has no vote; peft
    elects before it weighs."""
    a, b = torch.tensor([1.0]), torch.tensor([3.0])
    assert merge_by_sign([a, b], [1.0, -1.0], "total").tolist() == [-3.0]
    assert merge_by_sign([a, -b], [1.0, 0.0], "total").tolist() == [1.0]
    assert merge_by_sign([a, a], [1.0, -1.0], "total").tolist() == [0.0]
    weights = torch.tensor([1.0, 0.0])
    assert merge_utils.ties([a, -b], weights, density=0.999, majority_sign_method="total") == 0


@pytest.mark.filterwarnings("ignore:The density")
@pytest.mark.parametrize("count", [1, 3, 5])
@pytest.mark.parametrize(
    ("majority", "density"), [("total", 0.3), ("total", 1.0), ("frequency", 1.0)]
)
def test_ties_with_equal_weights_is_pefts(count: int, majority: str, density: float) -> None:
    """By frequency where none is pruned: there is no draw then, where peft takes the positive
    ones."""
    generator = torch.Generator().manual_seed(count)
    ds = [torch.randn(7, 11, generator=generator) for _ in range(count)]
    expected = merge_utils.ties(ds, torch.full((count,), 0.7), density, majority)  # type: ignore[arg-type]
    found = merge_by_sign([keep_largest(d, density) for d in ds], [0.7] * count, majority)  # type: ignore[arg-type]
    torch.testing.assert_close(found, expected)


@given(st.lists(VALUES, min_size=1, max_size=40), DENSITIES)
def test_pruning_keeps_the_largest_and_no_more(values: list[float], density: float) -> None:
    d = torch.tensor(values)
    kept = keep_largest(d, density)
    count = max(1, int(density * len(values)))
    changed = [(a, b) for a, b in zip(d.tolist(), kept.tolist(), strict=True) if a != b]
    assert all(b == 0 for _, b in changed)
    assert sorted(map(abs, kept.tolist()))[-count:] == sorted(map(abs, d.tolist()))[-count:]
    assert int((kept != 0).sum()) <= count


def test_pruning_is_pefts() -> None:
    d = torch.randn(13, 17, generator=torch.Generator().manual_seed(0))
    assert torch.equal(keep_largest(d, 0.2), merge_utils.magnitude_based_pruning(d, 0.2))


def test_dare_keeps_a_share_and_scales_it() -> None:
    d = torch.rand(200, 200) + 0.5
    kept = keep_some(d, 0.3, torch.Generator().manual_seed(5))
    chosen = kept != 0
    torch.testing.assert_close(kept[chosen], d[chosen] / 0.3)
    deviation = math.sqrt(0.3 * 0.7 / d.numel())
    assert abs(chosen.double().mean() - 0.3) < 4 * deviation
    again = keep_some(d, 0.3, torch.Generator().manual_seed(5))
    assert torch.equal(kept, again)
    assert not torch.equal(kept, keep_some(d, 0.3, torch.Generator().manual_seed(6)))


def test_dare_expects_what_it_is_given() -> None:
    d, generator = torch.randn(50), torch.Generator().manual_seed(0)
    mean = torch.stack([keep_some(d, 0.5, generator) for _ in range(4000)]).mean(0)
    torch.testing.assert_close(mean, d, atol=0.1, rtol=0)


@given(draw_parts())
def test_weights_add_up(parts: tuple[list[list[float]], list[float]]) -> None:
    rows, weights = parts
    found = add_weighted([torch.tensor(row).double() for row in rows], weights).tolist()
    exact = torch.tensor(rows).double().tolist()
    for place, value in enumerate(found):
        expected = math.fsum(row[place] * w for row, w in zip(exact, weights, strict=True))
        assert value == pytest.approx(expected, abs=1e-12)


@given(
    st.lists(st.integers(1, 9), min_size=1, max_size=4),
    st.integers(2, 12),
    st.integers(2, 12),
    st.integers(1, 10),
)
def test_svd_is_the_dense_ones(ranks: list[int], out: int, into: int, rank: int) -> None:
    generator = torch.Generator().manual_seed(sum(ranks))
    pairs = [
        (
            torch.randn(out, r, generator=generator).double(),
            torch.randn(r, into, generator=generator).double(),
        )
        for r in ranks
    ]
    weights = [(-0.7) ** place for place in range(len(ranks))]
    D = sum(w * (B @ A) for (B, A), w in zip(pairs, weights, strict=True))
    U, S, V = torch.linalg.svd(D, full_matrices=False)
    nearest = U[:, :rank] @ torch.diag(S[:rank]) @ V[:rank]
    B, A = compress_factors(*put_side_by_side(pairs, weights), rank)
    torch.testing.assert_close(B @ A, nearest)
    assert B.shape[1] == len(A) <= rank


def test_a_matrix_is_compressed_nearly_as_well_as_can_be() -> None:
    """The worst case: values that were kept at random, all singular values alike."""
    D = keep_some(torch.randn(96, 160), 0.2, torch.Generator().manual_seed(1))
    U, S, V = torch.linalg.svd(D, full_matrices=False)
    best = (D - U[:, :8] @ torch.diag(S[:8]) @ V[:8]).norm()
    B, A = compress_matrix(D, 8)
    assert (B.shape, A.shape) == ((96, 8), (8, 160))
    assert (D - B @ A).norm() <= 1.01 * best
    again, _ = compress_matrix(D, 8)
    assert torch.equal(B, again)


@pytest.mark.parametrize(("shape", "rank"), [((20, 30), 3), ((3, 30), 8), ((30, 3), 8)])
def test_a_matrix_of_low_rank_is_kept_whole(shape: tuple[int, int], rank: int) -> None:
    D = torch.randn(shape[0], 3) @ torch.randn(3, shape[1])
    B, A = compress_matrix(D, rank)
    torch.testing.assert_close(B @ A, D, atol=1e-5, rtol=1e-5)
