"""Printing compositions, as `hub.notation` reads them again."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator

from hub.adapter import Adapter
from hub.composition import Leaf, Operator, Part

NONE = "none"
PLAIN = re.compile(r'[^\s(),;"]+')  # a reference that is printed without quotes


def print_nodes(tree: Part) -> Iterator[str]:
    """The pieces of what a tree prints as."""
    left: list[Part | tuple[str]] = [tree]  # a tuple holds text that is printed as it is
    while left:
        node = left.pop()
        if isinstance(node, tuple):
            yield node[0]
        elif not isinstance(node, Operator):
            yield print_leaf(node)
        else:
            yield f"{node.name}("
            told = ", ".join(print_leaf(item) for item in node.settings)
            left.append((f"; {told})" if told else ")",))
            for number, part in reversed(list(enumerate(node.parts))):
                left += [part, (", ",)] if number else [part]


def print_leaf(leaf: Leaf | float) -> str:
    """A leaf, or a setting, as it is printed: in quotes where it would read as something else."""
    if leaf is None:
        return NONE
    if isinstance(leaf, Adapter):
        return f"<{leaf.method}>" if leaf.reference is None else print_leaf(leaf.reference)
    if not isinstance(leaf, str):
        return repr(leaf)
    return leaf if PLAIN.fullmatch(leaf) and leaf != NONE else json.dumps(leaf, ensure_ascii=False)
