"""Compositions: values that say which adapters act together, and how."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Union

from hub.adapter import Adapter
from hub.errors import AttachError

Part = Union[Adapter, str, "Stack"]


class Stack:
    """Adapters one on top of the other: each sees what the ones before it left.

    The order of effects where several act: first what acts on a projection, in the order of the
    stack, then what acts on the branch that it ends, in the order of the stack.

    A stack is a value: equal to another with equal parts in the same order, hashable, printable.
    A reference is equal to itself only, an adapter object too. Raises AttachError on no parts.
    """

    def __init__(self, *parts: Part) -> None:
        for part in parts:
            if not isinstance(part, Adapter | str | Stack):
                raise AttachError(
                    f"a stack is made of adapters, references and stacks, not {part!r}; "
                    "write hub.Stack('de@2', adapter)"
                )
        if not parts:
            raise AttachError("a stack needs at least one part")
        self._parts = parts

    @property
    def parts(self) -> tuple[Part, ...]:
        """What it is made of."""
        return self._parts

    def leaves(self) -> Iterator[Adapter | str]:
        """The adapters and references in the order in which they act."""
        for part in self._parts:
            if isinstance(part, Stack):
                yield from part.leaves()
            else:
                yield part

    def __eq__(self, other: object) -> bool:
        return self._parts == other._parts if isinstance(other, Stack) else NotImplemented

    def __hash__(self) -> int:
        return hash((Stack, self._parts))

    def __repr__(self) -> str:
        names = (p if isinstance(p, str) else repr(p) for p in self._parts)
        return f"stack({', '.join(names)})"
