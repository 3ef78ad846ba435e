"""Bases and steps that the scripts measure; needs neither peft nor this project, so that it works
in the adapters library's own environment too."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from transformers import DynamicCache, LlamaConfig, LlamaForCausalLM, set_seed

TARGETS = ["q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"]
WORDS = 2048
Step = Callable[[], None]


def build_base(hidden: int = 256, layers: int = 4) -> LlamaForCausalLM:
    """A llama, the same weights each time: of hidden 256 and 4 layers, or 768 and 12."""
    set_seed(0)
    heads = {256: (8, 4)}.get(hidden, (hidden // 64, hidden // 64))
    config = LlamaConfig(
        hidden_size=hidden,
        intermediate_size=(hidden * 8 // 3 + 7) // 8 * 8,
        num_hidden_layers=layers,
        num_attention_heads=heads[0],
        num_key_value_heads=heads[1],
        vocab_size=WORDS,
        max_position_embeddings=512,
    )
    return LlamaForCausalLM(config).eval()


def decode(model: Any, rows: int = 1, before: Step | None = None, **more: Any) -> Step:
    """One token for each of `rows` after 32 in the cache, which is cut back each time."""
    cache = DynamicCache(config=model.config)
    ids = torch.arange(3, 35).repeat(rows, 1)
    with torch.inference_mode():
        model(input_ids=ids, past_key_values=cache, use_cache=True, **more)
    token = torch.full((rows, 1), 40)

    def step() -> None:
        if before is not None:
            before()
        with torch.inference_mode():
            model(input_ids=token, past_key_values=cache, use_cache=True, **more)
        if cache.get_seq_length():  # the adapters library's llama leaves it empty
            cache.crop(-1)

    return step


def prefill(model: Any) -> Step:
    """A batch of 8 rows of 128 tokens."""
    ids = draw_ids()

    def step() -> None:
        with torch.no_grad():
            model(input_ids=ids, use_cache=False)

    return step


def generate(model: Any) -> Step:
    """32 tokens after a prompt of 32, greedy, with a cache."""
    ids = torch.arange(3, 35)[None]
    settings = {"max_new_tokens": 32, "min_new_tokens": 32, "do_sample": False, "pad_token_id": 0}

    def step() -> None:
        with torch.no_grad():
            model.generate(input_ids=ids, attention_mask=torch.ones_like(ids), **settings)

    return step


def draw_ids(rows: int = 8) -> torch.Tensor:
    """Rows of 128 tokens."""
    return torch.randint(3, WORDS, (rows, 128), generator=torch.Generator().manual_seed(0))
