"""Trials: a task, learned by full fine-tuning and by adapters, on the same rows, and measured.

Full fine-tuning is transformers' Trainer with the arguments that `hub.train` gives it, so that the
steps, the order of the rows, the schedule and the clipping are the adapters'.
"""

from __future__ import annotations

import copy
import math
import tempfile
import time
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import nn

import hub
from hub.cli.models import load_model
from hub.demo.tasks import Task
from hub.heads import find_heads
from hub.training.data import read_examples
from hub.training.encoding import collate, make_encoder
from hub.training.labels import settle_labels
from hub.training.metrics import METRICS
from hub.training.options import Options, make_arguments

METHODS = ("lora", "houlsby")
WARMUP = 0.1
ROWS = 32  # at once, when measuring
WIDTH = 128  # of the model that the rates were chosen on


@dataclass(frozen=True)
class Trial:
    """What came of learning a task in one way.

    learner: "base", "full" or a method's name. value: of the task's metric, on the rows held out.
    trained, total: parameters, a head among them; total is the base's. seconds: of training.
    size: bytes on disk of what was trained. adapter: None for the base and for full fine-tuning.
    """

    learner: str
    value: float
    trained: int
    total: int
    seconds: float
    size: int
    adapter: hub.Adapter | None = None

    @property
    def share(self) -> float:
        """The trained parameters as a share of the base's."""
        return self.trained / self.total


def recover(task: Task, trials: Sequence[Trial], trial: Trial) -> float:
    """How much of what full fine-tuning gains over the base this trial gains too: 1 is all of it.
    Not a number where full fine-tuning gains nothing."""
    base, full = (next(t for t in trials if t.learner == name) for name in ("base", "full"))
    sign = 1 if METRICS[task.metric].higher else -1
    gain = sign * (full.value - base.value)
    return sign * (trial.value - base.value) / gain if gain > 0 else math.nan


def run_trials(
    task: Task, base: str, tokenizer: Any, seed: int, echo: Callable[[str], None]
) -> tuple[list[Trial], Any]:
    """The base, full fine-tuning and each method on a task; and the base's model for the task.

    The base of a classifier is the frozen model under a trained head, with which the others begin.
    Raises what `hub.train` and `hub.evaluate` raise, and HubError where the base can't be loaded.
    """
    model = load_task_model(task, base)
    total = count(model.parameters())
    slowing = slow_down(model)

    def measure(adapted: Any, adapter: hub.Adapter | None) -> float:
        evaluation = hub.evaluate(
            adapted,
            adapter,
            list(task.held_out),
            tokenizer=tokenizer,
            template=task.template,
            metrics=task.metric,
            batch_size=ROWS,
        )
        return evaluation.metrics[task.metric]

    def tell(trial: Trial) -> Trial:
        echo(
            f"  {trial.learner}: {task.metric} {trial.value:.3g}"
            + (f", trained in {trial.seconds:.0f} s" if trial.trained else "")
        )
        return trial

    trials = []
    seconds = 0.0
    head = [p for path in find_heads(model) for p in model.get_submodule(path).parameters()]
    if head:
        seconds = fine_tune(model, head, task, tokenizer, task.plan.learners["head"].rate, seed)
    size = 4 * count(head)
    trials.append(tell(Trial("base", measure(model, None), count(head), total, seconds, size)))

    tuned = copy.deepcopy(model)
    rate = task.plan.learners["full"].rate * slowing
    seconds = fine_tune(tuned, list(tuned.parameters()), task, tokenizer, rate, seed)
    trials.append(tell(Trial("full", measure(tuned, None), total, total, seconds, weigh(tuned))))
    del tuned

    for method in METHODS:
        learner = task.plan.learners[method]
        torch.manual_seed(seed)
        adapter = hub.Adapter.create(method, model, **learner.options)
        result = hub.train(
            model,
            adapter,
            list(task.rows),
            tokenizer=tokenizer,
            template=task.template,
            epochs=task.plan.epochs,
            batch_size=task.plan.batch_size,
            learning_rate=learner.rate * slowing,
            warmup=WARMUP,
            seed=seed,
        )
        value = measure(model, adapter)
        adapter.task, adapter.metrics = task.name, {task.metric: value}
        trained = count(adapter.tensors.values())
        trials.append(
            tell(Trial(method, value, trained, total, result.seconds, weigh(adapter), adapter))
        )
    return trials, model


def load_task_model(task: Task, base: str) -> Any:
    """The base with the head that the task needs, if it needs one. Raises HubError."""
    if task.kind == "causal":
        return load_model(base, "causal")
    model = load_model(base, "classification", len(task.labels))
    model.config.id2label = dict(enumerate(task.labels))
    model.config.label2id = {label: number for number, label in enumerate(task.labels)}
    return model


def fine_tune(
    model: Any, parameters: list[nn.Parameter], task: Task, tokenizer: Any, rate: float, seed: int
) -> float:
    """Train some of a model's own parameters, in place; how many seconds it took."""
    from transformers import PrinterCallback, Trainer

    from hub.training.loop import ProgressBar

    plan = task.plan
    options = Options(plan.epochs, None, rate, plan.batch_size, 1, WARMUP, 0.0, seed, None)
    start = time.monotonic()
    examples = read_examples(list(task.rows), task.template)
    encoder = make_encoder(model, tokenizer, task.kind, None)
    labels = settle_labels(examples, model.config, ()) if task.labels else None
    rows, _ = encoder.encode(examples, labels)
    if task.labels:
        encoder.settle_padding(model)
    chosen = set(map(id, parameters))
    for parameter in model.parameters():
        parameter.requires_grad_(id(parameter) in chosen)
    with tempfile.TemporaryDirectory(prefix="pefthub-") as scratch:
        trainer = Trainer(
            model=model,
            args=make_arguments(model, Path(scratch), options, len(rows), False, ()),
            train_dataset=rows,
            data_collator=lambda batch: collate(batch, encoder.pad),
            callbacks=[ProgressBar()],
        )
        trainer.remove_callback(PrinterCallback)
        trainer.train()
    model.eval().requires_grad_(True)
    return time.monotonic() - start


def slow_down(model: Any) -> float:
    """What to multiply the rates by on another base: they suit the demo's own width, and a wider
    model wants lower ones (Yang et al., 2022, https://arxiv.org/abs/2203.03466)."""
    return min(1.0, WIDTH / int(model.config.get_text_config().hidden_size))


def count(parameters: Iterable[torch.Tensor]) -> int:
    """How many values there are in all."""
    return sum(parameter.numel() for parameter in parameters)


def weigh(trained: Any) -> int:
    """The bytes of a model's weights or of an adapter's files, when written to disk."""
    with tempfile.TemporaryDirectory(prefix="pefthub-") as scratch:
        if isinstance(trained, hub.Adapter):
            trained.save(scratch)
        else:
            trained.save_pretrained(scratch)
        return sum(file.stat().st_size for file in Path(scratch).iterdir())
