"""Every method on every text architecture of the installed transformers.

    python -m tests.architectures cells          which cells build and run bare: the denominator
    python -m tests.architectures run            every method in every cell; again, what is missing
    python -m tests.architectures page           write docs/architectures.md

run takes `--method NAME ...`, `--only CELL ...` (a type, `task:type`; run anew), `--failed` (run
anew what failed) and `--workers N`. About an hour on one core; results are kept in build/.
"""

from __future__ import annotations

import argparse
import os
from dataclasses import asdict
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parents[2]


def main() -> None:
    """Parse and run."""
    os.environ.setdefault("OMP_NUM_THREADS", "1")
    parser = argparse.ArgumentParser(
        "python -m tests.architectures",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("what", choices=("cells", "run", "page"))
    parser.add_argument("--folder", type=Path, default=ROOT / "build" / "architectures")
    parser.add_argument("--method", nargs="+", default=[])
    parser.add_argument("--only", nargs="+", default=[])
    parser.add_argument("--failed", action="store_true")
    parser.add_argument("--workers", type=int, default=1)
    options = parser.parse_args()
    {"cells": write_cells, "run": run_methods, "page": write_page}[options.what](options)


def write_cells(options: argparse.Namespace) -> None:
    """Fix the denominator."""
    quiet()
    from tests.architectures.running import find_cells, write_lines

    rows: list[dict[str, Any]] = []
    for cell, reason in find_cells():
        rows.append({**asdict(cell), "reason": reason})
        if reason:
            print(f"{cell.name}: {reason}"[:200], flush=True)
    write_lines(options.folder / "cells.jsonl", rows)
    print(f"{sum(row['reason'] is None for row in rows)} of {len(rows)} cells build and run")


def run_methods(options: argparse.Namespace) -> None:
    """Run what is missing or asked for; each result is kept as it comes."""
    quiet()
    import json

    from tests.architectures.cells import Cell
    from tests.architectures.methods import list_variants
    from tests.architectures.running import read_lines, run_cells

    if not (options.folder / "cells.jsonl").exists():
        write_cells(options)
    cells = [
        Cell(row["task"], row["kind"], row["scale"], row["way"])
        for row in read_lines(options.folder / "cells.jsonl")
        if row["reason"] is None
    ]
    results = options.folder / "results.jsonl"
    verdicts = {(r["cell"], r["method"]): r["verdict"] for r in read_lines(results)}
    done = {key for key, verdict in verdicts.items() if not options.failed or verdict != "failed"}
    methods = options.method or list_variants()
    work = []
    for cell in cells:
        if options.only and not {cell.kind, cell.name} & set(options.only):
            continue
        left = [m for m in methods if options.only or (cell.name, m) not in done]
        if left:
            work.append((cell, left))
    print(f"{sum(len(left) for _, left in work)} runs in {len(work)} cells", flush=True)
    with results.open("a") as file:
        for result in run_cells(work, options.workers):
            file.write(json.dumps(result, sort_keys=True) + "\n")
            file.flush()
            if result["verdict"] == "failed":
                print(f"{result['cell']} {result['method']}: {result['reason']}"[:300], flush=True)


def write_page(options: argparse.Namespace) -> None:
    """Write the table."""
    from tests.architectures.page import format_page
    from tests.architectures.running import read_lines

    cells = read_lines(options.folder / "cells.jsonl")
    results = read_lines(options.folder / "results.jsonl")
    (ROOT / "docs" / "architectures.md").write_text(format_page(cells, results))


def quiet() -> None:
    """One thread, and no more than our own lines."""
    import warnings

    warnings.simplefilter("ignore")
    import torch
    import transformers

    torch.set_num_threads(1)
    transformers.logging.set_verbosity(50)


if __name__ == "__main__":
    main()
