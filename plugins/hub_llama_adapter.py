"""LLaMA-Adapter: a gated prompt beside what the topmost attentions look at.

    o' = o + g softmax(Q K_P^T / sqrt(head_dim)) V_P       K_P = W_K P + b_K,  V_P = W_V P + b_V

Zhang et al., 2023, "LLaMA-Adapter: Efficient Fine-tuning of Language Models with Zero-init
Attention", section 3.2, equations 5 to 9, https://arxiv.org/abs/2303.16199. P: (n, d_model) and the
gate g are learned, of their own for each attention; W_K, W_V are the base's own and stay frozen; o
is what the attention gives before its output projection. g starts at zero, so a new adapter
changes nothing.

What differs from the paper: the scores of the words and of the prompt are never in one row, which
gives the same, since each has its own softmax. As in peft there is one gate for all heads, and it
is not squashed. The prompt's keys are not turned by a rotary embedding, nor normed.

Parameters: n d_model + 1 for each attention.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import nn
from torch.nn import functional as F

import hub

LEFT_OUT = 2  # the paper adapts the topmost 30 of 32 layers


@dataclass(frozen=True)
class LlamaAdapterConfig:
    """What a LLaMA-Adapter is made of.

    tokens: n, how many positions of prompt each attention has.
    layers: how many attentions get one, counted from the top; all but the two lowest when left out.
    """

    tokens: int = 10
    layers: int | None = None

    def __post_init__(self) -> None:
        for where, value in (("tokens", self.tokens), ("layers", self.layers)):
            if value is not None and value < 1:
                raise hub.ConfigError(
                    f"llama_adapter: {where} is {value}; it is a whole number from 1"
                )


class GatedPrompt(nn.Module):
    """P and g of one attention."""

    keys: torch.Tensor | None
    values: torch.Tensor | None

    def __init__(self, site: hub.Site, n: int) -> None:
        super().__init__()
        self.feeds = site.feeds
        self.adaption_prompt = nn.Parameter(torch.randn(1, n, site.width))
        self.adaption_gate = nn.Parameter(torch.zeros(1))
        self.register_buffer("keys", None, persistent=False)
        self.register_buffer("values", None, persistent=False)
        self.base: hub.Base | None = None
        self.stamp = 0

    def read_prompt(self) -> tuple[torch.Tensor, torch.Tensor]:
        """K_P and V_P, (n, width) each, by the base's own projections."""
        assert self.base is not None
        keys, values = (self.project(self.base, path) for path in self.feeds)
        return keys, values

    def project(self, base: hub.Base, path: str) -> torch.Tensor:
        """What the projection at `path` makes of P, (n, width)."""
        weight = base.read_weight(path)
        bias: Any = getattr(base.model.get_submodule(path), "bias", None)
        bias = None if bias is None else bias.detach().to(weight.dtype)
        return F.linear(self.adaption_prompt[0].to(weight.dtype), weight, bias)

    def forward(self, x: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
        """x, the query: (batch, heads, seq, head_dim); y, what the attention gives: (batch, seq,
        heads, head_dim) -> the same."""
        keys, values = self.keys, self.values
        learns = self.adaption_prompt.requires_grad
        if keys is None or values is None or learns or self.stamp != self.adaption_prompt._version:
            keys, values = self.read_prompt()
        batch, heads, seq, width = x.shape
        # The query heads that look at one key head stand side by side: (batch, key heads, those
        # heads' positions, head_dim).
        keys = keys.to(x.dtype).view(len(keys), -1, width).transpose(0, 1)
        values = values.to(x.dtype).view(len(values), len(keys), -1).transpose(0, 1)
        query = x.reshape(batch, len(keys), -1, width)
        scores = query @ keys.transpose(1, 2) / math.sqrt(width)
        weights = self.adaption_gate * F.softmax(scores, dim=-1, dtype=torch.float32)
        seen = weights.to(x.dtype) @ values
        return y + seen.view(batch, heads, seq, -1).transpose(1, 2).to(y.dtype)


class LlamaAdapter(hub.Method[LlamaAdapterConfig]):
    """The method as the hub knows it."""

    name = "llama_adapter"
    paper = "Zhang et al., 2023, LLaMA-Adapter, https://arxiv.org/abs/2303.16199"
    config = LlamaAdapterConfig
    peft_type = "ADAPTION_PROMPT"

    def choose_sites(
        self, sites: Sequence[hub.Site], config: LlamaAdapterConfig
    ) -> Sequence[hub.Site]:
        """The topmost attentions.

        Raises ConfigError where there are fewer, or one can't be reached.
        """
        there = [site for site in sites if site.kind == "attention"]
        if not there:
            raise hub.ConfigError("llama_adapter: this base has no attention to act at")
        wanted = max(1, len(there) - LEFT_OUT) if config.layers is None else config.layers
        if wanted > len(there):
            raise hub.ConfigError(
                f"llama_adapter: layers is {wanted}, this base has {len(there)} attentions; "
                "ask for at most that many"
            )
        chosen = there[-wanted:]
        projections = {site.path: site for site in sites if site.kind == "projection"}
        for site in chosen:
            reason = find_obstacle(site, projections)
            if reason is not None:
                raise hub.ConfigError(
                    f"llama_adapter: {site.path} {reason}, so a prompt can't be looked at beside "
                    "it; take prefix, which puts one in front"
                )
        return chosen

    def settle_config(
        self, config: LlamaAdapterConfig, sites: Sequence[hub.Site]
    ) -> LlamaAdapterConfig:
        """Remember how many they are."""
        return replace(config, layers=len(sites))

    def build(
        self, site: hub.Site, config: LlamaAdapterConfig, shared: nn.Module | None = None
    ) -> nn.Module:
        """P random, as in the authors' code, and g zero."""
        return GatedPrompt(site, config.tokens)

    def bind(self, module: nn.Module, site: hub.Site, base: hub.Base) -> None:
        """Give it the base's projections; where it does not learn it needs them but once."""
        assert isinstance(module, GatedPrompt)
        module.base = base
        if not module.adaption_prompt.requires_grad:
            with torch.no_grad():
                module.keys, module.values = module.read_prompt()
            module.stamp = module.adaption_prompt._version

    def neutral(self, config: LlamaAdapterConfig, name: str) -> float:
        """With a gate of zero nothing is added."""
        return 0.0

    def write_config(self, config: LlamaAdapterConfig) -> dict[str, Any]:
        """The fields of peft's AdaptionPromptConfig, which finds the attentions' name itself."""
        return {
            "adapter_len": config.tokens,
            "adapter_layers": config.layers,
            "target_modules": None,
        }

    def read_config(self, fields: Mapping[str, Any]) -> LlamaAdapterConfig:
        """What peft's fields mean. Raises ConfigError on one that is unknown."""
        known = {name: value for name, value in fields.items() if name != "target_modules"}
        options = {
            "tokens": known.pop("adapter_len", None),
            "layers": known.pop("adapter_layers", None),
        }
        hub.drop_neutral(known, frozenset())
        return self.make_config(**{k: v for k, v in options.items() if v is not None})


def find_obstacle(site: hub.Site, projections: Mapping[str, hub.Site]) -> str | None:
    """Why an attention can't have a prompt beside it; None where it can. `projections` are the
    base's by path."""
    if not site.direct:
        return "does not go through transformers' attention functions"
    feeds = [projections[path] for path in site.feeds if path in projections]
    if len(site.feeds) != 2 or not {feed.role for feed in feeds} <= {"key", "value"}:
        made = ", ".join(site.feeds) or "nothing that is known"
        return f"has its keys and values from {made} and not from a projection each"
    if len({feed.in_features for feed in feeds}) > 1:
        return "makes its keys and its values from vectors of different widths"
    return None


@hub.hookimpl
def hub_method() -> hub.Method[LlamaAdapterConfig]:
    """LLaMA-Adapter."""
    return LlamaAdapter()
