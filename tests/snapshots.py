"""The snapshots of `hub.testing`, as our own tests use them."""

from typing import Any

import torch

from hub.testing.models import compute_logits as run
from hub.testing.snapshots import Snapshot, count_hooks, hash_tensor, take_snapshot

__all__ = ["Snapshot", "count_hooks", "hash_tensor", "run", "shake_adapter", "take_snapshot"]


def shake_adapter(adapter: Any, seed: int = 3, scale: float = 0.3) -> Any:
    """Give an adapter values that change every output, as if it had been trained."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for tensor in adapter.tensors.values():
            tensor.copy_(torch.randn(tensor.shape, generator=generator) * scale)
    return adapter
