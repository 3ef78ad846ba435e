"""Help: nothing lacks it, and what it shows is true."""

from __future__ import annotations

import re
import shlex
from collections.abc import Iterator
from pathlib import Path

import click
import pytest

import hub
from hub.cli import main
from hub.cli.commands import Command, CommandGroup
from tests.cli.conftest import Run

ROOT = Path(__file__).parents[2]
assert isinstance(main, CommandGroup)
NAMES = main.list_commands(click.Context(main))


def get(name: str) -> Command:
    command = main.get_command(click.Context(main), name)
    assert isinstance(command, Command)
    return command


def find_options(name: str) -> Iterator[click.Option]:
    for parameter in get(name).params:
        if isinstance(parameter, click.Option):
            yield parameter


def test_commands_are_in_the_order_of_an_adapters_life() -> None:
    assert [
        *("demo", "methods", "train", "eval", "list", "show", "log", "alias", "push", "pull"),
        *("compose", "combine", "export", "import", "verify", "doctor"),
    ] == NAMES


@pytest.mark.parametrize("name", NAMES)
def test_command_is_called_what_it_is_found_by(name: str) -> None:
    assert get(name).name == name


@pytest.mark.parametrize("name", NAMES)
def test_command_and_options_have_help(name: str) -> None:
    assert get(name).help
    assert [option.name for option in find_options(name) if not option.help] == []


@pytest.mark.parametrize("name", NAMES)
def test_short_help_fits_on_its_line(name: str, run: Run) -> None:
    short = get(name).get_short_help_str(limit=1000)
    assert f"  {name:<9}{short}\n" in run("--help").stdout


@pytest.mark.parametrize("name", NAMES)
def test_help_shows_its_examples_whole(name: str, run: Run) -> None:
    shown = run([name, "--help"]).stdout
    assert get(name).examples
    for example in get(name).examples:
        assert f"\n  {example}\n" in shown


@pytest.mark.parametrize("example", [*main.examples, *(e for n in NAMES for e in get(n).examples)])
def test_example_parses(example: str) -> None:
    program, name, *words = shlex.split(example)
    assert program == "hub"
    context = get(name).make_context(name, words, resilient_parsing="--help" in words)
    assert context.command is get(name)


@pytest.mark.parametrize("name", NAMES)
def test_command_that_reads_takes_json(name: str) -> None:
    has = "as_json" in {option.name for option in find_options(name)}
    assert has is (name not in ("demo", "alias", "export"))


@pytest.mark.parametrize("name", [name for name in NAMES if name not in ("demo", "doctor")])
def test_required_arguments_are_asked_for(name: str, run: Run) -> None:
    if any(parameter.required for parameter in get(name).params):
        result = run([name], 2)
        assert "Missing" in result.stderr
        assert result.stdout == ""


def test_hub_alone_shows_the_help(run: Run) -> None:
    result = run([], 2)
    assert result.output == run("--help").output


def test_version_is_the_packages(run: Run) -> None:
    assert run("--version").stdout == f"pefthub {hub.__version__}\n"


@pytest.mark.parametrize(
    ("typed", "expected"),
    [("lst", "no command 'lst'; did you mean 'list'?"), ("zzz", "there are demo, methods")],
)
def test_an_unknown_command_names_what_there_is(typed: str, expected: str, run: Run) -> None:
    assert expected in run([typed], 2).stderr


def test_an_unknown_option_is_wrong_usage(run: Run) -> None:
    assert "No such option" in run("list --nothing", 2).stderr


def test_docs_name_only_commands_that_there_are() -> None:
    pages = [ROOT / "README.md", *(ROOT / "docs").rglob("*.md")]
    named = {name for page in pages for name in re.findall(r"`hub ([a-z]+)", page.read_text())}
    assert named
    assert named <= set(NAMES)
