"""The trained heads of adapters that are combined: a mean, since a head is no difference."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch

from hub.adapter import Adapter, lies_in
from hub.combining.arithmetic import add_weighted
from hub.errors import ConfigError


def take_off_heads(adapter: Adapter) -> Mapping[str, torch.Tensor]:
    """The adapter's tensors without those of its heads."""
    if not adapter.heads:
        return adapter.tensors
    return {name: t for name, t in adapter.tensors.items() if not lies_in(name, adapter.heads)}


def combine_heads(
    adapters: Sequence[Adapter], weights: Sequence[float], device: torch.device
) -> tuple[tuple[str, ...], dict[str, torch.Tensor], list[Any] | None]:
    """The paths of the heads, their tensors, and the names of the classes where they are known.

    A head that one part brings is kept as it is. Those of several are averaged by the weights of
    the parts that bring them, so that the logits of a linear head are the mean of what each would
    give.

    Raises ConfigError on heads that have no mean: for other classes, of other shapes, or where a
    weight is below zero.
    """
    paths = tuple(dict.fromkeys(path for adapter in adapters for path in adapter.heads))
    labels: list[Any] | None = None
    tensors: dict[str, torch.Tensor] = {}
    for path in paths:
        parts = zip(adapters, weights, strict=True)
        bringing = [(adapter, weight) for adapter, weight in parts if path in adapter.heads]
        shares = [weight for _, weight in bringing] if len(bringing) > 1 else [1.0]
        if min(shares) < 0 or sum(shares) == 0:
            shown = " and ".join(f"{share:g}" for share in shares)
            raise ConfigError(
                f"they bring trained heads {path!r}, which are averaged, and weights of {shown} "
                "have no mean; give them weights above zero"
            )
        labels = find_labels(path, [adapter for adapter, _ in bringing]) or labels
        heads = [read_head(adapter, path, device) for adapter, _ in bringing]
        for head in heads:
            if {n: t.shape for n, t in head.items()} != {n: t.shape for n, t in heads[0].items()}:
                raise ConfigError(
                    f"they bring trained heads {path!r} of different shapes; combine adapters "
                    "that tell the same classes apart"
                )
        means = [share / sum(shares) for share in shares]
        for name in heads[0]:
            tensors[name] = add_weighted([head[name] for head in heads], means)
    return paths, tensors, labels


def read_head(adapter: Adapter, path: str, device: torch.device) -> dict[str, torch.Tensor]:
    """The tensors of the head at `path`, without gradients, in float32."""
    own = {name: tensor for name, tensor in adapter.tensors.items() if lies_in(name, (path,))}
    return {name: tensor.detach().to(device, torch.float32) for name, tensor in own.items()}


def find_labels(path: str, adapters: Sequence[Adapter]) -> list[Any] | None:
    """The names of the classes that the head at `path` tells apart; None where nobody says.
    Raises ConfigError where the adapters say different ones."""
    known = [adapter.lineage["labels"] for adapter in adapters if "labels" in adapter.lineage]
    for labels in known[1:]:
        if labels != known[0]:
            raise ConfigError(
                f"they bring trained heads {path!r} for the classes {known[0]} and {labels}; "
                "combine adapters that tell the same classes apart"
            )
    return known[0] if known else None
