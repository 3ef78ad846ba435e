"""What LoRA r=8 on all linears costs when it learns: a training step over its floor.

    python benchmarks/training.py [--rounds 20] [--hidden 256] [--layers 4] [--rows 8] [--eager]

A step is a forward of ROWS x 128 tokens, the loss and the backward. The floor is the same base,
frozen, with gradients for activations alone: they go back to the embeddings, and no weight has any.
Floor, peft's, plain hooks written by hand and ours run in turn in one process; printed are the
ratios of the medians to the floor's, eager and under torch.compile (the floor too), in float32 and
over a base in bfloat16, where adapters learn in float32. No optimizer is in them, as the floor has
none; what AdamW's step over one adapter's parameters takes stands beside them.

Then the bytes that autograd keeps for the backward, over what the floor keeps: each storage once,
and no parameters.
"""

from __future__ import annotations

import ctypes
from collections.abc import Callable
from typing import Any

import peft
import torch
from bases import TARGETS, build_base, draw_ids
from measuring import Report, compare, make_parser, measure
from torch import nn
from torch.nn import functional as F

import hub

BAR = 1.2
Loss = Callable[[], Any]


def attach_ours(base: Any) -> Any:
    """An attachment's base."""
    hub.attach(base, hub.Adapter.create("lora", base, r=8, alpha=16, targets=TARGETS))
    return base


def wrap(base: Any) -> Any:
    """peft's model."""
    config = peft.LoraConfig(r=8, lora_alpha=16, target_modules=TARGETS, task_type="CAUSAL_LM")
    return peft.get_peft_model(base, config).train()


def write_by_hand(base: Any) -> Any:
    """A hook at each projection, as the equation is written."""
    base.requires_grad_(False)
    for name, module in list(base.named_modules()):
        if name.endswith(tuple(TARGETS)):
            module.register_parameter("A", nn.Parameter(torch.randn(8, module.in_features) * 0.02))
            module.register_parameter("B", nn.Parameter(torch.zeros(module.out_features, 8)))

            def hook(module: Any, args: Any, y: Any) -> Any:
                change = F.linear(F.linear(args[0].to(module.A.dtype), module.A), module.B)
                return y + (change * 2).to(y.dtype)

            module.register_forward_hook(hook)
    return base


def build_losses(make: Callable[[], Any], rows: int, compiled: bool) -> dict[str, tuple[Any, Loss]]:
    """Of each, the model and what runs it forward to its loss."""
    ids = draw_ids(rows)
    models = {
        "floor": make().requires_grad_(False),
        "peft": wrap(make()),
        "hooks": write_by_hand(make()),
        "ours": attach_ours(make()),
    }

    def forward(name: str, model: Any) -> Loss:
        run = torch.compile(model, fullgraph=True) if compiled else model
        if name != "floor":
            return lambda: run(input_ids=ids, labels=ids, use_cache=False).loss
        embed = model.get_input_embeddings()
        return lambda: (
            run(inputs_embeds=embed(ids).requires_grad_(True), labels=ids, use_cache=False).loss
        )

    return {name: (model, forward(name, model)) for name, model in models.items()}


def train(model: Any, loss: Loss) -> Callable[[], None]:
    """A step without an optimizer."""
    learning = [parameter for parameter in model.parameters() if parameter.requires_grad]

    def step() -> None:
        loss().backward()
        for parameter in learning:
            parameter.grad = None

    return step


def update(model: Any, loss: Loss) -> Callable[[], None]:
    """AdamW's step over an adapter's parameters, alone."""
    learning = [parameter for parameter in model.parameters() if parameter.requires_grad]
    for parameter in learning:
        parameter.grad = torch.zeros_like(parameter)
    optimizer = torch.optim.AdamW(learning, lr=1e-4)
    return lambda: optimizer.step() and None


def count_saved(model: Any, loss: Loss) -> int:
    """The bytes that autograd keeps for the backward: each storage once, no parameters."""
    own = {t.untyped_storage().data_ptr() for t in (*model.parameters(), *model.buffers())}
    kept: dict[int, torch.Tensor] = {}

    def pack(tensor: torch.Tensor) -> torch.Tensor:
        if tensor.untyped_storage().data_ptr() not in own:
            kept[tensor.untyped_storage().data_ptr()] = tensor
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        found = loss()
    count = sum(tensor.untyped_storage().nbytes() for tensor in kept.values())
    found.backward()
    return count


def keep_pages() -> None:
    """Let the process keep the memory it was given. By default glibc hands pages back and asks for
    them again in every step, for up to a tenth of its time, and whom that hits depends on who ran
    before."""
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None)
    if mallopt is not None:
        mallopt(-1, 2**31 - 1)  # M_TRIM_THRESHOLD
        mallopt(-3, 2**30)  # M_MMAP_THRESHOLD


def main() -> None:
    """Print the table."""
    parser = make_parser(__doc__, rounds=20)
    parser.add_argument("--hidden", type=int, default=256)
    parser.add_argument("--layers", type=int, default=4)
    parser.add_argument("--rows", type=int, default=8)
    parser.add_argument("--eager", action="store_true", help="leave torch.compile out")
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    keep_pages()
    report = Report(
        f"a training step, hidden {options.hidden}, {options.layers} layers, "
        f"{options.rows} x 128 tokens"
    )
    print(f"{report.subject}, {options.threads} threads")
    for dtype in (torch.float32, torch.bfloat16):
        for compiled in (False,) if options.eager else (False, True):
            case = f"{str(dtype).removeprefix('torch.')}, {'compiled' if compiled else 'eager'}"

            def make(dtype: torch.dtype = dtype) -> Any:
                return build_base(options.hidden, options.layers).to(dtype).train()

            losses = build_losses(make, options.rows, compiled)
            steps = {name: train(*pair) for name, pair in losses.items()}
            steps["AdamW alone"] = update(*build_losses(make, options.rows, False)["ours"])
            bar = BAR if dtype is torch.float32 else None
            report.add(f"step, {case}", compare(measure(steps, options.rounds), "floor"), bar)
            kept = {name: float(count_saved(*pair)) for name, pair in losses.items()}
            report.add(f"bytes kept, {case}", compare(kept, "floor"), kept["peft"] / kept["floor"])
    report.write(options.json)


if __name__ == "__main__":
    main()
