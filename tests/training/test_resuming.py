"""A run that was stopped goes on as if it had not been; another run is not mistaken for it."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import TrainerCallback

import hub
from hub.errors import FileError, TrainError
from tests.tiny import build_tiny
from tests.training.tasks import LABELLED, LABELS, ROWS, TEMPLATE, make_tokenizer

MODEL = build_tiny("gpt2", initializer_range=0.3)
CLASSIFIER = build_tiny("bert", "classification", num_labels=2, initializer_range=0.3)


class Stop(Exception):
    pass


class StopAfter(TrainerCallback):
    """Stands in for a machine that is taken away."""

    def __init__(self, step: int) -> None:
        self.step = step

    def on_step_end(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        if state.global_step == self.step:
            raise Stop


def make_adapter(model: Any = MODEL, seed: int = 0, **options: Any) -> Any:
    torch.manual_seed(seed)
    return hub.Adapter.create("lora", model, **{"r": 4, "dropout": 0.3, **options})


def train(adapter: Any, output: Path, **options: Any) -> Any:
    defaults = dict(
        tokenizer=make_tokenizer(),
        template=TEMPLATE,
        eval_dataset=ROWS,
        epochs=5,
        batch_size=3,
        save_steps=4,
        learning_rate=1e-2,
        output=output,
    )
    options = {**defaults, **options}
    model = options.pop("model", MODEL)
    return hub.train(model, adapter, options.pop("dataset", ROWS), **options)


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> tuple[Any, Any]:
    """The adapter of a run that was never stopped, and its result."""
    adapter = make_adapter()
    return adapter, train(adapter, tmp_path_factory.mktemp("whole") / "run")


def are_equal(a: Any, b: Any) -> bool:
    return a.tensors.keys() == b.tensors.keys() and all(
        torch.equal(a.tensors[name], b.tensors[name]) for name in a.tensors
    )


@pytest.mark.parametrize(
    "options",
    [
        dict(save_steps=None),
        dict(gradient_accumulation=2, save_steps=2),
        dict(eval_dataset=None, max_steps=11),
    ],
    ids=["end of an epoch", "accumulated", "last alone"],
)
def test_stopped_run_goes_on_exactly(tmp_path: Path, options: dict[str, Any]) -> None:
    unstopped = make_adapter()
    expected = train(unstopped, tmp_path / "whole", **options)
    with pytest.raises(Stop):
        train(make_adapter(), tmp_path / "parts", callbacks=[StopAfter(7)], **options)
    parts = make_adapter(seed=1)
    found = train(parts, tmp_path / "parts", resume=True, **options)
    assert are_equal(parts, unstopped)
    assert found.losses == expected.losses
    assert found.evaluations == expected.evaluations
    assert found.best_step == expected.best_step
    assert found.steps == expected.steps
    assert parts.metrics == unstopped.metrics


def test_run_stopped_in_the_middle_of_an_epoch_goes_on_exactly(tmp_path: Path, whole: Any) -> None:
    adapter, expected = whole
    with pytest.raises(Stop):
        train(make_adapter(), tmp_path / "parts", callbacks=[StopAfter(7)])
    parts = make_adapter(seed=1)
    found = train(parts, tmp_path / "parts", resume=True)
    assert are_equal(parts, adapter)
    assert found.losses == expected.losses


def test_stopped_classifier_goes_on_exactly(tmp_path: Path) -> None:
    options = dict(model=CLASSIFIER, dataset=LABELLED, template=LABELS, eval_dataset=LABELLED)
    whole, parts = make_adapter(CLASSIFIER), make_adapter(CLASSIFIER)
    expected = train(whole, tmp_path / "whole", **options)
    with pytest.raises(Stop):
        train(parts, tmp_path / "parts", callbacks=[StopAfter(9)], **options)
    found = train(parts, tmp_path / "parts", resume=True, **options)
    assert are_equal(parts, whole)
    assert found.losses == expected.losses
    assert parts.lineage["labels"] == ["no", "yes"]


def test_resuming_a_finished_run_gives_its_adapter_again(tmp_path: Path) -> None:
    first, second = make_adapter(), make_adapter(seed=1)
    expected = train(first, tmp_path / "run")
    found = train(second, tmp_path / "run", resume=True)
    assert are_equal(first, second)
    assert found.losses == expected.losses
    assert second.metrics == first.metrics


def test_run_goes_on_in_a_folder_that_was_moved(tmp_path: Path) -> None:
    """Its best checkpoint too, which lies behind: what is learned is wrong for this data."""
    wrong = [{"x": ROWS[i]["x"], "y": ROWS[(i + 1) % 8]["y"]} for i in range(8)]
    options = dict(learning_rate=0.1, epochs=8, eval_dataset=wrong)
    unmoved = make_adapter()
    expected = train(unmoved, tmp_path / "unmoved", **options)
    assert expected.best_step is not None
    assert expected.best_step < 20
    with pytest.raises(Stop):
        train(make_adapter(), tmp_path / "old", callbacks=[StopAfter(21)], **options)
    shutil.move(tmp_path / "old", tmp_path / "new")
    moved = make_adapter()
    found = train(moved, tmp_path / "new", resume=True, **options)
    assert found.best_step == expected.best_step
    assert are_equal(moved, unmoved)


def test_checkpoint_that_was_cut_off_is_passed_over(tmp_path: Path, whole: Any) -> None:
    with pytest.raises(Stop):
        train(make_adapter(), tmp_path / "parts", callbacks=[StopAfter(9)])
    half = tmp_path / "parts" / "checkpoint-9"
    shutil.copytree(tmp_path / "parts" / "checkpoint-8", half)
    (half / "adapter_model.safetensors").write_bytes(b"")
    (half / "trainer_state.json").write_text('{"epoch": 1')
    parts = make_adapter()
    train(parts, tmp_path / "parts", resume=True)
    assert are_equal(parts, whole[0])


def test_run_stopped_before_its_first_checkpoint_starts_again(tmp_path: Path, whole: Any) -> None:
    parts = make_adapter()
    with pytest.raises(Stop):
        train(parts, tmp_path / "parts", callbacks=[StopAfter(2)])
    train(parts, tmp_path / "parts", resume=True)
    assert are_equal(parts, whole[0])


@pytest.fixture(scope="module")
def stopped(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("runs") / "run"
    with pytest.raises(Stop):
        train(make_adapter(), folder, callbacks=[StopAfter(5)])
    return folder


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (dict(learning_rate=2e-2), r"options.learning_rate was 0.01 and is 0.02"),
        (dict(seed=3), r"options.seed was 0 and is 3"),
        (dict(max_length=32), r"options.max_length was 64 and is 32"),
        (dict(dataset=ROWS[::-1]), "dataset was"),
        (dict(template="{{ x }} {{ x }}|||{{ y }}"), "dataset was"),
        (dict(eval_dataset=ROWS[:2]), "eval_dataset was"),
        (dict(tokenizer=make_tokenizer("$A")), "tokenizer was|dataset was"),
        (dict(adapter=dict(r=8)), r"config\.\w+ was 4 and is 8"),
        (dict(model=build_tiny("gpt2", seed=5)), "the base is another"),
    ],
)
def test_another_run_is_not_resumed(stopped: Path, options: dict[str, Any], message: str) -> None:
    options = dict(options)
    model = options.get("model", MODEL)
    adapter = make_adapter(model, **options.pop("adapter", {}))
    before = {name: tensor.clone() for name, tensor in adapter.tensors.items()}
    with pytest.raises(TrainError, match=f"can't resume the run in .*({message}).*another folder"):
        train(adapter, stopped, resume=True, **options)
    assert all(torch.equal(adapter.tensors[name], before[name]) for name in before)


def test_damaged_checkpoint_is_refused(stopped: Path, tmp_path: Path) -> None:
    shutil.copytree(stopped, tmp_path / "run")
    file = tmp_path / "run" / "checkpoint-4" / "adapter_model.safetensors"
    data = bytearray(file.read_bytes())
    data[-1] ^= 1
    file.write_bytes(data)
    with pytest.raises(FileError, match="sha256"):
        train(make_adapter(), tmp_path / "run", resume=True)


def test_folder_with_a_run_is_not_overwritten(stopped: Path) -> None:
    with pytest.raises(TrainError, match="holds a run already; resume it"):
        train(make_adapter(), stopped)


def test_folder_without_a_run_can_not_be_resumed(tmp_path: Path) -> None:
    with pytest.raises(TrainError, match="holds no run to resume"):
        train(make_adapter(), tmp_path / "none", resume=True)


def test_output_that_is_a_file_is_refused(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(TrainError, match="is a file; give a folder"):
        train(make_adapter(), tmp_path / "file")


def test_finished_run_makes_no_more_steps(tmp_path: Path) -> None:
    options: dict[str, Any] = dict(save_steps=None, max_steps=3, eval_dataset=None)
    adapter, again = make_adapter(), make_adapter(seed=1)
    expected = train(adapter, tmp_path / "run", **options)
    found = train(again, tmp_path / "run", resume=True, **options)
    assert are_equal(again, adapter)
    assert (found.steps, found.losses) == (expected.steps, expected.losses) == (3, found.losses)
