"""What loading and switching adapters cost with 0, 10 and 100 there: ours and peft's.

    python benchmarks/loading.py [--rounds 30] [--threads 2] [--hidden 768 256]

LoRA r=8 on all linears of a llama in float32, from a folder, as the user types it.

Loading: until the adapter is checked and ready to be routed to, `attachment.add(hub.load(folder))`;
peft's `from_pretrained` for the first and `load_adapter` for the others check nothing. The floor
reads the file and hashes it: `load_file` and the sha256 of its bytes. Beside them what
`hub.attach(model, hub.load(folder))` costs, which readies the model too. Floor, ours and peft's run
in turn in one process, and the medians are divided. What was loaded is taken off again, off the
clock.

Switching: among 100, `attachment.route(k)` and `set_adapter(name)`, over one forward of the bare
base on one token with 32 in the cache: the call alone, and with it what the forward that follows
takes longer than one that nothing came before.
"""

from __future__ import annotations

import gc
import hashlib
import itertools
import statistics
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import peft
import torch
from bases import TARGETS, build_base, decode
from measuring import Report, compare, make_parser
from safetensors.torch import load_file

import hub

LAYERS = {768: 12, 256: 4}
COUNTS = (0, 10, 100)
TENSORS = "adapter_model.safetensors"

Step = Callable[[], object]
Timed = tuple[Step, Step]
"""What is timed, and what follows off the clock."""


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


def read_plainly(folder: str) -> Timed:
    """The floor."""
    path = Path(folder, TENSORS)
    return lambda: (load_file(path), hashlib.sha256(path.read_bytes()).hexdigest()), lambda: None


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
    return lambda: model.load_adapter(folder, "new"), lambda: model.delete_adapter("new")


def attach_theirs(model: Any, folder: str) -> Timed:
    """The first, on a bare model."""
    models: list[Any] = []
    return (
        lambda: models.append(peft.PeftModel.from_pretrained(model, folder)),
        lambda: models.pop().unload(),
    )


def measure_apart(steps: dict[str, Timed], rounds: int) -> dict[str, float]:
    """The median seconds of each, run in turn; of peft's in every sixth round."""
    times: dict[str, list[float]] = {name: [] for name in steps}
    for step, after in steps.values():
        step()
        after()
    gc.collect()
    gc.disable()
    for round_ in range(rounds):
        for name, (step, after) in steps.items():
            if name == "peft" and round_ % 6:
                continue
            begin = time.perf_counter()
            step()
            times[name].append(time.perf_counter() - begin)
            after()
    gc.enable()
    return {name: statistics.median(values) for name, values in times.items()}


def measure_switches(bare: Any, model: Any, wrapped: Any, rounds: int) -> dict[str, float]:
    """The median seconds of a bare forward, of each call, and of the call with what the forward
    after it takes longer."""
    attachment = hub.Attachment.of(model)
    assert attachment is not None
    numbers = itertools.cycle([n for n, part in attachment.resident.items() if part is not None])
    names = itertools.cycle(list(wrapped.peft_config))
    forward = {"bare": decode(bare), "ours": decode(model), "peft": decode(wrapped)}
    switch: dict[str, Step] = {
        "ours": lambda: attachment.route(next(numbers)),
        "peft": lambda: wrapped.set_adapter(next(names)),
    }
    times: dict[str, list[float]] = {}
    for step in (*forward.values(), *switch.values()):
        step()
    gc.collect()
    gc.disable()
    for round_ in range(rounds):
        begin = time.perf_counter()
        forward["bare"]()
        times.setdefault("bare", []).append(time.perf_counter() - begin)
        for name, call in switch.items():
            if name == "peft" and round_ % 6:
                continue
            moments = [time.perf_counter()]
            for step in (forward[name], call, forward[name]):
                step()
                moments.append(time.perf_counter())
            usual, took, after = (b - a for a, b in itertools.pairwise(moments))
            times.setdefault(name, []).append(took)
            times.setdefault(f"{name}, with the next forward", []).append(took + after - usual)
    gc.enable()
    return {name: statistics.median(values) for name, values in times.items()}


def run(report: Report, hidden: int, folders: list[str], rounds: int) -> None:
    """Add the figures of one size."""
    *others, new = folders
    layers, size = LAYERS[hidden], "" if hidden == 768 else f"hidden {hidden}: "
    bare, model, theirs = (build_base(hidden, layers) for _ in range(3))
    attachment = hub.attach(model, hub.Stack(None))
    wrapped: Any = None
    for there, count in itertools.pairwise((0, *COUNTS)):
        for folder in others[there:count]:
            attachment.add(hub.load(folder))
            if wrapped is None:
                wrapped = peft.PeftModel.from_pretrained(theirs, folder, folder.rpartition("-")[2])
            else:
                wrapped.load_adapter(folder, folder.rpartition("-")[2])
        steps = {"floor": read_plainly(new), "ours": load_ours(attachment, new)}
        if wrapped is None:
            steps |= {"attach": attach_ours(bare, new), "peft": attach_theirs(theirs, new)}
        else:
            steps["peft"] = load_theirs(wrapped, new)
        ratios = compare(measure_apart(steps, rounds), "floor")
        first = ratios.pop("attach", None)
        report.add(f"{size}loading with {count} there", ratios, 2)
        if first is not None:
            report.add(f"{size}attaching the first", {"ours": first, "peft": ratios["peft"]})
    found = compare(measure_switches(bare, model, wrapped, 6 * rounds), "bare")
    calls = {who: found[who] for who in ("ours", "peft")}
    report.add(f"{size}switching among {COUNTS[-1]}", calls, 0.01)
    whole = {who: found[f"{who}, with the next forward"] for who in calls}
    report.add(f"{size}switching, with the next forward", whole, 0.01)


def main() -> None:
    """Print the table."""
    parser = make_parser(__doc__, rounds=30)
    parser.add_argument("--hidden", type=int, nargs="+", default=list(LAYERS), choices=list(LAYERS))
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    report = Report("loading, over reading and hashing the file")
    print(f"{report.subject}, {options.threads} threads")
    for hidden in options.hidden:
        with tempfile.TemporaryDirectory() as place:
            model = build_base(hidden, LAYERS[hidden])
            run(report, hidden, write_folders(model, Path(place), COUNTS[-1] + 1), options.rounds)
    report.write(options.json)


if __name__ == "__main__":
    main()
