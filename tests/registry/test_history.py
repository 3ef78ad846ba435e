from __future__ import annotations

import getpass
import math
from collections.abc import Callable
from datetime import UTC
from typing import Any

import pytest

from hub_registry import BadName, Registry, RegistryError, UnknownReference, Version
from hub_registry.history import find_author

Add = Callable[..., Version]


def test_the_log_tells_everything_newest_first(registry: Registry, add: Add) -> None:
    version = add(metrics={"accuracy": 0.5}, note="first")
    registry.record_metric(version, "accuracy", 0.75, dataset="sst2/validation", samples=872)
    registry.alias("sst2@1", "production")
    registry.record_publication("sst2@production", "hf://org/repo", "abc123")
    add(content=b"two")
    add(name="other")
    events = registry.log("sst2")
    assert [event.kind for event in events] == [
        "version", "publication", "alias", "metric", "version",
    ]  # fmt: skip
    assert [event.reference for event in events] == ["sst2@2"] + ["sst2@1"] * 4
    assert events[1].what == "published version 1 to hf://org/repo at abc123"
    assert events[3].what == "measured accuracy 0.75 of version 1 on sst2/validation (872 samples)"
    assert events[4].what == f"added version 1 (lora, {version.digest[:12]})"
    assert events[4].note == "first"
    assert {event.who for event in events} == {find_author()}
    assert all(event.when.tzinfo is UTC for event in events)
    assert [event.when for event in events] == sorted((e.when for e in events), reverse=True)


def test_the_last_measurement_is_shown_and_the_version_stays(registry: Registry, add: Add) -> None:
    version = add(metrics={"accuracy": 0.5, "loss": 2.0})
    registry.record_metric("sst2", "accuracy", 0.75)
    registry.record_metric("sst2@1", "f1", 1)
    again = registry.get("sst2")
    assert again.metrics == {"accuracy": 0.75, "loss": 2.0, "f1": 1.0}
    assert again.digest == version.digest
    assert add(metrics={"accuracy": 0.5, "loss": 2.0}) == again


def test_what_is_no_measurement_is_refused(registry: Registry, add: Add) -> None:
    add()
    wrong: list[tuple[Any, ...]] = [("loss", math.nan), ("loss", "low"), ("loss", None)]
    for name, value in wrong:
        with pytest.raises(RegistryError, match="a measurement is a finite number"):
            registry.record_metric("sst2", name, value)
    with pytest.raises(BadName):
        registry.record_metric("sst2", "two\nlines", 1.0)
    with pytest.raises(RegistryError, match="-1 samples"):
        registry.record_metric("sst2", "loss", 1.0, samples=-1)
    with pytest.raises(UnknownReference):
        registry.record_metric("sst2@9", "loss", 1.0)
    with pytest.raises(UnknownReference):
        registry.record_publication("other", "hf://org/repo", "abc")
    with pytest.raises(UnknownReference):
        registry.log("other")
    with pytest.raises(BadName):
        registry.log("sst2@1")
    assert len(registry.log("sst2")) == 1


def test_the_author_is_the_user_or_at_least_a_number(monkeypatch: pytest.MonkeyPatch) -> None:
    for variable in ("LOGNAME", "USER", "LNAME", "USERNAME"):
        monkeypatch.delenv(variable, raising=False)
    monkeypatch.setenv("LOGNAME", "ada")
    assert find_author() == "ada"
    monkeypatch.setenv("LOGNAME", "ad\udce9")
    assert find_author() == "ad?"

    def fail() -> str:
        raise KeyError("uid not found")

    monkeypatch.setattr(getpass, "getuser", fail)
    assert find_author().startswith("uid ")
