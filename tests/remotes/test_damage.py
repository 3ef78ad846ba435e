"""What arrives is what was published, or nothing."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from huggingface_hub import HfApi, constants
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

import hub
from hub.errors import FileError, RemoteError
from hub.files import edit_manifest, format_json
from hub.remotes.publications import Digest
from hub.server import HubServer

Make = Callable[..., hub.Adapter]
Equal = Callable[[hub.Adapter, hub.Adapter], None]
WEIGHTS = "adapter_model.safetensors"
NAMES = ["adapter_config.json", WEIGHTS, "hub.json"]


def list_cached(cache: Path, name: str) -> list[Path]:
    return list(cache.glob(f"models--*/snapshots/*/{name}"))


@pytest.mark.parametrize("name", NAMES)
def test_damaged_download_of_the_right_size_is_refused_and_not_kept(
    sst2: hub.Adapter,
    other: hub.Registry,
    online: HubServer,
    meddler: Any,
    cache: Path,
    name: str,
) -> None:
    hub.push("sst2@1", "ana/sst2")
    meddler.flips[name] = 99
    with pytest.raises(RemoteError, match=f"{name} of ana/sst2 arrives damaged") as caught:
        hub.pull("ana/sst2", registry=other)
    assert "\n" not in str(caught.value)
    assert meddler.flips[name] == 97
    assert list_cached(cache, name) == []
    assert other.list() == []
    meddler.flips.clear()
    assert hub.pull("ana/sst2", registry=other).reference == "sst2@1"


def test_second_download_heals_the_cache(
    sst2: hub.Adapter,
    other: hub.Registry,
    registry: hub.Registry,
    online: HubServer,
    meddler: Any,
    cache: Path,
) -> None:
    hub.push("sst2@1", "ana/sst2")
    meddler.flips[WEIGHTS] = 1
    pulled = hub.pull("ana/sst2", registry=other)
    [cached] = list_cached(cache, WEIGHTS)
    assert cached.read_bytes() == registry.read("sst2@1", WEIGHTS)
    assert pulled.digest == registry.get("sst2@1").digest


def test_damage_that_was_cached_before_is_healed(
    sst2: hub.Adapter, other: hub.Registry, api: HfApi, meddler: Any, cache: Path
) -> None:
    hub.push("sst2@1", "ana/sst2")
    meddler.flips[WEIGHTS] = 1
    api.hf_hub_download("ana/sst2", WEIGHTS)
    assert hub.pull("ana/sst2", registry=other).reference == "sst2@1"
    asked = len(meddler.asked)
    hub.load("hf://ana/sst2")
    assert not any("/resolve/" in path for _, path in meddler.asked[asked:])


def test_cached_damage_is_refused_offline(
    sst2: hub.Adapter, online: HubServer, cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    hub.push("sst2@1", "ana/sst2")
    hub.load("hf://ana/sst2")
    [cached] = list_cached(cache, WEIGHTS)
    data = bytearray(cached.read_bytes())
    data[-1] ^= 1
    cached.write_bytes(data)
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    with pytest.raises(RemoteError, match=WEIGHTS):
        hub.load("hf://ana/sst2")


def test_file_that_was_changed_at_the_hub_is_refused_by_the_manifest(
    sst2: hub.Adapter, other: hub.Registry, api: HfApi
) -> None:
    hub.push("sst2@1", "ana/sst2")
    config = json.loads(Path(api.hf_hub_download("ana/sst2", "adapter_config.json")).read_text())
    config["lora_alpha"] = 64
    api.upload_file(
        path_or_fileobj=format_json(config), path_in_repo="adapter_config.json", repo_id="ana/sst2"
    )
    with pytest.raises(FileError, match=r"ana/sst2/adapter_config\.json is not the file that hub"):
        hub.pull("ana/sst2", registry=other)
    assert other.list() == []


@pytest.mark.parametrize(
    ("fields", "said"),
    [
        ({"format": 2}, "this pefthub reads 1; upgrade pefthub"),
        ({"metrics": {"accuracy": "high"}}, "accuracy is 'high'"),
        ({"lineage": []}, "must be objects"),
        ({"files": {}}, "is not the file that hub.json describes"),
        ({"version": 3}, "version is 3"),
        ({"base": {"architecture": "llama"}}, "must say its precision"),
        ({"method": "unheard-of"}, "no method 'unheard-of'"),
        ({"version": "../../sst2@1"}, "is no "),
    ],
)
def test_edited_manifest_is_refused(
    sst2: hub.Adapter,
    other: hub.Registry,
    online: HubServer,
    tmp_path: Path,
    fields: dict[str, object],
    said: str,
) -> None:
    hub.push("sst2@1", tmp_path / "shared")
    manifest = tmp_path / "shared" / "hub.json"
    manifest.write_bytes(edit_manifest(manifest.read_bytes(), **fields))
    with pytest.raises(hub.HubError, match=said) as caught:
        hub.pull(tmp_path / "shared", registry=other)
    assert "\n" not in str(caught.value)
    assert other.list() == []


@pytest.mark.parametrize("text", ["", "{", "[]", '{"format": NaN}', "\x80"])
def test_manifest_that_is_none_is_refused(
    sst2: hub.Adapter, other: hub.Registry, tmp_path: Path, text: str
) -> None:
    hub.push("sst2@1", tmp_path / "shared")
    (tmp_path / "shared" / "hub.json").write_text(text, encoding="latin-1")
    with pytest.raises(FileError, match=r"shared/hub\.json"):
        hub.pull(tmp_path / "shared", registry=other)


@settings(deadline=None, max_examples=15, suppress_health_check=list(HealthCheck))
@given(data=st.data())
def test_any_flipped_byte_in_a_folder_is_refused(
    sst2: hub.Adapter, other: hub.Registry, tmp_path: Path, data: st.DataObject
) -> None:
    folder = tmp_path / "shared"
    if not folder.exists():
        hub.push("sst2@1", folder)
    name = data.draw(st.sampled_from(NAMES[:2]))
    kept = (folder / name).read_bytes()
    position = data.draw(st.integers(0, len(kept) - 1))
    changed = bytearray(kept)
    changed[position] ^= data.draw(st.integers(1, 255))
    (folder / name).write_bytes(changed)
    try:
        with pytest.raises(FileError, match=name):
            hub.pull(folder, registry=other)
    finally:
        (folder / name).write_bytes(kept)
    assert other.list() == []


@pytest.mark.parametrize("name", NAMES[:2])
def test_repository_that_lacks_a_file_says_which(
    sst2: hub.Adapter, other: hub.Registry, api: HfApi, name: str
) -> None:
    hub.push("sst2@1", "ana/sst2")
    api.delete_file(name, "ana/sst2")
    with pytest.raises(RemoteError, match=f"has no {name}; it holds README.md"):
        hub.pull("ana/sst2", registry=other)


def test_repository_with_a_pickle_is_refused(other: hub.Registry, api: HfApi, cache: Path) -> None:
    api.create_repo("ana/old")
    for name in ("adapter_model.bin", "adapter_config.json"):
        api.upload_file(path_or_fileobj=b"{}", path_in_repo=name, repo_id="ana/old")
    with pytest.raises(RemoteError, match=r"adapter_model\.bin is a pickle"):
        hub.pull("ana/old", registry=other)
    assert not cache.exists()


KILLED = """
import os, signal, sys
import hub, hub.remotes
from huggingface_hub import HfApi

