"""What a method must do in a cell to count there: a whole life, and an effect at every site."""

from __future__ import annotations

import inspect
import tempfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn
from torch.nn import functional as F

import hub
from tests.architectures.cells import Cell, build_model
from tests.architectures.inputs import find_inputs, make_inputs, run

STEPS = 3
RATES = (1e-2, 1e-3, 1e-1)
TOKENS = 4
BATCHES = 4
MODELS = 10
LONGER = 8
SHAKES = (5e-3, 5e-2, 3e-1)
PLAIN = 1e-2
SAME = 1e-5
# Logits of the same model computed with a cache and without differ by rounding.
ROUNDING = 1e-3


class Failed(Exception):
    """A promise that was not kept."""


@dataclass
class Bare:
    """The cell's model without an adapter and what it does.

    generates: the bare model generates the same with a cache and without.
    """

    cell: Cell
    model: Any
    inputs: dict[str, Any]
    logits: torch.Tensor
    state: dict[str, torch.Tensor]
    shape: dict[str, Any]
    labels: dict[str, Any] | None
    generates: bool


def prepare_cell(cell: Cell) -> Bare:
    """Build the model and see what it can do bare."""
    model = build_model(cell)
    inputs = find_inputs(model, cell.task)
    with torch.no_grad():
        logits = run(model, inputs)
    bare = Bare(cell, model, inputs, logits, copy_state(model), describe_shape(model), None, False)
    bare.labels = find_labels(bare)
    bare.generates = can_generate(bare)
    check_untouched(model, bare, "running the bare model")
    return bare


def prove_method(bare: Bare, method: str, options: Mapping[str, Any]) -> None:
    """Take a method through its life on the cell's model.

    Raises ConfigError where the method refuses the model, Failed or whatever goes wrong.
    """
    model = bare.model
    torch.manual_seed(1)
    adapter = hub.Adapter.create(method, model, **options)
    check_untouched(model, bare, "create")
    prove_sites(bare, adapter)
    with hub.attach(model, adapter) as attachment:
        prove_training(bare, attachment, adapter)
        taught = shake(adapter, bare)
    check_untouched(model, bare, "detach")
    prove_files(bare, adapter, taught)


def prove_training(bare: Bare, attachment: hub.Attachment, adapter: hub.Adapter) -> None:
    """A few steps change the adapter, lower the loss at one of the rates, and leave the base."""
    before = {name: tensor.detach().clone() for name, tensor in adapter.tensors.items()}
    for rate in RATES:
        with torch.no_grad():
            for name, tensor in adapter.tensors.items():
                tensor.copy_(before[name])
        first, last = train(bare, attachment, rate)
        if all(torch.equal(before[name], tensor) for name, tensor in adapter.tensors.items()):
            raise Failed("training changed nothing")
        if last < first:
            break
    else:
        raise Failed(f"the loss went from {first:.5f} to {last:.5f}")
    check_state(bare.model, bare, "training")


def train(bare: Bare, attachment: hub.Attachment, rate: float) -> tuple[float, float]:
    """The loss before and after a few steps of AdamW on one batch, nothing dropped."""
    optimizer = torch.optim.AdamW(attachment.parameters(), lr=rate)
    losses = []
    for _ in range(STEPS):
        with in_training(bare.model):
            loss = find_loss(bare)
            optimizer.zero_grad()
            loss.backward()  # type: ignore[no-untyped-call]
        optimizer.step()
        losses.append(loss.item())
    with torch.no_grad(), in_training(bare.model):
        return losses[0], find_loss(bare).item()


@contextmanager
def in_training(model: Any) -> Iterator[None]:
    """Training mode inside: some models compute no gradient in the other."""
    model.train()
    try:
        yield
    finally:
        model.eval()


