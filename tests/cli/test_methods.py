"""`hub methods`."""

from __future__ import annotations

import dataclasses
import os
import re
import subprocess
import sys
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from hub.cli.methods import describe_options, parse_meanings
from hub.discovery import installed_methods
from tests.cli.conftest import Run

Read = Callable[..., Any]
ROOT = Path(__file__).parents[2]
BUILT_IN = sorted(path.stem.removeprefix("hub_") for path in (ROOT / "plugins").glob("hub_*"))


def test_methods_are_listed_with_their_papers(run: Run, read: Read) -> None:
    result = run("methods")
    assert result.stdout.splitlines()[0].split() == ["METHOD", "FROM", "PAPER"]
    for name in BUILT_IN:
        assert installed_methods().get(name).paper in result.stdout
    rows = read("methods")["methods"]
    assert [row["name"] for row in rows] == BUILT_IN
    assert rows[0].keys() == {"name", "distribution", "paper", "fault"}


@pytest.mark.parametrize("name", BUILT_IN)
def test_every_option_is_explained(name: str, run: Run, read: Read) -> None:
    document = read(f"methods {name}")
    assert document.keys() == {"name", "distribution", "paper", "options"}
    fields = dataclasses.fields(installed_methods().get(name).config)
    assert [option["name"] for option in document["options"]] == [field.name for field in fields]
    shown = run(f"methods {name}").stdout
    for option in document["options"]:
        assert option.keys() == {"name", "default", "required", "meaning"}
        assert option["meaning"]
        assert option["meaning"] in shown


def test_a_broken_plugin_is_listed_with_its_fault(broken: str, run: Run, read: Read) -> None:
    result = run("methods")
    listed = [line.split()[0] for line in result.stdout.splitlines()]
    assert listed == ["METHOD", *sorted([broken, *BUILT_IN])]
    assert result.stderr == (
        "note: plugin 'broken' of hub-broken 2.0 can't be imported: "
        "ModuleNotFoundError: No module named 'nothing_of_that_name'\n"
    )
    (fault,) = (row for row in read("methods")["methods"] if row["name"] == broken)
    assert fault["paper"] is None
    assert "can't be imported" in fault["fault"]


@pytest.mark.parametrize(
    ("name", "expected"),
    [("lra", f"no method 'lra'; installed: {', '.join(BUILT_IN)}; did you mean 'lora'?")],
)
def test_an_unknown_method_names_a_close_one(
    name: str, expected: str, fail: Callable[..., str]
) -> None:
    assert fail(f"methods {name}") == expected


@pytest.fixture(params=["glow", "my_method"])
def written(request: pytest.FixtureRequest, run: Run) -> Path:
    """The folder that `hub methods new` wrote."""
    run(f"methods new {request.param}")
    return Path(f"hub-{request.param.replace('_', '-')}").resolve()


def test_new_says_what_it_wrote_and_what_to_do_next(run: Run) -> None:
    shown = run("methods new glow").stdout
    files = ["pyproject.toml", "hub_glow.py", "tests/test_glow.py", "README.md"]
    assert shown.splitlines()[0] == f"wrote hub-glow/: {', '.join(files)}"
    assert "pip install -e ." in shown
    found = {path.relative_to("hub-glow").as_posix() for path in Path("hub-glow").rglob("*.*")}
    assert found == set(files)


def test_new_in_json_names_the_folder(read: Read) -> None:
    document = read("methods new glow")
    assert document.keys() == {"folder", "files"}
    assert all((Path(document["folder"]) / file).is_file() for file in document["files"])


