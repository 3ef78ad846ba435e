"""Frames: what is known of a forward with virtual positions while it runs."""

from __future__ import annotations

import threading
from dataclasses import dataclass

from torch import Tensor

from hub.errors import AttachError

_running = threading.local()


@dataclass(slots=True)
class Frame:
    """One forward of a front's module.

    inserted: positions put in front of its tokens, 0 where the cache holds them already.
    rows, length: of what it was given.
    cached: how many positions in front the cache holds, in the end.
    behind: whether the keys and values that are given to attention alone are among them.
    room: how many positions the cache can hold; -1 where it grows.
    owner: which of the front's lines each row has, (rows,); None where there is one.
    order: where the rows are padded on the left, what comes at each place, (rows, inserted +
        length): the virtual tokens behind the padding.
    places: which of its row's own positions each one is, (rows, inserted + length), negative for
        what stands before them; None where nobody asks.
    placed: whether the placeholders have got their vectors.
    kept: of which positions there shall be logits: of so many at the end, of these; None or 0 for
        all.
    """

    inserted: int
    rows: int
    length: int
    cached: int
    behind: bool
    room: int
    owner: Tensor | None = None
    order: Tensor | None = None
    places: Tensor | None = None
    placed: bool = False
    kept: int | Tensor | None = None

    def find_start(self, held: int) -> int:
        """Which of a row's own positions comes first, where a cache holds `held` positions."""
        return max(held - (self.cached - self.inserted), 0)


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


class Ruler:
    """Tells what acts at single positions which are there, in the forward of a front, or of the one
    of several that runs."""

    def __init__(self, *fronts: object) -> None:
        self.fronts = fronts

    def read(self, path: str) -> Tensor:
        """Which of its row's own positions each one is, (rows, positions), negative for what stands
        before them. Raises AttachError outside of a forward."""
        frame = self._find()
        if frame is None or frame.places is None:
            raise AttachError(
                f"a split acts at {path} outside of a forward of the model, where positions are "
                "not known; gradient checkpointing runs layers again so, turn it off"
            )
        return frame.places

    def keep(self, places: Tensor) -> Tensor:
        """Those of the positions there that there shall be logits of, (rows, kept)."""
        frame = self._find()
        kept = None if frame is None else frame.kept
        if kept is None or (isinstance(kept, int) and not kept):
            return places
        chosen: Tensor = places[:, kept if isinstance(kept, Tensor) else slice(-kept, None)]
        return chosen

    def _find(self) -> Frame | None:
        return next((frame for front in self.fronts if (frame := find_frame(front))), None)
