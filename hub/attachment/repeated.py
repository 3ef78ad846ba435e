"""Repeated: whether what runs is part of a forward whose batch was repeated for a `Parallel`.

Only a forward of the whole model is. What calls a part of the model by itself, such as its encoder,
would give the first half of the rows to the first part, and the second half to the second.
"""

from __future__ import annotations

import threading

import torch
from torch import Tensor

from hub.attachment.nodes import WHOLE, Chain, Node, Slice
from hub.errors import AttachError

_running = threading.local()


def begin_repeated() -> None:
    """Say that a forward with a repeated batch begins in this thread."""
    _running.count = getattr(_running, "count", 0) + 1


def end_repeated() -> None:
    """Say that it is over."""
    _running.count = max(getattr(_running, "count", 0) - 1, 0)


class RepeatedNode(Node):
    """In front of a chain whose rows are those of a repeated batch: sees that it is one."""

    def __init__(self, chain: Chain, path: str) -> None:
        super().__init__([chain])
        self.path = path

    def before(self, x: Tensor, given: Slice = WHOLE) -> Tensor:
        """x. Raises AttachError."""
        self._check()
        return x

    def forward(self, x: Tensor, y: Tensor, given: Slice = WHOLE) -> Tensor:
        """y. Raises AttachError."""
        self._check()
        return y

    def _check(self) -> None:
        # A backward runs layers again where they were checkpointed, with the rows that they had.
        if getattr(_running, "count", 0) or torch._C._current_graph_task_id() != -1:
            return
        raise AttachError(
            f"{self.path} runs outside of a forward of the whole model, which is what a parallel "
            "repeats the batch of; call the model"
        )
