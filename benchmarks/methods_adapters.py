"""The adapters library's part of benchmarks/methods.py, which runs it in a Python of its own.

It prints JSON: for each method that adapters 1.3.0 has, its time over its own bare model's.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Callable
from typing import Any

import adapters
import torch
from bases import build_base, generate, prefill
from measuring import compare, measure

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


def build_adapted(name: str) -> Any:
    """Their adapter on a model of its own."""
    model = build_base()
    adapters.init(model)
    model.add_adapter("a", config=METHODS[name]())
    model.set_active_adapters("a")
    return model.eval()


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
        for what, make in (("generate", generate), ("batch", prefill)):
            try:
                adapted = build_adapted(name)
                steps = {"bare": make(build_base()), "theirs": make(adapted)}
                ratio = compare(measure(steps, options.rounds), "bare")["theirs"]
            except Exception as error:
                print(f"adapters can't run {name}, {what}: {error}", file=sys.stderr)
                continue
            found.setdefault(name, {})[what] = ratio
    print(json.dumps(found))


if __name__ == "__main__":
    main()
