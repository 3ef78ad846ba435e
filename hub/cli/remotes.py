"""Commands that publish and fetch: push and pull."""

from __future__ import annotations

import click

from hub.cli.commands import Command, json_option, part_option
from hub.cli.output import print_json, show_progress
from hub.cli.registry import ADDED, report_added


@click.command(
    "push",
    cls=Command,
    examples=("hub push reviews@1 org/reviews-lora --private", "hub push reviews@1 ./shared"),
)
@click.argument("reference")
@click.argument("remote")
@click.option("--private", is_flag=True, help="Make the repository private.")
@click.option("--message", help="The commit's message; the version when left out.")
@json_option("remote", "revision", "url", "changed")
def push_version(
    reference: str, remote: str, private: bool, message: str | None, as_json: bool
) -> None:
    """Publish a version to a Hub or a folder, with a model card.

    REMOTE is org/repo, org/repo@branch, ./folder or file:///folder. The same content again makes
    no new commit.
    """
    with show_progress(f"pushing {reference} to {remote}"):
        import hub

        publication = hub.push(reference, remote, private=private, message=message)
    if as_json:
        print_json(vars(publication))
        return
    done = "is at" if publication.changed else "was there already:"
    click.echo(f"{reference} {done} {publication.url}")


@click.command(
    "pull",
    cls=Command,
    examples=(
        "hub pull org/reviews-lora",
        "hub pull org/reviews-lora@main --name reviews",
        "hub pull org/both --part de=german",
    ),
)
@click.argument("remote")
@click.option("--name", help="Its name here; the one it was published under when left out.")
@part_option()
@json_option(*ADDED)
def pull_version(remote: str, name: str | None, names: dict[str, str], as_json: bool) -> None:
    """Fetch an adapter or a composition, verify it, and register it.

    REMOTE is org/repo, org/repo@revision, ./folder or file:///folder. Another tool's adapter comes
    as it is, its base unknown. The parts of a composition become versions too.
    """
    with show_progress(f"pulling {remote}"):
        import hub

        version = hub.pull(remote, name=name, names=names)
    report_added(version, remote, as_json)
