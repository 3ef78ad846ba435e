"""How long `hub list` takes to start, beside what it can't do without.

    python benchmarks/startup.py [runs]

Each round runs, one after the other, `python -c "import click, sqlalchemy.orm"`, `hub list` with
no registry, and with one of 100 adapters. Printed are the medians in milliseconds and, for each of
the last two, the median of its ratio to the first in the same round: what else the machine does
then weighs on both. CPU time is given too, since it minds the other programs less than the clock.
"""

from __future__ import annotations

import os
import statistics
import sys
import tempfile
import time
from pathlib import Path

from hub_registry import BaseIdentity, Registry

ROUNDS = 40
ADAPTERS = 100
BARE = [sys.executable, "-c", "import click, sqlalchemy.orm"]
LIST = [sys.executable, str(Path(sys.executable).with_name("hub")), "list"]

Timing = tuple[float, float]  # seconds by the clock, seconds of the processor


def measure(command: list[str], home: Path) -> Timing:
    """Run a command to its end, its output thrown away."""
    with Path(os.devnull).open("wb") as nowhere:
        start = time.perf_counter()
        process = os.posix_spawn(
            command[0],
            command,
            {**os.environ, "HUB_HOME": str(home)},
            file_actions=[(os.POSIX_SPAWN_DUP2, nowhere.fileno(), fd) for fd in (1, 2)],
        )
        _, status, usage = os.wait4(process, 0)
        seconds = time.perf_counter() - start
    if status:
        raise SystemExit(f"{' '.join(command)} failed with status {status}")
    return seconds, usage.ru_utime + usage.ru_stime


def fill_registry(home: Path) -> None:
    """Add the adapters, each with a version and an alias."""
    registry = Registry(home)
    base = BaseIdentity(architecture="llama", precision="float32", repo="org/base")
    for number in range(ADAPTERS):
        name = f"adapter-{number}"
        registry.add_files(
            {"adapter_config.json": f"{number}".encode()},
            name=name,
            task=f"task-{number % 7}",
            method="lora",
            base=base,
            config={"r": 8},
            metrics={"accuracy": number / ADAPTERS},
        )
        registry.alias(name, "production")


def main(rounds: int) -> None:
    """Measure and print."""
    with tempfile.TemporaryDirectory() as scratch:
        empty, full = Path(scratch, "empty"), Path(scratch, "full")
        fill_registry(full)
        cases = {
            "import click, sqlalchemy.orm": (BARE, empty),
            "hub list, no registry": (LIST, empty),
            f"hub list, {ADAPTERS} adapters": (LIST, full),
        }
        timings: dict[str, list[Timing]] = {name: [] for name in cases}
        for _ in range(rounds):
            for name, (command, home) in cases.items():
                timings[name].append(measure(command, home))
    (_, bare), *_ = timings.items()
    print(f"{'':30}  {'clock':>8}  {'ratio':>6}  {'processor':>9}  {'ratio':>6}")
    for name, taken in timings.items():
        cells = [f"{name:30}"]
        for part in (0, 1):
            median = statistics.median(timing[part] for timing in taken)
            ratio = statistics.median(
                timing[part] / other[part] for timing, other in zip(taken, bare, strict=True)
            )
            cells += [f"{1000 * median:{(8, 9)[part] - 3}.0f} ms", f"{ratio:6.2f}"]
        print("  ".join(cells))


if __name__ == "__main__":
    main(int(sys.argv[1]) if len(sys.argv) > 1 else ROUNDS)
