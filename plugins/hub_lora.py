"""LoRA: a low-rank update beside a frozen projection.

    h = W x + s B A x,    A: (r, in_features), B: (out_features, r), s = alpha / r

Hu et al., 2021, "LoRA: Low-Rank Adaptation of Large Language Models", section 4.1, equation 3,
https://arxiv.org/abs/2106.09685. B starts at zero, so a new adapter changes nothing.

What differs from the paper: A starts Kaiming-uniform as in the authors' released code, not
Gaussian; `rslora` takes s = alpha / sqrt(r) (Kalajdzievski, 2023, equation 3,
https://arxiv.org/abs/2312.03732); a rank or an alpha of their own for some modules, as in peft.

Parameters: r (in_features + out_features) for each projection.
"""

from __future__ import annotations

import math
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import torch
from torch import nn
from torch.nn import functional as F

import hub

# Starts that leave the base's weights as they are; peft's others change them, and an adapter
# trained so is wrong on the base that everyone has.
HARMLESS_STARTS = (True, False, "gaussian", "orthogonal", "eva")


@dataclass(frozen=True)
class LoRAConfig:
    """What a LoRA adapter is made of.

    r: the rank, 1 or more.
    alpha: the numerator of the scaling; r when left out.
    dropout: the share of a projection's inputs zeroed while training, 0 to 1.
    targets: where it acts: "attention", "feedforward", "all" (every projection but the head), a
        regular expression that a module's whole path matches, or names that its path ends with.
    rslora: divide alpha by the square root of the rank.
    rank_pattern, alpha_pattern: other ranks and alphas, by a pattern for the end of a path.
    exclude: paths to leave out, as a regular expression or as names.
    layers, layers_pattern: only these layers' modules, counted in the module list of that name.
    fan_in_fan_out: the layers keep their weight as (in, out), like GPT-2's; found, not chosen.
    """

    r: int = 8
    alpha: float | None = None
    dropout: float = 0.0
    targets: str | tuple[str, ...] = "all"
    rslora: bool = False
    rank_pattern: Mapping[str, int] = field(default_factory=dict)
    alpha_pattern: Mapping[str, float] = field(default_factory=dict)
    exclude: str | tuple[str, ...] = ()
    layers: tuple[int, ...] | None = None
    layers_pattern: tuple[str, ...] = ()
    fan_in_fan_out: bool = False

    def __post_init__(self) -> None:
        for where, r in (("r", self.r), *self.rank_pattern.items()):
            if not isinstance(r, int) or isinstance(r, bool) or r < 1:
                raise hub.ConfigError(f"lora: {where} is {r!r}; a rank is a whole number from 1")
        for where, alpha in (("alpha", self.alpha), *self.alpha_pattern.items()):
            number = isinstance(alpha, int | float) and math.isfinite(alpha)
            if alpha is not None and not number:
                raise hub.ConfigError(f"lora: {where} is {alpha!r}; it must be a finite number")
        if not 0 <= self.dropout < 1:
            raise hub.ConfigError(f"lora: dropout is {self.dropout!r}; it must be in [0, 1)")
        for key in (*self.rank_pattern, *self.alpha_pattern):
            compile_pattern(key)

    def rank(self, path: str) -> int:
        """The rank at the module of this path."""
        return int(self.rank_pattern.get(find_pattern(self.rank_pattern, path), self.r))

    def scaling(self, path: str) -> float:
        """s in the equation, at the module of this path."""
        r = self.rank(path)
        alpha = self.alpha_pattern.get(find_pattern(self.alpha_pattern, path), self.alpha)
        return (r if alpha is None else alpha) / (math.sqrt(r) if self.rslora else r)