def prove_sites(bare: Bare, adapter: hub.Adapter) -> None:
    """Every site of a new adapter acts. Those without an effect in one model must have one in
    another with other weights, whose router takes other experts."""
    idle: set[hub.Site] | None = None
    for seed in range(MODELS):
        model = build_model(bare.cell, seed) if seed else bare.model
        with hub.attach(model, adapter, trainable=True, allow_other_base=True) as attachment:
            found = find_idle(model, bare, attachment, adapter)
        idle = found if idle is None else idle & found
        if not idle:
            return
    named = sorted(f"{site.kind} {site.path} ({site.role})" for site in idle or ())
    raise Failed(f"{len(named)} sites without effect: {', '.join(named[:3])}")


def find_idle(
    model: Any, bare: Bare, attachment: hub.Attachment, adapter: hub.Adapter
) -> set[hub.Site]:
    """The sites with no tensor that the logits depend on: their gradient with respect to it, along
    a random direction, is zero. What one batch does not reach (an expert), another may."""
    waiting = {
        site: list(module.parameters()) for site, module in attachment.modules(adapter).items()
    }
    if not waiting:
        raise Failed("no site")
    for seed in range(BATCHES):
        inputs = bare.inputs if seed == 0 else draw_again(bare, seed)
        for tensors in waiting.values():
            for tensor in tensors:
                tensor.grad = None
        with in_training(model):
            logits = run(model, inputs, seed)
            direction = torch.randn(logits.shape, generator=torch.Generator().manual_seed(seed))
            (logits.float() * direction).sum().backward()  # type: ignore[no-untyped-call]
        waiting = {
            site: tensors
            for site, tensors in waiting.items()
            if not any(t.grad is not None and bool(t.grad.any()) for t in tensors)
        }
        if not waiting:
            break
    return set(waiting)


def prove_files(bare: Bare, adapter: hub.Adapter, taught: torch.Tensor) -> None:
    """Saved, loaded and attached to a fresh copy it gives the same logits, generates with a cache
    what it generates without, and leaves nothing behind."""
    model = build_model(bare.cell)
    with tempfile.TemporaryDirectory() as folder:
        adapter.save(folder)
        loaded = hub.load(folder)
    with hub.attach(model, loaded), torch.no_grad():
        logits = run(model, bare.inputs)
        difference = compare(logits, taught)
        if difference > SAME:
            raise Failed(f"the loaded adapter's logits differ by {difference:.2e}")
        if bare.generates:
            scores = [generate(model, bare, cached=cached) for cached in (True, False)]
            difference = compare(*scores)
            if difference > ROUNDING:
                raise Failed(f"generating with a cache differs by {difference:.2e}")
    check_untouched(model, bare, "detach of the loaded")


def find_loss(bare: Bare) -> torch.Tensor:
    """The model's own loss, or the logits' distance from fixed classes where it has none."""
    torch.manual_seed(0)
    if bare.labels is not None:
        loss: torch.Tensor = bare.model(**bare.labels).loss
        return loss
    logits = bare.model(**bare.inputs).logits.float()
    classes = logits.shape[-1]
    rows = logits.reshape(-1, classes)
    return F.cross_entropy(rows, torch.arange(len(rows)) % classes)


def find_labels(bare: Bare) -> dict[str, Any] | None:
    """Inputs with labels, where the bare model gives a loss for them."""
    if "labels" not in inspect.signature(bare.model.forward).parameters:
        return None
    inputs = dict(bare.inputs)
    ids = inputs.get("decoder_input_ids", next(iter(inputs.values())))
    # Rows of one class: a new model hardly tells rows apart, and its loss on two can't fall much.
    labels = torch.zeros(len(ids)).long() if bare.cell.task == "classification" else ids.clone()
    try:
        loss = bare.model(**inputs, labels=labels).loss
    except Exception:
        return None
    return {**inputs, "labels": labels} if loss is not None and torch.isfinite(loss) else None


def can_generate(bare: Bare) -> bool:
    """Whether the bare model generates, the same with a cache as without."""
    if bare.cell.task not in ("causal", "seq2seq") or not bare.model.can_generate():
        return False
    try:
        with torch.no_grad():
            scores = [generate(bare.model, bare, cached=cached) for cached in (True, False)]
    except Exception:
        return False
    return compare(*scores) <= ROUNDING / 10


