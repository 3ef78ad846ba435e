"""Running: each cell in a process of its own, so that a crash or a hang is one more result."""

from __future__ import annotations

import gc
import json
import logging
import multiprocessing
import os
import signal
import sys
import time
import warnings
from collections.abc import Iterable, Iterator, Mapping, Sequence
from multiprocessing.connection import Connection, wait
from pathlib import Path
from typing import Any

from hub.errors import ConfigError
from tests.architectures.cells import Cell, build_model, check_size, list_candidates, list_recipes
from tests.architectures.inputs import find_inputs
from tests.architectures.methods import find_variant
from tests.architectures.proofs import Bare, Failed, prepare_cell, prove_method

LIMIT = 60  # seconds for one method in one cell

Result = dict[str, Any]


def find_cells(kinds: Sequence[str] = ()) -> Iterator[tuple[Cell, str | None]]:
    """Every cell with a way to build it, or with the reason why there is none."""
    for candidate in list_candidates():
        if kinds and not {candidate.kind, candidate.name} & set(kinds):
            continue
        reason: str | None = None
        for cell in list_recipes(candidate):
            try:
                check_size(cell)
                find_inputs(build_model(cell), cell.task)
            except Exception as error:
                reason = reason or describe_error(error)
            else:
                yield cell, None
                break
        else:
            yield candidate, reason


def run_cells(work: Sequence[tuple[Cell, Sequence[str]]], workers: int) -> Iterator[Result]:
    """The result of every method in every cell, as they come."""
    context = multiprocessing.get_context("fork")
    gc.freeze()  # what is here already stays shared with the processes
    pending = list(reversed(work))
    running: dict[Connection, tuple[Any, Cell, list[str], float]] = {}
    while pending or running:
        while pending and len(running) < workers:
            cell, methods = pending.pop()
            ours, theirs = context.Pipe(duplex=False)
            arguments = (theirs, cell, list(methods))
            process = context.Process(target=run_cell, args=arguments, daemon=True)
            process.start()
            theirs.close()
            running[ours] = (process, cell, list(methods), time.monotonic())
        wait(list(running), timeout=1)
        for pipe, (process, cell, left, since) in list(running.items()):
            fault = None
            try:
                while pipe.poll():
                    result = pipe.recv()
                    since = time.monotonic()
                    left = [method for method in left if method != result["method"]]
                    yield result
            except EOFError:
                process.join()
                fault = f"the process ended with {process.exitcode}"
            if fault is None and time.monotonic() - since > LIMIT:
                fault = f"no end in {LIMIT} seconds"
                os.kill(process.pid, signal.SIGKILL)
                process.join()
            running[pipe] = (process, cell, left, since)
            if fault is None:
                continue
            del running[pipe]
            pipe.close()
            if left:
                yield make_result(cell, left[0], "failed", fault, time.monotonic() - since)
            if left[1:]:
                pending.append((cell, left[1:]))


def run_cell(pipe: Connection, cell: Cell, methods: Sequence[str]) -> None:
    """One cell, in its own process: a result for each method, sent as it comes."""
    warnings.simplefilter("ignore")
    logging.disable(logging.WARNING)
    os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())  # some models print
    try:
        bare = prepare_cell(cell)
    except Exception as error:
        for method in methods:
            pipe.send(make_result(cell, method, "failed", f"bare: {describe_error(error)}", 0))
        return
    for method in methods:
        result = prove_cell(bare, method, *find_variant(method))
        pipe.send(result)
        if result["verdict"] == "failed":
            bare = prepare_cell(cell)  # nothing that is left behind shall meet the next


def prove_cell(bare: Bare, name: str, method: str, options: Mapping[str, Any]) -> Result:
    """The verdict on one method in one cell."""
    start = time.monotonic()
    verdict, reason = "passed", ""
    try:
        prove_method(bare, method, options)
    except ConfigError as error:
        verdict, reason = "refused", describe_error(error)
    except Failed as error:
        verdict, reason = "failed", str(error)
    except Exception as error:
        verdict, reason = "failed", describe_error(error)
    result = make_result(bare.cell, name, verdict, reason, time.monotonic() - start)
    return {**result, "generates": bare.generates}


def make_result(cell: Cell, method: str, verdict: str, reason: str, seconds: float) -> Result:
    """One line of the results. verdict: passed, refused or failed."""
    return {
        "cell": cell.name,
        "method": method,
        "verdict": verdict,
        "reason": reason,
        "seconds": round(seconds, 2),
    }


def describe_error(error: BaseException) -> str:
    """An error on one line: ours as it is, others with their type."""
    text = " ".join(str(error).split())
    return text if isinstance(error, ConfigError) else f"{type(error).__name__}: {text}"


def read_lines(path: Path) -> list[dict[str, Any]]:
    """The JSON lines of a file; nothing where there is none."""
    if not path.exists():
        return []
    return [json.loads(line) for line in path.read_text().splitlines() if line]


def write_lines(path: Path, lines: Iterable[Mapping[str, Any]]) -> None:
    """Write JSON lines."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("".join(json.dumps(line, sort_keys=True) + "\n" for line in lines))
