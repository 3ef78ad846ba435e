"""All that composing costs, in one table and one plot: ours beside peft's and adapters'.

    python benchmarks/composition.py [--adapters VENV/bin/python] [--rounds N] [--write]

Runs overhead.py, training.py and mixed.py in two sizes, loading.py and combine.py, one after the
other, each in a process of its own, and gathers their figures: ratios to a floor that each names.
``--adapters`` names a Python that has adapters 1.3.0 and transformers 4.57.6, which can't be
installed beside ours; benchmarks/composition_adapters.py runs in it, over a bare model of its own.
``--write`` puts the table into docs/benchmarks.md, and the plot beside it, which needs matplotlib.

A quiet machine takes about 20 minutes.
"""

from __future__ import annotations

import json
import re
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

from measuring import make_parser

HERE = Path(__file__).parent
PAGE = HERE.parent / "docs" / "benchmarks.md"
PLOT = PAGE.with_name("composition.svg")
BEGIN, END = "<!-- composition.py -->", "<!-- end of composition.py -->"
SCRIPTS: dict[str, list[str]] = {
    "overhead": ["overhead.py"],
    "training 256": ["training.py"],
    "training 768": ["training.py", "--hidden", "768", "--rows", "4"],
    "mixed 768": ["mixed.py"],
    "mixed 256": ["mixed.py", "--hidden", "256", "--layers", "4"],
    "loading": ["loading.py"],
    "combine": ["combine.py"],
}
WHO = ["ours", "peft", "adapters"]


def run(name: str, command: list[str], more: list[str]) -> dict[str, Any]:
    """The figures of one script."""
    print(f"\n{name}", flush=True)
    with tempfile.NamedTemporaryFile(suffix=".json") as file:
        script = [sys.executable, str(HERE / command[0]), *command[1:], *more]
        subprocess.run([*script, "--json", file.name], check=True)
        figures: dict[str, Any] = json.loads(Path(file.name).read_text())
    return figures


def run_adapters(python: str, more: list[str]) -> dict[str, dict[str, float]]:
    """The adapters library's, by name and case."""
    script = [python, str(HERE / "composition_adapters.py"), *more]
    done = subprocess.run(script, stdout=subprocess.PIPE, check=True)
    found: dict[str, dict[str, float]] = json.loads(done.stdout)
    return found


def make_table(found: dict[str, dict[str, Any]]) -> str:
    """The figures as a table of Markdown."""
    lines = [
        "| what | ours | at most | peft | adapters | others |",
        "| --- | --- | --- | --- | --- | --- |",
    ]
    for figures in found.values():
        lines.append(f"| **{figures['subject']}** | | | | | |")
        for figure in figures["figures"]:
            ratios = figure["ratios"]
            own = [f"{ratios[who]:.3g}" if who in ratios else "" for who in WHO]
            others = ", ".join(f"{who} {r:.3g}" for who, r in ratios.items() if who not in WHO)
            bar = "" if figure["bar"] is None else f"{figure['bar']:g}"
            lines.append(
                f"| {figure['case']} | {own[0]} | {bar} | {own[1]} | {own[2]} | {others} |"
            )
    return "\n".join(lines)


def draw(found: dict[str, dict[str, Any]], path: Path) -> None:
    """A dot for each of those that a case has figures of, on a logarithmic scale."""
    try:
        from matplotlib import pyplot
    except ImportError:
        sys.exit("the plot needs matplotlib; run: pip install 'pefthub[benchmarks]'")
    cases = [
        (f"{name}: {figure['case']}", figure)
        for name, figures in found.items()
        for figure in figures["figures"]
        if len(figure["ratios"].keys() & set(WHO)) > 1 or figure["bar"] is not None
    ][::-1]
    figure, axes = pyplot.subplots(figsize=(8, 0.3 * len(cases) + 1))
    for who, color in zip(WHO, ("#1b6ca8", "#c44536", "#7d8597"), strict=True):
        points = [(f["ratios"][who], row) for row, (_, f) in enumerate(cases) if who in f["ratios"]]
        axes.scatter(
            *zip(*points, strict=True), label=who, color=color, zorder=3
        ) if points else None
    bars = [(f["bar"], row) for row, (_, f) in enumerate(cases) if f["bar"] is not None]
    if bars:
        widths, rows = zip(*bars, strict=True)
        axes.scatter(widths, rows, marker="|", s=120, color="black", label="at most")
    axes.set_xscale("log")
    axes.set_yticks(range(len(cases)), [label for label, _ in cases], fontsize=8)
    axes.set_xlabel("ratio to the floor (logarithmic)")
    axes.grid(axis="x", which="both", alpha=0.3)
    axes.legend(fontsize=8)
    figure.tight_layout()
    figure.savefig(path, metadata={"Date": None})


def main() -> None:
    """Run, gather, print, and write where asked to."""
    parser = make_parser(__doc__, rounds=0)
    parser.add_argument("--adapters", metavar="PYTHON")
    parser.add_argument("--only", nargs="+", choices=list(SCRIPTS), default=list(SCRIPTS))
    parser.add_argument("--write", action="store_true")
    options = parser.parse_args()
    more = ["--threads", str(options.threads)]
    more += ["--rounds", str(options.rounds)] if options.rounds else []
    found = {name: run(name, SCRIPTS[name], more) for name in options.only}
    theirs = run_adapters(options.adapters, more) if options.adapters else {}
    for name, cases in theirs.items():
        for figure in found.get(name, {"figures": []})["figures"]:
            if figure["case"] in cases:
                figure["ratios"]["adapters"] = cases[figure["case"]]
    table = make_table(found)
    print(f"\n{table}")
    if options.json:
        Path(options.json).write_text(json.dumps(found, indent=1) + "\n")
    if options.write:
        draw(found, PLOT)
        written = f"{BEGIN}\n{table}\n\n![ratios to the floor]({PLOT.name})\n{END}"
        text = re.sub(f"{BEGIN}.*{END}", lambda _: written, PAGE.read_text(), flags=re.DOTALL)
        PAGE.write_text(text)


if __name__ == "__main__":
    main()
