"""The table of methods and operators in docs/composition.md, as it is found by trying.

    python -m tests.composition.matrix      write it anew

Of every ordered pair of methods under every operator it is found whether it acts or is refused;
`test_pairs.py` holds what acts against what it means, and this table against the page.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from functools import cache
from itertools import product
from pathlib import Path
from typing import Any

import torch

import hub
from hub.composition import Operator
from hub.errors import AttachError
from tests.snapshots import shake_adapter
from tests.tiny import build_tiny

PAGE = Path(__file__).parents[2] / "docs" / "composition.md"
BEGIN = "<!-- methods and operators: python -m tests.composition.matrix -->\n"
END = "<!-- end of methods and operators -->\n"

METHODS: dict[str, dict[str, Any]] = {
    "lora": dict(r=3, alpha=6),
    "ia3": {},
    "houlsby": dict(size=4),
    "pfeiffer": dict(size=4),
    "parallel": dict(size=4),
    "bitfit": {},
    "full": {},
    "diff": {},
    "prefix": dict(tokens=2),
    "prompt": dict(tokens=3),
    "ptuning": dict(tokens=3),
    "llama_adapter": dict(tokens=2),
}
# Between them every method has a meaning. On the second those pairs are tried that the first does
# not have, and those with what acts on embeddings of positions.
BASES = {"llama": set(METHODS) - {"bitfit"}, "bert": {"bitfit", "full"}}
OPERATORS = {
    "Stack": lambda model, a, b: hub.Stack(a, b),
    "Average": lambda model, a, b: hub.Average(a, b, weights=[1.0, 3.0]),
    "Split": lambda model, a, b: hub.Split(a, b, at=2),
    "BatchSplit": lambda model, a, b: hub.BatchSplit(a, b),
    "Parallel": lambda model, a, b: hub.Parallel(a, b),
    "Fuse": lambda model, a, b: fuse_pair(model, a, b),
}
# What a refusal says, and how the page says it.
REASONS = {
    "and a mean needs equally many": "a mean needs equally many virtual tokens from each part",
    "virtual tokens stand in front of the whole sequence and not at a part of it": (
        "virtual tokens stand in front of the whole sequence and not at a part of it"
    ),
    "virtual tokens are no output that attention could choose": (
        "virtual tokens are no output that a fuse's attention could choose"
    ),
}
Refused = dict[tuple[str, str], str]


@cache
def build_base(kind: str) -> Any:
    """A tiny model, whose layers do more than those of a new one; nothing may change it."""
    return build_tiny(kind, tie_word_embeddings=False, initializer_range=0.2)


@cache
def make_adapter(kind: str, method: str, seed: int) -> hub.Adapter:
    """An adapter that changes every output."""
    adapter = hub.Adapter.create(method, build_base(kind), **METHODS[method])
    shaken: hub.Adapter = shake_adapter(adapter, seed=seed, scale=0.2)
    return shaken


def fuse_pair(model: Any, one: hub.Adapter, two: hub.Adapter) -> hub.Fuse:
    """A fuse as if it had been trained: V is near the identity, the rest is anything."""
    other = make_adapter(model.config.model_type, "lora", 1)
    for parts in ((one, two), (one, one), (two, two), (other, other)):
        try:
            with torch.random.fork_rng(devices=[]):
                torch.manual_seed(9)
                by = hub.Fuse.create(model, *parts).by
        except AttachError:  # none can be made for them; attaching that of others is to say so too
            continue
        break
    assert isinstance(by, hub.Adapter)
    generator = torch.Generator().manual_seed(9)
    for tensor in by.tensors.values():
        # Not more: scores grow by its square, and float32 rounds large ones coarsely.
        tensor.data += torch.randn(tensor.shape, generator=generator) * 0.05
    return hub.Fuse(one, two, by=by)


def list_pairs(kind: str, operator: str) -> Iterator[tuple[str, str, Operator]]:
    """Ordered pairs of methods, and the operator over two adapters of them."""
    methods = [name for name in METHODS if name != "bitfit" or kind != "llama"]
    for one, two in product(methods, repeat=2):
        if kind == "llama" or {one, two} & BASES[kind]:
            parts = make_adapter(kind, one, 1), make_adapter(kind, two, 2)
            yield one, two, OPERATORS[operator](build_base(kind), *parts)


def attach_pair(model: Any, tree: Operator) -> hub.Attachment:
    """Attach a composition; where rows choose, the second part for the first row."""
    rows = [1, 0] if isinstance(tree, hub.BatchSplit) else None
    return hub.attach(model, tree, rows=rows, trainable=False)


def find_reason(error: AttachError) -> str:
    """How the page says what a refusal does."""
    found = [reason for said, reason in REASONS.items() if said in str(error)]
    assert len(found) == 1, f"a refusal that the page does not explain: {error}"
    return found[0]


def find_refused(operator: str) -> Refused:
    """The pairs that an operator refuses, and why."""
    refused: Refused = {}
    for kind in BASES:
        for one, two, tree in list_pairs(kind, operator):
            try:
                attach_pair(build_base(kind), tree).detach()
            except AttachError as error:
                refused[one, two] = find_reason(error)
    return refused


def format_column(refused: Refused) -> list[str]:
    """What the table says of one operator, for each method."""
    cells = []
    for method in METHODS:
        left = [other for other in METHODS if {(method, other), (other, method)} & refused.keys()]
        there = [other for other in METHODS if other not in left]
        why = {reason for pair, reason in refused.items() if method in pair}
        notes = "".join(f" [{n}]" for n, reason in enumerate(REASONS.values(), 1) if reason in why)
        if not there:
            cells.append(f"none{notes}")
        elif len(there) <= len(left):
            cells.append(f"{', '.join(there)}{notes}")
        else:
            cells.append(f"all but {', '.join(left)}{notes}" if left else "all")
    return cells


def format_table(columns: dict[str, list[str]]) -> str:
    """The table and the reasons for its holes, in Markdown."""
    lines = [["method", *columns], ["---"] * (len(columns) + 1)]
    lines += [[method, *cells] for method, *cells in zip(METHODS, *columns.values(), strict=True)]
    notes = [f"- [{n}] {reason}" for n, reason in enumerate(REASONS.values(), 1)]
    return "\n".join([*(f"| {' | '.join(line)} |" for line in lines), "", *notes]) + "\n"


def read_columns() -> dict[str, list[str]]:
    """What the page says of each operator."""
    rows = [line[2:-2].split(" | ") for line in read_table().splitlines() if line.startswith("| ")]
    return {name: list(column) for name, _, *column in zip(*rows, strict=True)}


def read_table() -> str:
    """What the page has."""
    return PAGE.read_text().split(BEGIN)[1].split(END)[0]


def write_table(table: str) -> None:
    """Put the table into the page."""
    text = PAGE.read_text() if PAGE.exists() else f"# Composition\n\n{BEGIN}{END}"
    if BEGIN not in text:
        text = f"{text.rstrip()}\n\n## Methods and operators\n\n{BEGIN}{END}"
    pattern = f"{re.escape(BEGIN)}.*{re.escape(END)}"
    PAGE.write_text(re.sub(pattern, lambda _: BEGIN + table + END, text, flags=re.DOTALL))


if __name__ == "__main__":
    write_table(format_table({name: format_column(find_refused(name)) for name in OPERATORS}))
