"""How commands end: one line and an exit code, whatever happens."""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import sys
import tempfile
import textwrap
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from click.testing import CliRunner, Result

from hub.cli.commands import CommandGroup
from tests.cli.conftest import Add, Run

ENDS = """
import errno, logging, os, time, warnings
import click
from hub.cli.commands import Command
from hub.errors import DataError

def end(error):
    raise error

def make(name, act):
    return Command(name, callback=lambda: act(), help=name, examples=["x"])

chained = make("chained", lambda: end(DataError("first line\\n   second")))
bug = make("bug", lambda: {}["key"])
bare = make("bare", lambda: end(OSError("no number")))
full = make("full", lambda: end(OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), "/disk/x")))
denied = make("denied", lambda: open("/proc/self/mem/x"))
memory = make("memory", lambda: end(MemoryError()))
interrupted = make("interrupted", lambda: end(KeyboardInterrupt()))
aborted = make("aborted", lambda: end(click.Abort()))
def warn():
    warnings.warn("old", DeprecationWarning)
    logging.getLogger("hub").warning("the base is in %s", "bfloat16")
    logging.getLogger("hub").info("nothing")
    click.echo("done")
warns = make("warns", warn)
def wait():
    click.echo("waiting")
    time.sleep(60)
waits = make("waits", wait)
def allocate(size):
    import torch
    torch.empty(size)
large = make("large", lambda: allocate(10**15))
larger = make("larger", lambda: allocate(10**20))
"""


