"""Everything about a model that attaching and detaching must leave as it was."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from dataclasses import dataclass, fields
from typing import Any

import torch
from torch import nn

from hub.testing.models import compute_logits


@dataclass(frozen=True)
class Snapshot:
    """The model's class, tree, bytes, flags, hooks and outputs."""

    classes: tuple[tuple[str, type], ...]
    tensors: tuple[tuple[str, str], ...]
    storage: tuple[tuple[str, int], ...]
    learns: tuple[tuple[str, bool], ...]
    training: tuple[tuple[str, bool], ...]
    hooks: tuple[tuple[str, int], ...]
    attributes: tuple[tuple[str, frozenset[str]], ...]
    outputs: str

    def find_change(self, other: Snapshot) -> str | None:
        """The first thing in which two snapshots differ, in words; None where nothing does."""
        for field in fields(self):
            before, after = getattr(self, field.name), getattr(other, field.name)
            if isinstance(before, tuple):
                changed = set(before) ^ set(after)
                if changed:
                    return f"its {field.name} at {min(name for name, _ in changed) or 'the top'}"
            if before != after:
                return f"its {field.name}"
        return None


def take_snapshot(model: Any) -> Snapshot:
    """Read all of it; the model's mode is put back afterwards."""
    modules = list(model.named_modules())
    return Snapshot(
        classes=tuple((name, type(module)) for name, module in modules),
        tensors=tuple((name, hash_tensor(t)) for name, t in model.state_dict().items()),
        storage=tuple((name, p.data_ptr()) for name, p in model.named_parameters()),
        learns=tuple((name, p.requires_grad) for name, p in model.named_parameters()),
        training=tuple((name, module.training) for name, module in modules),
        hooks=tuple((name, count_hooks(module)) for name, module in modules),
        attributes=tuple((name, frozenset(vars(module))) for name, module in modules),
        outputs=hash_tensor(compute_logits(model)),
    )


def count_hooks(module: nn.Module) -> int:
    """Every kind of hook that a module can carry."""
    return sum(
        len(value)
        for name, value in vars(module).items()
        if "hook" in name and isinstance(value, Mapping)
    )


def hash_tensor(tensor: torch.Tensor) -> str:
    """sha256 of a tensor's bytes."""
    data = tensor.detach().contiguous().view(torch.uint8) if tensor.dim() else tensor.reshape(1)
    return hashlib.sha256(data.contiguous().view(torch.uint8).numpy().tobytes()).hexdigest()
