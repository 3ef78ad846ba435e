"""What combining four LoRA costs: ours over the arithmetic alone, and peft's over the same.

    python benchmarks/combine.py [--rounds 20] [--slow-rounds 1] [--threads 2]

LoRA r=8 on all linears of a llama of hidden 768 and 12 layers. The floor is the definition, written
down in few operations on the same tensors, whose results are kept: for svd two QR and a small svd
for each of the 84 modules. Floor, ours and peft's run in turn in one process, and the medians are
divided. peft's dense svd takes a minute, so it has rounds of its own number.

Ours checks that the bases are one and makes an adapter; peft's adds one to a model.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any

import peft
import torch
from bases import TARGETS, build_base
from measuring import Report, compare, make_parser, measure

import hub

PARTS, RANK, DENSITY = 4, 8, 0.3
WEIGHTS = [1.0, 0.5, 0.25, 0.75]
ALPHA = 16
S = ALPHA / RANK
ROOTS = [math.sqrt(weight * S) for weight in WEIGHTS]

Pair = tuple[torch.Tensor, torch.Tensor]


def make_adapters(model: Any) -> list[hub.Adapter]:
    """Four with random factors."""
    adapters = []
    for _ in range(PARTS):
        adapter = hub.Adapter.create("lora", model, r=RANK, alpha=ALPHA, targets="all")
        with torch.no_grad():
            for tensor in adapter.tensors.values():
                tensor.normal_(std=0.02)
        adapters.append(adapter)
    return adapters


def list_pairs(adapters: Sequence[hub.Adapter]) -> list[list[Pair]]:
    """B and A of each part, module by module."""
    names = [name for name in adapters[0].tensors if name.endswith("lora_A.weight")]
    return [
        [
            (a.tensors[name.replace("lora_A", "lora_B")].detach(), a.tensors[name].detach())
            for a in adapters
        ]
        for name in names
    ]


def sum_plainly(pairs: list[Pair]) -> Pair:
    """linear: the factors side by side, one of them by the weights."""
    B = torch.cat([B for B, _ in pairs], 1)
    return B, torch.cat([A * (w * S) for (_, A), w in zip(pairs, WEIGHTS, strict=True)])


def thin_plainly(pairs: list[Pair]) -> Pair:
    """dare_linear: the same of factors of which a share was kept and scaled."""

    def keep(d: torch.Tensor) -> torch.Tensor:
        return d * (torch.rand(d.shape) < DENSITY) / DENSITY

    B = torch.cat([keep(B) for B, _ in pairs], 1)
    return B, torch.cat([keep(A) * (w * S) for (_, A), w in zip(pairs, WEIGHTS, strict=True)])


def elect_plainly(pairs: list[Pair]) -> Pair:
    """ties: trim, elect, and the mean of those that agree, of either factor."""

    def trim(d: torch.Tensor) -> torch.Tensor:
        mask = torch.zeros(d.numel())
        mask[d.abs().view(-1).topk(int(DENSITY * d.numel()), sorted=False).indices] = 1
        return d * mask.view(d.shape)

    def merge(ds: Sequence[torch.Tensor]) -> torch.Tensor:
        votes = torch.stack([trim(d) * root for d, root in zip(ds, ROOTS, strict=True)])
        agrees = votes.sign() == votes.sum(0).sign()
        return (votes * agrees).sum(0) / agrees.sum(0).clamp(min=1)

    return merge([B for B, _ in pairs]), merge([A for _, A in pairs])


def decompose_plainly(pairs: list[Pair]) -> Pair:
    """svd: two QR, and the svd of what is left between them."""
    B, A = sum_plainly(pairs)
    Q_B, R_B = torch.linalg.qr(B)
    Q_A, R_A = torch.linalg.qr(A.T)
    U, sizes, V = torch.linalg.svd(R_B @ R_A.T)
    return Q_B @ (U[:, :RANK] * sizes[:RANK]), V[:RANK] @ Q_A.T


FLOORS: dict[str, tuple[Callable[[list[Pair]], Pair], dict[str, Any]]] = {
    "linear": (sum_plainly, {}),
    "ties": (elect_plainly, {"density": DENSITY}),
    "dare_linear": (thin_plainly, {"density": DENSITY}),
    "svd": (decompose_plainly, {}),
}


def build_theirs(adapters: Sequence[hub.Adapter]) -> Any:
    """peft's model with the same four adapters."""
    config = peft.LoraConfig(
        r=RANK, lora_alpha=ALPHA, target_modules=TARGETS, task_type="CAUSAL_LM"
    )
    theirs: Any = peft.get_peft_model(build_base(768, 12), config, adapter_name="0")
    for place in range(1, PARTS):
        theirs.add_adapter(str(place), config)
    own = dict(theirs.named_parameters())
    with torch.no_grad():
        for place, adapter in enumerate(adapters):
            for name, tensor in adapter.tensors.items():
                key = name.replace(".weight", f".{place}.weight")
                own[f"base_model.model.{key}"].copy_(tensor)
    return theirs


def combine_theirs(model: Any, how: str, options: dict[str, Any]) -> Callable[[], None]:
    """peft's. Taking the last result off is counted too: it is 1% of it."""
    names = [str(place) for place in range(PARTS)]

    def step() -> None:
        model.add_weighted_adapter(names, WEIGHTS, "new", combination_type=how, **options)
        model.delete_adapter("new")

    return step


def main() -> None:
    """Print the table."""
    parser = make_parser(__doc__, rounds=20)
    parser.add_argument("--slow-rounds", type=int, default=1, help="of peft's svd; 0 for none")
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    report = Report("combining 4 LoRA, hidden 768, 12 layers")
    print(report.subject)
    model = build_base(768, 12)
    adapters = make_adapters(model)
    modules, theirs = list_pairs(adapters), build_theirs(adapters)
    for how, (floor, extra) in FLOORS.items():

        def combine(how: str = how, extra: dict[str, Any] = extra) -> None:
            hub.combine(adapters, how=how, weights=WEIGHTS, **extra)

        def compute(floor: Callable[[list[Pair]], Pair] = floor) -> None:
            list(map(floor, modules))

        steps = {"floor": compute, "ours": combine}
        slow = how == "svd"
        if not slow:
            steps["peft"] = combine_theirs(theirs, how, extra)
        with torch.no_grad():
            found = measure(steps, options.rounds)
            if slow and options.slow_rounds:
                step = combine_theirs(theirs, how, extra)
                found["peft"] = time_slowly(step, options.slow_rounds)
        report.add(how, compare(found, "floor"), 2 if slow else 1.5)
    report.write(options.json)


def time_slowly(step: Callable[[], None], rounds: int) -> float:
    """The median seconds of what needs no warming."""
    import statistics
    import time

    times = []
    for _ in range(rounds):
        begin = time.perf_counter()
        step()
        times.append(time.perf_counter() - begin)
    return statistics.median(times)


if __name__ == "__main__":
    main()