point, home = sys.argv[1:]
def die(*args, **kwargs):
    os.kill(os.getpid(), signal.SIGKILL)
if point == "download":
    real = HfApi.hf_hub_download
    def download(self, repo, name, **kwargs):
        return die() if name == "hub.json" else real(self, repo, name, **kwargs)
    HfApi.hf_hub_download = download
else:
    hub.Registry.record_publication = die
hub.pull("ana/sst2", registry=hub.Registry(home=home))
"""


@pytest.mark.parametrize(("point", "versions"), [("download", 0), ("record", 1)])
def test_killed_pull_leaves_the_registry_before_or_after(
    sst2: hub.Adapter,
    other: hub.Registry,
    online: HubServer,
    tmp_path: Path,
    point: str,
    versions: int,
) -> None:
    hub.push("sst2@1", "ana/sst2")
    done = subprocess.run(
        [sys.executable, "-c", KILLED, point, str(other.home)],
        env={**os.environ, "HF_ENDPOINT": online.url, "HF_HOME": str(tmp_path / "hf")},
        capture_output=True,
        text=True,
        timeout=120,
    )
    assert done.returncode == -signal.SIGKILL, done.stderr
    assert len(other.list()) == versions
    assert other.verify() == []
    assert hub.pull("ana/sst2", registry=other).reference == "sst2@1"
    assert len(other.list()) == len(other.publications("sst2")) == 1


def test_git_digest_is_gits_own() -> None:
    # printf 'hello\\n' | git hash-object --stdin
    value = "ce013625030ba8dba906f756967f9e9ca394464a"
    assert Digest("git", value).of(b"hello\n") == value
