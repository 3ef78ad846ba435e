"""What rows with different LoRA cost: decoding a batch of 32, over the bare model.

    python benchmarks/mixed.py [--rounds 20] [--threads 2] [--hidden 768] [--layers 12] [--no-peft]

LoRA r=8 on all linears; k different adapters in 32 rows, sorted by adapter or not; a token for
each row with 32 in the cache. Bare model, ours, peft's (`adapter_names`, for k = 32) and a
hand-written reference (two batched products in a hook at each projection, nothing else) run in turn
in one process; printed are the ratios of the medians to the bare model's. Then rows that change:
one row gets another of 64 residents every 1, 8 or 64 tokens, and the bytes that gathered copies
take.
"""

from __future__ import annotations

import itertools
from typing import Any

import torch
from bases import TARGETS, build_base, decode
from measuring import Report, compare, make_parser, measure

import hub

ROWS = 32


def copy_shaken(like: hub.Adapter, seed: int) -> hub.Adapter:
    """The same adapter with other values."""
    draw = torch.Generator().manual_seed(seed)
    tensors = {
        name: torch.randn(tensor.shape, generator=draw) * 0.02
        for name, tensor in like.tensors.items()
    }
    return hub.Adapter("lora", like.config, tensors, base=like.base)


def write_by_hand(model: Any) -> None:
    """Two batched products in a hook at each projection, for as many adapters as rows."""
    for module in list(model.modules()):
        if isinstance(module, torch.nn.Linear) and module is not model.lm_head:
            A = torch.randn(ROWS, 8, module.in_features) * 0.02
            B = torch.randn(ROWS, 8, module.out_features) * 0.02

            def hook(_: Any, args: Any, y: Any, A: Any = A, B: Any = B) -> Any:
                return torch.baddbmm(y, torch.bmm(args[0], A.transpose(1, 2)), B)

            module.register_forward_hook(hook)


def count_copies(model: Any) -> int:
    """The bytes of gathered factors in a model that carries an attachment."""
    hooks = (hook for m in model.modules() for hook in m._forward_hooks.values())
    chains = (node for hook in hooks for node in getattr(hook, "chain", ()))
    kept = (getattr(getattr(node, "module", None), "kept", None) for node in chains)
    pairs = (one.value for one in kept if one is not None)
    return sum(t.numel() * t.element_size() for pair in pairs if pair for t in pair)


def build_peft(base: Any) -> Any:
    """peft's model with as many adapters as rows."""
    import peft

    config = peft.LoraConfig(r=8, lora_alpha=16, target_modules=TARGETS, task_type="CAUSAL_LM")
    model = peft.get_peft_model(base, config, adapter_name="0")
    for number in range(1, ROWS):
        model.add_adapter(str(number), config)
    for name, parameter in model.named_parameters():
        if "lora_" in name:
            torch.nn.init.normal_(parameter, std=0.02)
    return model.eval()


def main() -> None:
    """Print the table."""
    parser = make_parser(__doc__, rounds=20)
    parser.add_argument("--hidden", type=int, default=768)
    parser.add_argument("--layers", type=int, default=12)
    parser.add_argument("--no-peft", action="store_true")
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    size = (options.hidden, options.layers)
    report = Report(f"decoding {ROWS} rows, hidden {size[0]}, {size[1]} layers")
    print(f"{report.subject}, {options.threads} threads")

    bare, hand, single, model = (build_base(*size) for _ in range(4))
    write_by_hand(hand)
    like = hub.Adapter.create("lora", model, r=8, alpha=16, targets=TARGETS)
    adapters = [copy_shaken(like, seed) for seed in range(2 * ROWS)]
    hub.attach(single, adapters[0], trainable=False)
    attachment = hub.attach(model, hub.BatchSplit(*adapters), rows=[0] * ROWS, trainable=False)

    for k in (1, 2, 4, 8, 16, 32):
        mixed = [row % k for row in range(ROWS)]
        for layout in [sorted(mixed)] if k == 1 else [sorted(mixed), mixed]:
            attachment.route(layout)
            steps = {"bare": decode(bare, ROWS), "ours": decode(model, ROWS)}
            if k == 1:
                steps["one adapter"] = decode(single, ROWS)
            last = k == ROWS and layout is mixed
            if last:
                steps["by hand"] = decode(hand, ROWS)
            if last and not options.no_peft:
                wrapped = build_peft(build_base(*size))
                steps["peft"] = decode(wrapped, ROWS, adapter_names=list(map(str, mixed)))
            found = measure(steps, options.rounds)
            order = "" if k == 1 else ", mixed" if layout is mixed else ", sorted"
            bar = (1.15 if options.hidden >= 768 else 1.4) if last else None
            report.add(f"{k} LoRA{order}", compare(found, "bare"), bar)

    print(f"gathered copies for {ROWS} rows: {count_copies(model) / 2**20:.0f} MiB", flush=True)
    for every in (1, 8, 64):
        rows, turns = list(range(ROWS)), itertools.count(1)

        def change(every: int = every, rows: list[int] = rows, turns: Any = turns) -> None:
            turn, left = divmod(next(turns), every)
            if not left:
                rows[turn % ROWS] = (rows[turn % ROWS] + ROWS) % (2 * ROWS)
                attachment.route(rows)

        attachment.route(rows)
        steps = {"bare": decode(bare, ROWS), "ours": decode(model, ROWS, change)}
        found = measure(steps, max(options.rounds // 4, 3), every)
        report.add(f"32 LoRA, a row changes every {every} tokens", compare(found, "bare"))
    report.write(options.json)


if __name__ == "__main__":
    main()
