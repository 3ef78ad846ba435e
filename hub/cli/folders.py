"""Commands between the registry and a folder: export and import."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import click

from hub.cli import models
from hub.cli.commands import Command, json_option, part_option
from hub.cli.output import show_progress
from hub.cli.registry import ADDED, open_registry, report_added
from hub.references import locate_folder
from hub_registry import RegistryError

if TYPE_CHECKING:
    from hub_registry import BaseIdentity


@click.command("export", cls=Command, examples=("hub export reviews@production ./reviews-lora",))
@click.argument("reference")
@click.argument("folder")
def export_version(reference: str, folder: str) -> None:
    """Write the files of a version to a new folder, verified.

    peft, and what reads its files, loads them from there. A composition comes whole, each of its
    parts in a folder inside.
    """
    registry = open_registry()
    version = registry.get(reference)
    path = locate_folder(folder)
    registry.export(version, path)
    click.echo(f"{version.reference} is in {path}")


@click.command(
    "import",
    cls=Command,
    examples=(
        "hub import ./peft-folder --name reviews --task sentiment",
        "hub import ./peft-folder --name reviews --base bert-base-uncased",
    ),
)
@click.argument("folder")
@click.option("--name", required=True, help="Register it as the next version of this name.")
@click.option("--task", help="What the adapter is for.")
@click.option("--base", help="The base that it was trained on, where its files don't say.")
@click.option("--note", help="Kept with the version.")
@part_option()
@json_option(*ADDED)
def import_folder(
    folder: str,
    name: str,
    task: str | None,
    base: str | None,
    note: str | None,
    names: dict[str, str],
    as_json: bool,
) -> None:
    """Register the adapter, or the composition, that is in a folder.

    A composition's parts become versions too. A peft folder does not say which weights it was
    trained on. With --base it is bound to those; without, it loads onto any base with a note.
    """
    registry, path = open_registry(), locate_folder(folder)
    identity = identify(base, path) if base is not None else None
    with show_progress(f"reading {path}"):
        version = registry.add(path, name=name, task=task, note=note, base=identity, names=names)
    report_added(version, str(path), as_json)


def identify(base: str, folder: Path) -> BaseIdentity:
    """The identity of a base, loaded as the adapter in `folder` needs it.

    Raises HubError, also where the adapter's files don't say their base and it does not fit this.
    """
    with models.quiet_libraries():
        from hub.adapter import Adapter
        from hub.attachment import attach
        from hub.identity import identify_base
        from hub.recipes.recipe import RECIPE

        if (folder / RECIPE).exists():
            raise RegistryError(
                f"{folder} is a composition, which is bound to the base of its parts; leave --base "
                "out"
            )
        adapter = Adapter.read(folder, reference=str(folder))
        kind = models.KINDS_BY_TASK.get(adapter.task_type or "")
        model = models.load_model(base, kind, models.count_classes(adapter, kind))
        identity = identify_base(model)
        if adapter.base is None:
            adapter.base = identity
            attach(model, adapter, trainable=False).detach()
        return identity
