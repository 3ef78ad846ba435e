"""Measuring: several things in turn, so that a slow moment of the machine falls on all alike."""

from __future__ import annotations

import argparse
import gc
import json
import statistics
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any


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


def compare(seconds: Mapping[str, float], floor: str) -> dict[str, float]:
    """The others' ratios to `floor`."""
    return {name: time / seconds[floor] for name, time in seconds.items() if name != floor}


@dataclass
class Report:
    """The figures of a script: printed as they come, and kept for the table of all.

    subject: what the script measures.
    """

    subject: str
    figures: list[dict[str, Any]] = field(default_factory=list)

    def add(self, case: str, figures: Mapping[str, float], bar: float | None = None) -> None:
        """The ratios of one case by who they are of; `bar` is what ours shall not be above."""
        shown = ", ".join(f"{who} {ratio:.3g}" for who, ratio in figures.items())
        print(f"{case:44} {shown}{'' if bar is None else f' (at most {bar:g})'}", flush=True)
        self.figures.append({"case": case, "ratios": dict(figures), "bar": bar})

    def write(self, path: str | None) -> None:
        """Keep them in a file, where one is named."""
        if path is not None:
            found = {"subject": self.subject, "figures": self.figures}
            Path(path).write_text(json.dumps(found, indent=1) + "\n")


def make_parser(doc: str | None, rounds: int) -> argparse.ArgumentParser:
    """What every script can be told."""
    parser = argparse.ArgumentParser(
        description=doc, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--rounds", type=int, default=rounds, help="times that each is run")
    parser.add_argument("--threads", type=int, default=2, help="threads of torch")
    parser.add_argument("--json", metavar="FILE", help="write the figures there too")
    return parser
