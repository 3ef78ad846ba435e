"""Combining adapters in weight space into a new one."""

from __future__ import annotations

import logging
from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch

from hub.adapter import Adapter
from hub.binding import check_bases
from hub.combining.heads import combine_heads, take_off_heads
from hub.combining.rules import TOGETHER, Rule
from hub.discovery import installed_methods
from hub.errors import ConfigError
from hub.lineage import add_parents
from hub.references import load_adapter, locate_folder
from hub_registry import BaseIdentity

log = logging.getLogger("hub")

SMALLER = "give smaller weights, and look whether a part has values that are no finite numbers"


def combine(
    parts: Sequence[Adapter | str | Path],
    *,
    how: str,
    weights: Sequence[float] | None = None,
    density: float | None = None,
    majority_sign_method: str | None = None,
    svd_rank: int | None = None,
    seed: int | None = None,
) -> Adapter:
    """A new adapter made of others of the same method and base, by arithmetic on their tensors.

    parts: adapters or references. They stay as they are.
    how: "linear", "ties", "dare_linear", "dare_ties" or "magnitude_prune"; for low-rank changes
        also "cat", "svd", and all but linear with "_svd". What each means for a method is in
        docs/combining.md.
    weights: one for each part, of any sign; left out, the result is the mean of the parts: 1 / n
        each, and 1 each for ties, which takes a mean itself.
    density: the share of each tensor's values that ties, dare and magnitude_prune keep, above 0 to
        1. ties keeps all when it is left out.
    majority_sign_method: what decides between values of different sign in ties: "total", their
        sum, or "frequency", how many there are.
    svd_rank: the largest rank that svd keeps; that of the largest part when left out.
    seed: what dare draws from, 0 when left out; the same seed gives the same adapter.

    The result is in float32, serves like one that was loaded, and tells in its `lineage` what it
    was made of and how.

    Raises ConfigError on options or parts that can't be combined, BaseMismatch on parts of
    different bases, RegistryError on a composition, and what `load` raises for a reference.
    """
    if isinstance(parts, str | Path) or not isinstance(parts, Sequence) or not parts:
        raise ConfigError(
            "combine takes a list of adapters or references, at least one; write "
            "hub.combine([a, 'de@2'], how='linear')"
        )
    rule = Rule(
        how,
        len(parts),
        weights,
        density=density,
        majority_sign_method=majority_sign_method,
        svd_rank=svd_rank,
        seed=seed,
    )
    adapters = [load_part(part) for part in parts]
    names = name_parts(adapters, parts)
    base = find_common_base(adapters, names)
    owner = installed_methods().get(find_common_method(adapters, names))
    device = next(iter(adapters[0].tensors.values())).device
    with torch.no_grad():
        try:
            config, tensors = owner.combine(
                [adapter.config for adapter in adapters],
                [prepare_tensors(take_off_heads(adapter), device) for adapter in adapters],
                rule,
            )
            heads, trained, labels = combine_heads(adapters, rule.weights, device)
            check_finite({**tensors, **trained})
        except ConfigError as error:
            raise ConfigError(f"can't combine {join_words(names)}: {error}") from error
        except torch.linalg.LinAlgError as error:  # type: ignore[attr-defined]
            raise ConfigError(
                f"can't combine {join_words(names)}: their sum has no singular values; {SMALLER}"
            ) from error
    made_of = [describe_part(*pair) for pair in zip(adapters, parts, strict=True)]
    lineage = add_parents({"combination": {"parts": made_of, **rule.describe()}}, adapters)
    if labels is not None:
        lineage["labels"] = labels
    return Adapter(
        owner.name,
        config,
        {**tensors, **trained},
        heads=heads,
        base=base,
        task_type=find_task_type(adapters),
        task=find_shared([adapter.task for adapter in adapters]),
        lineage=lineage,
    )


