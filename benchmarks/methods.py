"""What each method costs over the bare model: ours beside peft's and beside adapters'.

    python benchmarks/methods.py [--rounds 15] [--methods lora ia3] [--adapters VENV/bin/python]

For each method a bare model, peft's and ours, with the same weights and adapters of the same
shape, run in turn in one process; printed are the medians' ratios to the bare model. Beside them
stands the limit that the arithmetic alone sets: the floating point operations of the attached model
over those of the bare one.

generate: 32 tokens after a prompt of 32, greedy, with a cache; batch: a forward of 8 x 128.

``--adapters`` names a Python that has adapters 1.3.0 and transformers 4.57.6, which can't be
installed beside ours; benchmarks/methods_adapters.py runs in it, over a bare model of its own.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import peft
import torch
from bases import TARGETS, build_base, generate, prefill
from measuring import measure
from torch.utils.flop_counter import FlopCounterMode

import hub

VIRTUAL = 20
CAUSAL = {"task_type": "CAUSAL_LM"}

# By our name: our options, and peft's configuration where it has the method.
METHODS: dict[str, tuple[str, dict[str, Any], Callable[[], Any] | None]] = {
    "lora": (
        "lora",
        {"r": 8, "targets": "all"},
        lambda: peft.LoraConfig(r=8, target_modules=TARGETS, **CAUSAL),
    ),
    "dora": (
        "lora",
        {"r": 8, "targets": "all", "dora": True},
        lambda: peft.LoraConfig(r=8, target_modules=TARGETS, use_dora=True, **CAUSAL),
    ),
    "ia3": (
        "ia3",
        {},
        lambda: peft.IA3Config(
            target_modules=["k_proj", "v_proj", "down_proj"],
            feedforward_modules=["down_proj"],
            **CAUSAL,
        ),
    ),
    "prefix": (
        "prefix",
        {"tokens": VIRTUAL},
        lambda: peft.PrefixTuningConfig(num_virtual_tokens=VIRTUAL, **CAUSAL),
    ),
    "prompt": (
        "prompt",
        {"tokens": VIRTUAL},
        lambda: peft.PromptTuningConfig(num_virtual_tokens=VIRTUAL, **CAUSAL),
    ),
    "ptuning": (
        "ptuning",
        {"tokens": VIRTUAL},
        lambda: peft.PromptEncoderConfig(num_virtual_tokens=VIRTUAL, **CAUSAL),
    ),
    "llama_adapter": (
        "llama_adapter",
        {"tokens": 10, "layers": 3},
        lambda: peft.AdaptionPromptConfig(adapter_len=10, adapter_layers=3, **CAUSAL),
    ),
    "houlsby": ("houlsby", {"size": 16}, None),
    "pfeiffer": ("pfeiffer", {"size": 16}, None),
    "parallel": ("parallel", {"size": 16}, None),
}


def build_ours(name: str) -> Any:
    """Our adapter on a model of its own, as it is served."""
    method, options, _ = METHODS[name]
    model = build_base()
    hub.attach(model, hub.Adapter.create(method, model, **options), trainable=False)
    return model


def build_theirs(name: str) -> Any:
    """peft's on a model of its own; None where it lacks the method."""
    make = METHODS[name][2]
    return peft.get_peft_model(build_base(), make()).eval() if make is not None else None


def count_operations(step: Callable[[], None]) -> int:
    """Floating point operations of one step."""
    with FlopCounterMode(display=False) as counter:
        step()
    return counter.get_total_flops()


def compare(name: str, rounds: int) -> dict[str, dict[str, float]]:
    """The ratios of one method, by what is run."""
    models = {"bare": build_base(), "ours": build_ours(name)}
    theirs = build_theirs(name)
    if theirs is not None:
        models["peft"] = theirs
    found = {}
    for what, make in (("generate", generate), ("batch", prefill)):
        steps = {key: make(model) for key, model in models.items()}
        times = measure(steps, rounds, 1)
        ratios = {key: times[key] / times["bare"] for key in models if key != "bare"}
        ratios["limit"] = count_operations(steps["ours"]) / count_operations(steps["bare"])
        found[what] = ratios
    return found


def run_adapters(python: str, names: list[str], rounds: int) -> dict[str, dict[str, float]]:
    """The same for the adapters library, by name and by what is run."""
    script = Path(__file__).with_name("methods_adapters.py")
    done = subprocess.run(
        [python, str(script), "--rounds", str(rounds), "--methods", *names],
        stdout=subprocess.PIPE,
        check=True,
    )
    found: dict[str, dict[str, float]] = json.loads(done.stdout)
    return found


def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=15)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--methods", nargs="+", default=list(METHODS), choices=list(METHODS))
    parser.add_argument("--adapters", metavar="PYTHON")
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    other = (
        run_adapters(options.adapters, options.methods, options.rounds) if options.adapters else {}
    )
    print(f"{'':14} {'':9} {'ours':>7} {'peft':>7} {'adapters':>9} {'limit':>7}   (bare = 1)")
    for name in options.methods:
        for what, ratios in compare(name, options.rounds).items():
            theirs = f"{ratios['peft']:7.3f}" if "peft" in ratios else f"{'-':>7}"
            value = other.get(name, {}).get(what)
            third = f"{value:9.3f}" if value is not None else f"{'-':>9}"
            print(
                f"{name:14} {what:9} {ratios['ours']:7.3f} {theirs} {third} {ratios['limit']:7.3f}"
            )
            sys.stdout.flush()


if __name__ == "__main__":
    main()
