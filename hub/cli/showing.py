"""The command that shows a version."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any

import click

from hub.cli.commands import Command, json_option
from hub.cli.output import (
    format_metrics,
    format_size,
    format_time,
    print_json,
    print_pairs,
    print_table,
)
from hub.cli.registry import SHORT, describe_version, open_registry
from hub.cli.words import describe_words, find_words, print_words

if TYPE_CHECKING:
    from hub.registration import Registry
    from hub_registry import Version

LISTED = 3


@click.command(
    "show",
    cls=Command,
    examples=(
        "hub show sst2@3",
        "hub show sst2@production --json",
        "hub show prompt@1 --base bert-base-uncased --nearest 3",
    ),
)
@click.argument("reference")
@click.option(
    "--base",
    help="The base model, for the words that virtual tokens are nearest to; the one that it was "
    "trained on when left out, where that is on this machine.",
)
@click.option(
    "--nearest",
    type=click.IntRange(1),
    default=5,
    show_default=True,
    metavar="N",
    help="How many words for each virtual token.",
)
@json_option(
    *("reference", "adapter", "number", "digest", "kind", "method", "task", "base", "config"),
    *("metrics", "created", "author", "note", "files", "parents", "aliases"),
    *("lineage", "publications [remote, revision]"),
    "tokens [token, nearest [word, id, distance]] where there are virtual ones",
)
def show_version(reference: str, base: str | None, nearest: int, as_json: bool) -> None:
    """Show all that is known of a version.

    REFERENCE is name@number, name@alias, or name for the latest. Virtual tokens are shown by the
    nearest words of the base.
    """
    registry = open_registry()
    version = registry.get(reference)
    lineage = read_lineage(registry, version)
    published = [
        {"remote": remote, "revision": revision}
        for label, remote, revision in registry.publications(version.adapter)
        if label == version.reference
    ]
    words = find_words(registry, version, base, nearest)
    if as_json:
        document = {**describe_version(version), "lineage": lineage, "publications": published}
        print_json(document | ({} if words is None else {"tokens": describe_words(words)}))
        return
    click.echo(click.style(version.reference, bold=True))
    made_for, composed = version.base, version.kind == "composition"
    print_pairs(
        {
            "composition": version.config["composition"] if composed else None,
            "method": version.method if not composed else None,
            "task": version.task,
            "base": made_for.label,
            "weights": " ".join(
                filter(None, (made_for.architecture, made_for.precision, made_for.quantization))
            ),
            "aliases": ", ".join(version.aliases) or None,
            "made from": ", ".join(version.parents) or None if not composed else None,
            "digest": version.digest,
            "created": f"{format_time(version.created)} by {version.author}",
            "note": version.note,
        }
    )
    training, combination = lineage.get("training"), lineage.get("combination")
    for title, pairs in (
        ("metrics", {name: f"{value:.6g}" for name, value in version.metrics.items()}),
        ("configuration", {} if composed else {k: shorten(v) for k, v in version.config.items()}),
        ("training", {k: shorten(v) for k, v in training.items()} if training else {}),
        ("combination", describe_combination(combination) if combination else {}),
        ("published", {item["remote"]: item["revision"] for item in published}),
    ):
        if pairs:
            click.echo(f"\n{title}")
            print_pairs(pairs)
    if words is not None:
        print_words(words)
    if composed:
        print_parts([registry.get(parent) for parent in version.parents])
    click.echo()
    print_table(
        ("file", "size", "sha256"),
        ((name, format_size(file.size), file.sha256) for name, file in version.files.items()),
    )


def print_parts(parts: list[Version]) -> None:
    """A line for each part of a composition."""
    click.echo()
    print_table(
        ("part", "method", "task", "metrics", "digest"),
        (
            (
                part.reference,
                part.config["composition"] if part.kind == "composition" else part.method,
                part.task or "-",
                format_metrics(part.metrics) or "-",
                part.digest[:SHORT],
            )
            for part in parts
        ),
    )


def read_lineage(registry: Registry, version: Version) -> dict[str, Any]:
    """What its `hub.json` says that it came from; nothing for a version without one. Raises
    CorruptBlob."""
    if "hub.json" not in version.files:
        return {}
    lineage = json.loads(registry.read(version, "hub.json")).get("lineage")
    return lineage if isinstance(lineage, dict) else {}


def describe_combination(said: dict[str, Any]) -> dict[str, str]:
    """How an adapter was combined, what of and by what weights first."""
    first = [name for name in ("parts", "how", "weights") if name in said]
    return {name: list_values(said[name]) for name in dict.fromkeys([*first, *said])}


def list_values(value: Any) -> str:
    """A value, a list by its items alone."""
    items = value if isinstance(value, list) else [value]
    return ", ".join(f"{item:g}" if isinstance(item, float) else str(item) for item in items)


def shorten(value: Any) -> str:
    """A value as JSON, a long list by its beginning and its length."""
    if isinstance(value, list) and len(value) > LISTED:
        return f"{json.dumps(value[:LISTED])[:-1]}, ...] ({len(value)})"
    return json.dumps(value)
