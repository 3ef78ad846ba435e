"""The factors of stacked experts, as peft keeps them and back.

Here each expert of a parameter has a layer of its own, PARAMETER.NUMBER. peft has one pair for all
of a parameter: A, (experts * r, in_features), by expert and then rank; B, (out_features, r *
experts), by rank and then expert. It names the pair by the module, and nests the parameters of one
module, the last outermost.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping

import torch

import hub
from hub_lora.config import LoRAConfig, compile_pattern


def stack_experts(
    config: LoRAConfig, tensors: Mapping[str, torch.Tensor]
) -> dict[str, torch.Tensor]:
    """The tensors as peft keeps them."""
    kept = dict(tensors)
    for place in config.parameters or ():
        module, _, name = place.rpartition(".")
        names = order_parameters(
            path for path in config.parameters or () if path.rpartition(".")[0] == module
        )
        start = module + ".base_layer" * (len(names) - 1 - names.index(name))
        for factor in ("lora_A.weight", "lora_B.weight"):
            found: list[torch.Tensor] = []
            while f"{place}.{len(found)}.{factor}" in kept:
                found.append(kept.pop(f"{place}.{len(found)}.{factor}"))
            if found:
                joined = torch.cat(found) if "A" in factor else torch.stack(found, -1).flatten(1)
                kept[f"{start}.{factor}"] = joined
    return kept


def unstack_experts(
    config: LoRAConfig, tensors: Mapping[str, torch.Tensor]
) -> tuple[list[str], dict[str, torch.Tensor]]:
    """The way back: the whole paths of the parameters, and the tensors by ours.

    Raises ConfigError on a tensor that no parameter explains.
    """
    places: dict[str, None] = {}
    kept: dict[str, torch.Tensor] = {}
    for key, tensor in tensors.items():
        found = re.fullmatch(r"(.*?)((?:\.base_layer)*)\.lora_([AB])\.weight", key)
        module = found[1] if found else ""
        names = order_parameters(
            path
            for path in config.parameters or ()
            if ends_with(module, path.rpartition(".")[0]) and not is_target(module, config)
        )
        if found is None or not names:
            kept[key] = tensor
            continue
        depth = found[2].count(".base_layer")
        if depth >= len(names):
            raise hub.ConfigError(
                f"lora: {key!r} belongs to a parameter that target_parameters does not name; it "
                f"names {', '.join(config.parameters or ())}"
            )
        place = f"{module}.{names[len(names) - 1 - depth]}"
        places[place] = None
        r = config.rank(place)
        if tensor.dim() != 2 or tensor.shape[0 if found[3] == "A" else 1] % r:
            raise hub.ConfigError(
                f"lora: {key!r} is {tuple(tensor.shape)}, which is no stack of experts of rank {r}"
            )
        if found[3] == "A":
            parts = tensor.view(-1, r, tensor.shape[1]).unbind(0)
        else:
            parts = tensor.view(len(tensor), r, -1).unbind(-1)
        for expert, part in enumerate(parts):
            kept[f"{place}.{expert}.lora_{found[3]}.weight"] = part.contiguous()
    written = list(config.parameters or ())
    # Whole paths stay in the order of the file, so that it is written again as it is.
    ordered = sorted(places, key=lambda path: written.index(path) if path in written else -1)
    return ordered, kept


def order_parameters(paths: Iterable[str]) -> list[str]:
    """The names of one module's parameters in the order in which it has them."""
    names = {path.rpartition(".")[2] for path in paths}
    return sorted(names, key=lambda name: (name == "down_proj", name))


def is_target(path: str, config: LoRAConfig) -> bool:
    """Whether `targets`, names or a pattern, mean the module of this path."""
    if isinstance(config.targets, str):
        return compile_pattern(config.targets).fullmatch(path) is not None
    return any(ends_with(path, name) for name in config.targets)


def ends_with(path: str, name: str) -> bool:
    """Whether a path is `name` or ends with it; every path ends with no name."""
    return not name or path == name or path.endswith(f".{name}")
