"""A registry in a temporary home, bases and versions to put into it."""

from __future__ import annotations

import os
import shutil
import sqlite3
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import closing
from pathlib import Path
from typing import Any

import pytest

from hub_registry import BaseIdentity, Registry, TensorSample, Version

FILES = {"adapter_config.json": b'{"r": 8}', "adapter_model.safetensors": bytes(range(256)) * 8}


@pytest.fixture
def home(tmp_path: Path) -> Path:
    return tmp_path / "a home? with 100% odd name"


@pytest.fixture
def registry(home: Path, monkeypatch: pytest.MonkeyPatch) -> Registry:
    monkeypatch.delenv("HUB_REGISTRY", raising=False)
    return Registry(home)


@pytest.fixture
def base() -> BaseIdentity:
    sample = {"layers.0.weight": TensorSample((4, 4), (0.1, -0.2, 0.3, 0.4))}
    return BaseIdentity("llama", "float32", repo="org/base", revision="a" * 40, sample=sample)


@pytest.fixture(scope="session")
def empty(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The home of a registry without versions: making one takes longer than copying it."""
    home = tmp_path_factory.mktemp("empty")
    Registry(home, f"sqlite:///{home}/registry.db").upgrade()
    return home


@pytest.fixture
def add(registry: Registry, base: BaseIdentity, empty: Path) -> Callable[..., Version]:
    """Add a version whose content depends on `content` alone."""

    def add_version(name: str = "sst2", content: bytes = b"one", **changes: Any) -> Version:
        if not registry.home.exists():
            shutil.copytree(empty, registry.home)
        values: dict[str, Any] = {
            "files": {**FILES, "adapter_model.safetensors": content},
            "task": "sentiment",
            "method": "lora",
            "base": base,
            "config": {"r": 8, "targets": ["query", "value"]},
        }
        return registry.add_files(name=name, **(values | changes))

    return add_version


@pytest.fixture
def execute(registry: Registry) -> Iterator[Callable[..., list[Any]]]:
    """Run one statement in the registry's database, past all of our code."""

    def run(statement: str, *values: Any, foreign_keys: bool = True) -> list[Any]:
        path = registry.database.path
        assert path is not None
        with closing(sqlite3.connect(path)) as connection, connection:
            connection.execute(f"PRAGMA foreign_keys = {'ON' if foreign_keys else 'OFF'}")
            return connection.execute(statement, values).fetchall()

    yield run


@pytest.fixture
def run_python() -> Callable[..., str]:
    """Run a script in its own process and answer what it printed."""

    def run(script: str, *arguments: object, timeout: float = 120) -> str:
        result = subprocess.run(
            [sys.executable, "-W", "error", "-c", script, *map(str, arguments)],
            capture_output=True,
            text=True,
            timeout=timeout,
            env={**os.environ, "OMP_NUM_THREADS": "1"},
        )
        assert result.returncode == 0, result.stderr
        return result.stdout

    return run
