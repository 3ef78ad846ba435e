"""Adapters in the registry."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

import hub
from hub.errors import BaseMismatch, FileError, RemoteError
from hub.identity import identify_base
from hub_registry import AlreadyExists, CorruptBlob, StorageError, UnknownReference
from tests.tiny import build_tiny, make_inputs

Make = Callable[..., hub.Adapter]
Equal = Callable[[hub.Adapter, hub.Adapter], None]


def strip_manifest(folder: Path) -> Path:
    """The folder as peft writes it."""
    (folder / "hub.json").unlink()
    return folder


@pytest.mark.parametrize("method", ["lora", "houlsby"])
def test_added_adapter_loads_equal(
    registry: hub.Registry, make_adapter: Make, assert_equal_tensors: Equal, method: str
) -> None:
    adapter = make_adapter(method)
    adapter.metrics = {"accuracy": 0.5}
    adapter.lineage = {"training": {"epochs": 3}}
    version = registry.add(adapter, name="sst2", task="sentiment", note="first")
    loaded = registry.load("sst2")
    assert_equal_tensors(adapter, loaded)
    assert loaded.config == adapter.config
    assert loaded.base == adapter.base == version.base
    assert (loaded.task, loaded.metrics) == ("sentiment", {"accuracy": 0.5})
    assert loaded.lineage == {"training": {"epochs": 3}}
    assert loaded.reference == adapter.reference == version.reference == "sst2@1"
    assert (version.method, version.note, version.task) == (method, "first", "sentiment")
    assert hub.load("sst2@1").reference == "sst2@1"


def test_loaded_adapter_gives_the_outputs_of_the_added_one(
    registry: hub.Registry, make_adapter: Make, model: Any
) -> None:
    adapter = make_adapter("houlsby")
    registry.add(adapter, name="sst2")
    inputs = make_inputs(model)
    outputs = []
    for attached in (adapter, registry.load("sst2@1")):
        with hub.attach(model, attached), torch.no_grad():
            outputs.append(model(**inputs).logits)
    assert torch.equal(*outputs)
    with torch.no_grad():
        assert not torch.equal(model(**inputs).logits, outputs[0])


def test_adding_the_same_adapter_again_gives_its_version(
    registry: hub.Registry, make_adapter: Make
) -> None:
    first = registry.add(make_adapter(seed=1), name="sst2", task="sentiment")
    registry.add(make_adapter(seed=2), name="sst2", task="sentiment")
    assert registry.add(make_adapter(seed=1), name="sst2", task="sentiment") == first
    assert [version.number for version in registry.list("sst2")] == [2, 1]


def test_adding_the_same_tensors_for_another_task_is_another_version(
    registry: hub.Registry, make_adapter: Make
) -> None:
    registry.add(make_adapter(), name="sst2", task="sentiment")
    assert registry.add(make_adapter(), name="sst2", task="irony").number == 2


def test_folder_of_ours_is_the_version_of_its_adapter(
    registry: hub.Registry, make_adapter: Make, tmp_path: Path
) -> None:
    adapter = make_adapter()
    version = registry.add(adapter, name="sst2", task="sentiment")
    adapter.save(tmp_path / "saved")
    assert json.loads((tmp_path / "saved" / "hub.json").read_text())["version"] == "sst2@1"
    assert registry.add(str(tmp_path / "saved"), name="sst2") == version


def test_peft_folder_is_kept_as_it_is_with_an_unknown_base(
    registry: hub.Registry, make_adapter: Make, tmp_path: Path, model: Any
) -> None:
    folder = strip_manifest(make_adapter().save(tmp_path / "peft"))
    version = registry.add(folder, name="sst2", task="sentiment")
    assert sorted(version.files) == ["adapter_config.json", "adapter_model.safetensors"]
    assert version.base.label == "unknown"
    loaded = registry.load("sst2")
    assert (loaded.base, loaded.task) == (None, "sentiment")
    hub.attach(model, loaded).detach()


def test_peft_folder_with_its_base_is_bound_to_it(
    registry: hub.Registry, make_adapter: Make, tmp_path: Path, model: Any
) -> None:
    folder = strip_manifest(make_adapter().save(tmp_path / "peft"))
    kept = (folder / "adapter_config.json").read_bytes()
    version = registry.add(folder, name="sst2", base=model)
    assert version.base == identify_base(model)
    assert registry.read(version, "adapter_config.json") == kept
    assert registry.load("sst2@1").base == version.base
    assert registry.add(folder, name="sst2", base=model) == version
    with pytest.raises(BaseMismatch):
        hub.attach(build_tiny("llama", seed=5), "sst2@1")


def test_another_base_than_the_files_say_is_refused(
    registry: hub.Registry, make_adapter: Make
) -> None:
    with pytest.raises(BaseMismatch, match="leave the base out"):
        registry.add(make_adapter(), name="sst2", base=build_tiny("llama", seed=5))
    assert registry.list() == []


def test_parents_are_told_with_their_numbers_and_contents(
    registry: hub.Registry, make_adapter: Make
) -> None:
    parent = registry.add(make_adapter(seed=1), name="de")
    registry.alias("de@1", "production")
    child = registry.add(make_adapter(seed=2), name="sst2", parents=["de@production"])
    assert child.parents == ("de@1",)
    assert registry.load("sst2").lineage == {
        "parents": ["de@1"],
        "digests": {"de@1": parent.digest},
    }
    again = registry.add(make_adapter(seed=2), name="sst2", parents=[parent])
    assert again == child


def test_unknown_parent_adds_nothing(registry: hub.Registry, make_adapter: Make) -> None:
    adapter = make_adapter()
    with pytest.raises(UnknownReference):
        registry.add(adapter, name="sst2", parents=["de@7"])
    assert registry.list() == []
    assert adapter.reference is None


def test_damaged_folder_is_not_registered(
    registry: hub.Registry, make_adapter: Make, tmp_path: Path
) -> None:
    folder = make_adapter().save(tmp_path / "saved")
    weights = folder / "adapter_model.safetensors"
    weights.write_bytes(weights.read_bytes()[:-4])
    with pytest.raises(FileError, match=r"adapter_model\.safetensors"):
        registry.add(folder, name="sst2")
    assert registry.list() == []


def test_same_files_with_another_note_are_refused(
    registry: hub.Registry, make_adapter: Make
) -> None:
    registry.add(make_adapter(), name="sst2", note="one")
    with pytest.raises(AlreadyExists, match="note"):
        registry.add(make_adapter(), name="sst2", note="two")


def test_flipped_byte_in_the_store_is_refused(registry: hub.Registry, sst2: hub.Adapter) -> None:
    sha256 = registry.get("sst2").files["adapter_model.safetensors"].sha256
    [blob] = [path for path in registry.home.rglob("*") if path.name.endswith(sha256[2:])]
    data = bytearray(blob.read_bytes())
    data[-1] ^= 1
    blob.chmod(0o644)
    blob.write_bytes(data)
    with pytest.raises(CorruptBlob):
        registry.load("sst2@1")


def test_publications_are_listed_in_order(registry: hub.Registry, sst2: hub.Adapter) -> None:
    registry.record_publication("sst2@1", "ana/sst2", "abc")
    registry.record_publication("sst2@1", "team/sst2", "def")
    assert registry.publications("sst2") == [
        ("sst2@1", "ana/sst2", "abc"),
        ("sst2@1", "team/sst2", "def"),
    ]


class Forgetful(hub.Registry):
    """A registry whose disk fills up after the files have left."""

    def record_publication(self, version: Any, remote: str, revision: str) -> None:
        raise StorageError("the disk is full; free some space")


def test_a_publication_that_can_not_be_noted_is_told(
    sst2: hub.Adapter, registry: hub.Registry, tmp_path: Path
) -> None:
    target = tmp_path / "shared"
    with pytest.raises(RemoteError, match=r"sst2@1 is published at file:.*noted here: the disk"):
        hub.push("sst2@1", target, registry=Forgetful(registry.home))
    assert hub.push("sst2@1", target, registry=registry).changed is False
    assert [there for there, *_ in registry.publications("sst2")] == ["sst2@1"]


class Overtaken(hub.Registry):
    """A registry into which another process adds the same bytes just before this one does."""

    def add(self, adapter: Any, *, note: str | None = None, **says: Any) -> Any:
        super().add(adapter, note="by hand", **says)
        return super().add(adapter, note=note, **says)


def test_a_pull_that_an_import_overtakes_is_the_same_version(
    sst2: hub.Adapter, registry: hub.Registry, tmp_path: Path
) -> None:
    hub.push("sst2@1", tmp_path / "shared", registry=registry)
    version = hub.pull(tmp_path / "shared", registry=Overtaken(tmp_path / "other-home"))
    assert (version.reference, version.note) == ("sst2@1", "by hand")


def test_push_to_what_can_not_be_noted_sends_nothing(
    sst2: hub.Adapter, registry: hub.Registry, tmp_path: Path
) -> None:
    class Closed(hub.Registry):
        def check_writable(self) -> None:
            raise StorageError("the database can't be opened for this")

    with pytest.raises(StorageError):
        hub.push("sst2@1", tmp_path / "shared", registry=Closed(registry.home))
    assert not (tmp_path / "shared").exists()
