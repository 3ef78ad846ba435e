"""Mixing the tensors of several adapters by name, for methods that need no more."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import torch

from hub.combining.rules import TOGETHER, Rule
from hub.composition import MAKE_FUSE
from hub.errors import ConfigError

if TYPE_CHECKING:
    from hub.method import Method


def mix_tensors(
    method: Method[Any], config: Any, tensors: Sequence[Mapping[str, torch.Tensor]], rule: Rule
) -> dict[str, torch.Tensor]:
    """The tensors of each name mixed, in sorted order, as `Method.neutral` says.

    Raises ConfigError on names and shapes that differ, a tensor of which the method does not say
    when it changes nothing, and a rule that is for changes kept as two factors.
    """
    if method.leads:
        raise ConfigError(
            f"{method.name}: what leads a fuse belongs to the parts that it was made for; make one "
            f"for all of them with {MAKE_FUSE}"
        )
    if rule.factored:
        raise ConfigError(
            f"{method.name}: how is {rule.how!r}, which joins changes that are kept as two "
            f"factors, and these are not; choose from {', '.join(rule.MIXES)}"
        )
    mixed: dict[str, torch.Tensor] = {}
    for name in sorted({name for part in tensors for name in part}):
        held = [part[name] for part in tensors]
        neutral = method.neutral(config, name)
        if neutral is None or not held[0].is_floating_point():
            raise ConfigError(
                f"{method.name}: the method does not say at which value {name} changes nothing, so "
                f"there is no difference to mix; {TOGETHER}"
            )
        shapes = list(dict.fromkeys(tuple(tensor.shape) for tensor in held))
        if len(shapes) > 1:
            raise ConfigError(
                f"{method.name}: {name} is {shapes[0]} in one and {shapes[1]} in another; only "
                "tensors of one shape can be combined"
            )
        ds = held if neutral == 0 else [tensor - neutral for tensor in held]
        mixed[name] = rule.mix(ds, rule.weights)
        if neutral != 0:
            mixed[name] += neutral
    return mixed
