"""Training: adapters learn from a dataset, on a base that stays as it was."""

from __future__ import annotations

import logging
import math
import tempfile
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from importlib.metadata import version
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Any

from hub.attachment import Composition
from hub.attachment.admission import Trainable
from hub.errors import PackageMissing, TrainError
from hub.references import locate_folder
from hub.sites import unwrap_model
from hub.training.checkpoints import begin_run, describe_run, resume_run
from hub.training.data import Data, read_examples
from hub.training.encoding import collate, count_front, find_kind, make_encoder
from hub.training.evaluation import Evaluator
from hub.training.keeping import keep_model, keep_on_error, keep_random_state
from hub.training.labels import settle_labels
from hub.training.learners import find_learners, put_on
from hub.training.metrics import choose_metrics
from hub.training.options import Options, check_optimizer, make_arguments

if TYPE_CHECKING:
    from transformers import TrainerCallback

log = logging.getLogger("hub")


@dataclass(frozen=True)
class TrainResult:
    """What a run came to.

    steps: optimizer steps, those of an earlier part of a resumed run with them.
    loss: the last one logged; losses: all, as (step, mean since the one before).
    evaluations: what was measured at each checkpoint, as (step, value by metric).
    metrics: what the model with what was trained, as it is left, was measured at; empty without
        `eval_dataset`.
    best_step: whose checkpoint is what was trained now; None without `eval_dataset`.
    seconds: the time that this call took.
    truncated: how many prompts were cut to `max_length`.
    output: the folder with the checkpoints; None when they were temporary.
    """

    steps: int
    loss: float
    losses: tuple[tuple[int, float], ...]
    evaluations: tuple[tuple[int, Mapping[str, float]], ...]
    metrics: Mapping[str, float]
    best_step: int | None
    seconds: float
    truncated: int
    output: Path | None


