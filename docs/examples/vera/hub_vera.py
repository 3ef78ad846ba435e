"""VeRA (Kopiczko et al., 2023, equation 2): random matrices for all layers, two vectors for each.

h = W x + b * (B (d * (A x))),    A: (r, in_features), B: (out_features, r), d: (r,), b: (out,)
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any, Literal

import torch
from torch import nn

import hub


@dataclass(frozen=True)
class VeRAConfig:
    """What it is made of, in peft's words.

    r: the rank.
    d_initial: what d starts from.
    target_modules: attention, feedforward, all, a regular expression, or names of modules.
    bias, init_weights, save_projection: what peft's files must say.
    """

    r: int = 256
    d_initial: float = 0.1
    target_modules: str | tuple[str, ...] = "attention"
    bias: Literal["none"] = "none"
    init_weights: Literal[True] = True
    save_projection: Literal[True] = True


class VeRALayer(nn.Module):
    def __init__(self, site: hub.Site, config: VeRAConfig, shared: nn.ModuleDict) -> None:
        super().__init__()
        self.frozen: Any = shared["base_model"]
        self.vera_lambda_d = nn.Parameter(torch.full((config.r,), config.d_initial))
        self.vera_lambda_b = nn.Parameter(torch.zeros(site.out_features))

    def forward(self, x: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
        """x: (..., in_features), y: (..., out_features) -> (..., out_features)."""
        d, b = self.vera_lambda_d, self.vera_lambda_b
        A, B = self.frozen.vera_A[:, : x.shape[-1]], self.frozen.vera_B[: len(b)]
        change: torch.Tensor = (x.to(d.dtype) @ A.to(d.dtype).T * d) @ B.to(d.dtype).T * b
        return y + change.to(y.dtype)


class VeRA(hub.Method[VeRAConfig]):
    name = "vera"
    paper = "Kopiczko et al., 2023, VeRA, https://arxiv.org/abs/2310.11454"
    config = VeRAConfig
    peft_type = "VERA"
    plain_names = frozenset({"base_model.vera_A", "base_model.vera_B"})

    def choose_sites(self, sites: Sequence[hub.Site], config: VeRAConfig) -> Sequence[hub.Site]:
        return hub.choose_targets("vera", sites, config.target_modules)

    def settle_config(self, config: VeRAConfig, sites: Sequence[hub.Site]) -> VeRAConfig:
        return replace(config, target_modules=tuple(site.path for site in sites))

    def build_shared(self, sites: Sequence[hub.Site], config: VeRAConfig) -> nn.Module:
        inputs, outputs = max(s.in_features for s in sites), max(s.out_features for s in sites)
        shared = nn.ModuleDict({"base_model": nn.Module()})
        for name, *shape in (("vera_A", config.r, inputs), ("vera_B", outputs, config.r)):
            shared["base_model"].register_buffer(name, nn.init.kaiming_uniform_(torch.empty(shape)))
        return shared

    def build(self, site: hub.Site, config: VeRAConfig, *shared: Any) -> nn.Module:
        return VeRALayer(site, config, *shared)

    def weight_delta(self, module: nn.Module, weight: torch.Tensor) -> Any:
        return module(torch.eye(weight.shape[1]).to(weight), torch.zeros_like(weight.T)).T


@hub.hookimpl
def hub_method() -> hub.Method[VeRAConfig]:
    return VeRA()
