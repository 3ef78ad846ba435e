"""Tiny models of more architectures than tests.tiny has, and models written by hand."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import nn
from transformers import AutoConfig, set_seed

import hub.sites
from tests.tiny import CLASSES, SMALL, SPECIAL, build_tiny

COMMON: dict[str, Any] = dict(
    hidden_size=32, intermediate_size=48, num_hidden_layers=2, num_attention_heads=4, vocab_size=99
)
MLA = dict(
    q_lora_rank=8, kv_lora_rank=8, qk_rope_head_dim=8, qk_nope_head_dim=8, v_head_dim=8,
    n_routed_experts=4, n_group=2, topk_group=1, num_experts_per_tok=2, first_k_dense_replace=1,
    moe_intermediate_size=16, num_key_value_heads=4,
)  # fmt: skip
MORE: dict[str, dict[str, Any]] = {
    "falcon": dict(hidden_size=32, num_hidden_layers=2, num_attention_heads=4, vocab_size=99),
    "granite": dict(COMMON, num_key_value_heads=2, residual_multiplier=0.3),
    "qwen2_moe": dict(
        COMMON, num_key_value_heads=2, moe_intermediate_size=16, num_experts=4,
        shared_expert_intermediate_size=16, num_experts_per_tok=2,
    ),
    "switch_transformers": dict(
        d_model=32, d_ff=48, d_kv=8, num_layers=2, num_decoder_layers=2, num_heads=4, vocab_size=99,
        num_experts=8, num_sparse_encoder_layers=1, num_sparse_decoder_layers=1,
        decoder_start_token_id=0,
    ),
    "deepseek_v3": dict(COMMON, **MLA),
    "jamba": dict(
        COMMON, num_key_value_heads=2, attn_layer_period=2, attn_layer_offset=1, num_experts=2,
        mamba_d_state=4, use_mamba_kernels=False,
    ),
    "funnel": dict(block_sizes=[2, 2], d_model=32, n_head=4, d_head=8, d_inner=48, vocab_size=99),
    "fnet": dict(COMMON),
    "big_bird": dict(COMMON),
    "zamba2": dict(
        COMMON, num_key_value_heads=4, num_hidden_layers=3, n_mamba_heads=8, mamba_d_state=8,
        layers_block_type=["mamba", "hybrid", "mamba"], mamba_ngroups=1, num_mem_blocks=1,
    ),
}  # fmt: skip
MORE_TASKS = {"switch_transformers": "seq2seq", "funnel": "masked", "fnet": "masked"}


@pytest.fixture(autouse=True)
def nothing_remembered(monkeypatch: pytest.MonkeyPatch) -> None:
    """Every test looks for itself."""
    monkeypatch.setattr(hub.sites.search, "_found", {})


@pytest.fixture
def build() -> Callable[..., Any]:
    """A tiny model of this type in eval mode, the same weights for the same seed."""

    def build_model(kind: str, task: str | None = None, seed: int = 0, **changes: Any) -> Any:
        if kind in SMALL:
            return build_tiny(kind, task, seed, **changes)
        set_seed(seed)
        config = AutoConfig.for_model(kind, **{**SPECIAL, **MORE[kind], **changes})
        maker = CLASSES[task or MORE_TASKS.get(kind, "causal")]
        return maker.from_config(config).eval()

    return build_model


@pytest.fixture
def stack() -> Callable[..., nn.Module]:
    """A language model of these layers, written without transformers."""
    return Stack


class Stack(nn.Module):
    def __init__(self, *layers: nn.Module, width: int = 16) -> None:
        super().__init__()
        self.embed = nn.Embedding(20, width)
        self.layers = nn.ModuleList(layers)
        self.norm = nn.LayerNorm(width)
        self.head = nn.Linear(width, 20)

    def forward(self, input_ids: torch.Tensor) -> torch.Tensor:
        stream = self.embed(input_ids)
        for layer in self.layers:
            stream = layer(stream)
        head: torch.Tensor = self.head(self.norm(stream))
        return head