def generate(model: Any, bare: Bare, *, cached: bool) -> torch.Tensor:
    """The scores of a few tokens, greedily: (tokens, rows, vocabulary)."""
    torch.manual_seed(0)
    inputs = {k: v for k, v in bare.inputs.items() if not k.startswith(("decoder", "use_cache"))}
    out = model.generate(
        **inputs,
        use_cache=cached,
        do_sample=False,
        num_beams=1,
        min_new_tokens=TOKENS,
        max_new_tokens=TOKENS,
        return_dict_in_generate=True,
        output_logits=True,
        pad_token_id=0,
    )
    return torch.stack(list(out.logits))


def compare(left: torch.Tensor, right: torch.Tensor) -> float:
    """The largest difference of two models' scores, for each unit of their size."""
    size = max(1.0, right.abs().max().item())
    return (left - right).abs().max().item() / size


def draw_again(bare: Bare, seed: int) -> dict[str, Any]:
    """Other words in the place of the inputs' own, more of them each time."""
    before = bare.inputs
    length = next(iter(before.values())).shape[1] * min(2 ** (seed - 1), LONGER)
    inputs = make_inputs(bare.model, bare.cell.task, length, seed=seed + 1)
    for name, value in inputs.items():
        if name in before and name.endswith("ids"):
            value[:, -1] = before[name][:, -1]
    return {name: inputs.get(name, value) for name, value in before.items()}


def shake(adapter: hub.Adapter, bare: Bare) -> torch.Tensor:
    """Change every value of the attached adapter, as if it had been trained for long, until the
    logits are plainly others; these."""
    generator = torch.Generator().manual_seed(3)
    for size in SHAKES:
        with torch.no_grad():
            for tensor in adapter.tensors.values():
                if tensor.is_floating_point():
                    tensor.add_(torch.randn(tensor.shape, generator=generator) * size)
            logits = run(bare.model, bare.inputs)
        if logits.shape != bare.logits.shape:
            raise Failed(f"the logits are {tuple(logits.shape)}, bare {tuple(bare.logits.shape)}")
        if compare(logits, bare.logits) > PLAIN:
            return logits
    if torch.equal(logits, bare.logits):
        raise Failed("the logits are the bare model's")
    return logits


def check_untouched(model: Any, bare: Bare, what: str) -> None:
    """Raise Failed unless weights, modules, hooks, flags and logits are the bare model's."""
    check_state(model, bare, what)
    shape = describe_shape(model)
    changed = [path for path in {**bare.shape, **shape} if bare.shape.get(path) != shape.get(path)]
    if changed:
        raise Failed(f"after {what} {changed[0] or 'the model'} is not what it was")
    with torch.no_grad():
        if not torch.equal(run(model, bare.inputs), bare.logits):
            raise Failed(f"after {what} the logits differ")


def check_state(model: Any, bare: Bare, what: str) -> None:
    """Raise Failed unless the base's tensors are bit for bit what they were."""
    state = model.state_dict()
    changed = [name for name, value in bare.state.items() if not equal_bits(value, state[name])]
    if changed:
        raise Failed(f"{what} changed {changed[0]}")


def equal_bits(left: torch.Tensor, right: torch.Tensor) -> bool:
    """Equal, a not-a-number equal to itself."""
    same = left == right
    return bool((same | ((left != left) & (right != right))).all())


def copy_state(model: Any) -> dict[str, torch.Tensor]:
    """The model's tensors."""
    return {name: tensor.detach().clone() for name, tensor in model.state_dict().items()}


def describe_shape(model: nn.Module) -> dict[str, Any]:
    """Each module's class, mode, hooks and attributes, by path, and each parameter's flag."""
    modules = {
        path: (type(module), module.training, count_hooks(module), frozenset(vars(module)))
        for path, module in model.named_modules()
    }
    return {**modules, **{name: p.requires_grad for name, p in model.named_parameters()}}


def count_hooks(module: nn.Module) -> int:
    """Every kind of hook that a module can carry."""
    tables = [value for name, value in vars(module).items() if "hook" in name]
    return sum(len(table) for table in tables if isinstance(table, Mapping))
