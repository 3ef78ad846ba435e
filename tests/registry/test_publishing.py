from __future__ import annotations

import hashlib
import math
from collections.abc import Callable
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest

from hub_registry import (
    AlreadyExists,
    BadName,
    BaseIdentity,
    HubError,
    Registry,
    RegistryError,
    UnknownReference,
    Version,
    digest_files,
)

Add = Callable[..., Version]


def count_blobs(registry: Registry) -> int:
    return len(list(registry.blobs.find_all()))


def test_a_version_holds_what_was_given(registry: Registry, add: Add, base: BaseIdentity) -> None:
    before = datetime.now(UTC)
    version = add(metrics={"accuracy": 0.9, "loss": 1}, note="first\ntry")
    assert registry.get("sst2@1") == version
    assert version.reference == "sst2@1"
    assert (version.adapter, version.number, version.kind) == ("sst2", 1, "adapter")
    assert (version.method, version.task, version.base) == ("lora", "sentiment", base)
    assert version.config == {"r": 8, "targets": ["query", "value"]}
    assert version.metrics == {"accuracy": 0.9, "loss": 1.0}
    assert (version.note, version.parents, version.aliases) == ("first\ntry", (), ())
    assert version.author
    assert before <= version.created <= datetime.now(UTC)
    assert version.created.utcoffset() == timedelta(0)
    assert registry.read(version, "adapter_model.safetensors") == b"one"


def test_the_digest_is_what_sha256sum_would_give(add: Add) -> None:
    version = add()
    lines = [f"{entry.sha256}  {name}\n" for name, entry in sorted(version.files.items())]
    assert version.digest == hashlib.sha256("".join(lines).encode()).hexdigest()
    assert version.digest == digest_files({k: v.sha256 for k, v in version.files.items()})


def test_files_are_read_and_hashed_here(registry: Registry, add: Add, tmp_path: Path) -> None:
    source = tmp_path / "adapter.bin"
    source.write_bytes(b"weights")
    version = add(files={"adapter_model.safetensors": source})
    source.write_bytes(b"changed")
    assert registry.read(version, "adapter_model.safetensors") == b"weights"
    entry = version.files["adapter_model.safetensors"]
    assert entry.sha256 == hashlib.sha256(b"weights").hexdigest()
    assert entry.size == 7


def test_numbers_count_up_for_each_adapter(add: Add) -> None:
    assert [add(content=bytes([i])).number for i in range(3)] == [1, 2, 3]
    assert add(name="other").number == 1


def test_the_same_content_is_the_version_it_is(registry: Registry, add: Add) -> None:
    first = add(metrics={"accuracy": 0.9}, note="note")
    add(content=b"two")
    assert add(metrics={"accuracy": 0.9}, note="note") == first
    assert add() == first
    assert add(content=b"three").number == 3
    assert add(name="other").number == 1
    assert len(registry.list()) == 4


def test_the_same_files_described_otherwise_are_refused(
    registry: Registry, add: Add, base: BaseIdentity
) -> None:
    first = add()
    for changes in (
        {"task": "other"},
        {"task": None},
        {"method": "ia3"},
        {"kind": "composition"},
        {"base": replace(base, precision="bfloat16")},
        {"config": {"r": 4}},
        {"metrics": {"accuracy": 0.1}},
        {"note": "other"},
        {"parents": ["sst2@1"]},
    ):
        with pytest.raises(AlreadyExists, match="sst2@1 has the same files with other"):
            add(**changes)
    assert registry.list() == [first]
    assert add(content=b"two").number == 2


def test_adding_again_mends_a_lost_and_a_damaged_blob(registry: Registry, add: Add) -> None:
    version = add()
    for damage in (
        lambda path: path.unlink(),
        lambda path: (path.unlink(), path.write_bytes(b"?")),
    ):
        for entry in version.files.values():
            damage(registry.blobs.find_path(entry.sha256))
        assert len(registry.verify()) == 2
        assert add() == version
        assert registry.verify() == []


def test_parents_are_kept_by_number_and_order(registry: Registry, add: Add) -> None:
    first = add()
    other = add(name="other")
    registry.alias("sst2@1", "production")
    child = add(content=b"two", parents=["other", "sst2@production", first, other])
    assert child.parents == ("other@1", "sst2@1")
    registry.alias("sst2@2", "production")
    assert registry.get("sst2@2").parents == ("other@1", "sst2@1")
    assert add(content=b"three", parents=["sst2"]).parents == ("sst2@2",)


def test_a_composition_is_a_version_too(add: Add) -> None:
    add()
    version = add(name="both", files={"hub.json": b"{}"}, kind="composition", parents=["sst2@1"])
    assert version.kind == "composition"


BAD: list[tuple[dict[str, Any], type[HubError], str]] = [
    ({"name": "a/b"}, BadName, "adapter"),
    ({"name": ""}, BadName, "adapter"),
    ({"method": "my method"}, BadName, "method"),
    ({"task": "two\nlines"}, BadName, "task"),
    ({"kind": "song"}, RegistryError, "kind"),
    ({"files": {}}, RegistryError, "no files"),
    ({"files": {"../x": b""}}, BadName, "file"),
    ({"files": {"a/b": b""}}, BadName, "file"),
    ({"files": {"a": Path("/nowhere/at/all")}}, RegistryError, "does not exist"),
    ({"config": {"r": math.nan}}, RegistryError, "configuration"),
    ({"config": {"r": object()}}, RegistryError, "configuration"),
    ({"config": {"r": 1, 2: 1}}, RegistryError, "configuration"),
    ({"metrics": {"loss": math.inf}}, RegistryError, "loss"),
    ({"metrics": {"loss": "low"}}, RegistryError, "loss"),
    ({"metrics": {"": 1.0}}, BadName, "metric"),
    ({"note": "nul \0"}, BadName, "stored"),
    ({"parents": ["nobody@1"]}, UnknownReference, "nobody"),
    ({"parents": ["sst2@9"]}, UnknownReference, "sst2"),
    ({"parents": ["???"]}, BadName, "reference"),
]


def test_what_can_not_be_stored_is_refused_and_leaves_nothing(registry: Registry, add: Add) -> None:
    first = add()
    blobs = count_blobs(registry)
    for changes, error, words in BAD:
        with pytest.raises(error, match=words) as caught:
            add(content=b"two", **changes)
        assert "\n" not in str(caught.value)
    assert registry.list() == [first]
    assert count_blobs(registry) == blobs
    assert list(registry.blobs.find_temporary()) == []
    assert add(content=b"two").number == 2


def test_a_failure_among_the_rows_takes_the_blobs_back(
    registry: Registry, add: Add, execute: Callable[..., Any]
) -> None:
    add()
    blobs = count_blobs(registry)
    execute(
        "CREATE TRIGGER broken BEFORE INSERT ON metric BEGIN SELECT RAISE(ABORT, 'broken'); END"
    )
    with pytest.raises(RegistryError, match="refuses this: broken"):
        add(content=b"two", metrics={"loss": 1.0})
    assert count_blobs(registry) == blobs
    assert [version.number for version in registry.list()] == [1]
    assert list(registry.blobs.find_temporary()) == []
