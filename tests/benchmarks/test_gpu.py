"""The script for the first day with a GPU works where there is none."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).parents[2]


def test_the_gpu_script_runs_on_a_cpu() -> None:
    small = [
        "--device",
        "cpu",
        "--dtype",
        "float32",
        "--hidden",
        "64",
        "--layers",
        "1",
        "--rounds",
        "1",
    ]
    command = [sys.executable, str(ROOT / "benchmarks" / "gpu.py"), *small]
    done = subprocess.run(command, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr
    assert "detaching leaves no trace" in done.stdout
    assert "a training step" in done.stdout
