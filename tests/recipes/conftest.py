"""A registry of a few versions, another on another machine, and a composition as a folder."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

import hub
from tests.snapshots import shake_adapter
from tests.tiny import build_tiny

Make = Callable[..., hub.Adapter]


@pytest.fixture(scope="session")
def model() -> Any:
    return build_tiny("llama")


@pytest.fixture
def make(model: Any) -> Make:
    def make(seed: int = 0, method: str = "lora", **options: Any) -> hub.Adapter:
        adapter = hub.Adapter.create(method, model, **(options or {"r": 1}))
        return shake_adapter(adapter, seed=seed)

    return make


@pytest.fixture(scope="session")
def fusion(model: Any) -> hub.Adapter:
    """What leads a fuse of de and fr."""
    fuse = hub.Fuse.create(model, hub.Adapter.create("lora", model, r=1), size=2, value=False)
    assert isinstance(fuse.by, hub.Adapter)
    return fuse.by


@pytest.fixture(scope="session")
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


@pytest.fixture
def folder(made: Path, home: Path, tmp_path: Path) -> Path:
    """mean@1, with the composition both@1 in it, as a folder; the registry has both too."""
    shutil.copytree(made / "home", home, dirs_exist_ok=True)
    return Path(shutil.copytree(made / "folder", tmp_path / "mean"))


def find_part(registry: hub.Registry, folder: Path, reference: str) -> Path:
    return folder / "parts" / registry.get(reference).digest


def edit(path: Path, **fields: Any) -> None:
    path.write_text(json.dumps({**json.loads(path.read_text()), **fields}))
