"""BitFit: only the biases learn.

    h = W x + b + db

Ben Zaken, Goldberg and Ravfogel, 2022, "BitFit: Simple Parameter-efficient Fine-tuning for
Transformer-based Masked Language-models", section 3, https://arxiv.org/abs/2106.10199. The adapter
is the change db of every bias, of projections and of norms. It starts at zero, so a new adapter
changes nothing.

What differs from the paper: nothing where a base has biases; one that has none, like Llama or T5,
is refused.

Parameters: one for each value of a bias, out_features for each projection, d for each norm.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import nn

import hub

# What the paper finds to be enough: the query's bias and the one at the start of the feed-forward.
FEW = frozenset({"query", "in"})


@dataclass(frozen=True)
class BitFitConfig:
    """What a BitFit adapter is made of.

    biases: "all", or "few": those of the queries and of the feed-forward's first projection, which
        the paper finds nearly as good as all.
    layers: the layers whose biases learn, counted from 0; every bias, those outside the layers
        too, when left out.
    """

    biases: str = "all"
    layers: tuple[int, ...] | None = None

    def __post_init__(self) -> None:
        if self.biases not in ("all", "few"):
            raise hub.ConfigError(f"bitfit: biases is {self.biases!r}; choose from all, few")


class BiasChange(nn.Module):
    """The change of one bias."""

    def __init__(self, d: int) -> None:
        super().__init__()
        self.bias = nn.Parameter(torch.zeros(d))

    def forward(self, x: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
        """y, what the projection or the norm gives: (..., d) -> (..., d). x is not used."""
        bias = self._parameters["bias"]
        assert bias is not None
        return y + (bias if bias.dtype == y.dtype else bias.to(y.dtype))


class BitFit(hub.Method[BitFitConfig]):
    """The method as the hub knows it."""

    name = "bitfit"
    paper = "Ben Zaken et al., 2022, BitFit, https://arxiv.org/abs/2106.10199"
    config = BitFitConfig
    peft_type = "BITFIT"

    def choose_sites(self, sites: Sequence[hub.Site], config: BitFitConfig) -> Sequence[hub.Site]:
        """The projections and norms that have a bias."""
        biased = [site for site in sites if site.kind in ("projection", "norm") and site.bias]
        if not biased:
            raise hub.ConfigError(
                "bitfit: this base has no biases to train; lora or ia3 does without"
            )
        if config.layers is not None:
            there = sorted({site.block for site in biased if site.block is not None})
            if not config.layers or not set(config.layers) <= set(there):
                raise hub.ConfigError(
                    f"bitfit: layers is {config.layers!r}, this base has biases in layers "
                    f"{', '.join(map(str, there)) or 'none'}; choose among them"
                )
            biased = [site for site in biased if site.block in config.layers]
        chosen = [site for site in biased if config.biases == "all" or site.role in FEW]
        if not chosen:
            raise hub.ConfigError(
                "bitfit: this base has no bias at a query or at the start of a feed-forward; take "
                "biases='all'"
            )
        return chosen

    def build(self, site: hub.Site, config: BitFitConfig) -> nn.Module:
        """No change yet."""
        return BiasChange(site.out_features)

    def bias_delta(self, module: nn.Module, bias: torch.Tensor) -> torch.Tensor:
        """db."""
        assert isinstance(module, BiasChange)
        return module.bias.float()

    def neutral(self, config: BitFitConfig, name: str) -> float:
        """No change."""
        return 0.0


@hub.hookimpl
def hub_method() -> hub.Method[BitFitConfig]:
    """BitFit."""
    return BitFit()