@pytest.fixture(scope="module")
def ends(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """A folder with the module `ends`, whose commands end in every way."""
    folder = tmp_path_factory.mktemp("ends")
    (folder / "ends.py").write_text(textwrap.dedent(ENDS))
    sys.path.insert(0, str(folder))
    yield folder
    sys.path.remove(str(folder))
    del sys.modules["ends"]


@pytest.fixture
def end(ends: Path) -> Callable[[str], Result]:
    """Run one of those commands."""

    def run(line: str) -> Result:
        name = line.split()[-1] if not line.split()[-1].startswith("-") else line.split()[0]
        group = CommandGroup("hub", homes={name: f"ends:{name}"}, examples=["x"])
        return CliRunner().invoke(group, line.split())

    return run


def test_an_expected_failure_is_one_line(end: Callable[[str], Result]) -> None:
    result = end("chained")
    assert (result.exit_code, result.stdout) == (1, "")
    assert result.stderr == "error: first line second\n"


@pytest.mark.parametrize("line", ["chained --traceback", "--traceback chained"])
def test_a_failure_shows_its_traceback_when_asked(line: str, end: Callable[[str], Result]) -> None:
    result = end(line)
    assert result.exit_code == 1
    assert result.stderr.startswith("Traceback (most recent call last)")
    assert result.stderr.endswith("\nerror: first line second\n")


@pytest.mark.parametrize(("name", "kind"), [("bug", "KeyError"), ("bare", "OSError")])
def test_a_bug_shows_its_traceback_and_asks_for_a_report(
    name: str, kind: str, end: Callable[[str], Result]
) -> None:
    result = end(name)
    assert result.exit_code == 70
    assert result.stderr.startswith("Traceback (most recent call last)")
    last = result.stderr.splitlines()[-1]
    assert last.startswith(f"error: {kind}: ")
    assert "this is a bug in pefthub: please report it" in last


@pytest.mark.parametrize(
    ("name", "line"),
    [
        ("full", "/disk/x: no space left on device; free some space and try again"),
        ("denied", "/proc/self/mem/x: not a directory; check its name: a part of it is a file"),
        ("memory", "out of memory; use a smaller --batch-size or --max-length, or a smaller base"),
    ],
)
def test_what_the_machine_lacks_is_one_line(
    name: str, line: str, end: Callable[[str], Result]
) -> None:
    result = end(name)
    assert (result.exit_code, result.stdout) == (1, "")
    assert result.stderr == f"error: {line}\n"


def test_an_interrupt_is_one_line_and_130(end: Callable[[str], Result]) -> None:
    result = end("interrupted")
    assert (result.exit_code, result.stderr) == (130, "error: interrupted\n")


def test_what_is_clicks_is_left_to_it(end: Callable[[str], Result]) -> None:
    assert end("aborted").stderr == "Aborted!\n"


def test_notes_are_shown_and_warnings_are_not(end: Callable[[str], Result]) -> None:
    result = end("warns")
    assert result.stdout == "done\n"
    assert result.stderr == "note: the base is in bfloat16\n"


def test_a_real_interrupt_ends_at_once(ends: Path) -> None:
    code = (
        "from hub.cli.commands import CommandGroup;"
        "CommandGroup('hub', homes={'waits': 'ends:waits'}, examples=['x'])(['waits'])"
    )
    process = subprocess.Popen(
        [sys.executable, "-c", code],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        env={**os.environ, "PYTHONPATH": str(ends)},
        text=True,
    )
    assert process.stdout is not None
    assert process.stdout.readline() == "waiting\n"
    process.send_signal(signal.SIGINT)
    _, stderr = process.communicate(timeout=20)
    assert (process.returncode, stderr) == (130, "error: interrupted\n")


def test_a_reader_who_goes_away_is_no_error(run: Run, add: Add) -> None:
    add()
    reader, writer = os.pipe()
    os.close(reader)
    done = subprocess.run(
        [Path(sys.executable).with_name("hub"), "list"],
        stdout=writer,
        stderr=subprocess.PIPE,
        check=False,
    )
    os.close(writer)
    assert (done.returncode, done.stderr) == (1, b"")


AS_NOBODY = """
import os, sys
from hub.cli import main
line, other, home = sys.argv[1].split(), *sys.argv[2:]
os.environ["HUB_HOME"] = other
main(line, standalone_mode=False)  # imports all that is needed, while it can be read
if os.geteuid() == 0:
    os.setgroups([])
    os.setgid(65534)
    os.setuid(65534)
os.environ["HUB_HOME"] = home
main(line)
"""


@pytest.fixture
def locked(add: Add, home: Path) -> Iterator[Path]:
    """A copy of the home, with a version in it, that anyone can read and nobody can write."""
    add()
    with tempfile.TemporaryDirectory() as parent:
        Path(parent).chmod(0o755)
        copy = shutil.copytree(home, Path(parent, "home"))
        paths = [copy, *copy.rglob("*")]
        for path in paths:
            path.chmod(0o555 if path.is_dir() else 0o444)
        yield copy
        for path in paths:
            path.chmod(0o755)


@pytest.mark.parametrize(
    ("line", "code", "start"),
    [
        ("list", 0, ""),
        ("show sst2", 0, ""),
        ("verify", 0, ""),
        ("alias sst2@1 production", 1, "error: the database {home}/registry.db can't be opened"),
    ],
)
def test_a_home_that_is_read_only_is_read(
    line: str, code: int, start: str, locked: Path, home: Path
) -> None:
    done = run_locked(line, locked, home)
    assert done.returncode == code, done.stderr
    assert done.stderr.startswith(start.format(home=locked))
    assert done.stderr.count("\n") == code


def run_locked(line: str, locked: Path, home: Path) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-c", AS_NOBODY, line, home, locked],
        capture_output=True,
        text=True,
        check=False,
    )


def test_push_from_a_home_that_is_read_only_is_one_line(locked: Path, home: Path) -> None:
    with tempfile.TemporaryDirectory() as shared:
        Path(shared).chmod(0o777)
        done = run_locked(f"push sst2@1 {shared}/first", locked, home)
        assert done.stderr.startswith(f"error: the database {locked}/registry.db can't be opened")
        assert (done.returncode, done.stderr.count("\n")) == (1, 1)


@pytest.mark.parametrize("name", ["large", "larger"])
def test_what_fits_into_no_memory_is_one_line(name: str, end: Callable[[str], Result]) -> None:
    result = end(name)
    assert result.exit_code == 1
    assert "smaller options of the method (--set)" in result.stderr


def test_a_closed_stdout_is_no_bug(run: Run, add: Add) -> None:
    add()
    hub = Path(sys.executable).with_name("hub")
    done = subprocess.run(
        ["sh", "-c", f"{hub} list >&-"], stderr=subprocess.PIPE, text=True, check=False
    )
    assert (done.returncode, done.stderr) == (0, "")
