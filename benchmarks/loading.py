"""What loading and switching adapters cost with 0, 10 and 100 there: ours and peft's.

    python benchmarks/loading.py [--rounds 30] [--slow-rounds 5] [--threads 2] [--sizes 768 256]

LoRA r=8 on all linears of a llama in float32, from a folder, as the user types it.

load: until the adapter is checked and ready to be routed to, `attachment.add(hub.load(folder))`;
with none there also `hub.attach(model, hub.load(folder))`, which readies the model too. peft's
`from_pretrained` for the first and `load_adapter` for the others check nothing. The floor reads the
file and hashes it: `load_file` and the sha256 of its bytes. Floor, ours and peft's run in turn in
one process, and the medians are divided. What was loaded is taken off again, off the clock.

switch: among 100, `attachment.route(k)` and `set_adapter(name)`, over one forward of the bare base
on one token with 32 in the cache. The first column is the call alone, the second the call and what
the forward after it takes longer than one that nothing came before.
"""

from __future__ import annotations

import argparse
import gc
import hashlib
import statistics
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import peft
import torch
from bases import TARGETS, decode
from safetensors.torch import load_file
from transformers import LlamaConfig, LlamaForCausalLM, set_seed
from transformers.utils import logging

import hub

SIZES = {768: (2048, 12, 12, 8192), 256: (688, 4, 8, 2048)}
COUNTS = (0, 10, 100)
TENSORS = "adapter_model.safetensors"

Step = Callable[[], object]
Timed = tuple[Step, Step]
"""What is timed, and what follows off the clock."""


def build_base(hidden: int) -> LlamaForCausalLM:
    """A llama of this width, the same weights each time."""
    set_seed(0)
    inner, layers, heads, words = SIZES[hidden]
    config = LlamaConfig(
        hidden_size=hidden,
        intermediate_size=inner,
        num_hidden_layers=layers,
        num_attention_heads=heads,
        vocab_size=words,
        max_position_embeddings=512,
    )
    return LlamaForCausalLM(config).eval()


def write_folders(model: Any, place: Path, count: int) -> list[str]:
    """Adapters of one shape and different values, by hub, which peft reads too."""
    folders = []
    for number in range(count):
        adapter = hub.Adapter.create("lora", model, r=8, alpha=16, targets=TARGETS)
        with torch.no_grad():
            for tensor in adapter.tensors.values():
                tensor.normal_(std=0.02)
        folders.append(str(adapter.save(place / f"adapter-{number}")))
    return folders


def read_plainly(folder: str) -> Step:
    """The floor."""
    path = Path(folder, TENSORS)
    return lambda: (load_file(path), hashlib.sha256(path.read_bytes()).hexdigest())


def load_ours(attachment: hub.Attachment, folder: str) -> Timed:
    """One more on a model that has an attachment."""
    numbers: list[int] = []
    return (
        lambda: numbers.append(attachment.add(hub.load(folder))),
        lambda: attachment.remove(numbers.pop()),
    )


def attach_ours(model: Any, folder: str) -> Timed:
    """The first, on a bare model."""
    attachments: list[hub.Attachment] = []
    return (
        lambda: attachments.append(hub.attach(model, hub.load(folder))),
        lambda: attachments.pop().detach(),
    )


def load_theirs(model: Any, folder: str) -> Timed:
    """One more on a PeftModel."""
    return (
        lambda: model.load_adapter(folder, "new"),
        lambda: model.delete_adapter("new"),
    )


def attach_theirs(model: Any, folder: str) -> Timed:
    """The first, on a bare model."""
    models: list[Any] = []
    return (
        lambda: models.append(peft.PeftModel.from_pretrained(model, folder)),
        lambda: models.pop().unload(),
    )


def measure(steps: dict[str, Timed], rounds: dict[str, int]) -> dict[str, float]:
    """The median seconds of each, run in turn; `rounds` says how often each is."""
    times: dict[str, list[float]] = {name: [] for name in steps}
    for step, after in steps.values():
        step()
        after()
    gc.collect()
    gc.disable()
    most = max(rounds.values())
    for round_ in range(most):
        for name, (step, after) in steps.items():
            if round_ * rounds[name] // most == (round_ + 1) * rounds[name] // most:
                continue
            begin = time.perf_counter()
            step()
            times[name].append(time.perf_counter() - begin)
            after()
    gc.enable()
    return {name: statistics.median(values) for name, values in times.items()}


