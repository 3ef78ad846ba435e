"""The training loop: transformers' own, so that only what learns is saved, resumed and measured."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from tqdm import tqdm  # type: ignore[import-untyped]
from transformers import PrinterCallback, Trainer, TrainerCallback, TrainerState

from hub.attachment import Attachment
from hub.discovery import installed_methods
from hub.errors import TrainError
from hub.method import Training
from hub.training.checkpoints import STATE, drop_checkpoints, load_learners, save_learners
from hub.training.evaluation import Evaluator
from hub.training.learners import Learners


class AdapterTrainer(Trainer):
    """transformers' Trainer for an attached model.

    learners: what learns; their files are what a checkpoint holds of the model.
    evaluator: measures at every checkpoint; None to measure nothing.
    """

    def __init__(
        self,
        learners: Learners,
        attachment: Attachment,
        evaluator: Evaluator | None,
        callbacks: list[TrainerCallback],
        **arguments: Any,
    ) -> None:
        self._learners = learners
        self._evaluator = evaluator
        self._part = MethodPart(learners, attachment)
        self._bar = ProgressBar()
        callbacks = [self._part, self._bar, *callbacks]
        # The evaluator holds the data; the Trainer only wants to be told that there are some.
        told: list[Any] | None = [] if evaluator is not None else None
        super().__init__(callbacks=callbacks, eval_dataset=told, **arguments)
        self.remove_callback(PrinterCallback)

    def train(self, *arguments: Any, **keywords: Any) -> Any:
        """Run the loop. Raises TrainError."""
        try:
            return super().train(*arguments, **keywords)
        except torch.OutOfMemoryError as error:
            raise TrainError(
                f"out of memory at step {self.state.global_step + 1} with batch_size="
                f"{self.args.per_device_train_batch_size}; halve it and double "
                "gradient_accumulation, or lower max_length"
            ) from error
        finally:
            self._bar.close()

    def restore_finished(self, checkpoint: Path) -> bool:
        """Whether the run had made all its steps at a checkpoint; then what learns and the state
        are as they were there, since the loop would make one more. Raises FileError."""
        state = TrainerState.load_from_json(str(checkpoint / STATE))
        if state.global_step < state.max_steps:
            return False
        self.state = state
        load_learners(self._learners, checkpoint)
        return True

    def training_step(self, model: Any, inputs: Any, num_items_in_batch: Any = None) -> Any:
        """Also the methods' penalty, and a stop when the loss is no number."""
        loss = super().training_step(model, inputs, num_items_in_batch)
        if self.accelerator.sync_gradients and self._part.training.penalty is not None:
            penalty = self._part.training.penalty()
            if penalty.requires_grad:
                penalty.backward()  # type: ignore[no-untyped-call]
            loss = loss + penalty.detach().to(loss.device)
        if not torch.isfinite(loss):
            raise self._make_divergence_error(f"the loss is {loss.item()}")
        return loss

    def evaluate(self, *arguments: Any, **keywords: Any) -> dict[str, float]:
        """Measure with ours; the values by name, as the Trainer calls them."""
        assert self._evaluator is not None
        metrics = self._evaluator.run().metrics
        for adapter in self._learners.adapters:
            adapter.metrics = dict(metrics)
        values = {f"eval_{name}": value for name, value in metrics.items()}
        for name, value in metrics.items():
            if not torch.isfinite(torch.tensor(value)):
                raise self._make_divergence_error(f"{name} on the evaluation data is {value}")
        self.log(dict(values))
        self.control = self.callback_handler.on_evaluate(
            self.args, self.state, self.control, values
        )
        return values

    @property
    def losses(self) -> tuple[tuple[int, float], ...]:
        """What was logged, as (step, mean loss since the one before)."""
        history = self.state.log_history
        return tuple((int(entry["step"]), entry["loss"]) for entry in history if "loss" in entry)

    @property
    def evaluations(self) -> tuple[tuple[int, dict[str, float]], ...]:
        """What was measured, as (step, value by metric)."""
        return tuple(
            (int(entry["step"]), values)
            for entry in self.state.log_history
            if (values := {k[5:]: entry[k] for k in entry if k.startswith("eval_")})
        )

    def check_tensors(self) -> None:
        """Raise TrainError where an adapter holds what is no number."""
        for adapter in self._learners.adapters:
            for name, tensor in adapter.tensors.items():
                if not torch.isfinite(tensor).all():
                    what = f"{name} of adapter {adapter.label} is no longer finite"
                    raise self._make_divergence_error(what)

    def _make_divergence_error(self, what: str) -> TrainError:
        step = min(self.state.global_step + 1, self.state.max_steps)
        return TrainError(
            f"{what} at step {step} of {self.state.max_steps}; lower learning_rate (it is "
            f"{self.args.learning_rate}), or raise warmup; what was trained is as it was before"
        )

    def _save(self, output_dir: str | None = None, state_dict: Any = None) -> None:
        self.check_tensors()
        save_learners(self._learners, Path(output_dir or str(self.args.output_dir)))

    def _save_checkpoint(self, model: Any, trial: Any) -> None:
        super()._save_checkpoint(model, trial)
        kept = (self.state.global_step, self.state.best_global_step)
        drop_checkpoints(Path(str(self.args.output_dir)), kept)

    def _determine_best_metric(self, metrics: Any, trial: Any) -> bool:
        """Whether this checkpoint is the best yet."""
        if self.state.global_step < self._part.training.result_from:
            return False
        return super()._determine_best_metric(metrics, trial)

    def _load_best_model(self) -> None:
        """Left to `load_best`, which also finds it in a folder that was moved."""

    def load_best(self) -> int | None:
        """Let what learns be as at the best checkpoint; its step, None where nothing was
        measured."""
        best = self.state.best_global_step if self._evaluator is not None else None
        if best is not None:
            folder = Path(str(self.args.output_dir)) / f"checkpoint-{best}"
            metrics = load_learners(self._learners, folder)
            for adapter in self._learners.adapters:
                adapter.metrics = dict(metrics)
        return best

    def _load_from_checkpoint(self, resume_from_checkpoint: str, model: Any = None) -> None:
        load_learners(self._learners, Path(resume_from_checkpoint))


