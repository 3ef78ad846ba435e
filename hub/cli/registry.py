"""Commands that read the registry: list, log, verify; and alias, which moves one."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from hub.cli.commands import Command, Failure, json_option
from hub.cli.output import (
    format_metrics,
    format_time,
    notify,
    print_json,
    print_table,
    say,
    show_progress,
)

if TYPE_CHECKING:
    from hub.registration import Registry
    from hub_registry import Version

SHORT = 12
# What JSON says of a version that came from elsewhere.
ADDED = ("reference", "digest", "method", "task", "base")


@click.command("list", cls=Command, examples=("hub list", "hub list sst2", "hub list --task qa"))
@click.argument("name", required=False)
@click.option("--task", help="Only what is for this task.")
@json_option(
    "adapters [name, latest, kind, method, task, base, aliases, created]; with a NAME versions, "
    "each as `hub show --json` has it, but for lineage and publications"
)
def list_adapters(name: str | None, task: str | None, as_json: bool) -> None:
    """List the adapters in the registry, or the versions of one.

    An adapter is for the task of its latest version.
    """
    registry = open_registry()
    if name is not None:
        list_versions(registry, name, task, as_json)
        return
    rows = [row for row in registry.adapters() if task is None or row.task == task]
    if as_json:
        print_json({"adapters": [vars(row) for row in rows]})
    elif not rows:
        which = f"for the task '{task}' " if task is not None else ""
        say(f"no adapter {which}in {registry.database.label}; `hub train` or `hub pull` adds one")
    print_table(
        ("name", "latest", "method", "task", "aliases", "updated", "base"),
        (
            (
                row.name,
                str(row.latest),
                row.method,
                row.task or "-",
                ", ".join(f"{alias}={number}" for alias, number in row.aliases.items()) or "-",
                format_time(row.created),
                shorten_base(row.base),
            )
            for row in rows
            if not as_json
        ),
    )


def list_versions(registry: Registry, name: str, task: str | None, as_json: bool) -> None:
    """The versions of one adapter, the newest first. Raises UnknownReference, BadName."""
    latest = registry.get(name)
    versions = [
        version for version in registry.list(latest.adapter) if task in (None, version.task)
    ]
    if as_json:
        print_json({"versions": [describe_version(version) for version in versions]})
        return
    if not versions:
        say(f"no version of {latest.adapter} is for the task '{task}'")
    print_table(
        ("version", "method", "task", "metrics", "aliases", "digest", "created", "by", "note"),
        (
            (
                version.reference,
                version.method,
                version.task or "-",
                format_metrics(version.metrics) or "-",
                ", ".join(version.aliases) or "-",
                version.digest[:SHORT],
                format_time(version.created),
                version.author,
                version.note or "",
            )
            for version in versions
        ),
    )


@click.command("log", cls=Command, examples=("hub log sst2",))
@click.argument("name")
@json_option("events [when, who, kind, reference, what, note]")
def show_log(name: str, as_json: bool) -> None:
    """Show what happened to an adapter, the newest first.

    Versions, moves of aliases, measurements and publications: when, by whom, and why.
    """
    events = open_registry().log(name)
    if as_json:
        print_json({"events": [vars(event) for event in events]})
        return
    print_table(
        ("when", "who", "what", "note"),
        ((format_time(item.when), item.who, item.what, item.note or "") for item in events),
    )


@click.command(
    "alias",
    cls=Command,
    examples=(
        "hub alias sst2@3 production --note 'better on the new clients'",
        "hub alias sst2 production --remove",
    ),
)
@click.argument("reference")
@click.argument("alias")
@click.option("--remove", is_flag=True, help="Remove the alias from the adapter instead.")
@click.option("--note", help="Why; kept in the log.")
def move_alias(reference: str, alias: str, remove: bool, note: str | None) -> None:
    """Make an alias point to a version, or move it there.

    REFERENCE is name@number, or another alias; with --remove the name alone. What an alias meant
    before stays in `hub log`.
    """
    registry = open_registry()
    if remove:
        if "@" in reference:
            name = reference.partition("@")[0]
            raise click.UsageError(
                f"an alias is removed from an adapter: hub alias {name} {alias} --remove"
            )
        registry.unalias(reference, alias, note=note)
        click.echo(f"{reference}@{alias} is removed")
        return
    registry.alias(reference, alias, note=note)
    version = registry.get(reference)
    click.echo(f"{version.adapter}@{alias} is {version.reference}")


@click.command("verify", cls=Command, examples=("hub verify", "hub verify sst2@3 sst2@production"))
@click.argument("references", nargs=-1)
@json_option("faults [problem, reference, filename, path]")
def verify_versions(references: tuple[str, ...], as_json: bool) -> None:
    """Read every byte again, and list what is damaged.

    Of these versions, or of everything where none is named. Exits with 1 where anything is.
    """
    registry = open_registry()
    with show_progress("reading every file"):
        faults = registry.verify(references)
    if as_json:
        print_json({"faults": [vars(fault) for fault in faults]})
    print_table(
        ("version", "file", "problem", "blob"),
        (
            (item.reference or "-", item.filename or "-", item.problem, str(item.path or "-"))
            for item in faults
            if not as_json
        ),
        cut=False,
    )
    if faults:
        raise Failure(
            f"{count(faults, 'fault')} in {registry.database.label}; put the files back from a "
            "backup, or add the same adapter again, which mends them"
        )
    if not as_json:
        what = ", ".join(references) or "everything"
        click.echo(f"{what} is as it was stored")


def report_added(version: Version, source: str, as_json: bool) -> None:
    """Print a version that came from elsewhere."""
    from hub.binding import UNKNOWN

    if version.base.architecture == UNKNOWN:
        notify(f"{source} does not say which base it is for, so that can't be verified")
    if as_json:
        said = describe_version(version)
        print_json({key: said[key] for key in ADDED})
        return
    what = version.config["composition"] if version.kind == "composition" else version.method
    click.echo(f"{version.reference} is {source} ({what}, for {version.base.label})")


def open_registry() -> Registry:
    """The user's registry."""
    from hub.registration import Registry

    return Registry()


def shorten_base(label: str) -> str:
    """A base in a table: of a folder's path the last part."""
    return Path(label).name if Path(label).is_absolute() else label


def describe_version(version: Version) -> dict[str, Any]:
    """A version as JSON shows it: all but the sample of its base's weights."""
    base = version.base.to_json()
    del base["sample"]
    return {
        "reference": version.reference,
        **vars(version),
        "base": {"label": version.base.label, "digest": version.base.digest, **base},
        "files": {name: vars(entry) for name, entry in version.files.items()},
    }


def count(items: Any, word: str) -> str:
    """`1 fault`, `2 faults`."""
    return f"{len(items)} {word}{'' if len(items) == 1 else 's'}"
