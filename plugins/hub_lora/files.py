"""The fields of peft's LoraConfig, there and back, and the base's weights that its files bring."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from typing import Any

import torch

import hub
from hub_lora.config import LoRAConfig

PEFT_NAMES = {
    "r": "r",
    "alpha": "lora_alpha",
    "dropout": "lora_dropout",
    "targets": "target_modules",
    "exclude": "exclude_modules",
    "layers": "layers_to_transform",
    "layers_pattern": "layers_pattern",
    "rslora": "use_rslora",
    "dora": "use_dora",
    "rank_pattern": "rank_pattern",
    "alpha_pattern": "alpha_pattern",
    "fan_in_fan_out": "fan_in_fan_out",
    "parameters": "target_parameters",
    "base_digests": "base_digests",
}
PEFT_ALPHA = 8  # what peft takes where a file does not say it

# The init_lora_weights that leave the base's weights as they are; peft's others change them, and an
# adapter trained so is wrong on the base that everyone has.
HARMLESS_STARTS = (True, False, "gaussian", "orthogonal", "eva")
CONVERTIBLE_STARTS = ("pissa", "olora", "corda")

BROUGHT = ".base_layer.weight"  # peft saves the base's embeddings beside an adapter of them


def write_fields(config: LoRAConfig) -> dict[str, Any]:
    """The fields that mean what `config` does."""
    targets = config.targets if isinstance(config.targets, str) else list(config.targets)
    return {
        "r": config.r,
        "lora_alpha": config.r if config.alpha is None else config.alpha,
        "lora_dropout": config.dropout,
        "target_modules": "all-linear" if targets == "all" else targets,
        "target_parameters": listed(config.parameters),
        "exclude_modules": listed(config.exclude),
        "layers_to_transform": listed(config.layers),
        "layers_pattern": listed(config.layers_pattern),
        "use_rslora": config.rslora,
        "use_dora": config.dora,
        "rank_pattern": dict(config.rank_pattern),
        "alpha_pattern": dict(config.alpha_pattern),
        "fan_in_fan_out": config.fan_in_fan_out,
        "bias": "none",
        "init_lora_weights": True,
        **({"base_digests": dict(config.base_digests)} if config.base_digests else {}),
    }


def read_fields(fields: Mapping[str, Any]) -> dict[str, Any]:
    """The options that peft's fields mean; ConfigError on a variant of LoRA that is not this."""
    known = dict(fields)
    options = {
        ours: known.pop(theirs)
        for ours, theirs in PEFT_NAMES.items()
        if known.get(theirs) is not None
    }
    options.setdefault("alpha", PEFT_ALPHA)
    if options.get("targets") == "all-linear":
        options["targets"] = "all"
    # peft's names of modules mean no experts, even where these are named so.
    options.setdefault("parameters", ())
    if options["parameters"]:
        options.setdefault("targets", ())
    for name, lone in (("layers", int), ("layers_pattern", str)):
        if isinstance(options.get(name), lone):
            options[name] = (options[name],)
    if known.get("bias") == "none":
        del known["bias"]
    start = known.get("init_lora_weights")
    if start in HARMLESS_STARTS:
        del known["init_lora_weights"]
    elif str(start).startswith(CONVERTIBLE_STARTS):
        raise hub.ConfigError(
            f"lora: init_lora_weights is {start!r}, which changed the base's own weights; save the "
            "adapter anew with peft's path_initial_model_for_weight_conversion, which makes a "
            "plain one of it"
        )
    # These two only count beside a field that is itself refused when it is set.
    known.pop("megatron_core", None)
    known.pop("qalora_group_size", None)
    hub.drop_neutral(known, frozenset())
    return options


def listed(value: str | tuple[Any, ...] | None) -> str | list[Any] | None:
    """As JSON keeps it; null for nothing."""
    if not value:
        return None
    return value if isinstance(value, str) else list(value)


def digest_brought(
    fields: Mapping[str, Any], tensors: Mapping[str, torch.Tensor]
) -> tuple[Mapping[str, Any], Mapping[str, torch.Tensor]]:
    """Both without the base's own weights, whose digests the fields have instead."""
    brought = {key: tensor for key, tensor in tensors.items() if key.endswith(BROUGHT)}
    if not brought:
        return fields, tensors
    digests = {key.removesuffix(BROUGHT): digest(tensor) for key, tensor in brought.items()}
    fields = {**fields, "base_digests": {**(fields.get("base_digests") or {}), **digests}}
    return fields, {key: tensor for key, tensor in tensors.items() if key not in brought}


def digest(weight: torch.Tensor) -> str:
    """sha256 of a weight and its shape; the same for the same weight in another precision."""
    values = weight.detach().to("cpu", torch.bfloat16).contiguous().view(torch.int16)
    return hashlib.sha256(str(tuple(weight.shape)).encode() + values.numpy().tobytes()).hexdigest()
