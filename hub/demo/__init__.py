"""`hub demo`: the whole life of an adapter, on real text, with nothing to download.

    corpus        the text: Python's standard library and its reference, some of it held out
    pretraining   a small base and its tokenizer, trained on it once and kept
    tasks         two tasks: a classifier's and a language model's
    trials        each learned by full fine-tuning, LoRA and Houlsby, and measured
    life          versions, an alias, a push, a pull, a stack
    report        the tables

Every number that it prints was measured while it ran.
"""

from __future__ import annotations

import importlib
import os
import shlex
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import click
import torch

import hub
from hub.cli.models import load_tokenizer
from hub.demo import life, report
from hub.demo.corpus import Library, read_library
from hub.demo.pretraining import RECIPE, Recipe, keep_base
from hub.demo.tasks import (
    ENGLISH_PLAN,
    PACKAGES_PLAN,
    Plan,
    Task,
    make_english_task,
    make_packages_task,
)
from hub.demo.trials import Trial, run_trials
from hub.errors import PackageMissing
from hub_registry.registry import find_home

__all__ = ["Outcome", "run_demo"]

THREADS = 4  # more make small matrices slower

Echo = Callable[[str], None]


@dataclass(frozen=True)
class Outcome:
    """What a demo measured.

    trials: by the task's name. difference: the largest between the outputs of the adapter that was
    pushed and of the one that was pulled. answers: by what wrote them. seconds: all of it.
    """

    trials: Mapping[str, tuple[Trial, ...]]
    difference: float
    answers: Mapping[str, str]
    seconds: float


def run_demo(
    base: str | None = None,
    seed: int = 0,
    home: Path | None = None,
    *,
    recipe: Recipe = RECIPE,
    packages: Plan = PACKAGES_PLAN,
    english: Plan = ENGLISH_PLAN,
    library: Library | None = None,
    echo: Echo = click.echo,
) -> Outcome:
    """Run the demo, and say on the way what is done and what came of it.

    base: a transformers model to use instead of the demo's own: a folder, or org/repo.
    seed: for what is random in the tasks; the demo's own base is the same for every seed.
    home: HUB_HOME when left out. The base is kept there, and the adapters are registered there.
    recipe, packages, english, library: other sizes, and another text.

    Raises PackageMissing without the extras `train` and `serve`, and HubError for what else can't
    be done.
    """
    start = time.monotonic()
    check_packages()
    home = (home or find_home()).expanduser().absolute()
    library = library or read_library()
    trials: dict[str, tuple[Trial, ...]] = {}
    with few_threads():
        if base is None:
            begin(echo, "the base: a small language model of Python's own standard library")
            base = str(keep_base(home, library, recipe, echo))
        tokenizer = load_tokenizer(base)
        tasks = (make_packages_task(library, packages), make_english_task(english))
        for task in tasks:
            begin(echo, f"task {task.name}: {task.title}")
            echo(
                f"  {len(task.rows):,} rows to learn from, {len(task.held_out):,} held out, from "
                "modules or topics that nothing else reads"
            )
            done, model = run_trials(task, base, tokenizer, seed, echo)
            trials[task.name] = tuple(done)
            echo("")
            for line in report.format_trials(task, trials[task.name]):
                echo(f"  {line}".rstrip())
        difference, answers = live(home, tasks, trials, model, tokenizer, echo)
    outcome = Outcome(trials, difference, answers, time.monotonic() - start)
    begin(echo, f"done in {outcome.seconds:.0f} s; to look closer:")
    for command in suggest(home):
        echo(f"  $ {command}")
    return outcome


def live(
    home: Path,
    tasks: Sequence[Task],
    trials: Mapping[str, Sequence[Trial]],
    model: Any,
    tokenizer: Any,
    echo: Echo,
) -> tuple[float, dict[str, str]]:
    """What comes after training: versions, a push and a pull, a stack. `model` is the base for the
    last of the tasks, the language model's. The difference and the answers, see `Outcome`."""
    registry = life.open_registry(home)
    begin(echo, f"versions, in {home}")
    for task in tasks:
        best = life.register(registry, task, trials[task.name], echo)
    begin(echo, "published, and pulled into a second, empty HUB_HOME")
    reference = f"{best.adapter}@{life.ALIAS}"
    pulled = life.publish(home, reference, echo)
    ours = registry.load(reference)
    difference = life.compare_outputs(model, tokenizer, task, ours, pulled)
    echo(f"  largest difference between the outputs of both: {difference:g}")
    begin(echo, "one prompt, with each adapter and with both")
    lora, houlsby = (t.adapter for t in trials[task.name] if t.adapter is not None)
    stack = hub.Stack(lora, houlsby)
    prompt = life.make_prompt(task)
    echo(report.quote("prompt", prompt))
    answers = {}
    for who, adapter in (
        ("base", None),
        ("LoRA", lora),
        ("Houlsby", houlsby),
        ("both, LoRA below Houlsby", stack),
    ):
        answers[who] = life.answer(model, tokenizer, prompt, adapter)
        echo(report.quote(who, answers[who]))
    return difference, answers


def begin(echo: Echo, title: str) -> None:
    """A title with a line before it."""
    echo(f"\n{title}")


def check_packages() -> None:
    """Raise PackageMissing now and not after minutes."""
    if find_spec("accelerate") is None:
        raise PackageMissing("accelerate", "train")
    importlib.import_module("hub.server")


@contextmanager
def few_threads() -> Iterator[None]:
    """At most `THREADS` of torch's."""
    before = torch.get_num_threads()
    torch.set_num_threads(min(before, THREADS))
    try:
        yield
    finally:
        torch.set_num_threads(before)


def suggest(home: Path) -> Iterator[str]:
    """Commands to type next."""
    elsewhere = "" if home == find_home() else f"HUB_HOME={shlex.quote(str(home))} "
    if os.environ.get("HUB_REGISTRY"):
        elsewhere = f"HUB_REGISTRY= {elsewhere}"
    yield f"{elsewhere}hub list"
    yield f"{elsewhere}hub show demo-english@{life.ALIAS}"
    yield f"{elsewhere}hub log demo-packages"
