"""What starts fast stays so: nothing heavy is imported by commands that need it not."""

from __future__ import annotations

import subprocess
import sys

import pytest

import hub
from tests.cli.conftest import Add

HEAVY = {
    *("accelerate", "alembic", "datasets", "huggingface_hub", "jinja2", "numpy", "peft", "pluggy"),
    *("safetensors", "torch", "transformers"),
}
CODE = """
import sys
from hub.cli import main
try:
    main(sys.argv[1:])
finally:
    print(*sorted({name.partition(".")[0] for name in sys.modules}), file=sys.stderr)
    print("sqlalchemy.orm" in sys.modules, file=sys.stderr)
"""


@pytest.mark.parametrize(
    "line",
    [
        *("list", "list sst2", "list --json", "log sst2", "alias sst2@1 staging"),
        *("verify", "show sst2", "export sst2 out"),
        *("--help", "--version", "train --help", "doctor --help"),
    ],
)
def test_command_imports_nothing_heavy(line: str, add: Add, registry: hub.Registry) -> None:
    add()
    done = subprocess.run(
        [sys.executable, "-c", CODE, *line.split()], capture_output=True, text=True, check=False
    )
    *_, modules, orm = done.stderr.splitlines()
    assert "click" in modules.split()
    assert HEAVY & set(modules.split()) == set()
    assert orm == "False"


@pytest.mark.parametrize("line", ["--help", "--version", "train --help"])
def test_help_needs_no_database(line: str) -> None:
    done = subprocess.run(
        [sys.executable, "-c", CODE, *line.split()], capture_output=True, text=True, check=True
    )
    assert "sqlalchemy" not in done.stderr.splitlines()[-2].split()