@pytest.mark.parametrize(
    ("name", "text"),
    [
        ("Glow", "'Glow' can't be a method's name; take lower-case letters, digits and"),
        ("3glow", "'3glow' can't be a method's name"),
        ("my-glow", "'my-glow' can't be a method's name"),
        ("../glow", "'../glow' can't be a method's name"),
        ("class", "'class' can't be a method's name, since it is a word of Python"),
        ("new", "'new' is a word of `hub methods` itself"),
        ("lora", "'lora' is an installed method; choose another name"),
        ("registry", "a module hub_registry is installed already"),
    ],
)
def test_new_refuses_a_name_that_would_not_do(
    name: str, text: str, fail: Callable[..., str], workplace: Path
) -> None:
    before = sorted(workplace.iterdir())
    assert text in fail(["methods", "new", name])
    assert sorted(workplace.iterdir()) == before


def test_new_refuses_a_folder_that_is_there(run: Run, fail: Callable[..., str]) -> None:
    Path("hub-glow").mkdir()
    Path("hub-glow/kept").touch()
    assert "hub-glow is there already; choose another name" in fail("methods new glow")
    assert [path.name for path in Path("hub-glow").iterdir()] == ["kept"]


@pytest.mark.parametrize("line", ["methods new", "methods new a b", "methods lora houlsby"])
def test_too_few_or_too_many_names_are_wrong_usage(line: str, run: Run) -> None:
    assert run(line, 2).stdout == ""


def test_what_new_writes_passes_lint_and_types(written: Path) -> None:
    # Our own configuration and cache, or mypy would read all of torch for this one file.
    settings = ["--config-file", str(ROOT / "pyproject.toml")]
    cache = ["--cache-dir", str(ROOT / ".mypy_cache")]
    for command in (
        ["ruff", "check", "--isolated", "--extend-select", "E,W,I,N,UP,B,C4,SIM,RUF", "."],
        ["ruff", "format", "--isolated", "--check", "."],
        ["mypy", *settings, *cache, *map(str, written.rglob("*.py"))],
    ):
        done = subprocess.run(
            [sys.executable, "-m", *command], cwd=written, capture_output=True, text=True
        )
        assert done.returncode == 0, done.stdout + done.stderr


def test_what_new_writes_builds_and_keeps_the_contract(run: Run, tmp_path: Path) -> None:
    run("methods new glow")
    build = [sys.executable, "-m", "hatchling", "build", "-t", "wheel", "-d", str(tmp_path)]
    subprocess.run(build, cwd="hub-glow", check=True, capture_output=True)
    (wheel,) = tmp_path.glob("*.whl")
    with zipfile.ZipFile(wheel) as archive:
        archive.extractall(tmp_path / "installed")
    paths = [str(tmp_path / "installed"), *sys.path]
    # Two kinds of model show that the files hang together; every kind costs what a method's own
    # contract does.
    kinds = ["-k", "llama or gpt2 or can_not_act", "-p", "no:cacheprovider", "-q"]
    done = subprocess.run(
        [sys.executable, "-m", "pytest", *kinds],
        cwd="hub-glow",
        env={**os.environ, "PYTHONPATH": os.pathsep.join(filter(None, paths))},
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stdout
    assert re.search(r"^39 passed", done.stdout, re.MULTILINE), done.stdout


def test_a_broken_method_is_one_line(broken: str, fail: Callable[..., str]) -> None:
    assert "can't be imported" in fail(f"methods {broken}")


def test_meanings_go_on_below_and_may_be_shared() -> None:
    docstring = """What it is made of.

    r: the rank,
        1 or more.
    alpha, beta: a scaling; see: nothing.

    rest: none of these.
    """
    assert parse_meanings(docstring) == {
        "r": "the rank, 1 or more.",
        "alpha": "a scaling; see: nothing.",
        "beta": "a scaling; see: nothing.",
        "rest": "none of these.",
    }


def test_options_tell_which_are_required() -> None:
    @dataclasses.dataclass
    class Config:
        """size: how big."""

        size: int
        names: tuple[str, ...] = dataclasses.field(default_factory=tuple)

    size, names = describe_options(Config)
    assert (size["required"], size["meaning"]) == (True, "how big.")
    assert (names["required"], names["default"], names["meaning"]) == (False, (), "")
