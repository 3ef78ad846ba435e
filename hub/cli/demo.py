"""The command that shows the whole life of an adapter."""

from __future__ import annotations

import click

from hub.cli.commands import Command
from hub.cli.models import quiet_libraries


@click.command("demo", cls=Command, examples=("hub demo", "hub demo --base ./llama --seed 1"))
@click.option("--base", help="Use this base, a folder or org/repo, and train none.")
@click.option("--seed", type=int, default=0, show_default=True, help="For all that is random.")
def demo(base: str | None, seed: int) -> None:
    """Show the whole life of an adapter, with nothing to download.

    It trains a small base, once, and registers what it makes; both are kept under HUB_HOME.
    """
    with quiet_libraries():
        from hub.demo import run_demo

        run_demo(base=base, seed=seed)
