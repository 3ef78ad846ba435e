"""Compositions that are pushed and pulled whole."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from huggingface_hub import HfApi, ModelCard, constants
from peft import PeftModel

import hub
from hub.composition import Operator
from hub.errors import FileError, RemoteError
from hub.recipes.recipe import RECIPE
from hub.server import HubServer
from hub_registry import AlreadyExists, RegistryError, StorageError, UnknownReference
from tests.snapshots import shake_adapter
from tests.tiny import build_tiny, make_inputs
from tests.training.tasks import ROWS, TEMPLATE, make_tokenizer

Make = Callable[..., hub.Adapter]
Equal = Callable[[hub.Adapter, hub.Adapter], None]
FILES = ("adapter_config.json", "adapter_model.safetensors", "hub.json")


@pytest.fixture(scope="module")
def made(model: Any, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """What takes longer to make than to copy: `empty`, the home of a registry without versions, and
    `home`, that of one with both@1: a LoRA de@1 with a bottleneck fr@2 on it."""
    place = tmp_path_factory.mktemp("made")
    hub.Registry(home=place / "empty", url=f"sqlite:///{place}/empty/registry.db").upgrade()
    shutil.copytree(place / "empty", place / "home")
    registry = hub.Registry(home=place / "home", url=f"sqlite:///{place}/home/registry.db")
    lora = hub.Adapter.create("lora", model, r=2)
    registry.add(shake_adapter(lora, seed=1), name="de", task="translation")
    for seed in (8, 2):
        houlsby = hub.Adapter.create("houlsby", model, size=3)
        registry.add(shake_adapter(houlsby, seed=seed), name="fr")
    registry.add(hub.Stack("de", "fr"), name="both", task="translation")
    return place


@pytest.fixture
def registry(made: Path, home: Path) -> hub.Registry:
    shutil.copytree(made / "home", home)
    return hub.Registry()


@pytest.fixture
def other(made: Path, tmp_path: Path) -> hub.Registry:
    """A registry on another machine."""
    return hub.Registry(home=shutil.copytree(made / "empty", tmp_path / "other-home"))


@pytest.fixture
def both(registry: hub.Registry) -> Any:
    """both@1 in the registry."""
    return registry.get("both@1")


@pytest.fixture
def nested(registry: hub.Registry, both: Any) -> Any:
    """mean@1: of both@1, one of its parts, and the bare base."""
    return registry.add(hub.Average("both", "fr@2", None, weights=[2, 1, 1]), name="mean")


def list_digests(registry: hub.Registry) -> dict[str, str]:
    return {version.reference: version.digest for version in registry.list()}


def name_files(registry: hub.Registry, *references: str) -> set[str]:
    """Where the files of these parts are at a remote."""
    versions = map(registry.get, references)
    return {f"parts/{v.digest}/{name}" for v in versions for name in v.files}


def read_remote(folder: Path) -> dict[str, bytes]:
    paths = (path for path in folder.rglob("*") if path.is_file())
    return {path.relative_to(folder).as_posix(): path.read_bytes() for path in paths}


@pytest.mark.parametrize("place", ["ana/both", "folder"])
def test_a_pushed_composition_pulls_equal_into_another_registry(
    registry: hub.Registry,
    other: hub.Registry,
    both: Any,
    assert_equal_tensors: Equal,
    online: HubServer,
    tmp_path: Path,
    place: str,
) -> None:
    remote = str(tmp_path / "shared") if place == "folder" else place
    publication = hub.push("both@1", remote)
    pulled = hub.pull(remote, registry=other)
    assert (pulled.reference, pulled.digest) == ("both@1", both.digest)
    assert (pulled.kind, pulled.method, pulled.task) == ("composition", "stack", "translation")
    assert pulled.base == both.base
    assert pulled.parents == ("de@1", "fr@1")
    assert pulled.config == {"composition": "stack(de@1, fr@1)"}
    assert other.get("fr@1").digest == registry.get("fr@2").digest
    assert other.get("de").task == "translation"
    for ours, theirs in zip(
        registry.load("both").leaves(),  # type: ignore[union-attr]
        other.load("both").leaves(),  # type: ignore[union-attr]
        strict=True,
    ):
        assert_equal_tensors(ours, theirs)  # type: ignore[arg-type]
    note = f"pulled from {publication.remote}@{publication.revision[:12]}"
    assert {version.note for version in other.list()} == {note}


def test_a_pulled_composition_gives_the_same_outputs(
    registry: hub.Registry, other: hub.Registry, both: Any, model: Any, online: HubServer
) -> None:
    hub.push("both@1", "ana/both")
    hub.pull("ana/both", registry=other)
    inputs, outputs = make_inputs(model), []
    for composition in (
        hub.Stack(*(registry.load(name) for name in ("de@1", "fr@2"))),  # type: ignore[arg-type]
        "both@1",
        other.load("both"),
        hub.load("hf://ana/both"),
    ):
        with hub.attach(model, composition), torch.no_grad():
            outputs.append(model(**inputs).logits)
    assert all(torch.equal(outputs[0], output) for output in outputs[1:])
    with torch.no_grad():
        assert not torch.equal(model(**inputs).logits, outputs[0])


FOUR: dict[str, dict[str, Any]] = {
    "lora": dict(r=2),
    "houlsby": dict(size=3),
    "prefix": dict(tokens=2),
    "prompt": dict(tokens=3),
}


@pytest.mark.parametrize("operator", ["stack", "fuse"])
def test_trained_methods_of_four_kinds_arrive_with_equal_outputs(
    registry: hub.Registry, other: hub.Registry, model: Any, online: HubServer, operator: str
) -> None:
    parts = [hub.Adapter.create(method, model, **options) for method, options in FOUR.items()]
    tree: Operator = hub.Stack(*parts)
    if operator == "fuse":
        tree = hub.Fuse.create(model, *parts[:2])
        parts = [*parts[:2], tree.by]  # type: ignore[list-item]
    hub.train(
        model,
        tree,
        ROWS,
        tokenizer=make_tokenizer(),
        template=TEMPLATE,
        max_steps=2,
        learning_rate=1e-2,
    )
    for part in parts:
        registry.add(part, name=part.method)
    version = registry.add(tree, name="four", task="trained")
    hub.push("four@1", "ana/four")
    pulled = hub.pull("ana/four", registry=other)
    assert (pulled.digest, pulled.parents) == (version.digest, version.parents)
    inputs, outputs = make_inputs(model), []
    for composition in (tree, "four@1", other.load("four"), hub.load("hf://ana/four")):
        with hub.attach(model, composition), torch.no_grad():
            outputs.append(model(**inputs).logits)
    assert all(torch.equal(outputs[0], output) for output in outputs[1:])
    with torch.no_grad():
        assert not torch.equal(model(**inputs).logits, outputs[0])


def test_a_push_is_one_commit_of_the_recipe_and_all_parts(
    registry: hub.Registry, both: Any, api: HfApi
) -> None:
    publication = hub.push("both@1", "ana/both")
    assert set(api.list_repo_files("ana/both")) == {
        *("README.md", RECIPE),
        *name_files(registry, "de@1", "fr@2"),
    }
    [commit, _] = api.list_repo_commits("ana/both")
    assert (commit.commit_id, commit.title) == (publication.revision, "both@1")
    recipe = json.loads(Path(api.hf_hub_download("ana/both", RECIPE)).read_text())
    assert recipe["composition"] == "stack(1, 2)"
    assert recipe["version"] == "both@1"
    assert [part["version"] for part in recipe["parts"]] == ["de@1", "fr@2"]
    assert json.loads(registry.read("both@1", RECIPE))["version"] is None


def test_peft_loads_a_part_from_its_folder(
    registry: hub.Registry, both: Any, model: Any, tmp_path: Path
) -> None:
    hub.push("both@1", tmp_path / "shared")
    inputs = make_inputs(model)
    with hub.attach(model, "de@1"), torch.no_grad():
        expected = model(**inputs).logits
    part = f"parts/{registry.get('de').digest}"
    bare = build_tiny("llama")
    theirs = PeftModel.from_pretrained(bare, str(tmp_path / "shared"), subfolder=part)
    with torch.no_grad():
        torch.testing.assert_close(theirs(**inputs).logits, expected)


@pytest.mark.parametrize("place", ["ana/both", "folder"])
def test_pushing_again_changes_nothing(
    registry: hub.Registry, nested: Any, online: HubServer, tmp_path: Path, place: str
) -> None:
    remote = str(tmp_path / "shared") if place == "folder" else place
    first = hub.push("mean@1", remote)
    again = hub.push("mean", remote, message="again")
    assert (first.changed, again.changed) == (True, False)
    assert again.revision == first.revision
    assert len(registry.publications("mean")) == 1


@pytest.mark.parametrize("place", ["ana/both", "folder"])
def test_pulling_again_gives_the_same_version(
    registry: hub.Registry,
    other: hub.Registry,
    nested: Any,
    online: HubServer,
    tmp_path: Path,
    place: str,
) -> None:
    remote = str(tmp_path / "shared") if place == "folder" else place
    hub.push("mean@1", remote)
    pulled = hub.pull(remote, registry=other)
    before, here = list_digests(other), list_digests(registry)
    assert hub.pull(remote, registry=other) == pulled
    assert hub.pull(remote, registry=registry) == registry.get("mean@1")
    assert (list_digests(other), list_digests(registry)) == (before, here)
    assert hub.pull(remote, name="mine", registry=other).parents == pulled.parents


def test_compositions_in_compositions_come_along_once(
    registry: hub.Registry, other: hub.Registry, nested: Any, api: HfApi
) -> None:
    hub.push("mean@1", "ana/mean")
    assert set(api.list_repo_files("ana/mean")) == {
        *("README.md", RECIPE),
        *name_files(registry, "both@1", "de@1", "fr@2"),
    }
    pulled = hub.pull("ana/mean", registry=other)
    assert pulled.digest == nested.digest
    assert pulled.parents == ("both@1", "fr@1")
    assert other.get("both").digest == registry.get("both").digest
    assert other.get("both").parents == ("de@1", "fr@1")
    text = "average(stack(de@1, fr@2), fr@2, none; 2.0, 1.0, 1.0)"
    loaded = hub.load("hf://ana/mean")
    assert repr(loaded) == repr(registry.load("mean")) == text
    assert isinstance(loaded, Operator)
    _, one, two, _ = loaded.leaves()
    assert one is two


def test_every_part_remembers_where_it_is(
    registry: hub.Registry, other: hub.Registry, nested: Any, online: HubServer
) -> None:
    revision = hub.push("mean@1", "ana/mean").revision
    hub.pull("ana/mean", registry=other)
    for name, number in (("mean", 1), ("both", 1), ("de", 1), ("fr", 2)):
        assert registry.publications(name) == [(f"{name}@{number}", "ana/mean", revision)]
        assert other.publications(name) == [(f"{name}@1", "ana/mean", revision)]
    assert len(registry.list("fr")) == 2


def test_private_push_is_private(both: Any, api: HfApi, other: hub.Registry) -> None:
    hub.push("both@1", "ana/both", private=True)
    assert api.model_info("ana/both").private
    with pytest.raises(RemoteError, match="has no repository ana/both, or it is private"):
        hub.pull("ana/both", registry=other, token="eve-writes")
    assert other.list() == []


def test_push_to_a_branch_leaves_main(
    registry: hub.Registry, other: hub.Registry, both: Any, api: HfApi
) -> None:
    first = hub.push("both@1", "ana/both")
    version = registry.add(hub.Stack("fr", "de"), name="both")
    hub.push("both@2", "ana/both@trial")
    assert api.model_info("ana/both").sha == first.revision
    assert hub.pull("ana/both@trial", registry=other).digest == version.digest
    assert hub.pull("ana/both", registry=other).digest == both.digest


# --- the next version --------------------------------------------------------------------------


@pytest.mark.parametrize("place", ["ana/both", "folder"])
def test_the_next_version_takes_the_place_of_the_one_before(
    registry: hub.Registry,
    other: hub.Registry,
    both: Any,
    make_adapter: Make,
    api: HfApi,
    tmp_path: Path,
    place: str,
) -> None:
    remote = str(tmp_path / "shared") if place == "folder" else place
    first = hub.push("both@1", remote)
    hub.pull(remote, registry=other)
    registry.add(make_adapter(seed=3), name="de")
    second = registry.add(hub.Stack("de", "fr"), name="both")
    hub.push("both@2", remote)
    there = (
        set(read_remote(tmp_path / "shared")) if place == "folder"
        else set(api.list_repo_files("ana/both"))
    )  # fmt: skip
    assert there == {"README.md", RECIPE, *name_files(registry, "de@2", "fr@2")}
    pulled = hub.pull(remote, registry=other)
    assert (pulled.digest, pulled.parents) == (second.digest, ("de@2", "fr@1"))
    assert len(other.list()) == 5
    if place != "folder":
        older = hub.pull(f"{remote}@{first.revision}", registry=other)
        assert older.reference == "both@1"


def test_an_adapter_and_a_composition_take_each_others_place(
    registry: hub.Registry, other: hub.Registry, both: Any, api: HfApi
) -> None:
    hub.push("de@1", "ana/x")
    hub.push("both@1", "ana/x")
    assert set(api.list_repo_files("ana/x")) == {
        *("README.md", RECIPE),
        *name_files(registry, "de@1", "fr@2"),
    }
    assert hub.pull("ana/x", registry=other).kind == "composition"
    hub.push("de@1", "ana/x")
    assert set(api.list_repo_files("ana/x")) == {"README.md", *FILES}
    assert hub.pull("ana/x", registry=other).reference == "de@1"


def test_what_a_user_put_there_stays(registry: hub.Registry, both: Any, api: HfApi) -> None:
    hub.push("both@1", "ana/both")
    mine = {"notes.txt", "parts/notes.txt", f"parts/{registry.get('de').digest}/notes.txt"}
    for name in mine:
        api.upload_file(path_or_fileobj=b"mine", path_in_repo=name, repo_id="ana/both")
    registry.add(hub.Stack("fr"), name="both")
    hub.push("both@2", "ana/both")
    assert set(api.list_repo_files("ana/both")) == {
        *("README.md", RECIPE, *mine),
        *name_files(registry, "fr@2"),
    }


def test_a_folder_of_something_else_is_not_replaced(
    registry: hub.Registry, both: Any, tmp_path: Path
) -> None:
    for name, what in (("de@1", "adapter"), ("both@1", "composition")):
        folder = tmp_path / what
        hub.push(name, folder)
        kept = read_remote(folder)
        registry.add(hub.Stack("fr"), name="third")
        for reference in {"fr@2", "third@1"}:
            with pytest.raises(RemoteError, match=f"holds another {what} .{name}.; choose another"):
                hub.push(reference, folder)
        assert read_remote(folder) == kept


def test_a_folder_of_a_composition_pushes(
    registry: hub.Registry, other: hub.Registry, nested: Any, api: HfApi, tmp_path: Path
) -> None:
    folder = registry.export("mean", tmp_path / "mean")
    hub.push(folder, "ana/mean")
    assert not hub.push(str(folder), "ana/mean").changed
    assert hub.pull("ana/mean", registry=other).digest == nested.digest
    (folder / "parts" / registry.get("de").digest / "hub.json").unlink()
    with pytest.raises(FileError, match="is not the part de@1"):
        hub.push(folder, "ana/other")
    assert not api.repo_exists("ana/other")


# --- names -------------------------------------------------------------------------------------


def test_a_part_is_never_mixed_into_another_adapter_of_its_name(
    other: hub.Registry, both: Any, make_adapter: Make, online: HubServer
) -> None:
    hub.push("both@1", "ana/both")
    theirs = other.add(make_adapter(seed=9), name="fr")
    with pytest.raises(AlreadyExists, match=r"fr@2, a part of ana/both, can't come as fr: that is"):
        hub.pull("ana/both", registry=other)
    assert list_digests(other) == {"fr@1": theirs.digest}
    pulled = hub.pull("ana/both", names={"fr": "french"}, registry=other)
    assert pulled.parents == ("de@1", "french@1")
    assert hub.pull("ana/both", registry=other) == pulled
    assert len(other.list("fr")) == 1


def test_a_part_becomes_the_next_version_where_that_is_said(
    registry: hub.Registry, other: hub.Registry, both: Any, make_adapter: Make, online: HubServer
) -> None:
    hub.push("both@1", "ana/both")
    other.add(make_adapter(seed=9), name="fr")
    pulled = hub.pull("ana/both", names={"fr": "fr"}, registry=other)
    assert pulled.parents == ("de@1", "fr@2")
    assert other.get("fr@2").digest == registry.get("fr@2").digest


def test_a_part_that_is_here_by_another_way_is_used(
    registry: hub.Registry, other: hub.Registry, both: Any, online: HubServer
) -> None:
    hub.push("de@1", "ana/de")
    hub.push("both@1", "ana/both")
    hub.pull("ana/de", registry=other)
    assert hub.pull("ana/both", registry=other).parents == ("de@1", "fr@1")
    assert len(other.list("de")) == 1


def test_a_composition_is_never_mixed_into_another_of_its_name(
    other: hub.Registry, both: Any, make_adapter: Make, online: HubServer
) -> None:
    hub.push("both@1", "ana/both")
    other.add(make_adapter(seed=9), name="both")
    with pytest.raises(AlreadyExists, match=r"both is here already .both@1. and was never at ana"):
        hub.pull("ana/both", registry=other)
    assert len(other.list()) == 1
    assert hub.pull("ana/both", name="both", registry=other).reference == "both@2"


def test_a_pulled_composition_pushes_on_with_the_same_digest(
    other: hub.Registry, both: Any, online: HubServer
) -> None:
    hub.push("both@1", "ana/both")
    hub.pull("ana/both", name="ours", names={"de": "german", "fr": "french"}, registry=other)
    hub.push("ours@1", "ana/copy", registry=other)
    back = hub.pull("ana/copy", name="both")
    assert back == hub.Registry().get("both@1")
    assert back.digest == both.digest


def test_names_of_no_part_are_refused(other: hub.Registry, both: Any, online: HubServer) -> None:
    hub.push("both@1", "ana/both")
    hub.push("de@1", "ana/de")
    with pytest.raises(UnknownReference, match="ana/both has no part 'it'; its parts are de, fr"):
        hub.pull("ana/both", names={"it": "x"}, registry=other)
    with pytest.raises(RegistryError, match="this is one adapter and has no parts"):
        hub.pull("ana/de", names={"de": "x"}, registry=other)
    assert other.list() == []


def test_parts_without_a_name_are_refused(other: hub.Registry, both: Any, tmp_path: Path) -> None:
    hub.push("both@1", tmp_path / "shared")
    path = tmp_path / "shared" / RECIPE
    path.write_text(path.read_text().replace('"de@1"', "null"))
    with pytest.raises(FileError, match=r"does not say what its part .* is called"):
        hub.pull(tmp_path / "shared", registry=other)
    assert other.list() == []
    assert isinstance(hub.load(tmp_path / "shared"), hub.Stack)


@pytest.mark.parametrize("label", ["../../de@1", "@1"])
def test_names_that_are_none_are_refused(
    other: hub.Registry, both: Any, tmp_path: Path, label: str
) -> None:
    hub.push("both@1", tmp_path / "shared")
    path = tmp_path / "shared" / RECIPE
    path.write_text(path.read_text().replace('"de@1"', json.dumps(label)))
    with pytest.raises(hub.HubError, match="is no adapter name"):
        hub.pull(tmp_path / "shared", registry=other)
    assert other.list() == []


# --- damage ------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", [RECIPE, FILES[1]])
def test_a_damaged_download_is_refused_and_nothing_registered(
    other: hub.Registry, both: Any, online: HubServer, meddler: Any, cache: Path, name: str
) -> None:
    hub.push("both@1", "ana/both")
    meddler.flips[name] = 99
    with pytest.raises(RemoteError, match=f"{name} of ana/both arrives damaged"):
        hub.pull("ana/both", registry=other)
    assert meddler.flips[name] == 97
    assert list(cache.glob(f"models--*/snapshots/*/**/{name}")) == []
    assert other.list() == []
    meddler.flips.clear()
    assert hub.pull("ana/both", registry=other).digest == both.digest


def test_damage_that_was_cached_before_is_healed(
    registry: hub.Registry, other: hub.Registry, both: Any, api: HfApi, meddler: Any
) -> None:
    hub.push("both@1", "ana/both")
    [weights] = (n for n in name_files(registry, "fr@2") if n.endswith(".safetensors"))
    meddler.flips["adapter_model.safetensors"] = 1
    api.hf_hub_download("ana/both", weights)
    assert hub.pull("ana/both", registry=other).digest == both.digest


@pytest.mark.parametrize("name", FILES[:2])
def test_a_part_that_is_missing_at_the_hub_is_refused(
    registry: hub.Registry, other: hub.Registry, nested: Any, api: HfApi, name: str
) -> None:
    hub.push("mean@1", "ana/mean")
    api.delete_file(f"parts/{registry.get('fr').digest}/{name}", "ana/mean")
    for attempt in (
        lambda: hub.pull("ana/mean", registry=other),
        lambda: hub.load("hf://ana/mean"),
    ):
        with pytest.raises(FileError, match=f"has no {name}, and the part fr@2 needs it"):
            attempt()
    assert other.list() == []


def test_a_part_that_was_changed_at_the_hub_is_refused(
    registry: hub.Registry, other: hub.Registry, both: Any, api: HfApi
) -> None:
    hub.push("both@1", "ana/both")
    one, two = (f"parts/{registry.get(name).digest}/{FILES[1]}" for name in ("fr@2", "de@1"))
    data = Path(api.hf_hub_download("ana/both", two)).read_bytes()
    api.upload_file(path_or_fileobj=data, path_in_repo=one, repo_id="ana/both")
    with pytest.raises(FileError, match=r"is not the part fr@2 that composition\.json describes"):
        hub.pull("ana/both", registry=other)
    assert other.list() == []


def test_an_edited_recipe_is_refused(other: hub.Registry, both: Any, api: HfApi) -> None:
    hub.push("both@1", "ana/both")
    text = Path(api.hf_hub_download("ana/both", RECIPE)).read_text()
    edited = text.replace("stack(1, 2)", "stack(2, 1)").encode()
    api.upload_file(path_or_fileobj=edited, path_in_repo=RECIPE, repo_id="ana/both")
    with pytest.raises(FileError, match=r"ana/both/composition\.json is not what was written"):
        hub.pull("ana/both", registry=other)
    assert other.list() == []


def test_a_repository_of_both_kinds_is_refused(
    other: hub.Registry, both: Any, api: HfApi, tmp_path: Path
) -> None:
    hub.push("both@1", "ana/both")
    api.upload_file(path_or_fileobj=b"{}", path_in_repo=FILES[0], repo_id="ana/both")
    with pytest.raises(FileError, match=r"holds a composition .* and an adapter"):
        hub.pull("ana/both", registry=other)


def test_damage_in_the_registry_is_mended_by_a_pull(
    registry: hub.Registry, both: Any, online: HubServer
) -> None:
    hub.push("both@1", "ana/both")
    hub.push("de@1", "ana/de")
    for remote, reference, name in (
        ("ana/both", "fr@2", FILES[1]),
        ("ana/both", "both@1", RECIPE),
        ("ana/both", "de@1", FILES[2]),
        ("ana/de", "de@1", FILES[2]),
    ):
        path = registry.blobs.find_path(registry.get(reference).files[name].sha256)
        path.chmod(0o644)
        path.write_bytes(b"nonsense")
        assert len(registry.verify()) == 1
        hub.pull(remote)
        assert registry.verify() == []
    assert len(registry.list()) == 4


def test_failing_commit_notes_nothing(
    registry: hub.Registry, both: Any, online: HubServer, meddler: Any
) -> None:
    meddler.statuses["/commit/main"] = 503
    with pytest.raises(RemoteError, match="answered 503"):
        hub.push("both@1", "ana/both")
    assert [registry.publications(name) for name in ("both", "de", "fr")] == [[], [], []]
    meddler.statuses.clear()
    assert hub.push("both@1", "ana/both").changed


class Full(hub.Registry):
    """A registry whose disk fills up after the first version of a name."""

    full = ""

    def add_files(self, files: Any, *, name: str, **says: Any) -> Any:
        if name == self.full:
            raise StorageError("the disk is full; free some space")
        return super().add_files(files, name=name, **says)


def test_a_disk_that_fills_up_leaves_whole_versions_and_the_next_pull_goes_on(
    other: hub.Registry, both: Any, online: HubServer
) -> None:
    hub.push("both@1", "ana/both")
    full = Full(home=other.home)
    full.full = "both"
    with pytest.raises(StorageError):
        hub.pull("ana/both", registry=full)
    assert set(list_digests(other)) == {"de@1", "fr@1"}
    assert other.verify() == []
    pulled = hub.pull("ana/both", registry=other)
    assert (pulled.digest, pulled.parents) == (both.digest, ("de@1", "fr@1"))
    assert len(other.list()) == 3


KILLED = """
import os, signal, sys
import hub
from huggingface_hub import HfApi

