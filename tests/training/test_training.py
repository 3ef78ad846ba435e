"""Training changes the adapter alone, and says what it did."""

from __future__ import annotations

import json
import math
import random
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from datasets import Dataset
from transformers import EarlyStoppingCallback, TrainerCallback

import hub
from hub.discovery import installed_methods
from hub.errors import DataError, PackageMissing, TrainError
from tests.snapshots import hash_tensor, take_snapshot
from tests.tiny import build_tiny
from tests.training.tasks import LABELLED, LABELS, ROWS, TEMPLATE, make_tokenizer

BIG = dict(initializer_range=0.3)
OPTIONS: dict[str, dict[str, Any]] = {"lora": dict(r=8), "houlsby": dict(size=16)}


def build(kind: str = "llama", task: str | None = None, **changes: Any) -> Any:
    return build_tiny(kind, task, **{**BIG, **changes})


def train(model: Any, adapter: Any, rows: Any = ROWS, **options: Any) -> Any:
    defaults = dict(tokenizer=make_tokenizer(), template=TEMPLATE, max_steps=4, batch_size=4)
    return hub.train(model, adapter, rows, **{**defaults, **options})


def copy_tensors(adapter: Any) -> dict[str, torch.Tensor]:
    return {name: tensor.detach().clone() for name, tensor in adapter.tensors.items()}


def are_equal(a: dict[str, torch.Tensor], b: dict[str, torch.Tensor]) -> bool:
    return a.keys() == b.keys() and all(torch.equal(a[name], b[name]) for name in a)


class Stop(Exception):
    pass


