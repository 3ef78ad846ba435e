"""Weights: the numbers by which parts are weighed. Tensors are weighed in float32."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

LARGEST = 2.0**128 - 2.0**104  # of float32
DESCRIBED = "finite numbers, of any sign, of at most 3.4e+38"


def is_weight(value: Any) -> bool:
    """Whether a value is a number that float32 can hold."""
    return isinstance(value, int | float) and not isinstance(value, bool) and abs(value) <= LARGEST


def find_shares(weights: Sequence[float]) -> tuple[float, ...] | None:
    """The weights divided by their sum; None where they add up to nothing, or so little that they
    have no shares in it."""
    total = math.fsum(weights)
    shares = tuple(weight / total for weight in weights) if total else ()
    return shares if shares and all(map(is_weight, shares)) else None
