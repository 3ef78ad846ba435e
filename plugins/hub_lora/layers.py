"""The two factors beside a projection, and beside an embedding."""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import nn
from torch.nn import functional as F

import hub
from hub_lora.config import LoRAConfig, find_place
from hub_lora.learning import Update


class LoRALayer(nn.Module):
    """The two factors beside one projection."""

    def __init__(self, site: hub.Site, config: LoRAConfig) -> None:
        super().__init__()
        r = config.rank(find_place(site))
        self.base_digest = config.base_digests.get(site.path)
        self.scaling = config.scaling(find_place(site))
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
        if self.dropout and self.training:
            x = F.dropout(x.to(A.dtype), self.dropout)
        if torch.compiler.is_compiling():  # which lays products out, and joins the sum to them
            return y + (F.linear(F.linear(x.to(A.dtype), A), B) * self.scaling).to(y.dtype)
        if torch.is_grad_enabled():
            rows: torch.Tensor = Update.apply(x, y, A, B, self.scaling)[0]  # type: ignore[no-untyped-call]
            return rows.view(y.shape)
        # The same products as with gradients, or checkpointing, which runs without them first,
        # would round otherwise; while decoding, the fewest calls.
        if x.dim() > 1 and x.shape[-2] > 1:
            return Update.forward(x, y, A, B, self.scaling)[0].view(y.shape)
        if x.dtype != A.dtype:
            x = x.to(A.dtype)
        h = F.linear(x, A)
        # The sum takes the place of the change.
        change = F.linear(h, B)
        if change.dtype != y.dtype:
            change = change.to(y.dtype)
        return torch.add(y, change, alpha=self.scaling, out=change)

    def multiply(self) -> torch.Tensor:
        """s B A, (out_features, in_features), in float32."""
        return self.scaling * (self.lora_B.weight.float() @ self.lora_A.weight.float())


class LoRAEmbedding(nn.Module):
    """The two factors beside one embedding, by peft's names.

    Some bases multiply what they look up; what is added is multiplied likewise. A token that the
    base pads with has no gradient, as in the base.
    """

    def __init__(self, site: hub.Site, config: LoRAConfig) -> None:
        super().__init__()
        r = config.rank(site.path)
        self.base_digest = config.base_digests.get(site.path)
        self.scaling = config.scaling(site.path)
        self.lora_embedding_A = nn.Parameter(torch.zeros(r, site.in_features))
        self.lora_embedding_B = nn.Parameter(torch.randn(site.out_features, r))
        self.base: hub.Base | None = None

    def forward(self, x: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
        """x: (...) token ids, y: (..., width) -> (..., width)."""
        module: Any = None if self.base is None else self.base.module
        padding = None if module is None else module.padding_idx
        rows = F.embedding(x, self.lora_embedding_A.T, padding) @ self.lora_embedding_B.T
        change = rows * self.scaling
        scale = getattr(module, "embed_scale", None)
        if scale is not None:
            change = change * scale
        return y + change.to(y.dtype)

    def multiply(self) -> torch.Tensor:
        """s B A, (width, vocabulary), in float32."""
        return self.scaling * (self.lora_embedding_B.float() @ self.lora_embedding_A.float())


Layer = LoRALayer | LoRAEmbedding
