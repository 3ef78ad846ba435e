"""What LoRA r=8 on all linears costs over the bare model: ours beside peft's.

    python benchmarks/overhead.py [--rounds 40] [--threads 2]

Three models with the same weights (bare, peft's, ours) run in turn in one process, and the median
of each is taken, so that a slow moment of the machine falls on all three alike. Printed are the
ratios to the bare model, and what ours adds for each unit that peft adds: 0.50 is half of it.

decoding: a forward of one token with 32 in the cache; prefill: a batch of 8 x 128; training: a
forward, backward and AdamW step on 8 x 128, beside peft's (a bare model has nothing to train).
"""

from __future__ import annotations

from typing import Any

import peft
import torch
from bases import TARGETS, Step, build_base, decode, draw_ids, prefill
from measuring import Report, compare, make_parser, measure

import hub


def build_models() -> dict[str, Any]:
    """Bare, peft's and ours, with adapters of the same shape."""
    config = peft.LoraConfig(r=8, lora_alpha=16, target_modules=TARGETS, task_type="CAUSAL_LM")
    ours = build_base()
    hub.attach(ours, hub.Adapter.create("lora", ours, r=8, alpha=16, targets=TARGETS))
    return {"bare": build_base(), "peft": peft.get_peft_model(build_base(), config), "ours": ours}


def train(model: Any) -> Step:
    """Forward, backward and an optimizer step on the adapter's parameters."""
    ids = draw_ids()
    model.train()
    optimizer = torch.optim.AdamW([p for p in model.parameters() if p.requires_grad], lr=1e-4)

    def step() -> None:
        model(input_ids=ids, labels=ids, use_cache=False).loss.backward()
        optimizer.step()
        optimizer.zero_grad()

    return step


def main() -> None:
    """Print the table."""
    options = make_parser(__doc__, rounds=40).parse_args()
    torch.set_num_threads(options.threads)
    report = Report("LoRA on all linears, hidden 256, 4 layers")
    print(report.subject)
    for name, make, repeat in (
        ("decoding a token", decode, 10),
        ("a batch of 8 x 128", prefill, 1),
    ):
        models = build_models()
        found = measure({k: make(m) for k, m in models.items()}, options.rounds, repeat)
        ratios = compare(found, "bare")
        report.add(name, ratios)
        share = (ratios["ours"] - 1) / (ratios["peft"] - 1)
        print(f"{'':44} ours adds {share:.2f} of what peft adds")
    models = build_models()
    del models["bare"]
    found = measure({k: train(m) for k, m in models.items()}, options.rounds)
    print(f"{'training':44} ours / peft = {found['ours'] / found['peft']:.3f}")
    report.write(options.json)


if __name__ == "__main__":
    main()