def compare_loads(
    hidden: int, folders: list[str], rounds: int, slow: int
) -> Iterator[tuple[int, dict[str, float]]]:
    """The medians with each number of adapters there; leaves the last number there."""
    *others, new = folders
    bare, bare_theirs = build_base(hidden), build_base(hidden)
    each = {"floor": rounds, "ours": rounds, "attach": rounds, "peft": slow}
    model, theirs = build_base(hidden), build_base(hidden)
    attachment = hub.attach(model, hub.Stack(None))
    wrapped: Any = None
    for there, count in zip((0, *COUNTS), COUNTS, strict=False):
        for number in range(there, count):
            attachment.add(hub.load(others[number]))
            if wrapped is None:
                wrapped = peft.PeftModel.from_pretrained(theirs, others[number], f"a{number}")
            else:
                wrapped.load_adapter(others[number], f"a{number}")
        steps: dict[str, Timed] = {
            "floor": (read_plainly(new), lambda: None),
            "ours": load_ours(attachment, new),
        }
        if wrapped is None:
            steps["attach"] = attach_ours(bare, new)
            steps["peft"] = attach_theirs(bare_theirs, new)
        else:
            steps["peft"] = load_theirs(wrapped, new)
        yield count, measure(steps, each)
    switched = compare_switches(bare, attachment, model, wrapped, rounds)
    yield -1, switched


def compare_switches(
    bare: Any, attachment: hub.Attachment, model: Any, wrapped: Any, rounds: int
) -> dict[str, float]:
    """The medians of a bare forward, of each switch, and of what it costs with the next forward."""
    forward = {"bare": decode(bare), "ours": decode(model), "peft": decode(wrapped)}
    numbers = [number for number, part in attachment.resident.items() if part is not None]
    names = list(wrapped.peft_config)
    switch: dict[str, Callable[[int], object]] = {
        "ours": lambda k: attachment.route(numbers[k % len(numbers)]),
        "peft": lambda k: wrapped.set_adapter(names[k % len(names)]),
    }
    for step in forward.values():
        for _ in range(3):
            step()
    times: dict[str, list[float]] = {"bare": []}
    gc.collect()
    gc.disable()
    for round_ in range(4 * rounds):
        begin = time.perf_counter()
        forward["bare"]()
        times["bare"].append(time.perf_counter() - begin)
        for name, change in switch.items():
            if name == "peft" and round_ % 4:
                continue
            moments = [time.perf_counter()]
            for step in (forward[name], lambda: change(7 * round_), forward[name]):  # noqa: B023
                step()
                moments.append(time.perf_counter())
            usual, call, after = (b - a for a, b in zip(moments, moments[1:], strict=False))
            times.setdefault(f"{name} call", []).append(call)
            times.setdefault(f"{name} whole", []).append(call + after - usual)
    gc.enable()
    return {name: statistics.median(values) for name, values in times.items()}


def main() -> None:
    """Print the tables."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=30)
    parser.add_argument("--slow-rounds", type=int, default=5)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--sizes", type=int, nargs="+", default=list(SIZES), choices=list(SIZES))
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    logging.set_verbosity_error()
    for hidden in options.sizes:
        layers = SIZES[hidden][1]
        print(f"hidden {hidden}, {layers} layers\n{'':10} {'there':>5} {'ms':>9} {'/ floor':>8}")
        with tempfile.TemporaryDirectory() as place:
            folders = write_folders(build_base(hidden), Path(place), COUNTS[-1] + 1)
            rounds, slow = options.rounds, options.slow_rounds
            for count, found in compare_loads(hidden, folders, rounds, slow):
                if count >= 0:
                    for name, seconds in found.items():
                        ratio = seconds / found["floor"]
                        print(f"{name:10} {count:5} {1e3 * seconds:9.2f} {ratio:8.2f}", flush=True)
                    continue
                bare = found.pop("bare")
                print(f"switch     {COUNTS[-1]:5} {1e3 * bare:9.2f} ms a forward of one token")
                for name, seconds in found.items():
                    print(f"{name:16} {1e3 * seconds:9.3f} {seconds / bare:8.2%}", flush=True)


if __name__ == "__main__":
    main()