home, most = sys.argv[1], int(sys.argv[2])
count = 0
real = HfApi.hf_hub_download
def download(self, repo, name, **kwargs):
    global count
    count += 1
    if count > most:
        os.kill(os.getpid(), signal.SIGKILL)
    return real(self, repo, name, **kwargs)
HfApi.hf_hub_download = download
hub.pull("ana/both", registry=hub.Registry(home=home))
"""


def test_a_killed_download_leaves_the_registry_as_it_was(
    other: hub.Registry, both: Any, online: HubServer, tmp_path: Path
) -> None:
    hub.push("both@1", "ana/both")
    done = subprocess.run(
        [sys.executable, "-c", KILLED, str(other.home), "5"],
        env={**os.environ, "HF_ENDPOINT": online.url, "HF_HOME": str(tmp_path / "hf")},
        capture_output=True,
        text=True,
        timeout=120,
    )
    assert done.returncode == -signal.SIGKILL, done.stderr
    assert other.list() == []
    assert hub.pull("ana/both", registry=other).digest == both.digest


# --- reading without registering ---------------------------------------------------------------


@pytest.mark.parametrize("at", ["", "@commit"])
def test_a_cached_composition_loads_offline(
    registry: hub.Registry,
    nested: Any,
    online: HubServer,
    monkeypatch: pytest.MonkeyPatch,
    at: str,
) -> None:
    at = at.replace("commit", hub.push("mean@1", "ana/mean").revision)
    hub.load(f"hf://ana/mean{at}")
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    assert repr(hub.load(f"hf://ana/mean{at}")) == repr(registry.load("mean"))


def test_a_cached_composition_that_lacks_a_part_is_refused_offline(
    registry: hub.Registry, both: Any, api: HfApi, monkeypatch: pytest.MonkeyPatch
) -> None:
    hub.push("both@1", "ana/both")
    api.hf_hub_download("ana/both", RECIPE)
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    with pytest.raises(hub.HubError, match="the part de@1 needs it"):
        hub.load("hf://ana/both")


def test_only_the_compositions_files_are_fetched(
    registry: hub.Registry, other: hub.Registry, both: Any, api: HfApi, cache: Path
) -> None:
    hub.push("both@1", "ana/both")
    digest = "0" * 64
    for name in ("pickle.bin", f"parts/{digest}/adapter_config.json", f"parts/{digest}/x.bin"):
        api.upload_file(path_or_fileobj=b"\x80\x04.", path_in_repo=name, repo_id="ana/both")
    hub.pull("ana/both", registry=other)
    [snapshot] = cache.glob("models--ana--both/snapshots/*")
    assert set(read_remote(snapshot)) == {RECIPE, *name_files(registry, "de@1", "fr@2")}


def test_a_pushed_folder_loads_as_it_is(registry: hub.Registry, both: Any, tmp_path: Path) -> None:
    hub.push("both@1", tmp_path / "shared")
    assert repr(hub.load(tmp_path / "shared")) == "stack(de@1, fr@2)"


# --- the card ----------------------------------------------------------------------------------


def test_the_card_lists_the_parts(
    registry: hub.Registry, nested: Any, model: Any, api: HfApi
) -> None:
    hub.push("mean@1", "ana/mean")
    text = Path(api.hf_hub_download("ana/mean", "README.md")).read_text()
    assert ModelCard(text).data.to_dict() == {
        "library_name": "pefthub",
        "pipeline_tag": "text-generation",
        "tags": ["pefthub", "average"],
    }
    digests = {name: registry.get(name).digest for name in ("both@1", "de@1", "fr@2", "mean@1")}
    counts = [
        sum(t.numel() for t in registry.load(name).tensors.values())  # type: ignore[union-attr]
        for name in ("de@1", "fr@2")
    ]
    for line in (
        "| version | mean@1 |",
        "| composition | average(both@1, fr@2, none; 2.0, 1.0, 1.0) |",
        f"| content digest | {digests['mean@1']} |",
        f"| parameters | {sum(counts):,} |",
        f"| de@1 | lora | {counts[0]:,} | parts/{digests['de@1']} |",
        f"| fr@2 | houlsby | {counts[1]:,} | parts/{digests['fr@2']} |",
        f"| both@1 | stack(de@1, fr@2) |  | parts/{digests['both@1']} |",
        'hub.attach(model, hub.load("hf://ana/mean"))',
    ):
        assert line in text.splitlines()
    assert "PeftModel" not in text


def test_the_card_says_what_was_measured_later(
    registry: hub.Registry, both: Any, online: HubServer, tmp_path: Path
) -> None:
    registry.record_metric("both@1", "accuracy", 0.75)
    hub.push("both@1", tmp_path / "shared")
    assert "| accuracy | 0.75 |" in (tmp_path / "shared" / "README.md").read_text()
