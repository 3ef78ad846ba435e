"""The command that shows the installed methods and their options, and begins a new one."""

from __future__ import annotations

import dataclasses
import json
import re
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from hub.cli.commands import Command, json_option
from hub.cli.output import notify, print_json, print_pairs, print_table, show_progress

if TYPE_CHECKING:
    from hub.discovery import Plugin

FIELD = re.compile(r"(\w+(?:, \w+)*): (.*)")


@click.command(
    "methods", cls=Command, examples=("hub methods", "hub methods lora", "hub methods new shift")
)
@click.argument("words", nargs=-1, metavar="[NAME | new NAME]")
@json_option(
    "methods [name, distribution, paper, fault]; with a NAME name, distribution, paper, options "
    "[name, default, required, meaning]; with new NAME folder, files"
)
def show_methods(words: tuple[str, ...], as_json: bool) -> None:
    """List the installed methods, or the options of one.

    A method comes with a plugin; one that can't be used is listed with the reason. `new` writes the
    starting files of a plugin of your own into a new folder, hub-NAME.
    """
    if words[:1] == ("new",):
        if len(words) != 2:
            raise click.UsageError("new takes one NAME, that of the method: hub methods new NAME")
        write_plugin(words[1], as_json)
    elif len(words) > 1:
        raise click.UsageError(f"one method at a time, not {', '.join(words)}")
    else:
        list_methods(words[0] if words else None, as_json)


def write_plugin(name: str, as_json: bool) -> None:
    """Write a plugin's starting files, and say what to do next."""
    from hub.cli.scaffold import write_scaffold

    folder, files = write_scaffold(name, Path.cwd())
    if as_json:
        print_json({"folder": str(folder), "files": list(files)})
        return
    click.echo(f"wrote {folder.name}/: {', '.join(files)}")
    click.echo(f"next: cd {folder.name}; pip install -e .; hub methods {name}; pytest")


def list_methods(name: str | None, as_json: bool) -> None:
    """All of them, or one with its options."""
    with show_progress("importing the methods"):
        from hub.discovery import installed_methods

        methods = installed_methods()
        if name is not None:
            methods.get(name)
        plugins = methods.plugins()
    if name is not None:
        show_method(next(plugin for plugin in plugins if plugin.name == name), as_json)
        return
    if as_json:
        print_json({"methods": [describe_plugin(plugin) for plugin in plugins]})
        return
    print_table(
        ("method", "from", "paper"),
        (
            (plugin.name, plugin.distribution, plugin.method.paper if plugin.method else "broken")
            for plugin in plugins
        ),
    )
    for fault in dict.fromkeys(plugin.fault for plugin in plugins if plugin.fault):
        notify(fault)


def show_method(plugin: Plugin, as_json: bool) -> None:
    """One method and its options."""
    options = describe_options(plugin.method.config) if plugin.method is not None else []
    if as_json:
        document = describe_plugin(plugin)
        del document["fault"]
        print_json({**document, "options": options})
        return
    click.echo(click.style(plugin.name, bold=True))
    print_pairs({key: describe_plugin(plugin)[key] for key in ("paper", "distribution")})
    click.echo()
    print_table(
        ("option", "default", "meaning"),
        (
            (
                option["name"],
                "required" if option["required"] else json.dumps(option["default"]),
                option["meaning"],
            )
            for option in options
        ),
        cut=False,
    )


def describe_plugin(plugin: Plugin) -> dict[str, Any]:
    """A line of the list, as JSON has it."""
    return {
        "name": plugin.name,
        "distribution": plugin.distribution,
        "paper": plugin.method.paper if plugin.method is not None else None,
        "fault": plugin.fault,
    }


def describe_options(config: type[Any]) -> list[dict[str, Any]]:
    """The fields of a method's configuration, with what its docstring, or that of a class which
    it is built on, says of each."""
    meanings: dict[str, str] = {}
    for kind in reversed(config.__mro__[:-1]):
        meanings |= parse_meanings(vars(kind).get("__doc__") or "")
    options = []
    for field in dataclasses.fields(config):
        required = False
        default: Any = None
        if field.default is not dataclasses.MISSING:
            default = field.default
        elif field.default_factory is not dataclasses.MISSING:
            default = field.default_factory()
        else:
            required = True
        options.append(
            {
                "name": field.name,
                "default": default,
                "required": required,
                "meaning": meanings.get(field.name, ""),
            }
        )
    return options


def parse_meanings(docstring: str) -> dict[str, str]:
    """What a docstring says in lines such as `r, alpha: text`, goes on below and indented."""
    meanings: dict[str, str] = {}
    names: list[str] = []
    for line in docstring.splitlines():
        text = line.strip()
        if not text:
            names = []
        elif found := FIELD.match(text):
            names = found[1].split(", ")
            meanings |= dict.fromkeys(names, found[2])
        else:
            meanings |= {name: f"{meanings[name]} {text}" for name in names}
    return meanings
