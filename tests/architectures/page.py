"""The page docs/architectures.md, from the results."""

from __future__ import annotations

import re
from collections import Counter, defaultdict
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import transformers

from tests.architectures.methods import VARIANTS
from tests.architectures.proofs import ROUNDING, SAME

TASKS = ("causal", "seq2seq", "masked", "classification")
MARKS = {"passed": "●", "refused": "○", "failed": "✗", "missing": "?"}

NOTES = {
    "gemma3n_text": "in training it reads the weight of a layer that it calls otherwise",
    "ibert": "in training it moves the ranges of its activations, which are buffers of the base",
    "longformer": "a classifier's last layer looks globally from the one position that is read",
    "mra": "without its CUDA kernel its attention gives zeros",
    "nllb-moe": "transformers runs none but the first two experts",
}

INTRODUCTION = """\
# Architectures

Every method, with its default options, on every text architecture of transformers {version} that
can be built small from its configuration class and runs on token ids alone: {cells} cells
(architecture and task) of {kinds} model types: {tasks}. The list was fixed before any method ran.
This page is written by

    python -m tests.architectures cells
    python -m tests.architectures run
    python -m tests.architectures page

A cell counts as passed when the method, with nothing told about the model,

- is created and attached, and a few steps of training lower the loss, change the adapter and leave
  every bit of the base as it was;
- acts at **every** site that it claims: the gradient of the logits with respect to that site's
  tensors is not zero;
- saved and loaded onto a fresh copy gives the same logits (to {same:g} of their size), and where
  the bare model generates the same with a cache as without, as {generating} do, so does the adapted
  one (to {rounding:g});
- detached leaves weights, modules, attributes, flags, hooks and logits bit for bit as they were.

Refused means that `hub.Adapter.create` raised an error with the reason before anything was done:
the method has no meaning there. The percentage is of the cells where it has one.
"""


def format_page(cells: Sequence[Mapping[str, Any]], results: Iterable[Mapping[str, Any]]) -> str:
    """The whole page. Of several results for one cell and method the last counts."""
    names = [f"{row['task']}:{row['kind']}" for row in cells if row["reason"] is None]
    latest = {(row["cell"], row["method"]): row for row in results}
    there = list(dict.fromkeys(method for _, method in latest))
    methods = sorted(there, key=lambda name: list(VARIANTS).index(name) if name in VARIANTS else 99)
    verdicts = {
        method: {name: latest.get((name, method), {"verdict": "missing"}) for name in names}
        for method in methods
    }
    tasks = Counter(name.partition(":")[0] for name in names)
    introduction = INTRODUCTION.format(
        version=transformers.__version__,
        cells=len(names),
        kinds=len({name.partition(":")[2] for name in names}),
        tasks=", ".join(f"{tasks[task]} {task}" for task in TASKS),
        same=SAME,
        rounding=ROUNDING,
        generating=len({cell for (cell, _), row in latest.items() if row.get("generates")}),
    )
    parts = [
        introduction,
        "## Totals\n\n" + format_totals(verdicts),
        "## Refused\n\n" + format_reasons(verdicts, "refused"),
        "## Failed\n\n" + format_reasons(verdicts, "failed") + format_notes(verdicts),
        "## Cells\n\n" + format_matrix(names, verdicts),
        "## Left out\n\n" + format_left_out(cells),
    ]
    return "\n".join(parts)


def format_totals(verdicts: Mapping[str, Mapping[str, Any]]) -> str:
    """A row for each method."""
    lines = [
        "| method | passed | where it has a meaning | | refused |",
        "|---|---|---|---|---|",
    ]
    for method, rows in verdicts.items():
        count = Counter(row["verdict"] for row in rows.values())
        meaning = len(rows) - count["refused"]
        share = f"{100 * count['passed'] / meaning:.1f}%" if meaning else ""
        lines.append(f"| {method} | {count['passed']} | {meaning} | {share} | {count['refused']} |")
    return "\n".join(lines) + "\n"


def format_reasons(verdicts: Mapping[str, Mapping[str, Any]], verdict: str) -> str:
    """For each method the reasons, and the model types that each holds for."""
    parts = []
    for method, rows in verdicts.items():
        groups: dict[str, list[str]] = defaultdict(list)
        for name, row in rows.items():
            if row["verdict"] == verdict:
                groups[shorten_reason(row["reason"], method)].append(name)
        if not groups:
            continue
        lines = [f"**{method}**", ""]
        for reason, names in sorted(groups.items(), key=lambda item: -len(item[1])):
            lines.append(f"- {reason} ({len(names)}): {join_kinds(names)}")
        parts.append("\n".join(lines) + "\n")
    return "\n".join(parts) or "None.\n"


def format_notes(verdicts: Mapping[str, Mapping[str, Any]]) -> str:
    """What is known of the model types that something failed on."""
    failed = {
        name.partition(":")[2]
        for rows in verdicts.values()
        for name, row in rows.items()
        if row["verdict"] == "failed"
    }
    lines = [f"- {kind}: {note}" for kind, note in NOTES.items() if kind in failed]
    return "\n".join(["", "What these models do themselves:", "", *lines, ""]) if lines else ""


def shorten_reason(reason: str, method: str) -> str:
    """A reason without the way out and without what differs between models: paths and numbers."""
    text = reason.removeprefix(f"{method}: ").partition("; ")[0]
    text = re.sub(r"\d+(?:\.\d+)?(?:e[+-]?\d+)?", "n", text)
    text = re.sub(r"\b[\w/]+(?:\.[\w/]+)+", "…", text)
    text = re.sub(r"[\[(]n(?:(?:, |x)n)*[\])]", "n", text)
    text = ", ".join(dict.fromkeys(text.split(", ")))
    return text[:200].replace("|", "/")


def join_kinds(names: Iterable[str]) -> str:
    """Model types by name; with the tasks where not all of a type's are among them."""
    tasks: dict[str, list[str]] = defaultdict(list)
    for name in names:
        task, _, kind = name.partition(":")
        tasks[kind].append(task)
    return ", ".join(f"{kind} ({', '.join(tasks[kind])})" for kind in sorted(tasks))


def format_matrix(names: Sequence[str], verdicts: Mapping[str, Mapping[str, Any]]) -> str:
    """A row for each model type: what each of its tasks came to, in the methods' order."""
    there = set(names)
    columns = [task for task in TASKS if any(name.startswith(f"{task}:") for name in names)]
    legend = ", ".join(f"{mark} {word}" for word, mark in MARKS.items() if word != "missing")
    lines = [
        f"A mark for each method, in this order: {', '.join(verdicts)}. {legend}.",
        "",
        f"| | {' | '.join(columns)} |",
        "|---" * (len(columns) + 1) + "|",
    ]
    for kind in sorted({name.partition(":")[2] for name in names}):
        row = []
        for task in columns:
            name = f"{task}:{kind}"
            marks = (
                [MARKS[rows[name]["verdict"]] for rows in verdicts.values()]
                if name in there
                else []
            )
            row.append("".join(marks))
        lines.append(f"| {kind} | {' | '.join(row)} |")
    return "\n".join(lines) + "\n"


def format_left_out(cells: Iterable[Mapping[str, Any]]) -> str:
    """The cells that transformers has a class for and that could not be built or run bare."""
    lines = [
        f"- {row['task']}:{row['kind']}: {row['reason'][:160]}" for row in cells if row["reason"]
    ]
    return "\n".join(lines) + "\n"
