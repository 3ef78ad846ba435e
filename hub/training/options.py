"""The options of a training run, checked, and in the words of transformers' Trainer."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from hub.errors import PackageMissing, TrainError
from hub.training.metrics import Metric

if TYPE_CHECKING:
    from transformers import TrainingArguments

LOGGED = 500
# In transformers' words. Those that say their bits are bitsandbytes' own.
OPTIMIZERS = (
    *("adamw_torch", "adamw_torch_fused", "adafactor", "sgd", "adamw_8bit", "lion_8bit"),
    *("paged_adamw_8bit", "paged_adamw_32bit", "paged_lion_8bit", "paged_lion_32bit"),
)


@dataclass(frozen=True)
class Options:
    """The numbers of a run; see `train`. Raises TrainError on one that can't be."""

    epochs: float
    max_steps: int | None
    learning_rate: float
    batch_size: int
    gradient_accumulation: int
    warmup: float
    weight_decay: float
    seed: int
    save_steps: int | None
    optimizer: str | None = None

    def __post_init__(self) -> None:
        for name in ("max_steps", "batch_size", "gradient_accumulation", "save_steps"):
            value = getattr(self, name)
            optional = name in ("max_steps", "save_steps")
            if not (value is None and optional) and not (isinstance(value, int) and value >= 1):
                raise TrainError(f"{name} is {value!r}; it is a whole number from 1")
        for name in ("epochs", "learning_rate"):
            value = getattr(self, name)
            if not (math.isfinite(value) and value > 0):
                raise TrainError(f"{name} is {value!r}; it is a number above 0")
        if not 0 <= self.warmup < 1:
            raise TrainError(f"warmup is {self.warmup!r}; it is a share of the steps, in [0, 1)")
        if not 0 <= self.weight_decay < math.inf:
            raise TrainError(f"weight_decay is {self.weight_decay!r}; it is a number from 0")
        if not 0 <= self.seed < 2**32:
            raise TrainError(f"seed is {self.seed!r}; it is a whole number from 0 to 2**32 - 1")

    def count_steps(self, rows: int) -> int:
        """The optimizer steps over so many rows."""
        if self.max_steps is not None:
            return self.max_steps
        an_epoch = math.ceil(math.ceil(rows / self.batch_size) / self.gradient_accumulation)
        return math.ceil(self.epochs * an_epoch)


def check_optimizer(name: str | None, device: torch.device) -> None:
    """Raise TrainError where there is no optimizer of this name, or it pages and the model is not
    on a GPU; PackageMissing where it needs bitsandbytes."""
    if name is None:
        return
    if name not in OPTIMIZERS:
        raise TrainError(f"optimizer is {name!r}; it is one of {', '.join(OPTIMIZERS)}")
    if name.startswith("paged") and device.type == "cpu":
        raise TrainError(
            f"{name} moves its state out of a GPU's memory when that is full, and the model is on "
            "the cpu; take adamw_8bit or adamw_torch, or load the model on a GPU"
        )
    if name.endswith("bit") and find_spec("bitsandbytes") is None:
        raise PackageMissing("bitsandbytes", "quantized")


def make_arguments(
    model: Any,
    folder: Path,
    options: Options,
    rows: int,
    saves: bool,
    metrics: Sequence[Metric],
) -> TrainingArguments:
    """The options in the Trainer's words. Raises TrainError where it can't reach the model."""
    from transformers import TrainingArguments

    device = model.get_input_embeddings().weight.device
    optimizer: dict[str, Any] = {} if options.optimizer is None else {"optim": options.optimizer}
    every = "steps" if options.save_steps is not None else "epoch"
    arguments = TrainingArguments(
        output_dir=str(folder),
        num_train_epochs=options.epochs,
        max_steps=options.max_steps or -1,
        learning_rate=options.learning_rate,
        per_device_train_batch_size=options.batch_size,
        gradient_accumulation_steps=options.gradient_accumulation,
        warmup_steps=options.warmup,
        weight_decay=options.weight_decay,
        **optimizer,
        seed=options.seed,
        logging_steps=max(1, options.count_steps(rows) // LOGGED),
        logging_nan_inf_filter=False,
        eval_strategy=every if metrics else "no",
        eval_steps=options.save_steps,
        save_strategy=every if saves else "no",
        save_steps=options.save_steps or LOGGED,
        load_best_model_at_end=bool(metrics),
        metric_for_best_model=metrics[0].name if metrics else None,
        greater_is_better=metrics[0].higher if metrics else None,
        use_cpu=device.type == "cpu",
        dataloader_pin_memory=device.type == "cuda",
        remove_unused_columns=False,
        label_names=["labels"],
        disable_tqdm=True,
        report_to="none",
    )
    if device != arguments.device and not getattr(model, "hf_device_map", None):
        raise TrainError(
            f"the model is on {device}, the Trainer works on {arguments.device}; move the model "
            "there, or hide the other devices (CUDA_VISIBLE_DEVICES)"
        )
    # One process, one device, the base's own precision: no DataParallel, no autocast from outside.
    arguments._n_gpu = min(1, arguments.n_gpu)
    arguments.mixed_precision = "no"
    return arguments
