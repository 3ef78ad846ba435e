"""Everything about a model that attaching and detaching must leave as it was."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn

from tests.tiny import make_inputs


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
        outputs=hash_tensor(run(model)),
    )


def run(model: Any, **inputs: Any) -> torch.Tensor:
    """The logits, without gradients, in eval mode."""
    was_training = {module: module.training for module in model.modules()}
    model.eval()
    with torch.no_grad():
        logits = model(**(inputs or make_inputs(model))).logits
    for module, training in was_training.items():
        module.training = training
    return logits


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


def shake_adapter(adapter: Any, seed: int = 3, scale: float = 0.3) -> Any:
    """Give an adapter values that change every output, as if it had been trained."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for tensor in adapter.tensors.values():
            tensor.copy_(torch.randn(tensor.shape, generator=generator) * scale)
    return adapter