def check_finite(tensors: Mapping[str, torch.Tensor]) -> None:
    """Raise ConfigError where a value came out that is no number."""
    # A sum takes an eighth of the time, and is a finite number only where all values are.
    if torch.stack([tensor.sum() for tensor in tensors.values()]).isfinite().all():
        return
    for name, tensor in tensors.items():
        if not tensor.isfinite().all():
            raise ConfigError(
                f"what came out has values in {name} that are no finite numbers; {SMALLER}"
            )


def load_part(part: Any) -> Adapter:
    """A part, loaded. Raises ConfigError on what is none, and what `load_adapter` raises."""
    if isinstance(part, str | Path):
        return load_adapter(part)
    if not isinstance(part, Adapter):
        raise ConfigError(
            f"{type(part).__name__} is no adapter; only adapters can be combined, or references of "
            "some such as 'sst2@3'"
        )
    return part


def name_parts(adapters: Sequence[Adapter], parts: Sequence[Any]) -> list[str]:
    """What to call each: its reference, else as it was given, else its method; with its place
    where two are called alike."""
    names = [
        adapter.reference or (adapter.method if isinstance(part, Adapter) else str(part))
        for adapter, part in zip(adapters, parts, strict=True)
    ]
    known = Counter(names)
    return [
        name if known[name] == 1 or adapter.reference else f"{name} (part {place})"
        for place, (name, adapter) in enumerate(zip(names, adapters, strict=True), 1)
    ]


def describe_part(adapter: Adapter, part: Any) -> str:
    """A part in the lineage: its reference, else a folder by its name alone, since the rest of its
    path is of this machine, else its method."""
    if adapter.reference is not None or isinstance(part, Adapter):
        return adapter.label
    return f"./{locate_folder(part).name}"


def find_common_method(adapters: Sequence[Adapter], names: Sequence[str]) -> str:
    """The method of all. Raises ConfigError where there are two."""
    first = adapters[0].method
    for name, adapter in zip(names, adapters, strict=True):
        if adapter.method != first:
            raise ConfigError(
                f"{names[0]} is {first} and {name} is {adapter.method}, and only adapters of one "
                f"method can be combined; {TOGETHER}"
            )
    return first


def find_common_base(adapters: Sequence[Adapter], names: Sequence[str]) -> BaseIdentity | None:
    """The identity of the base of all; None where none says it. Raises BaseMismatch."""
    for text in check_bases(zip(names, [adapter.base for adapter in adapters], strict=True)):
        log.warning(text)
    return next((adapter.base for adapter in adapters if adapter.base is not None), None)


class Tensors(dict[str, torch.Tensor]):
    """A part's tensors by name. Raises ConfigError on one that it should have and has not."""

    def __missing__(self, name: str) -> torch.Tensor:
        raise ConfigError(f"one of them lacks the tensor {name!r}; fetch the adapter anew")


def prepare_tensors(tensors: Mapping[str, torch.Tensor], device: torch.device) -> Tensors:
    """The same on one device, those of numbers in float32."""
    prepared = Tensors(tensors)
    for name, tensor in tensors.items():
        if tensor.dtype != torch.float32 and tensor.is_floating_point():
            prepared[name] = tensor.to(device, torch.float32)
        elif tensor.device != device:
            prepared[name] = tensor.to(device)
    return prepared


def find_task_type(adapters: Sequence[Adapter]) -> str | None:
    """What peft says the parts are for; where they differ, those that bring a head."""
    for those in (adapters, [adapter for adapter in adapters if adapter.heads]):
        found = find_shared([adapter.task_type for adapter in those])
        if found is not None:
            return found
    return None


def find_shared(values: Sequence[str | None]) -> str | None:
    """The value, where it is the same in all."""
    return values[0] if len(set(values)) == 1 else None


def join_words(names: Sequence[str]) -> str:
    """`a`, `a and b`, `a, b and c`."""
    return " and ".join(filter(None, (", ".join(names[:-1]), names[-1])))
