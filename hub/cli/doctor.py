"""The command that says whether everything is fit for use."""

from __future__ import annotations

import os
import platform
from collections.abc import Iterable, Iterator
from importlib.metadata import PackageNotFoundError, requires, version
from typing import Literal

import click

import hub
from hub.cli.commands import Command, Failure, json_option
from hub.cli.output import print_json, print_table, show_progress
from hub.cli.registry import open_registry
from hub_registry import Finding

DISTRIBUTION = "pefthub"
Level = Literal["ok", "warning", "error"]
EXTRAS = ("train", "serve", "quantized")


@click.command("doctor", cls=Command, examples=("hub doctor", "hub doctor --upgrade"))
@click.option("--upgrade", is_flag=True, help="First bring the database to this version's schema.")
@json_option("healthy", "findings [level, subject, text]")
def diagnose(upgrade: bool, as_json: bool) -> None:
    """Look at the installation, the registry, the plugins and the disk.

    Exits with 1 where something is wrong; a warning is not. The Hub's token is never shown.
    """
    registry = open_registry()
    if upgrade:
        registry.upgrade()
    with show_progress("looking"):
        findings = [
            *look_at_python(),
            *look_at_packages(requires(DISTRIBUTION) or ()),
            *registry.check(),
            *look_at_plugins(),
            *look_at_hub(),
        ]
    wrong = [finding for finding in findings if finding.level == "error"]
    if as_json:
        print_json({"healthy": not wrong, "findings": [vars(item) for item in findings]})
    else:
        print_table(
            ("", "what", "how it is"),
            ((item.level, item.subject, item.text) for item in findings),
            cut=False,
        )
    if wrong:
        raise Failure(f"{wrong[0].subject}: {wrong[0].text}")


def look_at_python() -> Iterator[Finding]:
    """What runs this, and this."""
    yield Finding("ok", "python", f"{platform.python_version()} on {platform.platform()}")
    yield Finding("ok", DISTRIBUTION, hub.__version__)


def look_at_packages(requirements: Iterable[str]) -> list[Finding]:
    """Every package that is needed or optional, by what is installed; none is imported."""
    from packaging.requirements import Requirement

    findings = []
    for requirement in map(Requirement, requirements):
        marker = requirement.marker
        extras = [e for e in ("", *EXTRAS) if marker is None or marker.evaluate({"extra": e})]
        if not extras:
            continue
        target = f"{DISTRIBUTION}[{extras[0]}]" if extras[0] else DISTRIBUTION
        way_out = f"run: pip install -U '{target}'"
        level: Level = "ok"
        try:
            text = version(requirement.name)
            if not requirement.specifier.contains(text, prereleases=True):
                level, text = "error", f"{text} is not {requirement.specifier}; {way_out}"
        except PackageNotFoundError:
            level, text = "warning" if extras[0] else "error", f"is not installed; {way_out}"
        findings.append(Finding(level, requirement.name, text))
    return findings


def look_at_plugins() -> Iterator[Finding]:
    """Every method, and why one can't be used."""
    from hub.discovery import installed_methods

    for plugin in installed_methods().plugins():
        if plugin.fault is None:
            yield Finding("ok", f"method {plugin.name}", f"from {plugin.distribution}")
        else:
            yield Finding("error", f"method {plugin.name}", plugin.fault)


def look_at_hub() -> Iterator[Finding]:
    """Which Hub is meant, and whether there is a token for it; nothing is sent."""
    from huggingface_hub import constants, get_token

    offline = " (HF_HUB_OFFLINE is set: nothing is fetched)" if constants.is_offline_mode() else ""
    endpoint = os.environ.get("HF_ENDPOINT") or "https://huggingface.co"
    yield Finding("ok", "hub", f"{endpoint}{offline}")
    if get_token():
        yield Finding("ok", "token", "there is one")
    else:
        yield Finding("ok", "token", "there is none; `hf auth login` or HF_TOKEN, to push")
