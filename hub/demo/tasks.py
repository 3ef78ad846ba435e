"""The demo's two tasks: rows to learn from, rows held out, and how each is learned."""

from __future__ import annotations

import random
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

from hub.demo.corpus import PACKAGES, Library, Topic, cut_windows, read_topics

Row = dict[str, str]


@dataclass(frozen=True)
class Learner:
    """A way to learn a task: its highest learning rate, and the options of its method."""

    rate: float
    options: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class Plan:
    """How a task is learned; all learners get the same rows in the same order.

    size: characters of a row's text. rows: how many to learn from, measured: to be measured on, at
    most. batch_size: rows in a step. learners: "full", "lora", "houlsby"; "head" for a classifier.
    """

    size: int
    rows: int
    measured: int
    epochs: float
    batch_size: int
    learners: Mapping[str, Learner]


@dataclass(frozen=True)
class Task:
    """A task: what it asks, its rows, its metric and its template.

    labels: the classes; empty for a language model.
    """

    name: str
    title: str
    kind: Literal["classification", "causal"]
    metric: str
    template: str
    plan: Plan
    rows: tuple[Row, ...]
    held_out: tuple[Row, ...]
    labels: tuple[str, ...] = ()


# Both are just under 5% of the demo's base, a head included.
LORA = {"r": 5, "alpha": 20, "targets": "all"}
HOULSBY = {"reduction_factor": 5.5, "layer_norms": True}

PACKAGES_PLAN = Plan(
    size=240,
    rows=2400,
    measured=800,
    epochs=1.5,
    batch_size=16,
    learners={
        "head": Learner(1e-2),
        "full": Learner(2e-3),
        "lora": Learner(5e-3, LORA),
        "houlsby": Learner(1e-2, HOULSBY),
    },
)
ENGLISH_PLAN = Plan(
    size=400,
    rows=1200,
    measured=300,
    epochs=2,
    batch_size=8,
    learners={
        "full": Learner(2e-3),
        "lora": Learner(1e-2, LORA),
        "houlsby": Learner(1e-2, HOULSBY),
    },
)


def make_packages_task(library: Library, plan: Plan = PACKAGES_PLAN) -> Task:
    """Which package does a snippet of source come from? As many snippets of each."""
    learned = cut_snippets(library.seen, plan.rows // len(PACKAGES), plan.size, overlap=True)
    measured = cut_snippets(library.held_out, plan.measured // len(PACKAGES), plan.size)
    return Task(
        name="packages",
        title=f"which package is a snippet of source from: {', '.join(PACKAGES)}",
        kind="classification",
        metric="accuracy",
        template="{{ text }}|||{{ package }}",
        plan=plan,
        rows=learned,
        held_out=measured,
        labels=PACKAGES,
    )


def cut_snippets(
    modules: Mapping[str, str], count: int, size: int, *, overlap: bool = False
) -> tuple[Row, ...]:
    """At most `count` snippets of each package, drawn from all of its modules; the same number of
    each, in the same order for the same modules."""
    drawn = []
    for package in PACKAGES:
        snippets = [
            snippet
            for path, source in sorted(modules.items())
            if path.startswith(f"{package}/")
            for snippet in cut_windows(source, size, overlap=overlap)
        ]
        random.Random(0).shuffle(snippets)  # noqa: S311
        drawn.append(snippets[:count])
    least = min(map(len, drawn))
    return tuple(
        {"text": snippet, "package": package}
        for package, snippets in zip(PACKAGES, drawn, strict=True)
        for snippet in snippets[:least]
    )


def make_english_task(plan: Plan = ENGLISH_PLAN) -> Task:
    """Write on, in the English of Python's reference, given a topic's title."""
    learned, measured = read_topics()
    return Task(
        name="english",
        title="write in the English of Python's reference (pydoc_data.topics), given a title",
        kind="causal",
        metric="perplexity",
        template="{{ title }}\n\n|||{{ text }}",
        plan=plan,
        rows=cut_passages(learned, plan.size)[: plan.rows],
        held_out=cut_passages(measured, plan.size)[: plan.measured],
    )


def cut_passages(topics: Iterable[Topic], size: int) -> tuple[Row, ...]:
    """The topics' passages, each with its topic's title."""
    passages = [
        {"title": topic.title, "text": passage}
        for topic in topics
        for passage in cut_windows("\n\n".join(topic.paragraphs), size)
    ]
    random.Random(0).shuffle(passages)  # noqa: S311
    return tuple(passages)