class LoRALayer(nn.Module):
    """The two factors beside one projection."""

    def __init__(self, site: hub.Site, config: LoRAConfig) -> None:
        super().__init__()
        r = config.rank(site.path)
        self.scaling = config.scaling(site.path)
        self.dropout = config.dropout
        self.lora_A = nn.Linear(site.in_features, r, bias=False)
        self.lora_B = nn.Linear(r, site.out_features, bias=False)
        nn.init.kaiming_uniform_(self.lora_A.weight, a=math.sqrt(5))
        nn.init.zeros_(self.lora_B.weight)

    def forward(self, x: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
        """x: (..., in_features), y: (..., out_features) -> (..., out_features)."""
        # Read from torch's own tables: looking up self.lora_A.weight and self.lora_B.weight costs
        # as much as one of the products while decoding (benchmarks/overhead.py).
        modules: dict[str, Any] = self._modules
        A = modules["lora_A"]._parameters["weight"]
        B = modules["lora_B"]._parameters["weight"]
        if x.dtype != A.dtype:
            x = x.to(A.dtype)
        if self.dropout and self.training:
            x = F.dropout(x, self.dropout)
        h = F.linear(x, A)
        # To be differentiated, sum and product are one operation, which spares a tensor of y's size
        # on the way and another on the way back; otherwise the sum takes the place of the change.
        if torch.is_grad_enabled():
            if h.dtype != y.dtype:
                return y + F.linear(h * self.scaling, B).to(y.dtype)
            rows, ranks = y.reshape(-1, y.shape[-1]), h.reshape(-1, h.shape[-1])
            return torch.addmm(rows, ranks, B.t(), alpha=self.scaling).view(y.shape)
        change = F.linear(h, B)
        if change.dtype != y.dtype:
            change = change.to(y.dtype)
        return torch.add(y, change, alpha=self.scaling, out=change)


class LoRA(hub.Method[LoRAConfig]):
    """The method as the hub knows it."""

    name = "lora"
    paper = "Hu et al., 2021, LoRA: Low-Rank Adaptation, https://arxiv.org/abs/2106.09685"
    config = LoRAConfig
    peft_type = "LORA"

    def choose_sites(self, sites: Sequence[hub.Site], config: LoRAConfig) -> Sequence[hub.Site]:
        """The projections that `targets` names and nothing excludes."""
        return hub.choose_targets(
            "lora",
            sites,
            config.targets,
            exclude=config.exclude,
            layers=config.layers,
            layers_pattern=config.layers_pattern,
        )

    def build(self, site: hub.Site, config: LoRAConfig) -> nn.Module:
        """The layer for one projection, A random and B zero."""
        return LoRALayer(site, config)

    def settle_config(self, config: LoRAConfig, sites: Sequence[hub.Site]) -> LoRAConfig:
        """Name the modules by their whole paths, which mean the same to us, peft and a server.

        Raises ConfigError on a pattern for ranks or alphas that matches none of them.
        """
        for key in (*config.rank_pattern, *config.alpha_pattern):
            if not any(find_pattern([key], site.path) == key for site in sites):
                raise hub.ConfigError(
                    f"lora: the pattern {key!r} matches none of the {len(sites)} modules chosen, "
                    f"such as {sites[0].path}"
                )
        return replace(
            config,
            alpha=config.r if config.alpha is None else config.alpha,
            targets=tuple(site.path for site in sites),
            exclude=(),
            layers=None,
            layers_pattern=(),
            fan_in_fan_out=all(site.transposed for site in sites),
        )

    def weight_delta(self, module: nn.Module, weight: torch.Tensor) -> torch.Tensor:
        """s B A, (out_features, in_features)."""
        assert isinstance(module, LoRALayer)
        A, B = module.lora_A.weight.float(), module.lora_B.weight.float()
        return module.scaling * (B @ A)

    def write_config(self, config: LoRAConfig) -> dict[str, Any]:
        """The fields of peft's LoraConfig."""
        as_list = list(config.targets) if isinstance(config.targets, tuple) else config.targets
        return {
            "r": config.r,
            "lora_alpha": config.r if config.alpha is None else config.alpha,
            "lora_dropout": config.dropout,
            "target_modules": "all-linear" if as_list == "all" else as_list,
            "exclude_modules": listed(config.exclude),
            "layers_to_transform": listed(config.layers),
            "layers_pattern": listed(config.layers_pattern),
            "use_rslora": config.rslora,
            "rank_pattern": dict(config.rank_pattern),
            "alpha_pattern": dict(config.alpha_pattern),
            "fan_in_fan_out": config.fan_in_fan_out,
            "bias": "none",
            "init_lora_weights": True,
        }

    def read_config(self, fields: Mapping[str, Any]) -> LoRAConfig:
        """What peft's fields mean; ConfigError on a variant of LoRA that is not this one."""
        known = dict(fields)
        options = {
            ours: known.pop(theirs)
            for ours, theirs in PEFT_NAMES.items()
            if known.get(theirs) is not None
        }
        options.setdefault("alpha", PEFT_ALPHA)
        if options.get("targets") == "all-linear":
            options["targets"] = "all"
        for name in ("targets", "exclude", "layers", "layers_pattern"):
            value = options.get(name)
            if isinstance(value, int) or (name == "layers_pattern" and isinstance(value, str)):
                options[name] = (value,)
        if known.get("bias") == "none":
            del known["bias"]
        if known.get("init_lora_weights") in HARMLESS_STARTS:
            del known["init_lora_weights"]
        # These two only count beside a field that is itself refused when it is set.
        known.pop("megatron_core", None)
        known.pop("qalora_group_size", None)
        hub.drop_neutral(known, frozenset())
        return self.make_config(**options)


PEFT_ALPHA = 8  # what peft takes where a file does not say it
PEFT_NAMES = {
    "r": "r",
    "alpha": "lora_alpha",
    "dropout": "lora_dropout",
    "targets": "target_modules",
    "exclude": "exclude_modules",
    "layers": "layers_to_transform",
    "layers_pattern": "layers_pattern",
    "rslora": "use_rslora",
    "rank_pattern": "rank_pattern",
    "alpha_pattern": "alpha_pattern",
    "fan_in_fan_out": "fan_in_fan_out",
}


def compile_pattern(text: str) -> re.Pattern[str]:
    """Raises ConfigError on what is no regular expression."""
    try:
        return re.compile(text)
    except re.error as error:
        raise hub.ConfigError(f"lora: {text!r} is no regular expression: {error}") from error


def find_pattern(patterns: Iterable[str], path: str) -> str:
    """The first key that matches the end of the path; the path itself where none does."""
    return next((key for key in patterns if re.match(rf"(.*\.)?({key})$", path)), path)


def listed(value: str | tuple[Any, ...] | None) -> str | list[Any] | None:
    """As JSON keeps it; null for nothing."""
    if not value:
        return None
    return value if isinstance(value, str) else list(value)


@hub.hookimpl
def hub_method() -> hub.Method[LoRAConfig]:
    """LoRA."""
    return LoRA()
