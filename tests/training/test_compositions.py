"""What learns in a composition learns, and nothing else does."""

from __future__ import annotations

import copy
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import TrainerCallback

import hub
from hub.discovery import installed_methods
from hub.errors import AttachError, TrainError
from hub.training.encoding import count_front
from hub.training.loop import join_trainings
from tests.snapshots import shake_adapter, take_snapshot
from tests.tiny import build_tiny
from tests.training.tasks import LABELLED, LABELS, ROWS, TEMPLATE, make_tokenizer

MODEL = build_tiny("llama", initializer_range=0.3)
FOUR: dict[str, dict[str, Any]] = {
    "lora": dict(r=4, dropout=0.3),
    "houlsby": dict(size=8),
    "prefix": dict(tokens=2),
    "prompt": dict(tokens=3),
}

Values = dict[str, torch.Tensor]


def make(method: str = "lora", seed: int = 0, model: Any = MODEL, **options: Any) -> hub.Adapter:
    torch.manual_seed(seed)
    return hub.Adapter.create(method, model, **(options or FOUR[method]))


def make_four(seed: int = 0) -> list[hub.Adapter]:
    return [make(method, seed) for method in FOUR]


def train(composition: Any, rows: Any = ROWS, model: Any = MODEL, **options: Any) -> Any:
    defaults = dict(tokenizer=make_tokenizer(), template=TEMPLATE, max_steps=4, batch_size=4)
    return hub.train(model, composition, rows, **{**defaults, **options})


def copy_tensors(adapter: hub.Adapter) -> Values:
    return {name: tensor.detach().clone() for name, tensor in adapter.tensors.items()}


def are_equal(one: Values, two: Values) -> bool:
    return one.keys() == two.keys() and all(torch.equal(one[name], two[name]) for name in one)


def is_as(adapter: hub.Adapter, before: Values) -> bool:
    return are_equal(copy_tensors(adapter), before)


class Stop(Exception):
    pass


