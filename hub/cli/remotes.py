"""Commands that publish and fetch: push and pull."""

from __future__ import annotations

import click

from hub.cli.commands import Command, json_option
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
    examples=("hub pull org/reviews-lora", "hub pull org/reviews-lora@main --name reviews"),
)
@click.argument("remote")
@click.option("--name", help="Its name here; the one it was published under when left out.")
@json_option(*ADDED)
def pull_version(remote: str, name: str | None, as_json: bool) -> None:
    """Fetch an adapter, verify it, and register it as a version.

    REMOTE is org/repo, org/repo@revision, ./folder or file:///folder. Another tool's adapter comes
    as it is, its base unknown.
    """
    with show_progress(f"pulling {remote}"):
        import hub

        version = hub.pull(remote, name=name)
    report_added(version, remote, as_json)
