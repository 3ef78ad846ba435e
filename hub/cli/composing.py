"""The command that composes."""

from __future__ import annotations

from typing import TYPE_CHECKING

import click

from hub.cli.commands import Command, json_option
from hub.cli.output import print_json, show_progress
from hub.cli.registry import ADDED, describe_version, open_registry
from hub.errors import AttachError

if TYPE_CHECKING:
    from hub.composition import Operator


@click.command(
    "compose",
    cls=Command,
    examples=(
        "hub compose 'stack(de@2, average(a, b; 0.7, 0.3))' --name both",
        "hub compose 'batchsplit(client-a@production, client-b@production, none)' --name clients",
        "hub compose 'fuse(sst2@1, mnli@4; fusion@1)' --name fused --task sentiment",
    ),
)
@click.argument("composition")
@click.option("--name", required=True, help="Register it as the next version of this name.")
@click.option("--task", help="What the composition is for.")
@click.option("--note", help="Kept with the version.")
@json_option(*ADDED, "composition", "parents")
def compose_version(
    composition: str, name: str, task: str | None, note: str | None, as_json: bool
) -> None:
    """Register adapters that act together, as a version of its own.

    COMPOSITION is an operator over references, and over operators again: stack(a, b), parallel,
    batchsplit, split(a, b; 64), average(a, b; 0.7, 0.3), fuse(a, b; fusion). An alias, or a name
    alone, means the version that it names now. none is the bare base.
    """
    with show_progress(f"composing {name}"):
        tree = read_composition(composition)
        version = open_registry().add(tree, name=name, task=task, note=note)
    pinned = version.config["composition"]
    if as_json:
        said = describe_version(version)
        shown = {key: said[key] for key in (*ADDED, "parents")}
        print_json({**shown, "composition": pinned})
        return
    click.echo(f"{version.reference} is {pinned} (for {version.base.label})")


def read_composition(text: str) -> Operator:
    """The composition that a user writes. Raises AttachError."""
    from hub.composition import Operator
    from hub.notation import parse_composition

    tree = parse_composition(text)
    if not isinstance(tree, Operator):
        raise AttachError(
            f"{text!r} composes nothing; write an operator over references, such as stack(de@2, fr)"
        )
    return tree
