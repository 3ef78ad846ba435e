"""Compositions in a registry: a version of its own, with its parts as parents, pinned."""

from __future__ import annotations

import json
import logging
import shutil
import sqlite3
from collections.abc import Callable
from contextlib import closing
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

import hub
from hub.composition import Operator, Part, replace_leaves, walk
from hub.errors import BaseMismatch, FileError
from hub.recipes import RECIPE, Recipe, format_recipe, parse_recipe
from hub_registry import AlreadyExists, BadName, CorruptBlob, RegistryError, UnknownReference
from tests.snapshots import run, shake_adapter
from tests.tiny import build_tiny

Make = Callable[..., hub.Adapter]
WEIGHTS = "adapter_model.safetensors"


@pytest.fixture(scope="module")
def model() -> Any:
    return build_tiny("llama")


@pytest.fixture
def make(model: Any) -> Make:
    def make(seed: int = 0, method: str = "lora", **options: Any) -> hub.Adapter:
        adapter = hub.Adapter.create(method, model, **(options or {"r": 1}))
        return shake_adapter(adapter, seed=seed)

    return make


@pytest.fixture(scope="module")
def made(model: Any, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """What takes longer to make than to copy: `empty`, the home of a registry without versions;
    `home`, that of one with de@1, de@2, fr@1 and compositions, and `folder`, one of them."""
    place = tmp_path_factory.mktemp("made")
    hub.Registry(home=place / "empty", url=f"sqlite:///{place}/empty/registry.db").upgrade()
    home = place / "home"
    registry = hub.Registry(home=home, url=f"sqlite:///{home}/registry.db")
    for seed, name in enumerate(["de", "de", "fr"]):
        registry.add(shake_adapter(hub.Adapter.create("lora", model, r=1), seed=seed), name=name)
    registry.alias("de@2", "production")
    shutil.copytree(home, place / "parts")
    registry.add(hub.Stack("de@1", "fr"), name="both", task="qa")
    registry.add(hub.Average("both", "de@2", "fr", weights=[0.5, 0.25, 0.25]), name="mean")
    registry.export("mean", place / "folder")
    return place


@pytest.fixture
def registry(made: Path, home: Path) -> hub.Registry:
    """de@1, de@2 and fr@1, of which de@production is de@2."""
    shutil.copytree(made / "parts", home)
    return hub.Registry()


@pytest.fixture
def other(made: Path, tmp_path: Path) -> hub.Registry:
    """A registry on another machine."""
    place = shutil.copytree(made / "empty", tmp_path / "other-home")
    return hub.Registry(home=place)


def assert_equal_tensors(one: hub.Adapter, two: hub.Adapter) -> None:
    assert one.tensors.keys() == two.tensors.keys()
    assert all(torch.equal(one.tensors[name], two.tensors[name]) for name in one.tensors)


def test_a_composition_is_a_version_with_its_parts_as_parents(registry: hub.Registry) -> None:
    tree = hub.Fuse(
        hub.Split("fr", "de@1", at=3), hub.Average(None, "de@1", weights=[0.7, 0.3]), by="de"
    )
    version = registry.add(tree, name="both", task="qa", note="first")
    assert (version.reference, version.kind, version.method) == ("both@1", "composition", "fuse")
    assert version.parents == ("fr@1", "de@1", "de@2")
    pinned = "fuse(split(fr@1, de@1; 3), average(none, de@1; 0.7, 0.3); de@2)"
    assert version.config == {"composition": pinned}
    assert version.base == registry.get("de@1").base
    assert (version.task, version.note) == ("qa", "first")
    assert list(version.files) == [RECIPE]


def test_an_alias_means_the_version_that_it_named(registry: hub.Registry, make: Make) -> None:
    registry.add(hub.Stack("de@production", "fr"), name="both")
    registry.alias("de@1", "production")
    registry.add(make(7), name="fr")
    assert registry.get("both").parents == ("de@2", "fr@1")
    loaded = registry.load("both")
    assert repr(loaded) == "stack(de@2, fr@1)"
    assert registry.add(hub.Stack("de@production", "fr"), name="both").parents == ("de@1", "fr@2")


def test_a_loaded_composition_has_each_part_once(registry: hub.Registry) -> None:
    registry.add(hub.BatchSplit("de@1", None, hub.Stack("de@1", "fr")), name="both")
    loaded = hub.load("both@1")
    assert isinstance(loaded, hub.BatchSplit)
    de, nothing, again, fr = loaded.leaves()
    assert isinstance(de, hub.Adapter) and isinstance(fr, hub.Adapter)
    assert (de is again, nothing) == (True, None)
    assert_equal_tensors(de, registry.load("de@1"))
    assert_equal_tensors(fr, registry.load("fr@1"))
    assert hub.parse_composition(repr(loaded)) == hub.BatchSplit(
        "de@1", None, hub.Stack("de@1", "fr@1")
    )


def test_a_registered_stack_acts_as_its_parts_do(
    registry: hub.Registry, make: Make, model: Any
) -> None:
    parts = [
        make(11),
        make(12, "houlsby", size=2),
        make(13, "prefix", tokens=2),
        make(14, "prompt", tokens=3),
    ]
    for part in parts:
        registry.add(part, name=part.method)
    registry.add(hub.Stack(*parts), name="all")
    with hub.attach(model, hub.Stack(*parts)):
        expected = run(model)
    with hub.attach(model, "all@1") as attachment:
        assert torch.equal(run(model), expected)
        assert [adapter.reference for adapter in attachment.active] == [
            *("lora@1", "houlsby@1", "prefix@1", "prompt@1")
        ]
    assert not torch.equal(run(model), expected)


def test_the_same_composition_is_the_same_version(registry: hub.Registry) -> None:
    first = registry.add(hub.Stack("de@production", "fr"), name="both", task="qa", note="first")
    for tree in (
        hub.Stack("de@2", "fr@1"),
        hub.Stack("de", registry.load("fr")),
        registry.load("both"),
        hub.parse_composition(first.config["composition"]),
    ):
        assert registry.add(tree, name="both", task="qa") == first
    with pytest.raises(AlreadyExists, match="both@1 has the same files with other note"):
        registry.add(hub.Stack("de", "fr"), name="both", task="qa", note="second")
    assert [version.number for version in registry.list("both")] == [1]


@pytest.mark.parametrize(
    "tree",
    [
        hub.Stack("fr", "de"),
        hub.Stack("de", "fr", "fr"),
        hub.Stack("de", hub.Stack("fr")),
        hub.Stack("de@1", "fr"),
        hub.Stack("de", "fr", None),
        hub.Parallel("de", "fr"),
        hub.Average("de", "fr"),
        hub.Average("de", "fr", weights=[1, 2]),
        hub.Split("de", "fr", at=1),
        hub.Split("de", "fr", at=2),
    ],
    ids=str,
)
def test_another_composition_is_another_version(registry: hub.Registry, tree: Operator) -> None:
    versions = [registry.add(tree, name="both") for tree in (hub.Stack("de", "fr"), tree)]
    assert [version.number for version in versions] == [1, 2]
    assert versions[0].digest != versions[1].digest
    assert registry.add(tree, name="both", task="qa").number == 3


def test_the_digest_is_the_same_where_the_numbers_are_others(
    registry: hub.Registry, other: hub.Registry, make: Make, tmp_path: Path
) -> None:
    ours = registry.add(hub.Stack("de@1", hub.Average("fr", "de@2")), name="both", task="qa")
    for seed, name in [(5, "deutsch"), (2, "french"), (1, "deutsch"), (0, "deutsch")]:
        registry.export({0: "de@1", 1: "de@2", 2: "fr@1"}[seed], tmp_path / str(seed)) if (
            seed < 5
        ) else make(seed).save(tmp_path / str(seed))
        other.add(tmp_path / str(seed), name=name)
    tree = hub.Stack("deutsch@3", hub.Average("french", "deutsch@2"))
    theirs = other.add(tree, name="zusammen", task="qa")
    assert theirs.digest == ours.digest
    assert theirs.parents == ("deutsch@3", "french@1", "deutsch@2")
    assert other.read(theirs, RECIPE) == registry.read(ours, RECIPE)


def test_a_composition_may_be_a_part(registry: hub.Registry) -> None:
    registry.add(hub.Stack("de", "fr"), name="both")
    registry.alias("both@1", "production")
    version = registry.add(hub.Average("both@production", "de", None), name="mean")
    assert version.parents == ("both@1", "de@2")
    assert version.config == {"composition": "average(both@1, de@2, none)"}
    assert version.base == registry.get("de").base
    loaded = hub.load("mean")
    assert repr(loaded) == "average(stack(de@2, fr@1), de@2, none)"
    one, _, two, _ = loaded.leaves()  # type: ignore[union-attr]
    assert one is two


def test_a_version_may_be_made_of_an_older_one_of_its_name(registry: hub.Registry) -> None:
    for _ in range(4):
        version = registry.add(hub.Stack("de", "fr"), name="de")
    assert version.reference == "de@6"
    assert repr(registry.load("de")).count("de@2") == 1
    assert repr(registry.load("de")).count("fr@1") == 4


def test_a_long_chain_of_compositions_loads(registry: hub.Registry) -> None:
    registry.add(hub.Stack("fr"), name="chain")
    for _ in range(20):
        registry.add(hub.Stack("chain", "de"), name="chain")
    loaded = registry.load("chain")
    assert len({id(leaf) for leaf in loaded.leaves()}) == 2  # type: ignore[union-attr]
    assert sum(isinstance(node, hub.Stack) for node in walk(loaded)) == 21


def test_no_depth_is_too_deep_for_a_recipe(registry: hub.Registry) -> None:
    tree: Part = "de"
    for _ in range(1500):
        tree = hub.Stack(tree, "fr")
    assert isinstance(tree, Operator)
    registry.add(tree, name="deep")
    assert hub.parse_composition(repr(registry.load("deep"))) == replace_leaves(
        tree, lambda leaf: {"de": "de@2", "fr": "fr@1"}[str(leaf)]
    )


@pytest.mark.parametrize(
    ("leaf", "kind", "said"),
    [
        ("./folder", RegistryError, "./folder is a folder.*`hub import ./folder --name NAME`"),
        (Path("run"), RegistryError, "`hub import ./run --name NAME`"),
        ("some/where", RegistryError, "some/where is a folder"),
        ("hf://org/de@main", RegistryError, "at a remote.*`hub pull org/de@main`"),
        ("it", UnknownReference, "there is no adapter 'it'"),
        ("de@9", UnknownReference, "'de' has no version 9"),
        ("de@staging", UnknownReference, "no alias 'staging'"),
        ("de@", BadName, "'de@' is not a reference"),
    ],
)
def test_a_leaf_that_is_no_version_is_refused_with_the_way_out(
    registry: hub.Registry, leaf: Any, kind: type[Exception], said: str
) -> None:
    for tree in (hub.Stack("fr", leaf), hub.Fuse("fr", by=leaf)):
        with pytest.raises(kind, match=said) as caught:
            registry.add(tree, name="both")
        assert "\n" not in str(caught.value)
    assert len(registry.list()) == 3


def test_an_adapter_that_was_never_registered_is_refused(
    registry: hub.Registry, make: Make, tmp_path: Path
) -> None:
    new, loaded = make(8), hub.load(make(9).save(tmp_path / "saved"))
    for adapter in (new, loaded):
        with pytest.raises(
            RegistryError, match=r"<Adapter lora.*; register it first: registry.add"
        ):
            registry.add(hub.Stack("fr", adapter), name="both")
    registry.add(new, name="new")
    assert registry.add(hub.Stack("fr", new), name="both").parents == ("fr@1", "new@1")


def test_an_adapter_that_learned_since_is_refused(registry: hub.Registry) -> None:
    adapter = registry.load("de@1")
    assert isinstance(adapter, hub.Adapter)
    with torch.no_grad():
        next(iter(adapter.tensors.values())).view(-1)[0] += 1
    with pytest.raises(RegistryError, match="is not what de@1 is in this registry; register it"):
        registry.add(hub.Stack("fr", adapter), name="both")
    assert registry.list("both") == []


def test_a_label_of_another_registry_is_not_taken_for_a_version_here(
    registry: hub.Registry, other: hub.Registry, make: Make, tmp_path: Path
) -> None:
    other.add(make(31), name="de")
    other.add(make(32), name="it")
    for reference in ("de@1", "it@1"):
        adapter = other.load(reference)
        with pytest.raises(RegistryError, match="register it first"):
            registry.add(hub.Stack(adapter), name="both")
    assert registry.list("both") == []


def test_what_is_no_composition_of_adapters_is_refused(registry: hub.Registry) -> None:
    registry.add(hub.Stack("de", "fr"), name="both")
    with pytest.raises(RegistryError, match=r"stack\(none\) has no adapter in it"):
        registry.add(hub.Stack(None), name="nothing")
    with pytest.raises(RegistryError, match="both@1 is a composition and leads a fuse"):
        registry.add(hub.Fuse("de", "fr", by="both"), name="fused")
    with pytest.raises(RegistryError, match="leave parents out"):
        registry.add(hub.Stack("de"), name="more", parents=["fr"])
    with pytest.raises(RegistryError, match="leave the base out"):
        registry.add(hub.Stack("de"), name="more", base=registry.get("de").base)
    with pytest.raises(RegistryError, match="can't be given other names"):
        registry.add(hub.Stack("de"), name="more", names={"de": "german"})
    with pytest.raises(BadName):
        registry.add(hub.Stack("de"), name="a b")
    assert len(registry.list()) == 4


def test_parts_for_different_bases_are_refused(registry: hub.Registry) -> None:
    stranger = hub.Adapter.create("lora", build_tiny("llama", seed=5), r=1)
    registry.add(stranger, name="stranger")
    with pytest.raises(BaseMismatch, match=r"de@2 was made for .* and stranger@1 for .*one base"):
        registry.add(hub.Stack("de", "stranger"), name="both")
    registry.add(hub.Stack("stranger"), name="inner")
    with pytest.raises(BaseMismatch):
        registry.add(hub.Stack("de", hub.Average("fr", "inner")), name="both")
    assert registry.list("both") == []


def test_a_part_whose_base_is_unknown_is_noted(
    registry: hub.Registry, make: Make, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    folder = make(8).save(tmp_path / "peft")
    (folder / "hub.json").unlink()
    registry.add(folder, name="peft")
    with caplog.at_level(logging.WARNING, "hub"):
        version = registry.add(hub.Stack("peft", "de"), name="both")
    assert "peft@1 does not say which base it was made for" in caplog.text
    assert version.base == registry.get("de").base
    assert registry.add(hub.Stack("peft"), name="alone").base == registry.get("peft").base


def test_the_same_base_in_another_precision_is_one_base(registry: hub.Registry) -> None:
    half = hub.Adapter.create("lora", build_tiny("llama").bfloat16(), r=1)
    registry.add(half, name="half")
    assert registry.add(hub.Stack("de", "half"), name="both").base == registry.get("de").base


def test_a_part_may_bring_a_trained_head(registry: hub.Registry) -> None:
    model = build_tiny("bert", "classification")
    one, two = (shake_adapter(hub.Adapter.create("lora", model, r=1), seed=s) for s in (1, 2))
    for name, adapter in (("one", one), ("two", two)):
        registry.add(adapter, name=name)
    registry.add(hub.BatchSplit("one", "two"), name="clients")
    loaded = registry.load("clients")
    assert [leaf.heads for leaf in loaded.leaves()] == [one.heads, two.heads]  # type: ignore[union-attr]
    assert one.heads


def test_metrics_and_aliases_are_a_versions_own(registry: hub.Registry) -> None:
    registry.add(hub.Stack("de", "fr"), name="both")
    registry.record_metric("both@1", "accuracy", 0.5, dataset="test.jsonl", samples=8)
    registry.alias("both@1", "production")
    version = registry.get("both@production")
    assert (version.metrics, version.aliases) == ({"accuracy": 0.5}, ("production",))
    [row] = [row for row in registry.adapters() if row.name == "both"]
    assert (row.kind, row.method) == ("composition", "stack")
    assert [event.kind for event in registry.log("both")] == ["alias", "metric", "version"]


# --- reading what is damaged ---------------------------------------------------------------


def damage(registry: hub.Registry, reference: str, filename: str) -> None:
    """Flip a byte of a stored file."""
    path = registry.blobs.find_path(registry.get(reference).files[filename].sha256)
    path.chmod(0o644)
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 1
    path.write_bytes(data)


@pytest.mark.parametrize(("reference", "name"), [("both@1", RECIPE), ("fr@1", WEIGHTS)])
def test_damage_in_the_store_is_found_and_mended(
    registry: hub.Registry, tmp_path: Path, reference: str, name: str
) -> None:
    registry.add(hub.Stack("de", "fr"), name="both")
    registry.export("both", tmp_path / "whole")
    damage(registry, reference, name)
    with pytest.raises(CorruptBlob, match=f"{reference} {name} is damaged"):
        registry.load("both")
    for attempt in (
        lambda: registry.export("both", tmp_path / "again"),
        lambda: hub.push("both", tmp_path / "remote"),
    ):
        with pytest.raises(CorruptBlob):
            attempt()
    assert not (tmp_path / "again").exists()
    assert not (tmp_path / "remote").exists()
    [fault] = registry.verify(["both@1"])
    assert (fault.reference, fault.filename) == (reference, name)
    assert len(registry.verify()) == 1
    assert registry.add(tmp_path / "whole", name="both").reference == "both@1"
    assert registry.verify() == []


def test_verify_of_a_composition_reads_its_parts_and_no_others(registry: hub.Registry) -> None:
    registry.add(hub.Stack("fr"), name="inner")
    registry.add(hub.Stack("inner"), name="outer")
    damage(registry, "de@1", WEIGHTS)
    assert registry.verify(["outer"]) == []
    damage(registry, "fr@1", WEIGHTS)
    assert [fault.reference for fault in registry.verify(["outer"])] == ["fr@1"]


def test_a_parent_that_is_not_what_the_recipe_says_is_found(registry: hub.Registry) -> None:
    registry.add(hub.Stack("de@1", "fr"), name="both")
    assert registry.database.path is not None
    with closing(sqlite3.connect(registry.database.path)) as connection, connection:
        ids = dict(connection.execute("SELECT digest, id FROM version").fetchall())
        one, two = (ids[registry.get(name).digest] for name in ("de@1", "de@2"))
        for trigger in connection.execute("SELECT name FROM sqlite_master WHERE type = 'trigger'"):
            connection.execute(f"DROP TRIGGER {trigger[0]}")
        connection.execute("UPDATE lineage SET parent_id = ? WHERE parent_id = ?", (two, one))
    with pytest.raises(FileError, match=r"both@1/composition\.json is made of other parts than de"):
        registry.load("both")
    for faults in (registry.verify(), registry.verify(["both"])):
        assert [(fault.reference, fault.filename) for fault in faults] == [("both@1", RECIPE)]


def test_a_sweep_leaves_compositions_and_parts(registry: hub.Registry) -> None:
    registry.add(hub.Stack("de", "fr"), name="both")
    assert registry.sweep(older_than=0).blobs == 0
    assert isinstance(registry.load("both"), hub.Stack)


# --- folders ---------------------------------------------------------------------------------


@pytest.fixture
def folder(made: Path, home: Path, tmp_path: Path) -> Path:
    """mean@1, with the composition both@1 in it, as a folder; the registry has both too."""
    shutil.copytree(made / "home", home, dirs_exist_ok=True)
    return Path(shutil.copytree(made / "folder", tmp_path / "mean"))


def find_part(registry: hub.Registry, folder: Path, reference: str) -> Path:
    return folder / "parts" / registry.get(reference).digest


def test_an_exported_composition_loads_from_its_folder(
    registry: hub.Registry, folder: Path
) -> None:
    assert sorted(path.name for path in (folder / "parts").iterdir()) == sorted(
        registry.get(name).digest for name in ("both@1", "de@1", "de@2", "fr@1")
    )
    assert sorted(path.name for path in folder.iterdir()) == [RECIPE, "parts"]
    loaded = hub.load(folder)
    expected = registry.load("mean")
    assert (
        repr(loaded) == repr(expected) == "average(stack(de@1, fr@1), de@2, fr@1; 0.5, 0.25, 0.25)"
    )
    assert isinstance(loaded, Operator) and isinstance(expected, Operator)
    leaves = list(loaded.leaves())
    assert leaves[1] is leaves[3]
    for one, two in zip(leaves, expected.leaves(), strict=True):
        assert_equal_tensors(one, two)  # type: ignore[arg-type]


def test_a_part_of_a_folder_is_an_adapter_as_any_other(
    registry: hub.Registry, folder: Path
) -> None:
    part = hub.load(find_part(registry, folder, "de@2"))
    assert isinstance(part, hub.Adapter)
    assert part.reference == "de@2"


def test_an_imported_folder_becomes_versions(
    registry: hub.Registry, other: hub.Registry, folder: Path
) -> None:
    version = other.add(folder, name="mean", note="from a colleague")
    assert {v.reference: v.digest for v in other.list()} == {
        v.reference: v.digest for v in registry.list()
    }
    assert version.parents == ("both@1", "de@2", "fr@1")
    assert other.get("both").task == "qa"
    assert other.add(folder, name="mean") == version
    assert registry.add(folder, name="mean") == registry.get("mean@1")
    assert (len(registry.list()), len(other.list())) == (5, 5)


def test_parts_of_one_name_keep_their_order(
    registry: hub.Registry, other: hub.Registry, tmp_path: Path
) -> None:
    registry.add(hub.Stack("de@2", "fr", "de@1"), name="both")
    version = other.add(registry.export("both", tmp_path / "both"), name="both")
    assert version.parents == ("de@2", "fr@1", "de@1")
    assert other.get("de@1").digest == registry.get("de@1").digest


def test_an_imported_folder_takes_another_task_and_other_names(
    other: hub.Registry, make: Make, folder: Path
) -> None:
    other.add(make(41), name="de")
    with pytest.raises(
        AlreadyExists, match=r"de@2, a part of .*can't come as de: .*--part de=NAME"
    ):
        other.add(folder, name="mean")
    with pytest.raises(UnknownReference, match="no part 'it'; its parts are both, de, fr"):
        other.add(folder, name="mean", names={"it": "x"})
    with pytest.raises(BadName):
        other.add(folder, name="mean", names={"de": "a b"})
    assert len(other.list()) == 1
    version = other.add(folder, name="mean", task="irony", names={"de": "german"})
    assert (version.task, version.parents) == ("irony", ("both@1", "german@2", "fr@1"))
    assert repr(other.load("mean")).startswith("average(stack(german@1, fr@1), german@2")
    assert len(other.list("de")) == 1


def test_a_part_may_be_the_next_version_of_what_is_here(
    registry: hub.Registry, other: hub.Registry, make: Make, folder: Path
) -> None:
    other.add(make(41), name="de")
    version = other.add(folder, name="mean", names={"de": "de"})
    assert version.parents == ("both@1", "de@3", "fr@1")
    assert other.get("de@2").digest == registry.get("de@1").digest


def test_a_part_that_differs_in_its_moment_alone_is_a_version_of_its_own(
    registry: hub.Registry, other: hub.Registry, folder: Path, tmp_path: Path
) -> None:
    registry.export("fr", tmp_path / "fr")
    edit(tmp_path / "fr" / "hub.json", created="2020-02-02T02:02:02+00:00")
    assert other.add(tmp_path / "fr", name="fr").digest != registry.get("fr").digest
    version = other.add(folder, name="mean", names={"fr": "fr"})
    assert version.parents == ("both@1", "de@2", "fr@2")
    assert other.get("fr@2").digest == registry.get("fr@1").digest
    assert other.verify() == []
    other.load(version)


def test_an_adapter_has_no_parts_to_name(other: hub.Registry, make: Make, tmp_path: Path) -> None:
    with pytest.raises(RegistryError, match="de can't be given other names"):
        other.add(make(1).save(tmp_path / "one"), name="one", names={"de": "german"})


def edit(path: Path, **fields: Any) -> None:
    path.write_text(json.dumps({**json.loads(path.read_text()), **fields}))


@pytest.mark.parametrize(
    ("fields", "said"),
    [
        (
            {"composition": "average(1, 2, 3; 0.5, 0.25, 0.2)"},
            "is not what was written: the sha256",
        ),
        ({"composition": "stack(1, 2, 3)"}, "is not what was written"),
        ({"task": "irony"}, "is not what was written"),
        ({"parts": []}, "it has no parts"),
        ({"parts": [{"digest": "0" * 64, "version": None}]}, "is not what was written"),
        ({"parts": [{"digest": "../../etc", "version": None}]}, "not a sha256 in hex"),
        ({"parts": [{"digest": "0" * 64}]}, "lacks what it must say: 'version'"),
        ({"parts": "none"}, "lacks what it must say"),
        ({"parts": None}, "lacks what it must say"),
        ({"composition": None}, "composition is None, not text"),
        ({"sha256": 3}, "sha256 is 3, not text"),
        ({"version": 3}, "version is 3, not text"),
        ({"format": 2}, "has format 2, this pefthub reads 1; upgrade pefthub"),
    ],
)
def test_an_edited_recipe_is_found(
    other: hub.Registry, folder: Path, fields: dict[str, Any], said: str
) -> None:
    edit(folder / RECIPE, **fields)
    for attempt in (lambda: hub.load(folder), lambda: other.add(folder, name="mean")):
        with pytest.raises(FileError, match=said) as caught:
            attempt()
        assert str(folder / RECIPE) in str(caught.value)
        assert "\n" not in str(caught.value)
    assert other.list() == []


@pytest.mark.parametrize("text", ["", "[]", '{"format": NaN}', "\x80"])
def test_a_recipe_that_is_none_is_found(folder: Path, text: str) -> None:
    (folder / RECIPE).write_text(text, encoding="latin-1")
    with pytest.raises(FileError, match=r"mean/composition\.json"):
        hub.load(folder)


@pytest.mark.parametrize(
    "text",
    [
        *("stack(1, 3, 2)", "stack(2, 1, 3)", "stack(1, 2)", "stack(1, 2, 3, 4)", "stack(0, 1, 2)"),
        *("stack(1, 2, de@1)", "stack(1, 2, 03)", "1", "none", "stack(1", "", "heap(1, 2, 3)"),
        *("fuse(1, 2; 1)", "average(1, 2, 3; 1, -1, 0)"),
    ],
)
def test_a_recipe_whose_tree_is_none_is_found(other: hub.Registry, folder: Path, text: str) -> None:
    recipe = parse_recipe((folder / RECIPE).read_bytes(), folder / RECIPE)
    forged = Recipe(text, recipe.parts, recipe.task, recipe.version)
    (folder / RECIPE).write_bytes(format_recipe(forged))
    for attempt in (lambda: hub.load(folder), lambda: other.add(folder, name="mean")):
        with pytest.raises(
            FileError, match=r"mean/composition\.json: .*fetch the composition anew"
        ):
            attempt()
    assert other.list() == []


def test_a_composition_that_leads_a_fuse_is_found(other: hub.Registry, folder: Path) -> None:
    recipe = parse_recipe((folder / RECIPE).read_bytes(), folder / RECIPE)
    parts = (*recipe.parts[1:], recipe.parts[0])
    (folder / RECIPE).write_bytes(format_recipe(Recipe("fuse(1, 2; 3)", parts)))
    with pytest.raises(FileError, match="leads a fuse is one adapter, and 3 is none"):
        other.add(folder, name="mean")
    assert other.list() == []


@pytest.mark.parametrize("reference", ["both@1", "de@1", "fr@1"])
def test_a_missing_part_is_found(
    registry: hub.Registry, other: hub.Registry, folder: Path, reference: str
) -> None:
    part = find_part(registry, folder, reference)
    for path in part.iterdir():
        path.unlink()
    for attempt in (lambda: hub.load(folder), lambda: other.add(folder, name="mean")):
        with pytest.raises(FileError, match=r"has no adapter_config\.json, and the part"):
            attempt()
    assert other.list() == []


def test_a_part_in_anothers_place_is_found(
    registry: hub.Registry, other: hub.Registry, folder: Path
) -> None:
    one, two = (find_part(registry, folder, name) for name in ("de@1", "de@2"))
    one.rename(folder / "aside")
    two.rename(one)
    (folder / "aside").rename(two)
    with pytest.raises(FileError, match=r"is not the part de@. that composition\.json describes"):
        other.add(folder, name="mean")
    assert other.list() == []


@settings(deadline=None, max_examples=15, suppress_health_check=list(HealthCheck))
@given(data=st.data())
def test_any_flipped_byte_of_a_part_is_found(
    registry: hub.Registry, other: hub.Registry, folder: Path, data: st.DataObject
) -> None:
    paths = sorted(path for path in (folder / "parts").rglob("*") if path.is_file())
    path = data.draw(st.sampled_from(paths))
    kept = path.read_bytes()
    changed = bytearray(kept)
    position = data.draw(st.integers(0, len(kept) - 1))
    changed[position] ^= data.draw(st.integers(1, 255))
    path.write_bytes(changed)
    try:
        loaded = hub.load(folder)
    except FileError as error:
        assert path.parent.name in str(error)
    else:
        # Which version a part was written from is a label, and no part of its content.
        assert path.name in (RECIPE, "hub.json")
        assert repr(loaded) != "" and changed != kept
        assert json.loads(changed).keys() == json.loads(kept).keys()
        assert {**json.loads(changed), "version": 0, "parts": 0} == {
            **json.loads(kept),
            "version": 0,
            "parts": 0,
        }
    finally:
        path.write_bytes(kept)


def test_a_folder_of_both_kinds_is_refused(make: Make, folder: Path) -> None:
    make(1).save(folder)
    with pytest.raises(FileError, match=r"holds a composition .* and an adapter .*not meant"):
        hub.load(folder)


def test_other_files_in_the_folder_do_not_matter(registry: hub.Registry, folder: Path) -> None:
    (folder / "notes.txt").write_text("mine")
    (folder / "parts" / "notes.txt").write_text("mine")
    find_part(registry, folder, "de@1").joinpath("README.md").write_text("mine")
    assert isinstance(hub.load(folder), hub.Average)


def test_export_takes_a_new_or_an_empty_folder(registry: hub.Registry, folder: Path) -> None:
    with pytest.raises(AlreadyExists, match="it is not empty"):
        registry.export("mean", folder)


# --- any tree ----------------------------------------------------------------------------------

references = st.sampled_from(["de@1", "de@2", "de", "de@production", "fr", "fr@1", "both"])
adapters = references.filter(lambda text: text != "both")


@st.composite
def operators(draw: Any, inner: st.SearchStrategy[Part]) -> Operator:
    parts = draw(st.lists(inner, min_size=1, max_size=4))
    kind = draw(st.sampled_from([hub.Stack, hub.Parallel, hub.BatchSplit, "split", "mean", "fuse"]))
    if kind == "split":
        return hub.Split(*parts, at=range(1, len(parts)))
    if kind == "mean":
        weights = draw(st.lists(st.floats(-9, 9), min_size=len(parts), max_size=len(parts)))
        return hub.Average(*parts, weights=[*weights[:-1], 99.5])
    if kind == "fuse":
        return hub.Fuse(*parts, by=draw(adapters))
    return kind(*parts)  # type: ignore[no-any-return]


trees = operators(st.recursive(st.one_of(st.none(), references), operators, max_leaves=8))


@settings(deadline=None, max_examples=15, suppress_health_check=list(HealthCheck))
@given(tree=trees)
def test_any_composition_comes_back_from_the_registry(
    registry: hub.Registry,
    other: hub.Registry,
    tmp_path_factory: pytest.TempPathFactory,
    tree: Operator,
) -> None:
    registry.add(hub.Stack("de@1", "fr"), name="both")
    if all(leaf is None for leaf in tree.leaves()):
        return
    place = tmp_path_factory.mktemp("any")
    version = registry.add(tree, name="any")
    pinned = {"de": "de@2", "de@production": "de@2", "fr": "fr@1", "both": "both@1"}
    expected = replace_leaves(tree, lambda leaf: pinned.get(str(leaf), leaf))
    assert hub.parse_composition(version.config["composition"]) == expected
    assert version.parents == tuple(
        dict.fromkeys(leaf for leaf in expected.leaves() if leaf is not None)  # type: ignore[union-attr]
    )
    inlined = replace_leaves(
        expected, lambda leaf: hub.Stack("de@1", "fr@1") if leaf == "both@1" else leaf
    )
    assert hub.parse_composition(repr(registry.load(version))) == inlined
    names = {part.adapter: part.adapter for part in registry.collect(version.parents)}
    arrived = other.add(registry.export(version, place / "folder"), name="any", names=names)
    assert arrived.digest == version.digest
    assert len(arrived.parents) == len(version.parents)
    assert registry.add(tree, name="any") == version
