"""Reading virtual tokens: the words of the base that each one is nearest to.

Lester et al., 2021, section 7, https://arxiv.org/abs/2104.08691: by the cosine distance, 1 - cos,
between a virtual token and the embeddings of the vocabulary.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
from torch.nn import functional as F

from hub.discovery import installed_methods
from hub.errors import AttachError, BaseMismatch, ConfigError
from hub.identity import name_dtype, sample_tensor
from hub_registry.identity import BaseIdentity, Comparison, TensorSample, compare

if TYPE_CHECKING:
    from hub.adapter import Adapter


@dataclass(frozen=True)
class Word:
    """A word of the vocabulary, its id, and its distance, from 0 for the same direction to 2."""

    word: str
    id: int
    distance: float


def find_virtual_tokens(adapter: Adapter) -> torch.Tensor | None:
    """The virtual tokens that an adapter puts in front of the input, (n, d_model); None where it
    puts none there."""
    method = installed_methods().get(adapter.method)
    rows: torch.Tensor | None = method.virtual_tokens(adapter.config, adapter.tensors)
    return None if rows is None else rows.detach()


def read_words(
    adapter: Adapter, table: torch.Tensor, tokenizer: Any, count: int = 5
) -> list[list[Word]]:
    """For each virtual token of `adapter` the `count` nearest words, the nearest first.

    table: the base's input embeddings, (vocabulary, d_model). tokenizer: the base's.

    Raises ConfigError where the adapter has no virtual tokens, or `count` is none; AttachError
    where they are not as wide as the table.
    """
    rows = find_virtual_tokens(adapter)
    if rows is None:
        raise ConfigError(
            f"{adapter.label} has no virtual tokens to read: its method is {adapter.method}"
        )
    if count < 1:
        raise ConfigError(f"{count} words are asked for; ask for 1 or more")
    if rows.shape[1] != table.shape[1]:
        raise AttachError(
            f"the virtual tokens of {adapter.label} have {rows.shape[1]} values, and the base's "
            f"embeddings {table.shape[1]}; give the base that it was trained on"
        )
    # Some tables have more rows than there are words, to be of a round size.
    table = table[: len(tokenizer)].detach()
    near = F.normalize(rows.float(), dim=1).to(table.device) @ F.normalize(table.float(), dim=1).T
    best = near.topk(min(count, len(table)), dim=1)
    return [
        [
            Word(tokenizer.decode([int(i)]), int(i), max(0.0, 1 - float(c)))
            for i, c in zip(ids, cosines, strict=True)
        ]
        for ids, cosines in zip(best.indices, best.values, strict=True)
    ]


def verify_table(adapter: Adapter, name: str, table: torch.Tensor, label: str) -> None:
    """Hold a base's embeddings against what is known of those that the adapter was trained on.

    name: what the base calls them. label: what to call the base. Raises BaseMismatch.
    """
    base = adapter.base
    if base is None or not base.sample or base.quantization is not None:
        return
    if name not in base.sample:
        # Of modules that share a weight one gave it its name, and it need not be this one.
        shape = tuple(table.shape)
        alike = [other for other, sample in base.sample.items() if sample.shape == shape]
        if all(compare_table(base, other, table).verdict == "different" for other in alike):
            raise BaseMismatch(
                f"{adapter.label} was made for {base.label}, which has no {name} as {label} has; "
                "give that base"
            )
        return
    comparison = compare_table(base, name, table)
    if comparison.verdict == "different":
        raise BaseMismatch(
            f"{adapter.label} was made for {base.label}, and the embeddings of {label} are others: "
            f"{'; '.join(comparison.reasons)}; give that base"
        )


def compare_table(base: BaseIdentity, name: str, table: torch.Tensor) -> Comparison:
    """What is known of the tensor `name` of a base, and a table."""
    known = describe_table(base.architecture, {name: base.sample[name]}, base.precision)
    sample = {name: sample_tensor(name, table)}
    return compare(known, describe_table(base.architecture, sample, name_dtype(table.dtype)))


def describe_table(
    architecture: str, sample: Mapping[str, TensorSample], precision: str
) -> BaseIdentity:
    """What is compared of a base: one tensor."""
    return BaseIdentity(architecture=architecture, precision=precision, sample=sample)