def train(
    model: Any,
    composition: Composition,
    dataset: Data,
    *,
    tokenizer: Any,
    template: str,
    eval_dataset: Data | None = None,
    metric: str | None = None,
    epochs: float = 3,
    max_steps: int | None = None,
    learning_rate: float = 2e-4,
    batch_size: int = 8,
    gradient_accumulation: int = 1,
    warmup: float = 0.06,
    weight_decay: float = 0.0,
    optimizer: str | None = None,
    max_length: int | None = None,
    seed: int = 0,
    save_steps: int | None = None,
    output: str | Path | None = None,
    resume: bool = False,
    choices: Sequence[str] | None = None,
    max_new_tokens: int | None = None,
    callbacks: Sequence[TrainerCallback] = (),
    trainable: Trainable = None,
    allow_other_base: bool = False,
) -> TrainResult:
    """Train an adapter, or what learns in a composition, on `model` and a dataset, with
    transformers' Trainer, where the model is.

    It is attached for it and detached again, or, where the model carries it already and it learns,
    trained as it stands. The tensors of what learns are trained in place, its `metrics` and
    `lineage` filled in; the other parts stay bit for bit as they are. The model is as it was
    afterwards; when anything is raised what learned is too.

    composition: an adapter, or several that learn together or on top of others,
        ``hub.Stack("de@2", adapter)``. A dataset does not say which row has which, so no
        `BatchSplit` and no `Parallel`.
    trainable: which of its adapters learn, as for `hub.attach`; those made new when left out, and
        an adapter that is given alone.
    dataset: a `datasets.Dataset`, or the path of a JSONL, CSV or Parquet file.
    template: Jinja2, prompt and completion divided by ``|||``: ``{{ text }}|||{{ label }}``.
        A causal or encoder-decoder model learns the completion and where it ends. A sequence
        classifier learns which class it names: one of the model's `label2id`, a number, else
        names are numbered in sorted order and kept in ``lineage["labels"]``.
    eval_dataset: measured at every checkpoint; what learns is left as it was at the best one.
    metric: by which the best is chosen, see `hub.metrics`; accuracy for a classifier and
        perplexity for a language model when left out. `choices` and `max_new_tokens` are for it,
        see `hub.evaluate`.
    epochs: times over the dataset; max_steps: optimizer steps, instead.
    learning_rate: the highest, after `warmup` (a share of the steps); from there it falls to 0.
    batch_size: rows at once; gradient_accumulation: times that, in one step.
    optimizer: transformers' name of one: adamw_8bit keeps its state in a quarter of the memory,
        paged_adamw_8bit also moves it out of a GPU that is full (QLoRA, section 3); its fused AdamW
        when left out.
    max_length: tokens of a row; the model's limit, at most 1024, when left out. A prompt is cut
        from the left to fit, a completion never.
    save_steps: a checkpoint every so many steps; after every epoch when left out.
    output: a folder for the checkpoints; a temporary one when left out.
    resume: go on with the run in `output` from its last checkpoint, exactly as if it had never
        stopped.
    callbacks: transformers' own, for logging elsewhere or stopping early.

    Raises DataError on the dataset, the template or the metric; TrainError on an option, a
    composition that can't be trained, a run that can't be resumed, a loss that is no number, or too
    little memory; PackageMissing; FileError where a checkpoint can't be written or read; and what
    `attach` raises.
    """
    options = Options(
        epochs,
        max_steps,
        learning_rate,
        batch_size,
        gradient_accumulation,
        warmup,
        weight_decay,
        seed,
        save_steps,
        optimizer,
    )
    if find_spec("accelerate") is None:
        raise PackageMissing("accelerate", "train")
    from hub.training.loop import AdapterTrainer

    if resume and output is None:
        raise TrainError("to resume a run, give output, the folder that holds it")
    model = unwrap_model(model)
    learners = find_learners(model, composition, trainable)
    kind = find_kind(model)
    check_optimizer(optimizer, model.get_input_embeddings().weight.device)
    metrics = choose_metrics(metric, kind, bool(choices)) if eval_dataset is not None else []
    examples = read_examples(dataset, template)
    measured = read_examples(eval_dataset, template) if eval_dataset is not None else None
    labels = None
    if kind == "classification":
        labels = settle_labels(examples, model.config, learners.labels)
    start = time.monotonic()
    with (
        keep_random_state(model),
        keep_on_error(learners.adapters),
        keep_model(model),
        put_on(model, learners, allow_other_base) as attachment,
        ExitStack() as stack,
    ):
        encoder = make_encoder(model, tokenizer, kind, max_length, count_front(attachment))
        rows, truncated = encoder.encode(examples, labels)
        if truncated:
            log.warning(
                "%d of %d prompts were cut to fit max_length=%d tokens",
                truncated,
                len(rows),
                encoder.max_length,
            )
        evaluator = None
        if measured is not None:
            evaluator = Evaluator(
                model,
                encoder,
                metrics,
                measured,
                labels=labels,
                batch_size=batch_size,
                max_new_tokens=max_new_tokens,
                choices=choices or (),
            )
        run = describe_run(model, learners, examples, measured, encoder, options, metrics)
        folder = stack.enter_context(open_output(output))
        checkpoint = resume_run(folder, run) if resume else None
        if not resume:
            begin_run(folder, run)
        names = labels.names if labels is not None else ()
        learners.begin_lineage(names, run["tokenizer"])
        story = {
            "dataset": dict(examples.source),
            "eval_dataset": dict(measured.source) if measured is not None else None,
            "template": template,
            "truncated": truncated,
            "options": run["options"],
            "versions": list_versions(),
        }
        learners.tell(story)
        if kind == "classification":
            encoder.settle_padding(model)
        saves = output is not None or evaluator is not None
        trainer = AdapterTrainer(
            learners,
            attachment,
            evaluator,
            list(callbacks),
            model=model,
            args=make_arguments(model, folder, options, len(rows), saves, metrics),
            train_dataset=rows,
            data_collator=lambda batch: collate(batch, encoder.pad),
        )
        try:
            if checkpoint is None or not trainer.restore_finished(checkpoint):
                trainer.train(resume_from_checkpoint=str(checkpoint) if checkpoint else None)
            best = trainer.load_best()
            trainer.check_tensors()
        finally:
            for parameter in attachment.parameters():
                parameter.grad = None
        result = TrainResult(
            steps=trainer.state.global_step,
            loss=trainer.losses[-1][1] if trainer.losses else math.nan,
            losses=trainer.losses,
            evaluations=trainer.evaluations,
            metrics=dict(learners.adapters[0].metrics),
            best_step=best,
            seconds=time.monotonic() - start,
            truncated=truncated,
            output=folder if output is not None else None,
        )
        learners.tell(
            {
                **story,
                "steps": result.steps,
                "best_step": best,
                "loss": result.loss if trainer.losses else None,
                "seconds": round(result.seconds, 3),
            }
        )
        return result


@contextmanager
def open_output(output: str | Path | None) -> Iterator[Path]:
    """The folder for a run's checkpoints."""
    if output is not None:
        yield locate_folder(output).absolute()
        return
    with tempfile.TemporaryDirectory(prefix="pefthub-") as scratch:
        yield Path(scratch)


def list_versions() -> dict[str, str]:
    """The versions of what computes."""
    return {name: version(name) for name in ("pefthub", "torch", "transformers")}
