"""The adapters library's part of benchmarks/composition.py, which runs it in a Python of its own.

It prints JSON: for each subject and case its ratio, over a bare model of its own. LoRA r=8 on what
its configuration reaches in a llama: queries, keys, values and the feed-forward.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Callable
from typing import Any

import adapters
import adapters.composition
import torch
from bases import build_base, decode, draw_ids, prefill
from measuring import compare, make_parser, measure

CONFIG = adapters.LoRAConfig(
    r=8,
    alpha=16,
    attn_matrices=["q", "k", "v"],
    selfattn_lora=True,
    intermediate_lora=True,
    output_lora=True,
)
ROWS = 32


def build(hidden: int, layers: int, count: int) -> Any:
    """Their model with so many adapters; the first acts."""
    model = build_base(hidden, layers)
    adapters.init(model)
    for number in range(count):
        model.add_adapter(f"a{number}", config=CONFIG)
    model.set_active_adapters("a0")
    return model.eval()


def train(model: Any) -> Callable[[], None]:
    """A forward and backward of 8 rows of 128 tokens."""
    ids = draw_ids()

    def step() -> None:
        model(input_ids=ids, labels=ids, use_cache=False).loss.backward()

    return step


def main() -> None:
    """Print the ratios."""
    options = make_parser(__doc__, rounds=10).parse_args()
    torch.set_num_threads(options.threads)
    found: dict[str, dict[str, float]] = {}

    def note(subject: str, case: str, work: Callable[[], float]) -> None:
        try:
            found.setdefault(subject, {})[case] = work()
        except Exception as error:
            print(f"adapters can't run {subject}, {case}: {error}", file=sys.stderr)

    def over(bare: Any, theirs: Any, make: Callable[..., Any], *more: Any) -> float:
        steps = {"bare": make(bare, *more), "theirs": make(theirs, *more)}
        return compare(measure(steps, options.rounds), "bare")["theirs"]

    note("overhead", "decoding a token", lambda: over(build_base(), build(256, 4, 1), decode))
    note("overhead", "a batch of 8 x 128", lambda: over(build_base(), build(256, 4, 1), prefill))

    def mix(hidden: int, layers: int) -> float:
        theirs = build(hidden, layers, ROWS)
        names = [f"a{number}" for number in range(ROWS)]
        theirs.active_adapters = adapters.composition.BatchSplit(*names, batch_sizes=[1] * ROWS)
        return over(build_base(hidden, layers), theirs, decode, ROWS)

    note("mixed 768", "32 LoRA, mixed", lambda: mix(768, 12))
    note("mixed 256", "32 LoRA, mixed", lambda: mix(256, 4))

    def learn() -> float:
        floor, theirs = build_base(), build(256, 4, 1)
        floor.requires_grad_(False)
        embeddings = floor.get_input_embeddings()
        embeddings.register_forward_hook(lambda module, args, output: output.requires_grad_())
        theirs.train_adapter("a0")
        return over(floor.train(), theirs.train(), train)

    note("training 256", "step, float32, eager", learn)

    def switch() -> float:
        theirs, turn = build(768, 12, 100), iter(range(1 << 30))
        steps = {
            "bare": decode(build_base(768, 12)),
            "theirs": lambda: theirs.set_active_adapters(f"a{next(turn) % 100}"),
        }
        return compare(measure(steps, options.rounds), "bare")["theirs"]

    note("loading", "switching among 100", switch)
    print(json.dumps(found))


if __name__ == "__main__":
    main()
