"""The adapters library's part of benchmarks/methods.py, which runs it in a Python of its own.

It prints JSON: for each method that adapters 1.3.0 has, its time over its own bare model's.
"""

from __future__ import annotations

import argparse
import gc
import json
import statistics
import sys
import time
from collections.abc import Callable
from typing import Any

import adapters
import torch
from transformers import LlamaConfig, LlamaForCausalLM, set_seed

VIRTUAL = 20
METHODS: dict[str, Callable[[], Any]] = {
    "lora": lambda: adapters.LoRAConfig(
        r=8,
        alpha=8,
        attn_matrices=["q", "k", "v"],
        selfattn_lora=True,
        intermediate_lora=True,
        output_lora=True,
    ),
    "ia3": lambda: adapters.IA3Config(),
    "prefix": lambda: adapters.PrefixTuningConfig(prefix_length=VIRTUAL, flat=True),
    "prompt": lambda: adapters.PromptTuningConfig(prompt_length=VIRTUAL),
    "houlsby": lambda: adapters.DoubleSeqBnConfig(reduction_factor=16),
    "pfeiffer": lambda: adapters.SeqBnConfig(reduction_factor=16),
    "parallel": lambda: adapters.ParBnConfig(reduction_factor=16),
}


def build_base() -> LlamaForCausalLM:
    """The base of benchmarks/overhead.py."""
    set_seed(0)
    config = LlamaConfig(
        hidden_size=256,
        intermediate_size=688,
        num_hidden_layers=4,
        num_attention_heads=8,
        num_key_value_heads=4,
        vocab_size=2048,
        max_position_embeddings=512,
    )
    return LlamaForCausalLM(config).eval()


def build_adapted(name: str) -> Any:
    """Their adapter on a model of its own."""
    model = build_base()
    adapters.init(model)
    model.add_adapter("a", config=METHODS[name]())
    model.set_active_adapters("a")
    return model.eval()


def generate(model: Any) -> Callable[[], None]:
    """32 tokens after 32, greedy."""
    ids = torch.arange(3, 35)[None]

    def step() -> None:
        with torch.no_grad():
            model.generate(
                input_ids=ids,
                attention_mask=torch.ones_like(ids),
                max_new_tokens=32,
                min_new_tokens=32,
                do_sample=False,
                pad_token_id=0,
            )

    return step


def forward(model: Any) -> Callable[[], None]:
    """A batch of 8 rows of 128 tokens."""
    ids = torch.randint(3, 2048, (8, 128), generator=torch.Generator().manual_seed(0))

    def step() -> None:
        with torch.no_grad():
            model(input_ids=ids, use_cache=False)

    return step


def compare(bare: Callable[[], None], adapted: Callable[[], None], rounds: int) -> float:
    """The ratio of the medians, run in turn."""
    times: dict[str, list[float]] = {"bare": [], "adapted": []}
    gc.collect()
    gc.disable()
    for round_ in range(rounds + 2):
        for name, step in (("bare", bare), ("adapted", adapted)):
            begin = time.perf_counter()
            step()
            if round_ > 1:
                times[name].append(time.perf_counter() - begin)
    gc.enable()
    return statistics.median(times["adapted"]) / statistics.median(times["bare"])


def main() -> None:
    """Print the ratios."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=15)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--methods", nargs="+", default=list(METHODS))
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    found: dict[str, dict[str, float]] = {}
    for name in options.methods:
        if name not in METHODS:
            continue
        for what, make in (("generate", generate), ("batch", forward)):
            try:
                adapted = build_adapted(name)
                ratio = compare(make(build_base()), make(adapted), options.rounds)
            except Exception as error:
                print(f"adapters can't run {name}, {what}: {error}", file=sys.stderr)
                continue
            found.setdefault(name, {})[what] = ratio
    print(json.dumps(found))


if __name__ == "__main__":
    main()
