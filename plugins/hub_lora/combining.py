"""Several adapters made one: each module's s B A by a rule, magnitudes averaged."""

from __future__ import annotations

import math
import re
from collections import Counter
from collections.abc import Collection, Mapping, Sequence
from dataclasses import replace

import torch

import hub
from hub_lora.config import LoRAConfig

FACTORS = (".lora_A.weight", ".lora_embedding_A")  # what the names of A end with
MAGNITUDE = ".lora_magnitude_vector"


def combine_factors(
    configs: Sequence[LoRAConfig], tensors: Sequence[Mapping[str, torch.Tensor]], rule: hub.Rule
) -> tuple[LoRAConfig, Mapping[str, torch.Tensor]]:
    """The combined adapter, in which s is 1.

    Raises ConfigError on an adapter that lacks tensors, on magnitudes that have no mean, and on
    adapters of different bases.
    """
    parts = list(zip(configs, tensors, rule.weights, strict=True))
    combined, ranks = average_magnitudes(configs, tensors, rule), {}
    places = {place for config in configs for place in config.parameters or ()}
    for name in sorted(set().union(*(list_factors(config, part) for config, part, _ in parts))):
        path, _, factor = name.rpartition(".lora_")
        other = f"{path}.lora_{factor.replace('A', 'B')}"
        place = path.rpartition(".")[0]
        place = place if place in places else path
        pairs, weights = [], []
        for config, part, weight in parts:
            if name in part:
                pairs.append((part[other], part[name]))
                weights.append(weight * config.scaling(place))
        combined[other], combined[name] = rule.mix_factors(pairs, weights)
        ranks[place] = combined[name].shape[0]
    return join_configs(configs, ranks, places), combined


def list_factors(config: LoRAConfig, tensors: Mapping[str, torch.Tensor]) -> list[str]:
    """The names of A of every module. Raises ConfigError where one lacks what it should have."""
    names = [name for name in tensors if name.endswith(FACTORS)]
    named = config.targets if isinstance(config.targets, tuple) else ()
    first, second = FACTORS
    left = [n for n in named if n + first not in tensors and n + second not in tensors]
    # A name without a layer's number is no path, and may mean nothing.
    missing = [name for name in left if any(part.isdigit() for part in name.split("."))]
    if (3 if config.dora else 2) * len(names) != len(tensors):
        whole = Counter(name.rpartition(".lora_")[0] for name in tensors)
        missing += [path for path, count in whole.items() if count != (3 if config.dora else 2)]
    if missing:
        raise hub.ConfigError(
            f"lora: one of them has too few or too many tensors for {min(missing)}; fetch the "
            "adapter anew"
        )
    return names


def average_magnitudes(
    configs: Sequence[LoRAConfig], tensors: Sequence[Mapping[str, torch.Tensor]], rule: hub.Rule
) -> dict[str, torch.Tensor]:
    """The weighted mean of each m.

    m is a length: what it is where nothing changes, ||W||, only the base knows, so there is no
    other way to combine several. Raises ConfigError on a rule that is none, and where a part lacks
    one.
    """
    if not any(config.dora for config in configs):
        return {}
    names = [{name for name in part if name.endswith(MAGNITUDE)} for part in tensors]
    for own in names:
        for name in sorted(own ^ names[0]):
            raise hub.ConfigError(
                f"lora: {name.removesuffix(MAGNITUDE)} has a magnitude in one and none in another, "
                "and what it would be there only the base knows; combine adapters with dora at the "
                "same modules"
            )
    if not (rule.sums and math.isclose(sum(rule.weights), 1, abs_tol=1e-6)):
        raise hub.ConfigError(
            "lora: magnitudes (dora) are lengths and no differences, so they can only be averaged; "
            f"take linear, cat or svd, with weights that sum to 1, not {sum(rule.weights):g}"
        )
    parts = list(zip(tensors, rule.weights, strict=True))
    return {
        name: torch.stack([part[name] * weight for part, weight in parts]).sum(0)
        for name in sorted(names[0])
    }


def join_configs(
    configs: Sequence[LoRAConfig], ranks: Mapping[str, int], places: Collection[str]
) -> LoRAConfig:
    """Of what was combined of adapters with these, by the ranks at its modules, where s is 1.
    `places` are those of stacked experts."""
    r = max(ranks.values())
    others = {
        "^(?:" + "|".join(re.escape(path) for path in ranks if ranks[path] == rank) + ")": rank
        for rank in sorted({*ranks.values()} - {r})
    }
    digests: dict[str, str] = {}
    for config in configs:
        for path, known in config.base_digests.items():
            if digests.setdefault(path, known) != known:
                raise hub.ConfigError(
                    f"lora: their files hold different weights of the base's {path}; combine "
                    "adapters of one base"
                )
    return replace(
        configs[0],
        r=r,
        alpha=r,
        rslora=False,
        rank_pattern=others,
        alpha_pattern=dict(others),
        targets=tuple(path for path in ranks if path not in places),
        parameters=tuple(path for path in ranks if path in places),
        exclude=(),
        layers=None,
        layers_pattern=(),
        fan_in_fan_out=all(config.fan_in_fan_out for config in configs),
        base_digests=digests,
    )
