"""What could be attached to no model is no version: refused in the words of `hub.attach`."""

from __future__ import annotations

import re
import shutil
from pathlib import Path
from typing import Any

import pytest

import hub
from hub.composition import Operator
from hub.errors import AttachError
from tests.snapshots import shake_adapter
from tests.tiny import build_tiny

MODEL = build_tiny("llama")
CLASSIFIER = build_tiny("bert", "classification")


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The home of a registry, which takes longer to make than to copy."""
    home = tmp_path_factory.mktemp("made") / "home"
    fill(hub.Registry(home=home, url=f"sqlite:///{home}/registry.db"))
    return home


@pytest.fixture
def registry(made: Path, home: Path) -> hub.Registry:
    """de@1, fr@1, hou@1 and fu@1, a fusion of the first two; of a classifier c1@1, c2@1, plain@1
    without a head, and cf@1, a fusion of c1 and c2."""
    shutil.copytree(made, home, dirs_exist_ok=True)
    return hub.Registry()


def fill(registry: hub.Registry) -> None:
    for model, names in ((MODEL, ("de", "fr", "fu")), (CLASSIFIER, ("c1", "c2", "cf"))):
        parts = [
            shake_adapter(hub.Adapter.create("lora", model, r=1), seed=seed) for seed in (1, 2)
        ]
        fuse = hub.Fuse.create(model, *parts, size=2, value=False)
        for name, adapter in zip(names, [*parts, fuse.by], strict=True):
            registry.add(adapter, name=name)
    registry.add(hub.Adapter.create("houlsby", MODEL, size=2), name="hou")
    registry.add(hub.Adapter.create("lora", CLASSIFIER, head=False, r=1), name="plain")


def refuse(registry: hub.Registry, tree: Operator, model: Any) -> str:
    """The words with which it is refused, which are those of attaching it."""
    count = len(registry.list())
    with pytest.raises(AttachError) as attached:
        hub.attach(model, tree, rows=[0])
    with pytest.raises(AttachError, match=re.escape(str(attached.value))):
        registry.add(tree, name="both")
    assert len(registry.list()) == count
    return str(attached.value)


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("fuse(de@1, fr@1; hou@1)", "hou@1 is houlsby and leads no fuse"),
        ("stack(de@1, fuse(de@1, fr@1; hou@1))", "hou@1 is houlsby and leads no fuse"),
        ("stack(fu@1, de@1)", "fu@1 chooses among what others give and does nothing alone"),
        ("stack(fu@1)", "fu@1 chooses among what others give"),
        ("batchsplit(de@1, fu@1)", "fu@1 chooses among what others give"),
        ("parallel(de@1, average(none, fu@1))", "fu@1 chooses among what others give"),
    ],
)
def test_a_fusion_leads_a_fuse_and_nothing_else_does(
    registry: hub.Registry, text: str, said: str
) -> None:
    tree = hub.parse_composition(text)
    assert isinstance(tree, Operator)
    assert said in refuse(registry, tree, MODEL)


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("stack(c1@1, c2@1)", "c1@1 and c2@1 each bring a trained head"),
        ("stack(plain@1, c1@1, fuse(c1@1, c2@1; cf@1))", "c1@1 and cf@1 each bring a trained head"),
        ("batchsplit(c1@1, stack(c1@1, c2@1))", "c1@1 and c2@1 each bring a trained head"),
        ("split(c1@1, c2@1; 4)", "brings? a trained head"),
    ],
)
def test_heads_that_could_not_answer_are_refused(
    registry: hub.Registry, text: str, said: str
) -> None:
    tree = hub.parse_composition(text)
    assert isinstance(tree, Operator)
    assert re.search(said, refuse(registry, tree, CLASSIFIER))


def test_what_can_be_attached_is_a_version(registry: hub.Registry) -> None:
    for number, (text, model) in enumerate(
        {
            "fuse(de@1, fr@1; fu@1)": MODEL,
            "stack(hou@1, fuse(de@1, fr@1; fu@1))": MODEL,
            "stack(c1@1, plain@1)": CLASSIFIER,
            "fuse(c1@1, c2@1; cf@1)": CLASSIFIER,
            "average(c1@1, c2@1)": CLASSIFIER,
            "parallel(c1@1, c2@1)": CLASSIFIER,
            "average(none, c1@1)": CLASSIFIER,
        }.items(),
        1,
    ):
        tree = hub.parse_composition(text)
        assert isinstance(tree, Operator)
        assert registry.add(tree, name="good").reference == f"good@{number}"
        hub.attach(model, f"good@{number}", trainable=False).detach()


def test_parts_that_are_compositions_are_looked_into(registry: hub.Registry) -> None:
    registry.add(hub.Stack("c1", "plain"), name="inner")
    registry.add(hub.BatchSplit("c2", "plain"), name="rows")
    hub.attach(CLASSIFIER, hub.Stack("inner", "c1"), trainable=False).detach()
    assert registry.add(hub.Stack("inner", "c1"), name="again").reference == "again@1"
    assert "c1@1 and c2@1 each" in refuse(registry, hub.Stack("inner", "c2"), CLASSIFIER)
    assert "c1@1 and c2@1 each" in refuse(registry, hub.Stack("inner", "rows"), CLASSIFIER)


def test_labels_that_differ_have_no_mean(registry: hub.Registry) -> None:
    for name, labels in (("one", ["a", "b"]), ("two", ["b", "a"])):
        adapter = hub.Adapter.create("lora", CLASSIFIER, r=1)
        adapter.lineage["labels"] = labels
        registry.add(adapter, name=name)
    assert "answers with a, b" in refuse(registry, hub.Average("one", "two"), CLASSIFIER)


def test_no_tensors_are_read_of_what_brings_no_head(registry: hub.Registry) -> None:
    for name in ("de", "fr", "fu"):
        entry = registry.get(name).files["adapter_model.safetensors"]
        registry.blobs.find_path(entry.sha256).unlink()
    assert registry.add(hub.Fuse("de", "fr", by="fu"), name="both").reference == "both@1"


def test_what_comes_from_elsewhere_is_looked_at_before_anything_is_stored(
    registry: hub.Registry, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Written by a pefthub that let it be a version."""
    good = registry.add(hub.Stack("c1", "plain"), name="good")
    monkeypatch.setattr("hub.attachment.admission.check_conflicts", lambda line, fits: None)
    registry.add(hub.Stack("c1", "c2"), name="bad")
    folders = [registry.export(name, tmp_path / name) for name in (good.reference, "bad")]
    monkeypatch.undo()
    other = hub.Registry(home=tmp_path / "other", url=f"sqlite:///{tmp_path}/other.db")
    with pytest.raises(AttachError, match="each bring a trained head"):
        other.add(folders[1], name="bad")
    assert other.list() == []
    assert other.add(folders[0], name="good").reference == "good@1"
