"""Push, pull and load, to the Hub over loopback and to a folder."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from huggingface_hub import HfApi, constants

import hub
from hub.errors import RemoteError
from hub.remotes import fetch
from hub.server import HubServer
from hub_registry import AlreadyExists
from tests.tiny import make_inputs

Make = Callable[..., hub.Adapter]
Equal = Callable[[hub.Adapter, hub.Adapter], None]
FILES = {"README.md", "adapter_config.json", "adapter_model.safetensors", "hub.json"}


@pytest.mark.parametrize("method", ["lora", "houlsby"])
@pytest.mark.parametrize("place", ["ana/sst2", "folder"])
def test_pushed_adapter_pulls_equal_into_another_registry(
    registry: hub.Registry,
    other: hub.Registry,
    make_adapter: Make,
    assert_equal_tensors: Equal,
    online: HubServer,
    tmp_path: Path,
    method: str,
    place: str,
) -> None:
    remote = str(tmp_path / "shared") if place == "folder" else place
    adapter = make_adapter(method)
    adapter.metrics, adapter.lineage = {"accuracy": 0.913}, {"training": {"epochs": 3}}
    version = registry.add(adapter, name="sst2", task="sentiment")
    publication = hub.push("sst2@1", remote)
    assert publication.changed
    pulled = hub.pull(remote, registry=other)
    assert pulled.reference == "sst2@1"
    assert pulled.digest == version.digest
    assert (pulled.method, pulled.base, pulled.task) == (method, version.base, "sentiment")
    assert (pulled.metrics, pulled.config) == ({"accuracy": 0.913}, version.config)
    loaded = other.load("sst2")
    assert_equal_tensors(adapter, loaded)
    assert loaded.lineage == {"training": {"epochs": 3}}
    assert pulled.note == f"pulled from {publication.remote}@{publication.revision[:12]}"
    entry = ("sst2@1", publication.remote, publication.revision)
    assert registry.publications("sst2") == other.publications("sst2") == [entry]


def test_pulled_adapter_gives_the_same_outputs(
    other: hub.Registry, sst2: hub.Adapter, model: Any, online: HubServer
) -> None:
    hub.push("sst2@1", "ana/sst2")
    hub.pull("ana/sst2", registry=other)
    inputs, outputs = make_inputs(model), []
    for adapter in (sst2, other.load("sst2"), hub.load("hf://ana/sst2")):
        with hub.attach(model, adapter), torch.no_grad():
            outputs.append(model(**inputs).logits)
    assert torch.equal(outputs[0], outputs[1])
    assert torch.equal(outputs[0], outputs[2])


def test_push_is_one_commit_of_the_four_files(
    sst2: hub.Adapter, registry: hub.Registry, api: HfApi
) -> None:
    publication = hub.push("sst2@1", "ana/sst2")
    assert set(api.list_repo_files("ana/sst2")) == FILES
    [commit, _] = api.list_repo_commits("ana/sst2")
    assert (commit.commit_id, commit.title) == (publication.revision, "sst2@1")
    assert publication.url == f"{api.endpoint}/ana/sst2/tree/{commit.commit_id}"
    manifest = json.loads(Path(api.hf_hub_download("ana/sst2", "hub.json")).read_text())
    assert manifest["version"] == "sst2@1"
    assert json.loads(registry.read("sst2@1", "hub.json"))["version"] is None


def test_push_of_what_is_there_makes_no_commit(
    sst2: hub.Adapter, registry: hub.Registry, api: HfApi
) -> None:
    first = hub.push("sst2@1", "ana/sst2")
    again = hub.push("sst2", "ana/sst2", message="again")
    assert (again.changed, again.revision) == (False, first.revision)
    assert len(api.list_repo_commits("ana/sst2")) == 2
    assert len(registry.publications("sst2")) == 1


def test_push_of_the_next_version_is_the_next_commit(
    sst2: hub.Adapter, registry: hub.Registry, other: hub.Registry, make_adapter: Make, api: HfApi
) -> None:
    first = hub.push("sst2@1", "ana/sst2")
    second_version = registry.add(make_adapter(seed=2), name="sst2", task="sentiment")
    hub.push("sst2@2", "ana/sst2", message="better")
    assert api.list_repo_commits("ana/sst2")[0].title == "better"
    assert hub.pull("ana/sst2", registry=other).digest == second_version.digest
    older = hub.pull(f"ana/sst2@{first.revision}", registry=other)
    assert (older.reference, older.digest) == ("sst2@2", registry.get("sst2@1").digest)


def test_push_to_a_branch_leaves_main(
    sst2: hub.Adapter, registry: hub.Registry, other: hub.Registry, make_adapter: Make, api: HfApi
) -> None:
    first = hub.push("sst2@1", "ana/sst2")
    registry.add(make_adapter(seed=2), name="sst2")
    publication = hub.push("sst2@2", "ana/sst2@trial")
    assert not hub.push("sst2@2", "ana/sst2@trial").changed
    assert api.model_info("ana/sst2").sha == first.revision
    assert api.model_info("ana/sst2", revision="trial").sha == publication.revision
    assert hub.pull("ana/sst2@trial", registry=other).digest == registry.get("sst2@2").digest


def test_private_push_makes_a_private_repository(
    sst2: hub.Adapter, api: HfApi, other: hub.Registry
) -> None:
    hub.push("sst2@1", "ana/sst2", private=True)
    assert api.model_info("ana/sst2").private
    with pytest.raises(RemoteError, match="has no repository ana/sst2, or it is private"):
        hub.pull("ana/sst2", registry=other, token="eve-writes")
    assert hub.pull("ana/sst2", registry=other, token="rob-reads").number == 1


def test_private_push_to_a_public_repository_is_refused(sst2: hub.Adapter, api: HfApi) -> None:
    api.create_repo("ana/sst2")
    with pytest.raises(RemoteError, match="there already and public"):
        hub.push("sst2@1", "ana/sst2", private=True)
    assert api.list_repo_files("ana/sst2") == []


@pytest.mark.parametrize("place", ["ana/sst2", "folder"])
def test_pulling_again_gives_the_same_version(
    sst2: hub.Adapter,
    registry: hub.Registry,
    other: hub.Registry,
    online: HubServer,
    tmp_path: Path,
    place: str,
) -> None:
    remote = str(tmp_path / "shared") if place == "folder" else place
    hub.push("sst2@1", remote)
    pulled = hub.pull(remote, registry=other)
    assert hub.pull(remote, registry=other) == pulled
    assert hub.pull(remote, name="mine", registry=other).reference == "mine@1"
    assert hub.pull(remote, registry=registry) == registry.get("sst2@1")
    assert len(registry.list()) == 1
    assert len(other.publications("sst2")) == 1


def test_pull_does_not_mix_with_another_adapter_of_that_name(
    sst2: hub.Adapter, other: hub.Registry, make_adapter: Make, online: HubServer
) -> None:
    hub.push("sst2@1", "ana/sst2")
    other.add(make_adapter(seed=9), name="sst2")
    with pytest.raises(AlreadyExists, match="never at ana/sst2; name it sst2"):
        hub.pull("ana/sst2", registry=other)
    assert hub.pull("ana/sst2", name="sst2", registry=other).reference == "sst2@2"


def test_pulled_version_pushes_on_with_the_same_digest(
    sst2: hub.Adapter, other: hub.Registry, online: HubServer
) -> None:
    hub.push("sst2@1", "ana/sst2")
    pulled = hub.pull("ana/sst2", name="theirs", registry=other)
    hub.push("theirs@1", "ana/copy", registry=other)
    assert hub.pull("ana/copy", name="back").digest == pulled.digest


def test_folder_of_an_adapter_pushes(
    make_adapter: Make, other: hub.Registry, assert_equal_tensors: Equal, api: HfApi, tmp_path: Path
) -> None:
    adapter = make_adapter()
    adapter.save(tmp_path / "saved")
    hub.push(tmp_path / "saved", "ana/saved")
    assert hub.pull("ana/saved", registry=other).reference == "saved@1"
    assert_equal_tensors(adapter, other.load("saved"))
    assert not hub.push(str(tmp_path / "saved"), "ana/saved").changed


def test_version_without_a_manifest_takes_away_an_older_one(
    sst2: hub.Adapter,
    registry: hub.Registry,
    other: hub.Registry,
    make_adapter: Make,
    api: HfApi,
    tmp_path: Path,
) -> None:
    hub.push("sst2@1", "ana/sst2")
    make_adapter(seed=2).save(tmp_path / "peft")
    (tmp_path / "peft" / "hub.json").unlink()
    registry.add(tmp_path / "peft", name="sst2")
    hub.push("sst2@2", "ana/sst2")
    assert set(api.list_repo_files("ana/sst2")) == FILES - {"hub.json"}
    assert hub.pull("ana/sst2", registry=other).base.label == "unknown"


def test_fetch_writes_the_verified_files_and_registers_nothing(
    sst2: hub.Adapter, other: hub.Registry, online: HubServer, tmp_path: Path
) -> None:
    hub.push("sst2@1", "ana/sst2")
    folder = fetch("ana/sst2@main", tmp_path / "fetched")
    assert {path.name for path in folder.iterdir()} == FILES - {"README.md"}
    assert hub.load(folder).reference == "sst2@1"
    assert other.list() == []


def test_only_the_adapters_files_are_fetched(
    sst2: hub.Adapter, api: HfApi, other: hub.Registry, cache: Path
) -> None:
    hub.push("sst2@1", "ana/sst2")
    for name in ("adapter_model.bin", "training_args.bin", "notes.txt"):
        api.upload_file(path_or_fileobj=b"\x80\x04.", path_in_repo=name, repo_id="ana/sst2")
    hub.pull("ana/sst2", registry=other)
    fetched = {path.name for path in cache.glob("models--ana--sst2/snapshots/*/*")}
    assert fetched == FILES - {"README.md"}


@pytest.mark.parametrize("at", ["", "@main", "@commit"])
def test_cached_adapter_loads_offline(
    sst2: hub.Adapter,
    assert_equal_tensors: Equal,
    online: HubServer,
    monkeypatch: pytest.MonkeyPatch,
    at: str,
) -> None:
    revision = hub.push("sst2@1", "ana/sst2").revision
    reference = f"hf://ana/sst2{at.replace('commit', revision)}"
    hub.load(reference)
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    assert_equal_tensors(hub.load(reference), sst2)


SCRIPT = """
import os, sys
os.environ["OMP_NUM_THREADS"] = "1"
import hub
version = hub.pull("ana/sst2")
print(version.reference, version.digest)
"""


def test_environment_of_the_hubs_client_is_heeded(
    sst2: hub.Adapter, registry: hub.Registry, online: HubServer, tmp_path: Path
) -> None:
    hub.push("sst2@1", "ana/sst2", private=True)
    done = subprocess.run(
        [sys.executable, "-c", SCRIPT],
        env={
            **os.environ,
            "HF_ENDPOINT": online.url,
            "HF_HOME": str(tmp_path / "hf"),
            "HF_TOKEN": "rob-reads",
            "HUB_HOME": str(tmp_path / "elsewhere"),
        },
        capture_output=True,
        text=True,
        timeout=120,
    )
    assert done.stdout.split() == ["sst2@1", registry.get("sst2").digest], done.stderr
    assert "rob-reads" not in done.stderr
    assert (tmp_path / "hf" / "hub" / "models--ana--sst2").is_dir()