class StopAfter(TrainerCallback):
    """Stands in for a machine that is taken away."""

    def __init__(self, step: int) -> None:
        self.step = step

    def on_step_end(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        if state.global_step == self.step:
            raise Stop


@pytest.fixture
def registry() -> hub.Registry:
    """de@1 and fr@1."""
    registry = hub.Registry()
    for seed, name in enumerate(["de", "fr"]):
        registry.add(shake_adapter(make(r=2), seed, 0.05), name=name)
    return registry


def test_four_methods_learn_together_and_the_base_keeps_every_byte() -> None:
    before = take_snapshot(MODEL)
    parts = make_four()
    starts = [copy_tensors(part) for part in parts]
    result = train(hub.Stack(*parts), max_steps=20, batch_size=8, learning_rate=4e-2)
    assert result.loss < 0.3 * result.losses[0][1]
    assert take_snapshot(MODEL) == before
    for part, start in zip(parts, starts, strict=True):
        assert all(not torch.equal(part.tensors[name], start[name]) for name in start)
        assert all(tensor.grad is None for tensor in part.tensors.values())


def test_new_part_learns_on_top_of_a_version_that_stays(registry: hub.Registry) -> None:
    adapter, below = make("houlsby"), hub.load("de@1")
    start, kept = copy_tensors(adapter), copy_tensors(below)
    result = train(hub.Stack(below, adapter), eval_dataset=ROWS)
    assert not is_as(adapter, start)
    assert is_as(below, kept)
    assert (below.reference, below.metrics, below.lineage) == ("de@1", {}, {})
    assert adapter.metrics == result.metrics
    assert adapter.lineage["parents"] == ["de@1"]
    assert adapter.lineage["training"]["within"] == "stack(de@1, new)"
    assert adapter.lineage["training"]["learners"] == ["new"]


def test_references_in_a_composition_are_loaded(registry: hub.Registry) -> None:
    by_name, by_value = make("houlsby"), make("houlsby")
    first = train(hub.Stack(hub.Average("de", "fr@1"), by_name))
    second = train(hub.Stack(hub.Average(hub.load("de"), hub.load("fr")), by_value))
    assert first.losses == second.losses
    assert is_as(by_name, copy_tensors(by_value))
    assert by_name.lineage["parents"] == ["de@1", "fr@1"]
    assert by_name.lineage["training"]["within"] == "stack(average(de@1, fr@1), new)"


def test_what_learns_sees_what_is_below_it(registry: hub.Registry) -> None:
    alone, above = make("houlsby"), make("houlsby")
    assert train(alone).losses[0] != train(hub.Stack("de", above)).losses[0]


def test_reference_beside_the_adapter_that_it_names_is_the_version() -> None:
    registry, adapter = hub.Registry(), make()
    registry.add(adapter, name="de")
    start = copy_tensors(adapter)
    train(hub.Stack("de@1", adapter))
    assert not is_as(adapter, start)
    assert adapter.lineage["training"]["within"] == "stack(de@1, new)"
    assert is_as(hub.load("de@1"), start)  # type: ignore[arg-type]


def test_trainable_names_what_learns() -> None:
    one, two, three = make(seed=1), make("houlsby"), make(seed=2)
    starts = [copy_tensors(part) for part in (one, two, three)]
    train(hub.Stack(one, hub.Average(two, three)), trainable=[two])
    assert [is_as(part, s) for part, s in zip((one, two, three), starts, strict=True)] == [
        *(True, False, True)
    ]
    assert "training" not in one.lineage
    assert "training" in two.lineage


def test_parts_that_were_loaded_learn_where_they_are_named(registry: hub.Registry) -> None:
    de, fr = hub.load("de"), hub.load("fr")
    starts = copy_tensors(de), copy_tensors(fr)
    train(hub.Stack(de, fr), trainable=[de])
    assert (is_as(de, starts[0]), is_as(fr, starts[1])) == (False, True)
    assert (de.reference, de.lineage["parents"]) == (None, ["de@1", "fr@1"])
    train(hub.Stack(de, fr), trainable=True)
    assert not is_as(fr, starts[1])
    assert de.lineage["parents"] == ["de@1", "fr@1"]
    assert fr.lineage["parents"] == ["fr@1"]


@pytest.mark.parametrize("operator", ["split", "average", "fuse"])
def test_every_operator_without_rows_of_its_own_trains(operator: str) -> None:
    parts = [shake_adapter(make(seed=seed), seed, 0.05) for seed in (1, 2)]
    starts = [copy_tensors(part) for part in parts]
    if operator == "fuse":
        tree: hub.Operator = hub.Fuse.create(MODEL, *parts)
    else:
        tree = hub.Split(*parts, at=2) if operator == "split" else hub.Average(*parts)
    result = train(tree, max_steps=20, batch_size=8, learning_rate=4e-2)
    assert result.loss < 0.7 * result.losses[0][1]
    assert not any(is_as(part, start) for part, start in zip(parts, starts, strict=True))


def test_fuse_of_classifiers_learns_and_answers_with_its_own_head_and_labels() -> None:
    model = build_tiny("bert", "classification", num_labels=2, initializer_range=0.3)
    parts = [shake_adapter(make("houlsby", seed, model), seed, 0.1) for seed in (1, 2)]
    for part in parts:
        part.lineage["labels"] = ["other", "another"]
    kept = [copy_tensors(part) for part in parts]
    fuse = hub.Fuse.create(model, *parts)
    options = dict(tokenizer=make_tokenizer(), template=LABELS)
    result = hub.train(
        *(model, fuse, LABELLED),
        **{**options, "eval_dataset": LABELLED, "epochs": 15, "learning_rate": 3e-2},
        trainable=[fuse.by],
    )
    assert isinstance(fuse.by, hub.Adapter)
    assert result.metrics == fuse.by.metrics
    assert result.metrics["accuracy"] > 0.8
    assert fuse.by.lineage["labels"] == ["no", "yes"]
    assert all(is_as(part, before) for part, before in zip(parts, kept, strict=True))
    found = hub.evaluate(model, fuse, LABELLED, **options)
    assert found.metrics == result.metrics
    assert set(found.predictions) == {"no", "yes"}


def test_each_of_several_learners_says_where_and_with_what_it_learned(tmp_path: Path) -> None:
    parts = make_four()
    parts[0].reference, parts[0].fresh = "old@1", True
    result = train(hub.Stack(*parts), eval_dataset=ROWS)
    assert result.metrics.keys() == {"perplexity"}
    for place, part in enumerate(parts):
        assert part.metrics == result.metrics
        told = part.lineage["training"]
        names = ["1-lora", "2-houlsby", "3-prefix", "4-prompt"]
        names[place] = "new"
        assert told["within"] == f"stack({', '.join(names)})"
        assert told["learners"] == names
        assert told["steps"] == 4
        assert part.base is not None and part.base.tokenizer is not None
        assert hub.load(part.save(tmp_path / part.method)).lineage == part.lineage
    assert parts[0].lineage["parents"] == ["old@1"]
    assert all("parents" not in part.lineage for part in parts[1:])


def test_parts_without_a_version_are_named_by_their_folder_or_their_content(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    below, beside, adapter = make(seed=1, r=2), make(seed=2, r=2), make("houlsby")
    monkeypatch.chdir(below.save(tmp_path / "a folder"))
    places: tuple[Any, ...] = (tmp_path / "a folder", str(tmp_path / "a folder"), ".")
    for given in (*places, *map(hub.load, places), hub.Adapter.read(tmp_path / "a folder")):
        train(hub.Stack(given, adapter), max_steps=1, trainable=[adapter])
        assert adapter.lineage["training"]["within"] == 'stack("./a folder", new)'
        assert "parents" not in adapter.lineage
    withins = []
    for part in (below, beside, copy.deepcopy(beside)):
        train(hub.Stack(part, adapter), max_steps=1, trainable=[adapter])
        withins.append(adapter.lineage["training"]["within"])
        assert hub.parse_composition(withins[-1])
        assert withins[-1].startswith("stack(lora:")
    assert withins[0] != withins[1] == withins[2]


def test_each_of_several_learners_is_as_at_the_best_checkpoint(tmp_path: Path) -> None:
    """A rate that grows until it harms: the last checkpoint is not the best."""
    parts = make_four()
    result = train(
        hub.Stack(*parts),
        eval_dataset=ROWS,
        output=tmp_path / "run",
        max_steps=12,
        save_steps=2,
        learning_rate=0.5,
        warmup=0.9,
    )
    values = {step: found["perplexity"] for step, found in result.evaluations}
    best = min(values, key=values.__getitem__)
    assert result.best_step == best != 12
    found = hub.evaluate(
        MODEL, hub.Stack(*parts), ROWS, tokenizer=make_tokenizer(), template=TEMPLATE
    )
    assert found.metrics["perplexity"] == pytest.approx(values[best], rel=1e-5)
    folders = ["1-lora", "2-houlsby", "3-prefix", "4-prompt"]
    checkpoint = tmp_path / "run" / f"checkpoint-{best}"
    assert sorted(path.name for path in checkpoint.iterdir() if path.is_dir()) == folders
    for part, folder in zip(parts, folders, strict=True):
        assert is_as(part, copy_tensors(hub.load(checkpoint / folder)))
    assert not list(checkpoint.rglob("model*.safetensors"))


def test_stopped_run_of_several_learners_goes_on_exactly(
    tmp_path: Path, registry: hub.Registry
) -> None:
    options = dict(eval_dataset=ROWS, max_steps=8, save_steps=3, learning_rate=1e-2)
    whole, parts, again = make_four(), make_four(), make_four(seed=1)
    expected = train(hub.Stack("de", *whole), output=tmp_path / "whole", **options)
    with pytest.raises(Stop):
        train(
            hub.Stack("de", *parts),
            output=tmp_path / "parts",
            callbacks=[StopAfter(5)],
            **options,
        )
    found = train(hub.Stack("de", *again), output=tmp_path / "parts", resume=True, **options)
    assert all(is_as(one, copy_tensors(two)) for one, two in zip(whole, again, strict=True))
    assert (found.losses, found.evaluations) == (expected.losses, expected.evaluations)
    assert all(one.metrics == two.metrics for one, two in zip(whole, again, strict=True))
    third = make_four(seed=2)
    train(hub.Stack("de", *third), output=tmp_path / "parts", resume=True, **options)
    assert all(is_as(one, copy_tensors(two)) for one, two in zip(whole, third, strict=True))


def test_run_in_another_composition_is_not_resumed(tmp_path: Path, registry: hub.Registry) -> None:
    below = hub.load("de")
    with pytest.raises(Stop):
        train(
            *(hub.Stack(below, *make_four()),),
            output=tmp_path / "run",
            save_steps=1,
            callbacks=[StopAfter(3)],
        )
    trees = {
        "composition was": hub.Stack(*make_four(), below),
        "learners was|method was|composition was": make("lora"),
        r"learners\.1-lora\.config\.\w+ was 4 and is 3": hub.Stack(
            *(below, make("lora", r=3), *make_four()[1:])
        ),
        "parts was": hub.Stack(shake_adapter(hub.load("de")), *make_four()),
    }
    for said, tree in trees.items():
        learners = [leaf for leaf in hub.Stack(tree).leaves() if leaf.fresh]  # type: ignore[union-attr]
        before = [copy_tensors(learner) for learner in learners]  # type: ignore[arg-type]
        with pytest.raises(TrainError, match=f"can't resume the run in .*({said})"):
            train(tree, output=tmp_path / "run", save_steps=1, resume=True)
        assert all(map(is_as, learners, before))  # type: ignore[arg-type]


def test_damaged_checkpoint_of_one_learner_changes_none(tmp_path: Path) -> None:
    options = dict(output=tmp_path / "run", save_steps=1)
    with pytest.raises(Stop):
        train(hub.Stack(*make_four()), callbacks=[StopAfter(3)], **options)
    file = tmp_path / "run" / "checkpoint-2" / "4-prompt" / "adapter_model.safetensors"
    file.write_bytes(file.read_bytes()[:-1] + b"\x00")
    parts = make_four(seed=1)
    starts = [copy_tensors(part) for part in parts]
    with pytest.raises(hub.HubError, match="4-prompt"):
        train(hub.Stack(*parts), resume=True, **options)
    assert all(is_as(part, start) for part, start in zip(parts, starts, strict=True))


def test_exception_leaves_model_and_every_part_as_they_were() -> None:
    model = copy.deepcopy(MODEL).train()
    before = take_snapshot(model)
    parts = make_four()
    starts = [copy_tensors(part) for part in parts]
    said = [copy.deepcopy({**vars(part), "tensors": None}) for part in parts]
    for options in (dict(callbacks=[StopAfter(3)]), dict(learning_rate=1e30, max_steps=30)):
        with pytest.raises((Stop, TrainError)):
            train(hub.Stack(*parts), model=model, **options)
        assert take_snapshot(model) == before
        assert all(is_as(part, start) for part, start in zip(parts, starts, strict=True))
        assert [{**vars(part), "tensors": None} for part in parts] == said


def test_penalties_of_all_learners_add_up_and_frozen_parts_have_none() -> None:
    """The plugin of a method that pulls its tensors to 1."""
    one, two, frozen = make(seed=1), make(seed=2), make(seed=3)
    seen: list[Any] = []
    steps: list[int] = []

    class Plugin:
        @staticmethod
        @hub.hookimpl
        def hub_train(adapter: Any, modules: Any, steps: int) -> hub.Training:
            seen.append(adapter)

            def penalty() -> torch.Tensor:
                return 1e5 * sum((p - 1).square().sum() for p in adapter.tensors.values())

            return hub.Training(penalty, steps_done)

    def steps_done(step: int) -> None:
        steps.append(step)

    methods = installed_methods()
    methods.get("lora")
    manager = methods._manager
    original = manager.unregister(name="lora")
    manager.register(Plugin, name="lora")
    values = [tensor.detach() for part in (one, two) for tensor in part.tensors.values()]
    expected = 1e5 * sum(float((value - 1).square().sum()) for value in values)
    try:
        result = train(hub.Stack(one, two, frozen), trainable=[one, two], max_steps=30)
    finally:
        manager.unregister(name="lora")
        manager.register(original, name="lora")
    assert seen == [one, two]
    assert steps == [step for step in range(1, 31) for _ in range(2)]
    assert result.losses[0][1] == pytest.approx(expected, rel=1e-3)


def test_joined_trainings_act_as_each_and_are_ready_when_all_are() -> None:
    done: list[Any] = []
    one = hub.Training(lambda: torch.tensor(2.0), lambda step: done.append(("one", step)), 3)
    two = hub.Training(lambda: torch.tensor(5.0), None, 7)
    three = hub.Training(None, lambda step: done.append(("three", step)), 0)
    joined = join_trainings([one, two, three])
    assert joined.penalty is not None and joined.after_step is not None
    assert joined.penalty().item() == 7
    joined.after_step(4)
    assert done == [("one", 4), ("three", 4)]
    assert joined.result_from == 7
    assert join_trainings([]) == hub.Training()
    assert join_trainings([one]) is one
    plain = join_trainings([hub.Training(), hub.Training()])
    assert (plain.penalty, plain.after_step) == (None, None)


@pytest.mark.parametrize("kind", [hub.BatchSplit, hub.Parallel])
@pytest.mark.parametrize("depth", [0, 1])
def test_rows_of_their_own_are_refused(kind: Any, depth: int) -> None:
    tree = kind(make(), None)
    with pytest.raises(TrainError, match=f"a {kind.name} gives rows adapters of their own"):
        train(hub.Stack(make("houlsby"), tree) if depth else tree)


@pytest.mark.parametrize(
    ("tree", "trainable", "said"),
    [
        (hub.Stack("de", "fr"), None, r"nothing of stack\(de@1, fr@1\) would learn; say what with"),
        (hub.Stack("de", None), None, "nothing of de@1 would learn"),
        (hub.Stack(None), None, "nothing of none would learn"),
        (hub.Stack("de", "fr"), ["de@1"], r"what de@1 learned would be lost .*hub.load\('de@1'\)"),
        (hub.Stack("de", "fr"), True, "what de@1 learned would be lost"),
        ("de@1", None, "what de@1 learned would be lost"),
        (hub.Stack("de", "fr"), False, "would learn"),
    ],
    ids=str,
)
def test_what_would_learn_nothing_or_be_lost_is_refused(
    registry: hub.Registry, tree: Any, trainable: Any, said: str
) -> None:
    with pytest.raises(TrainError, match=said) as caught:
        train(tree, trainable=trainable)
    assert "\n" not in str(caught.value)


def test_trainable_that_is_no_part_is_refused(registry: hub.Registry) -> None:
    with pytest.raises(AttachError, match="trainable names 'it@1', attached are de@1, lora"):
        train(hub.Stack("de", make()), trainable=["it@1"])
    with pytest.raises(AttachError, match="a NoneType can't be attached"):
        train(None)


def test_run_on_an_attached_composition_trains_it_there_and_stays(registry: hub.Registry) -> None:
    model = copy.deepcopy(MODEL)
    one, two = make("houlsby"), make("prefix")
    starts = copy_tensors(one), copy_tensors(two)
    tree = hub.Stack("de", one, hub.Stack(two))
    with hub.attach(model, tree) as attachment:
        kept = copy_tensors(attachment.active[0])
        for given in (tree, hub.Stack("de@1", one, two)):
            train(given, model=model)
        assert [part.label for part in attachment.active] == ["de@1", "houlsby", "prefix"]
        assert is_as(attachment.active[0], kept)
        assert not is_as(one, starts[0])
        assert not is_as(two, starts[1])
        for part, where in ((one, "new, 2-prefix"), (two, "1-houlsby, new")):
            assert part.lineage["training"]["within"] == f"stack(de@1, {where})"
            assert part.lineage["parents"] == ["de@1"]


def test_adapter_that_is_attached_with_others_says_so(registry: hub.Registry) -> None:
    model, adapter = copy.deepcopy(MODEL), make()
    with hub.attach(model, hub.Average("de", adapter)):
        train(adapter, model=model)
    assert adapter.lineage["training"]["within"] == "average(de@1, new)"
    assert adapter.lineage["parents"] == ["de@1"]


def test_attached_model_that_carries_something_else_is_refused(registry: hub.Registry) -> None:
    model = copy.deepcopy(MODEL)
    one, two = make(seed=1), make("houlsby")
    with hub.attach(model, hub.Stack(one, two)) as attachment:
        for given in (hub.Stack(two, one), hub.Average(one, two), hub.Stack("de", one)):
            with pytest.raises(TrainError, match=r"carries stack\(<lora>, <houlsby>\), not"):
                train(given, model=model)
        with pytest.raises(TrainError, match="another adapter on this model learns too"):
            train(hub.Stack(one, two), model=model, trainable=[two])
        attachment.route([0, None])
        with pytest.raises(TrainError, match="rows of this model have adapters of their own"):
            train(one, model=model)
    with (
        hub.attach(model, hub.Stack("de", two), trainable=False),
        pytest.raises(TrainError, match="would learn"),
    ):
        train(hub.Stack("de", two), model=model)
    with hub.attach(model, one) as attachment:
        attachment.route([None])
        with pytest.raises(TrainError, match="carries nothing that acts, not this adapter"):
            train(one, model=model)
    with hub.attach(model, one) as attachment:
        attachment.merge()
        with pytest.raises(TrainError, match="are merged; call unmerge"):
            train(one, model=model)


@pytest.mark.parametrize(
    ("tree", "count"),
    [
        (lambda: hub.Stack(make("prompt"), make("prefix"), make()), 5),
        (lambda: hub.Average(make("prompt"), make("prompt")), 3),
        (lambda: hub.BatchSplit(make("prompt"), hub.Stack(make("prompt"), make("prompt"))), 6),
        (lambda: hub.Stack(make(), None), 0),
    ],
    ids=["stack", "average", "rows", "none"],
)
def test_room_is_left_for_as_many_virtual_tokens_as_a_row_has(tree: Any, count: int) -> None:
    model, composition = copy.deepcopy(MODEL), tree()
    rows = [0, 1] if isinstance(composition, hub.BatchSplit) else None
    with hub.attach(model, composition, rows=rows) as attachment:
        assert count_front(attachment) == count