class StopAfter(TrainerCallback):
    """Stands in for whatever may stop a run in the middle."""

    def __init__(self, step: int) -> None:
        self.step = step

    def on_step_end(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        if state.global_step == self.step:
            raise Stop


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("method", OPTIONS)
@pytest.mark.parametrize("kind", ["llama", "gpt2"])
def test_loss_falls_and_the_base_keeps_every_byte(
    kind: str, method: str, dtype: torch.dtype
) -> None:
    model = build(kind).to(dtype)
    before, config = take_snapshot(model), model.config.to_dict()
    adapter = hub.Adapter.create(method, model, **OPTIONS[method])
    start = copy_tensors(adapter)
    result = train(model, adapter, max_steps=40, batch_size=8, learning_rate=2e-2)
    assert result.losses[0][1] > 4
    assert result.loss < 0.5 * result.losses[0][1]
    assert take_snapshot(model) == before
    assert model.config.to_dict() == config
    assert not are_equal(copy_tensors(adapter), start)
    assert {tensor.dtype for tensor in adapter.tensors.values()} == {torch.float32}
    assert all(tensor.grad is None for tensor in adapter.tensors.values())


def test_encoder_decoder_learns_too() -> None:
    model = build_tiny("t5")
    adapter = hub.Adapter.create("lora", model, r=8)
    tokenizer = make_tokenizer("$A </s>")
    result = train(model, adapter, tokenizer=tokenizer, max_steps=40, learning_rate=2e-2)
    assert result.loss < 0.5 * result.losses[0][1]


@pytest.mark.parametrize("kind", ["llama", "bert"])
def test_classifier_learns_its_labels(kind: str) -> None:
    model = build(kind, "classification", num_labels=2, pad_token_id=0 if kind == "bert" else None)
    config = model.config.to_dict()
    adapter = hub.Adapter.create("lora", model)
    options = dict(tokenizer=make_tokenizer(), template=LABELS)
    result = hub.train(
        model, adapter, LABELLED, eval_dataset=LABELLED, epochs=15, learning_rate=1e-2, **options
    )
    assert result.metrics == adapter.metrics == {"accuracy": 1.0}
    assert adapter.lineage["labels"] == ["no", "yes"]
    assert model.config.to_dict() == config
    assert adapter.heads
    assert hub.evaluate(model, adapter, LABELLED, **options).metrics == {"accuracy": 1.0}
    bare = hub.evaluate(model, None, LABELLED, **options)
    assert bare.metrics["accuracy"] < 1


def test_classifier_learns_on_a_half_precision_base() -> None:
    model = build("bert", "classification", num_labels=2, pad_token_id=0).to(torch.bfloat16)
    adapter = hub.Adapter.create("lora", model)
    result = hub.train(
        model,
        adapter,
        LABELLED,
        tokenizer=make_tokenizer(),
        template=LABELS,
        epochs=40,
        learning_rate=3e-3,
    )
    losses = [loss for _, loss in result.losses]
    assert sum(losses[-5:]) < 0.5 * sum(losses[:5])
    assert {tensor.dtype for tensor in adapter.tensors.values()} == {torch.float32}


def test_same_seed_gives_the_same_adapter_and_leaves_random_numbers_alone() -> None:
    model = build("gpt2")
    start = hub.Adapter.create("lora", model, dropout=0.2)
    results = []
    for seed in (7, 7, 8):
        adapter = hub.Adapter(
            "lora", start.config, copy_tensors(start), base=start.base, fresh=True
        )
        torch.manual_seed(seed + len(results))
        random.seed(seed + len(results))
        state = torch.get_rng_state(), random.getstate()
        result = train(model, adapter, seed=seed)
        assert torch.equal(torch.get_rng_state(), state[0])
        assert random.getstate() == state[1]
        results.append((result.losses, copy_tensors(adapter)))
    assert results[0][0] == results[1][0] != results[2][0]
    assert are_equal(results[0][1], results[1][1])
    assert not are_equal(results[0][1], results[2][1])


def test_accumulated_steps_equal_a_larger_batch() -> None:
    model = build("llama", pad_token_id=0)
    start = hub.Adapter.create("lora", model)
    found = []
    for batch_size, accumulation in ((8, 1), (2, 4)):
        adapter = hub.Adapter("lora", start.config, copy_tensors(start), base=start.base)
        train(model, adapter, batch_size=batch_size, gradient_accumulation=accumulation)
        found.append(copy_tensors(adapter))
    for name in found[0]:
        assert torch.allclose(found[0][name], found[1][name], atol=1e-4)


def test_adapter_says_what_it_was_trained_on(tmp_path: Path) -> None:
    path = tmp_path / "rows.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in ROWS))
    model = build()
    adapter = hub.Adapter.create("lora", model)
    adapter.task, adapter.reference, adapter.metrics = "answers", "answers@3", {"accuracy": 0.1}
    result = train(
        model, adapter, path, eval_dataset=ROWS, metric="rougeL", max_length=7, max_new_tokens=3
    )
    assert adapter.task == "answers"
    assert adapter.reference is None
    assert adapter.lineage["parents"] == ["answers@3"]
    assert adapter.metrics == result.metrics
    assert adapter.metrics.keys() == {"rougeL"}
    training = adapter.lineage["training"]
    assert training["dataset"].keys() == {"file", "sha256", "rows"}
    assert training["template"] == TEMPLATE
    assert training["steps"] == result.steps == 4
    assert training["loss"] == result.loss
    assert training["truncated"] == result.truncated == 2
    assert training["options"]["learning_rate"] == 2e-4
    assert training["options"]["max_length"] == 7
    assert training["versions"].keys() == {"pefthub", "torch", "transformers"}
    assert training["versions"]["torch"] == str(torch.__version__)
    assert 0 < training["seconds"] < 100
    assert adapter.base is not None
    assert adapter.base.tokenizer is not None
    assert hub.load(adapter.save(tmp_path / "saved")).lineage == adapter.lineage


def test_dataset_in_memory_is_named_by_its_fingerprint() -> None:
    model, dataset = build(), Dataset.from_list(ROWS)
    adapter = hub.Adapter.create("lora", model)
    train(model, adapter, dataset)
    source = adapter.lineage["training"]["dataset"]
    assert source == {"fingerprint": dataset._fingerprint, "rows": len(ROWS)}
    assert adapter.metrics == {}


def test_best_checkpoint_is_what_remains(tmp_path: Path) -> None:
    """A rate that grows until it harms: the last checkpoint is not the best."""
    model = build()
    adapter = hub.Adapter.create("lora", model)
    result = train(
        model,
        adapter,
        eval_dataset=ROWS,
        output=tmp_path / "run",
        max_steps=12,
        save_steps=2,
        learning_rate=0.3,
        warmup=0.9,
    )
    values = {step: found["perplexity"] for step, found in result.evaluations}
    assert list(values) == [2, 4, 6, 8, 10, 12]
    best = min(values, key=values.__getitem__)
    assert best != 12
    assert result.best_step == best
    assert adapter.metrics == {"perplexity": values[best]}
    found = hub.evaluate(model, adapter, ROWS, tokenizer=make_tokenizer(), template=TEMPLATE)
    assert found.metrics["perplexity"] == pytest.approx(values[best], rel=1e-5)
    kept = sorted(path.name for path in (tmp_path / "run").glob("checkpoint-*"))
    assert kept == sorted([f"checkpoint-{best}", "checkpoint-12"])


def test_callback_of_transformers_stops_early() -> None:
    model = build()
    adapter = hub.Adapter.create("lora", model)
    result = train(
        model,
        adapter,
        eval_dataset=ROWS,
        max_steps=20,
        save_steps=2,
        learning_rate=0.3,
        warmup=0.9,
        callbacks=[EarlyStoppingCallback(1)],
    )
    assert result.steps < 20
    assert result.best_step == result.steps - 2
    assert adapter.metrics == dict(result.evaluations)[result.best_step]


def test_checkpoint_holds_the_adapter_and_nothing_of_the_base(tmp_path: Path) -> None:
    model = build()
    adapter = hub.Adapter.create("lora", model, r=1, targets=r".*q_proj")
    train(model, adapter, output=tmp_path / "run")
    (checkpoint,) = (tmp_path / "run").glob("checkpoint-*")
    assert {path.name for path in checkpoint.iterdir()} == {
        "adapter_config.json",
        "adapter_model.safetensors",
        "hub.json",
        "optimizer.pt",
        "rng_state.pth",
        "scheduler.pt",
        "trainer_state.json",
    }
    saved = hub.load(checkpoint)
    assert are_equal(copy_tensors(saved), copy_tensors(adapter))
    count = sum(tensor.numel() for tensor in adapter.tensors.values())
    assert (checkpoint / "adapter_model.safetensors").stat().st_size < 4 * count + 2000
    optimizer = torch.load(checkpoint / "optimizer.pt", weights_only=True)
    moments = [v for entry in optimizer["state"].values() for v in entry.values() if v.dim()]
    assert sum(tensor.numel() for tensor in moments) == 2 * count


def test_temporary_checkpoints_are_gone(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    model = build()
    result = train(model, hub.Adapter.create("lora", model), eval_dataset=ROWS)
    assert result.output is None
    assert result.best_step is not None
    assert not list(tmp_path.glob("pefthub-*"))


def test_exception_leaves_model_and_adapter_as_they_were() -> None:
    model = build().train()
    before = take_snapshot(model)
    adapter = hub.Adapter.create("lora", model)
    adapter.metrics, adapter.lineage = {"accuracy": 0.5}, {"parents": ["a@1"]}
    start, said = copy_tensors(adapter), dict(vars(adapter))
    with pytest.raises(Stop):
        train(model, adapter, callbacks=[StopAfter(3)])
    assert take_snapshot(model) == before
    assert are_equal(copy_tensors(adapter), start)
    assert vars(adapter) == said


def test_loss_that_is_no_number_stops_the_run() -> None:
    model = build()
    adapter = hub.Adapter.create("lora", model)
    start = copy_tensors(adapter)
    with pytest.raises(
        TrainError, match=r"the loss is (nan|inf) at step \d of 30; lower learning_rate"
    ):
        train(model, adapter, max_steps=30, learning_rate=1e30)
    assert are_equal(copy_tensors(adapter), start)


def test_run_on_an_attached_model_trains_there_and_stays() -> None:
    model = build()
    base = {name: hash_tensor(p) for name, p in model.named_parameters()}
    frozen = hub.Adapter.create("lora", model)
    adapter = hub.Adapter.create("houlsby", model, size=4)
    start, kept = copy_tensors(adapter), copy_tensors(frozen)
    with hub.attach(model, hub.Stack(frozen, adapter), trainable=[adapter]) as attachment:
        train(model, adapter)
        assert attachment.active == (frozen, adapter)
        assert not model.training
    assert not are_equal(copy_tensors(adapter), start)
    assert are_equal(copy_tensors(frozen), kept)
    assert {name: hash_tensor(p) for name, p in model.named_parameters()} == base


def test_attached_model_where_something_else_would_learn_is_refused() -> None:
    model = build()
    a, b = (hub.Adapter.create("lora", model) for _ in range(2))
    with hub.attach(model, hub.Stack(a, b)), pytest.raises(TrainError, match="another adapter"):
        train(model, a)
    with hub.attach(model, a, trainable=False), pytest.raises(TrainError, match="does not learn"):
        train(model, a)
    with hub.attach(model, a), pytest.raises(TrainError, match="carries lora, not this adapter"):
        train(model, b)


def test_loaded_adapter_is_trained_further(tmp_path: Path) -> None:
    model = build()
    saved = hub.Adapter.create("lora", model).save(tmp_path / "a")
    adapter = hub.load(saved)
    start = copy_tensors(adapter)
    train(model, adapter)
    assert not are_equal(copy_tensors(adapter), start)


def test_method_adds_its_penalty_and_acts_after_every_step(monkeypatch: pytest.MonkeyPatch) -> None:
    """The plugin of a method that pulls its tensors to 1 and counts steps."""
    model = build()
    adapter = hub.Adapter.create("lora", model)
    seen: dict[str, Any] = {"steps": [], "penalties": 0}

    class Plugin:
        @staticmethod
        @hub.hookimpl
        def hub_train(adapter: Any, modules: Any, steps: int) -> hub.Training:
            seen["asked"] = (adapter, {site.path for site in modules}, steps)

            def penalty() -> torch.Tensor:
                seen["penalties"] += 1
                return 1e6 * sum((p - 1).square().sum() for p in adapter.tensors.values())

            return hub.Training(penalty, seen["steps"].append)

    methods = installed_methods()
    methods.get("lora")
    manager = methods._manager
    original = manager.unregister(name="lora")
    manager.register(Plugin, name="lora")
    try:
        result = train(
            model, adapter, learning_rate=0.1, batch_size=2, gradient_accumulation=2, max_steps=30
        )
    finally:
        manager.unregister(name="lora")
        manager.register(original, name="lora")
    assert seen["asked"][0] is adapter
    assert seen["asked"][1] == {name.rpartition(".lora_")[0] for name in adapter.tensors}
    assert seen["asked"][2] == 30
    assert seen["steps"] == list(range(1, 31))
    assert seen["penalties"] == 30
    assert result.losses[0][1] > 1e6
    assert all((tensor - 1).abs().mean() < 0.5 for tensor in adapter.tensors.values())


def test_nothing_is_printed_when_stderr_is_no_terminal(capfd: pytest.CaptureFixture[str]) -> None:
    model = build()
    train(model, hub.Adapter.create("lora", model), eval_dataset=ROWS, epochs=2, max_steps=None)
    out, err = capfd.readouterr()
    assert out == ""
    assert err == ""


def test_progress_shows_steps_and_loss_on_a_terminal(
    capfd: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sys.stderr, "isatty", lambda: True)
    model = build()
    train(model, hub.Adapter.create("lora", model))
    out, err = capfd.readouterr()
    assert out == ""
    assert "training: 100%" in err
    assert "loss=" in err


@pytest.mark.parametrize(
    ("options", "error", "message"),
    [
        (dict(learning_rate=0.0), TrainError, "learning_rate is 0.0"),
        (dict(learning_rate=math.nan), TrainError, "learning_rate is nan"),
        (dict(batch_size=0), TrainError, "batch_size is 0"),
        (dict(epochs=-1), TrainError, "epochs is -1"),
        (dict(max_steps=0), TrainError, "max_steps is 0"),
        (dict(save_steps=1.5), TrainError, "save_steps is 1.5"),
        (dict(warmup=1), TrainError, "warmup is 1"),
        (dict(weight_decay=-1), TrainError, "weight_decay is -1"),
        (dict(seed=-1), TrainError, "seed is -1"),
        (dict(resume=True), TrainError, "to resume a run, give output"),
        (dict(metric="bleu", eval_dataset=ROWS), DataError, "no metric 'bleu'"),
        (dict(template="{{ x }}"), DataError, "has 0 times"),
        (dict(max_length=3), DataError, "row 1: the completion .* raise max_length"),
        (dict(eval_dataset=[]), DataError, "no rows"),
    ],
)
def test_what_can_not_work_is_refused_before_the_first_step(
    options: dict[str, Any], error: type[Exception], message: str
) -> None:
    model = build()
    with pytest.raises(error, match=message):
        train(model, hub.Adapter.create("lora", model), callbacks=[StopAfter(1)], **options)


def test_training_without_accelerate_says_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    model = build()
    monkeypatch.setitem(sys.modules, "accelerate", None)
    with pytest.raises(PackageMissing, match=r"accelerate .* pip install 'pefthub\[train\]'"):
        train(model, hub.Adapter.create("lora", model))


@pytest.mark.parametrize("method", ["prompt", "prefix"])
def test_long_rows_leave_room_for_virtual_tokens(method: str) -> None:
    model = build("bert", "classification")
    adapter = hub.Adapter.create(method, model, tokens=4)
    rows = [{"x": "w1 " * 80, "y": str(i % 2)} for i in range(4)]
    result = train(model, adapter, rows, eval_dataset=rows)
    assert result.truncated == 4
    assert adapter.lineage["training"]["options"]["max_length"] == 60
    found = hub.evaluate(model, adapter, rows, tokenizer=make_tokenizer(), template=TEMPLATE)
    assert found.truncated == 4
