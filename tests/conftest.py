"""Tiny real models, and a home of its own for every test."""

from __future__ import annotations

import os
from pathlib import Path

os.environ.setdefault("HF_HUB_OFFLINE", "0")
os.environ.setdefault("HF_HUB_DISABLE_TELEMETRY", "1")
os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")

import pytest


@pytest.fixture(autouse=True)
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """HUB_HOME of this test alone."""
    path = tmp_path / "hub-home"
    monkeypatch.setenv("HUB_HOME", str(path))
    monkeypatch.delenv("HUB_REGISTRY", raising=False)
    return path
