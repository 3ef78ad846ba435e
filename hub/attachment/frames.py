"""Frames: what is known of a forward with virtual positions while it runs."""

from __future__ import annotations

import threading
from dataclasses import dataclass

from torch import Tensor

_running = threading.local()


@dataclass(slots=True)
class Frame:
    """One forward of a front's module.

    inserted: positions put in front of its tokens, 0 where the cache holds them already.
    rows, length: of what it was given.
    cached: how many positions in front the cache holds, in the end.
    behind: whether the keys and values that are given to attention alone are among them.
    room: how many positions the cache can hold; -1 where it grows.
    order: where the rows are padded on the left, what comes at each place, (rows, inserted +
        length): the virtual tokens behind the padding.
    placed: whether the placeholders have got their vectors.
    """

    inserted: int
    rows: int
    length: int
    cached: int
    behind: bool
    room: int
    order: Tensor | None = None
    placed: bool = False


def push_frame(front: object, frame: Frame) -> None:
    """Say that a forward begins. One that an interrupt ended did not say that it was over."""
    frames = [item for item in getattr(_running, "frames", []) if item[0] != id(front)]
    _running.frames = [*frames, (id(front), frame)]


def pop_frame(front: object) -> Frame | None:
    """Say that the forward that began last is over."""
    frames: list[tuple[int, Frame]] = getattr(_running, "frames", [])
    if not frames or frames[-1][0] != id(front):
        return None
    return frames.pop()[1]


def find_frame(front: object) -> Frame | None:
    """The forward that runs in this thread; None outside of one, such as while gradient
    checkpointing runs a layer again."""
    frames: list[tuple[int, Frame]] = getattr(_running, "frames", [])
    if frames and frames[-1][0] == id(front):  # asked at every attention of every token
        return frames[-1][1]
    return next((frame for owner, frame in reversed(frames) if owner == id(front)), None)
