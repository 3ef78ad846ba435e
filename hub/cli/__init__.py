"""The command line: `hub`, also installed as `pefthub`.

A command parses, calls the library, and prints. Its module is imported when it is asked for, and
none of them imports torch, transformers or a database before it runs, so that `hub list` starts
about as fast as Python does.

    commands   the group, what every command has, the failures
    output     tables, JSON, progress
    models     loading a base model for a command
"""

from __future__ import annotations

import click

import hub
from hub.cli.commands import CommandGroup

__all__ = ["main"]

# In the order of an adapter's life, which is the order of `hub --help`.
HOMES = {
    "demo": "hub.cli.demo:demo",
    "methods": "hub.cli.methods:show_methods",
    "train": "hub.cli.training:train_adapter",
    "eval": "hub.cli.evaluation:evaluate_adapter",
    "list": "hub.cli.registry:list_adapters",
    "show": "hub.cli.showing:show_version",
    "log": "hub.cli.registry:show_log",
    "alias": "hub.cli.registry:move_alias",
    "push": "hub.cli.remotes:push_version",
    "pull": "hub.cli.remotes:pull_version",
    "compose": "hub.cli.composing:compose_version",
    "combine": "hub.cli.combining:combine_adapters",
    "export": "hub.cli.folders:export_version",
    "import": "hub.cli.folders:import_folder",
    "verify": "hub.cli.registry:verify_versions",
    "doctor": "hub.cli.doctor:diagnose",
}


@click.group(cls=CommandGroup, homes=HOMES, examples=("hub demo", "hub list", "hub train --help"))
@click.version_option(hub.__version__, prog_name="pefthub", message="%(prog)s %(version)s")
def main() -> None:
    """Train, version, compose, publish and load adapters for one base model.

    HUB_HOME moves everything; HUB_REGISTRY names another database; HF_ENDPOINT, HF_TOKEN and
    HF_HUB_OFFLINE mean what they mean everywhere.
    """
