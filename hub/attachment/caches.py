"""Caches: what they hold, and the mark of the virtual positions among it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

MARK = "hub_front"
CACHES = ("past_key_values", "cache_params", "state", "mems", "past_buckets_states")


@dataclass(frozen=True, slots=True)
class Mark:
    """What stands on a cache: the number of the front that filled it, a frame's `cached` and
    `behind`, and how many positions the cache can hold, see `find_room`."""

    number: int
    cached: int
    behind: bool
    room: int


def find_cache(values: Any) -> Any:
    """What a forward keeps for the next one, among its arguments or in its output."""
    if isinstance(values, tuple):
        return next((value for value in values if hasattr(value, "get_seq_length")), None)
    if not isinstance(values, Mapping):
        return None
    return next((values[name] for name in CACHES if values.get(name) is not None), None)


def carry_mark(kept: Any) -> Any:
    """The object of a cache that takes an attribute."""
    while isinstance(kept, list | tuple) and kept:
        kept = kept[0]
    return kept


def read_mark(kept: Any) -> Mark | None:
    """What the forward that filled a cache wrote on it; None on one that was emptied since."""
    mark: Mark | None = getattr(carry_mark(kept), MARK, None)
    return None if is_filled(kept) is False else mark


def write_mark(kept: Any, mark: Mark) -> None:
    """Write on a cache what a forward left in it."""
    carrier = carry_mark(kept)
    if hasattr(carrier, "__dict__"):
        setattr(carrier, MARK, mark)


def find_room(kept: Any) -> int:
    """How many positions a cache of a fixed size can hold; -1 where it grows. A window that slides
    over the positions always has a place."""
    layers = getattr(getattr(kept, "self_attention_cache", kept), "layers", ())
    limits = [layer.get_max_length() for layer in layers if not getattr(layer, "is_sliding", False)]
    return max(limits, default=-1)


def is_filled(kept: Any) -> bool | None:
    """Whether a cache holds anything; None where it can't say."""
    if not hasattr(kept, "get_seq_length"):
        return None
    try:
        count = kept.get_seq_length()
        return None if count is None else bool(count)
    except ValueError:  # a cache of states, without positions
        return bool(kept.has_previous_state())


def count_cached(kept: Any) -> int:
    """How many positions a cache holds; 0 where it can't say."""
    count = getattr(kept, "get_seq_length", None)
    try:
        return int(count() or 0) if callable(count) else 0
    except ValueError:  # a cache of states, without positions
        return 0
