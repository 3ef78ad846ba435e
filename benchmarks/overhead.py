"""What LoRA r=8 on all linears costs over the bare model: ours beside peft's.

    python benchmarks/overhead.py [--rounds 40] [--threads 2]

Three models with the same weights (bare, peft's, ours) run in turn in one process, and the median
of each is taken, so that a slow moment of the machine falls on all three alike. Printed are the
ratios to the bare model, and what ours adds for each unit that peft adds: 0.50 is half of it.

decoding: a forward of one token with 32 in the cache; prefill: a batch of 8 x 128; training: a
forward, backward and AdamW step on 8 x 128, beside peft's (a bare model has nothing to train).
"""

from __future__ import annotations

import argparse
import gc
import statistics
import time
from collections.abc import Callable
from typing import Any

import peft
import torch
from transformers import DynamicCache, LlamaConfig, LlamaForCausalLM, set_seed

import hub

TARGETS = ["q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"]


def build_base() -> LlamaForCausalLM:
    """A llama of hidden 256 and 4 layers, the same weights each time."""
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


def build_models() -> dict[str, Any]:
    """Bare, peft's and ours, with adapters of the same shape."""
    config = peft.LoraConfig(r=8, lora_alpha=16, target_modules=TARGETS, task_type="CAUSAL_LM")
    ours = build_base()
    hub.attach(ours, hub.Adapter.create("lora", ours, r=8, alpha=16, targets=TARGETS))
    return {"bare": build_base(), "peft": peft.get_peft_model(build_base(), config), "ours": ours}


def decode(model: Any) -> Callable[[], None]:
    """One token after 32 in the cache, which is cut back each time."""
    cache = DynamicCache(config=model.config)
    with torch.no_grad():
        model(input_ids=torch.arange(3, 35)[None], past_key_values=cache, use_cache=True)
    token = torch.tensor([[40]])

    def step() -> None:
        with torch.no_grad():
            model(input_ids=token, past_key_values=cache, use_cache=True)
        cache.crop(-1)

    return step


def prefill(model: Any) -> Callable[[], None]:
    """A batch of 8 rows of 128 tokens."""
    ids = torch.randint(3, 2048, (8, 128), generator=torch.Generator().manual_seed(0))

    def step() -> None:
        with torch.no_grad():
            model(input_ids=ids, use_cache=False)

    return step


def train(model: Any) -> Callable[[], None]:
    """Forward, backward and an optimizer step on the adapter's parameters."""
    ids = torch.randint(3, 2048, (8, 128), generator=torch.Generator().manual_seed(0))
    model.train()
    optimizer = torch.optim.AdamW([p for p in model.parameters() if p.requires_grad], lr=1e-4)

    def step() -> None:
        model(input_ids=ids, labels=ids, use_cache=False).loss.backward()
        optimizer.step()
        optimizer.zero_grad()

    return step


def measure(steps: dict[str, Callable[[], None]], rounds: int, repeat: int) -> dict[str, float]:
    """The median seconds of each, run in turn."""
    times: dict[str, list[float]] = {name: [] for name in steps}
    for step in steps.values():
        for _ in range(3):
            step()
    gc.collect()
    gc.disable()
    names = list(steps)
    for round_ in range(rounds):
        turn = round_ % len(names)
        for name in names[turn:] + names[:turn]:
            begin = time.perf_counter()
            for _ in range(repeat):
                steps[name]()
            times[name].append((time.perf_counter() - begin) / repeat)
    gc.enable()
    return {name: statistics.median(values) for name, values in times.items()}


def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=40)
    parser.add_argument("--threads", type=int, default=2)
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    print(f"{'':10} {'peft / bare':>12} {'ours / bare':>12} {'ours adds of what peft adds':>28}")
    for name, make, repeat in (("decoding", decode, 10), ("prefill", prefill, 1)):
        models = build_models()
        found = measure({k: make(m) for k, m in models.items()}, options.rounds, repeat)
        theirs, ours = found["peft"] / found["bare"], found["ours"] / found["bare"]
        share = (ours - 1) / (theirs - 1)
        print(f"{name:10} {theirs:12.3f} {ours:12.3f} {share:28.2f}")
    models = build_models()
    del models["bare"]
    found = measure({k: train(m) for k, m in models.items()}, options.rounds, 1)
    print(f"{'training':10} ours / peft = {found['ours'] / found['peft']:.3f}")


if __name__ == "__main__":
    main()
