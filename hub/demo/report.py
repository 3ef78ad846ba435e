"""What the demo prints: plain lines of at most 100 columns."""

from __future__ import annotations

import math
import textwrap
from collections.abc import Sequence

from hub.cli.output import format_size
from hub.demo.tasks import Task
from hub.demo.trials import Trial, recover
from hub.training.metrics import METRICS

NAMES = {
    "base": "base",
    "full": "full fine-tuning",
    "lora": "LoRA",
    "houlsby": "Houlsby",
}


def format_trials(task: Task, trials: Sequence[Trial]) -> list[str]:
    """A table: a line for each trial."""
    better = "higher" if METRICS[task.metric].higher else "lower"
    head = (
        "",
        f"{task.metric} ({better} is better)",
        "of full's gain",
        "trained",
        "time",
        "on disk",
    )
    rows = [head]
    for trial in trials:
        name = NAMES.get(trial.learner, trial.learner)
        if trial.learner == "base" and trial.trained:
            name += ", a trained head on it"
        rows.append(
            (
                name,
                format_value(task, trial.value),
                "" if trial.learner == "base" else format_share(recover(task, trials, trial)),
                f"{trial.share:.2%}" if trial.trained else "",
                f"{trial.seconds:.0f} s" if trial.trained else "",
                format_size(trial.size) if trial.size else "",
            )
        )
    return align(rows)


def format_share(share: float) -> str:
    """A percentage; a dash where there is none to give."""
    return "-" if math.isnan(share) else f"{share:.0%}"


def format_value(task: Task, value: float) -> str:
    """A metric's value as people write it."""
    return f"{value:.1%}" if task.metric == "accuracy" else f"{value:.1f}"


def align(rows: Sequence[Sequence[str]]) -> list[str]:
    """The first column to the left, the others to the right."""
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    return [
        "  ".join(
            cell.rjust(width) if i else cell.ljust(width)
            for i, (cell, width) in enumerate(zip(row, widths, strict=True))
        ).rstrip()
        for row in rows
    ]


def quote(who: str, text: str) -> str:
    """A text under the name of its writer, indented, with no line over 100 columns."""
    lines = [
        piece
        for line in text.strip().splitlines()
        for piece in textwrap.wrap(line, 90, drop_whitespace=False) or [""]
    ]
    return "\n".join([f"  {who}:", *(f"    | {line}".rstrip() for line in lines)])
