"""Checkpoints: what a run leaves in its folder, and how it is found again.

run.json                what the run is: learners, base, data, options
checkpoint-{step}/      the adapter's three files, where several learn in a folder for each
                        ("2-houlsby"), and the state of optimizer, schedule, run and random
                        numbers; never a tensor of the base
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch

from hub.adapter import Adapter
from hub.errors import TrainError
from hub.identity import hash_tokenizer, identify_base
from hub.training.data import Examples
from hub.training.encoding import Encoder
from hub.training.learners import Learners
from hub.training.metrics import Metric
from hub.training.options import Options
from hub_registry.identity import BaseIdentity, compare

RUN = "run.json"
STATE = "trainer_state.json"


def describe_run(
    model: Any,
    learners: Learners,
    examples: Examples,
    measured: Examples | None,
    encoder: Encoder,
    options: Options,
    metrics: Sequence[Metric],
) -> dict[str, Any]:
    """What must be the same for a run to be resumed; JSON."""
    return {
        **learners.describe(),
        "base": identify_base(model).to_json(),
        "dataset": examples.digest,
        "eval_dataset": measured.digest if measured is not None else None,
        "tokenizer": hash_tokenizer(encoder.tokenizer),
        "options": {
            **asdict(options),
            "max_length": encoder.max_length,
            "metric": metrics[0].name if metrics else None,
        },
    }


def begin_run(folder: Path, run: Mapping[str, Any]) -> None:
    """Make `folder` a new run's. Raises TrainError where it is another's or can't be written."""
    if folder.exists() and not folder.is_dir():
        raise TrainError(f"{folder} is a file; give a folder for the checkpoints")
    if next(folder.glob("checkpoint-*"), None) is not None:
        raise TrainError(f"{folder} holds a run already; resume it, or give another folder")
    try:
        folder.mkdir(parents=True, exist_ok=True)
        (folder / RUN).write_text(json.dumps(run, indent=2, sort_keys=True) + "\n")
    except OSError as error:
        raise TrainError(f"can't write into {folder}: {error.strerror or error}") from error


def resume_run(folder: Path, run: Mapping[str, Any]) -> Path | None:
    """The last whole checkpoint of the run in `folder`; None where it has none yet.

    Raises TrainError where there is no run, or one with another adapter, composition, base, dataset
    or option.
    """
    try:
        before = json.loads((folder / RUN).read_text())
        base = BaseIdentity.from_json(before["base"])
    except FileNotFoundError as error:
        raise TrainError(f"{folder} holds no run to resume; start one without resuming") from error
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise TrainError(f"{folder / RUN} can't be read: {error}; start a new run") from error
    where, way = f"can't resume the run in {folder}", "give what it had, or start in another folder"
    comparison = compare(base, BaseIdentity.from_json(run["base"]))
    if comparison.verdict == "different":
        raise TrainError(f"{where}: the base is another: {'; '.join(comparison.reasons)}; {way}")
    old, new = flatten(before), flatten(run)
    for name in sorted(old.keys() | new.keys()):
        if not name.startswith("base.") and old.get(name) != new.get(name):
            raise TrainError(
                f"{where}: {name} was {show(old.get(name))} and is {show(new.get(name))}; {way}"
            )
    return find_last_checkpoint(folder)


def find_last_checkpoint(folder: Path) -> Path | None:
    """The newest checkpoint that was written to its end: its state is written last."""
    for path in sorted(folder.glob("checkpoint-*"), key=find_step, reverse=True):
        try:
            json.loads((path / STATE).read_text())
        except (OSError, ValueError):
            continue
        return path
    return None


def drop_checkpoints(folder: Path, kept: Sequence[int | None]) -> None:
    """Delete all checkpoints but those of these steps."""
    for path in folder.glob("checkpoint-*"):
        if find_step(path) not in kept:
            shutil.rmtree(path, ignore_errors=True)


def find_step(checkpoint: Path) -> int:
    """The number of optimizer steps done at a checkpoint."""
    number = checkpoint.name.rpartition("-")[2]
    return int(number) if number.isdigit() else -1


def save_learners(learners: Learners, checkpoint: Path) -> None:
    """Write what learns into a checkpoint. Raises FileError."""
    for adapter, folder in zip(learners.adapters, learners.name_folders(), strict=True):
        adapter.save(checkpoint / folder)


@torch.no_grad()
def load_learners(learners: Learners, checkpoint: Path) -> Mapping[str, float]:
    """Put a checkpoint's tensors into what learns, in place; what was measured there.

    Raises FileError and TrainError, and then nothing changed.
    """
    folders = [checkpoint / folder for folder in learners.name_folders()]
    saved = [Adapter.read(folder) for folder in folders]
    for adapter, found, folder in zip(learners.adapters, saved, folders, strict=True):
        if found.tensors.keys() != adapter.tensors.keys():
            raise TrainError(f"{folder} holds another adapter's tensors; start a new run")
    for adapter, found in zip(learners.adapters, saved, strict=True):
        for name, tensor in adapter.tensors.items():
            tensor.copy_(found.tensors[name])
    return saved[0].metrics


def flatten(value: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """A JSON object's leaves by their path, "options.seed"."""
    leaves: dict[str, Any] = {}
    for name, item in value.items():
        if isinstance(item, Mapping):
            leaves |= flatten(item, f"{prefix}{name}.")
        else:
            leaves[f"{prefix}{name}"] = item
    return leaves


def show(value: Any) -> str:
    """A value, short enough for a line."""
    text = json.dumps(value)
    return text if len(text) <= 60 else f"{text[:57]}..."