class MethodPart(TrainerCallback):
    """The methods' own part in a run, see the hook `hub_train`."""

    def __init__(self, learners: Learners, attachment: Attachment) -> None:
        self.training = Training()
        self._learners = learners
        self._attachment = attachment

    def on_train_begin(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        """Ask each method's plugin, now that the number of steps is known."""
        parts = [
            installed_methods().call(
                "hub_train",
                adapter.method,
                adapter=adapter,
                modules=self._attachment.modules(adapter),
                steps=state.max_steps,
            )
            for adapter in self._learners.adapters
        ]
        self.training = join_trainings([part for part in parts if part is not None])

    def on_step_end(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        """The optimizer has made a step."""
        if self.training.after_step is not None:
            self.training.after_step(state.global_step)


def join_trainings(parts: Sequence[Training]) -> Training:
    """What several learners add to a run, as one: the penalties' sum, every step's end."""
    if len(parts) < 2:
        return parts[0] if parts else Training()
    penalties = [part.penalty for part in parts if part.penalty is not None]
    steps = [part.after_step for part in parts if part.after_step is not None]

    def measure() -> torch.Tensor:
        first, *others = (penalty() for penalty in penalties)
        return torch.stack([first, *(other.to(first) for other in others)]).sum()

    def end_step(step: int) -> None:
        for after_step in steps:
            after_step(step)

    return Training(
        measure if penalties else None,
        end_step if steps else None,
        max(part.result_from for part in parts),
    )


class ProgressBar(TrainerCallback):
    """Steps and loss on stderr, silent when that is no terminal."""

    def __init__(self) -> None:
        self._bar: Any = None

    def on_train_begin(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        """Show where the run starts, which is not zero for a resumed one."""
        self._bar = tqdm(
            desc="training",
            total=state.max_steps,
            initial=state.global_step,
            unit="step",
            disable=None,
            file=sys.stderr,
        )

    def on_step_end(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        """One more."""
        self._bar.update(1)

    def on_log(self, args: Any, state: Any, control: Any, logs: Any = None, **_: Any) -> None:
        """The newest numbers beside the bar."""
        if self._bar is not None and logs:
            shown = {k.removeprefix("eval_"): f"{logs[k]:.4g}" for k in logs if is_shown(k)}
            self._bar.set_postfix(shown)

    def close(self) -> None:
        """Leave the line on the terminal as it stands."""
        if self._bar is not None:
            self._bar.close()


def is_shown(name: str) -> bool:
    """Whether a logged number is worth a place on the line."""
    return name == "loss" or name.startswith("eval_")
