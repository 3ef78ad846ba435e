"""The command that combines."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import click

from hub.cli import models
from hub.cli.commands import Command, json_option
from hub.cli.output import print_json, show_progress
from hub.cli.registry import ADDED, describe_version, open_registry
from hub.errors import FileError
from hub.references import is_place, locate_folder

if TYPE_CHECKING:
    from pathlib import Path


def read_weights(
    ctx: click.Context, parameter: click.Parameter, value: str | None
) -> list[float] | None:
    """`1,0.5` as numbers."""
    if value is None:
        return None
    try:
        return [float(part) for part in value.split(",")]
    except ValueError:
        raise click.BadParameter(f"{value!r} is no list of numbers such as 1,-0.5") from None


@click.command(
    "combine",
    cls=Command,
    examples=(
        "hub combine sst2@3 imdb@1 --how svd --name sentiment",
        "hub combine a b c --how ties --weights 1,1,-0.5 --density 0.2 --name abc --task qa",
        "hub combine ./mine hf://org/theirs --how linear --to ./both",
    ),
)
@click.argument("references", nargs=-1, required=True, metavar="REFERENCE...")
@click.option(
    "--how",
    required=True,
    help="linear, ties, dare_linear, dare_ties or magnitude_prune; of LoRA also cat, svd, and all "
    "but linear with _svd.",
)
@click.option(
    "--weights",
    callback=read_weights,
    metavar="W,W...",
    help="One for each, of any sign; their mean when left out.",
)
@click.option("--density", type=float, help="The share of values that ties, dare or prune keep.")
@click.option(
    "--majority-sign-method",
    type=click.Choice(["total", "frequency"]),
    help="What ties decides a sign by: the sum of the values, or how many they are.",
)
@click.option("--svd-rank", type=int, help="The rank to compress to; the largest part's else.")
@click.option("--seed", type=int, help="What dare draws from; 0 when left out.")
@click.option("--name", help="Register the result as the next version of this name.")
@click.option("--to", metavar="FOLDER", help="Save the result in a new folder.")
@click.option("--task", help="What the result is for; what the parts are for, where that is one.")
@click.option("--note", help="Kept with the version.")
@json_option(*ADDED, "parents", "folder")
def combine_adapters(
    references: tuple[str, ...],
    name: str | None,
    to: str | None,
    task: str | None,
    note: str | None,
    as_json: bool,
    **options: Any,
) -> None:
    """Make one adapter of several, by arithmetic on their weights.

    A REFERENCE is name@number, name@alias, name, ./folder, or hf://org/repo@revision. All must be
    of one method and for one base. The versions among them are the parents of the result.
    """
    if name is None and to is None:
        raise click.UsageError("give --name to register the result, --to to save it, or both")
    if name is None and note is not None:
        raise click.UsageError("a note is kept with a version; give --name too")
    folder = locate_new_folder(to) if to is not None else None
    registry = open_registry()
    versions = {text: registry.get(text).reference for text in references if not is_place(text)}
    parts = [versions.get(text, text) for text in references]
    with models.quiet_libraries(), show_progress(f"combining {len(parts)} adapters"):
        import hub

        adapter = hub.combine(parts, **options)
        said: dict[str, Any] = dict.fromkeys((*ADDED, "parents"))
        if name is not None:
            version = registry.add(adapter, name=name, task=task, note=note)
            said = describe_version(version)
        else:
            adapter.task = task if task is not None else adapter.task
            said |= {"method": adapter.method, "task": adapter.task, "parents": []}
            if adapter.base is not None:
                said["base"] = {"label": adapter.base.label, "digest": adapter.base.digest}
        if folder is not None:
            adapter.save(folder)
    if as_json:
        print_json({**{key: said[key] for key in (*ADDED, "parents")}, "folder": folder})
        return
    base = adapter.base.label if adapter.base is not None else "an unknown base"
    places = [place for place in (adapter.reference, folder and f"in {folder}") if place]
    made_of = ", ".join(parts)
    click.echo(f"{made_of} combined is {' and '.join(places)} ({adapter.method}, for {base})")


def locate_new_folder(text: str) -> Path:
    """A folder to save in. Raises FileError where something is there already."""
    folder = locate_folder(text)
    if folder.exists() and not (folder.is_dir() and not any(folder.iterdir())):
        what = "it is not empty" if folder.is_dir() else "it is a file"
        raise FileError(f"can't save in {folder}: {what}; give another folder")
    return folder
