"""Where LoRA acts, what it builds there, and what that makes of the weights of the base."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

import torch
from torch import nn

import hub
from hub_lora.combining import combine_factors
from hub_lora.config import LoRAConfig, find_pattern, find_place
from hub_lora.experts import stack_experts
from hub_lora.files import digest, read_fields, write_fields
from hub_lora.layers import Layer, LoRAEmbedding, LoRALayer
from hub_lora.magnitudes import (
    DoRAEmbedding,
    DoRALayer,
    WithMagnitude,
    keep_gain,
    measure_gain,
    read_rows,
    start_magnitude,
)


class LoRA(hub.Method[LoRAConfig]):
    """The method as the hub knows it."""

    name = "lora"
    paper = "Hu et al., 2021, LoRA: Low-Rank Adaptation, https://arxiv.org/abs/2106.09685"
    config = LoRAConfig
    peft_type = "LORA"

    def choose_sites(self, sites: Sequence[hub.Site], config: LoRAConfig) -> Sequence[hub.Site]:
        """The projections that `targets` names and nothing excludes; experts by `parameters`, where
        it is given."""
        named = config.parameters
        chosen: list[hub.Site] = []
        if config.targets or not named:
            chosen += hub.choose_targets(
                "lora",
                sites if named is None else [site for site in sites if site.expert is None],
                config.targets,
                exclude=config.exclude,
                layers=config.layers,
                layers_pattern=config.layers_pattern,
            )
        if named:
            experts = [site for site in sites if site.expert is not None]
            if not experts:
                raise hub.ConfigError(
                    f"lora: parameters names {named[0]!r}, and this base has no stacked experts; "
                    "name projections with targets"
                )
            chosen += hub.choose_targets("lora", experts, named)
        places = {find_place(site) for site in chosen if site.expert is not None}
        left = {site for site in sites if site.part and find_place(site) in places} - set(chosen)
        if left:
            raise hub.ConfigError(
                f"lora: targets leaves out {next(iter(left)).path}, and the experts of a parameter "
                "go together; name the parameter"
            )
        return chosen

    def build(self, site: hub.Site, config: LoRAConfig) -> nn.Module:
        """The layer for one projection: a new one changes nothing."""
        if site.role == "embedding":
            return (DoRAEmbedding if config.dora else LoRAEmbedding)(site, config)
        return (DoRALayer if config.dora else LoRALayer)(site, config)

    def start(self, module: nn.Module, site: hub.Site, config: LoRAConfig, base: hub.Base) -> None:
        """DoRA's m is ||W|| at first."""
        if isinstance(module, WithMagnitude):
            module.base = base
            start_magnitude(module)

    def bind(self, module: nn.Module, site: hub.Site, base: hub.Base) -> None:
        """Give a layer the base where it computes with it.

        Raises ConfigError where the adapter's file holds other weights of the base than it has.
        """
        assert isinstance(module, Layer)
        known = module.base_digest
        if known is not None and known != digest(base.read_weight()):
            raise hub.ConfigError(
                f"lora: the adapter's file holds weights of {site.path} that are not this base's: "
                "its vocabulary was resized or trained; attach it to the base that it was saved "
                "with"
            )
        if isinstance(module, LoRAEmbedding | DoRALayer):
            module.base = base
        if isinstance(module, WithMagnitude):
            keep_gain(module)

    def settle_config(self, config: LoRAConfig, sites: Sequence[hub.Site]) -> LoRAConfig:
        """Name the modules by their whole paths, which mean the same to us, peft and a server.

        Raises ConfigError on a pattern for ranks or alphas that matches none of them.
        """
        for key in (*config.rank_pattern, *config.alpha_pattern):
            if not any(find_pattern([key], find_place(site)) == key for site in sites):
                raise hub.ConfigError(
                    f"lora: the pattern {key!r} matches none of the {len(sites)} modules chosen, "
                    f"such as {sites[0].path}"
                )
        layers = [site for site in sites if site.expert is None and site.role != "embedding"]
        return replace(
            config,
            alpha=config.r if config.alpha is None else config.alpha,
            targets=tuple(site.path for site in sites if site.expert is None),
            parameters=tuple(dict.fromkeys(find_place(s) for s in sites if s.expert is not None)),
            exclude=(),
            layers=None,
            layers_pattern=(),
            fan_in_fan_out=bool(layers) and all(site.transposed for site in layers),
        )

    def weight_delta(self, module: nn.Module, weight: torch.Tensor) -> torch.Tensor:
        """s B A, (out_features, in_features); with magnitudes what they make of W too."""
        assert isinstance(module, Layer)
        change = module.multiply()
        if not isinstance(module, WithMagnitude):
            return change
        rows = weight if module.base is None else read_rows(module)
        gain = measure_gain(module, rows.to(change.device))[:, None]
        return (gain - 1) * weight.to(change.device) + gain * change

    def bias_delta(self, module: nn.Module, bias: torch.Tensor) -> torch.Tensor | None:
        """Magnitudes act on all but the base's own bias, so on what others added to it."""
        if not isinstance(module, DoRALayer) or module.base is None:
            return None
        own = module.base.read_bias()
        if own is None or torch.equal(own.float(), bias):
            return None
        return (measure_gain(module, read_rows(module)) - 1) * (bias - own)

    def combine(
        self,
        configs: Sequence[LoRAConfig],
        tensors: Sequence[Mapping[str, torch.Tensor]],
        rule: hub.Rule,
    ) -> tuple[LoRAConfig, Mapping[str, torch.Tensor]]:
        """Each module's s B A by the rule. In the result s is 1, and magnitudes are averaged."""
        return combine_factors(configs, tensors, rule)

    def write_tensors(
        self, config: LoRAConfig, tensors: Mapping[str, torch.Tensor]
    ) -> Mapping[str, torch.Tensor]:
        """peft keeps the factors of a parameter's experts in one tensor each."""
        return stack_experts(config, tensors)

    def write_config(self, config: LoRAConfig) -> dict[str, Any]:
        """The fields of peft's LoraConfig."""
        return write_fields(config)

    def read_config(self, fields: Mapping[str, Any]) -> LoRAConfig:
        """What peft's fields mean; ConfigError on a variant of LoRA that is not this one."""
        return self.make_config(**read_fields(fields))
