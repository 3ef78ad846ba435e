"""Measuring: several things in turn, so that a slow moment of the machine falls on all alike."""

from __future__ import annotations

import gc
import statistics
import time
from collections.abc import Callable, Mapping


def measure(
    steps: Mapping[str, Callable[[], object]], rounds: int, repeat: int = 1
) -> dict[str, float]:
    """The median seconds of each, run in turn, `repeat` times in a row."""
    times: dict[str, list[float]] = {name: [] for name in steps}
    for step in steps.values():
        for _ in range(3):
            step()
    gc.collect()
    gc.disable()
    names = list(steps)
    for round_ in range(rounds):
        turn = round_ % len(names)
        for name in names[turn:] + names[:turn]:
            begin = time.perf_counter()
            for _ in range(repeat):
                steps[name]()
            times[name].append((time.perf_counter() - begin) / repeat)
    gc.enable()
    return {name: statistics.median(values) for name, values in times.items()}
