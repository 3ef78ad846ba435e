from __future__ import annotations

import random
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from hub_registry import BaseIdentity, HubError, Registry, UnknownReference, Version

Add = Callable[..., Version]


def damage(registry: Registry, version: Version, filename: str) -> Path:
    path = registry.blobs.find_path(version.files[filename].sha256)
    content = bytearray(path.read_bytes())
    content[0] ^= 1
    path.unlink()
    path.write_bytes(content)
    return path


def test_a_sound_registry_has_no_faults(registry: Registry, add: Add) -> None:
    add()
    add(content=b"two", parents=["sst2@1"])
    assert registry.verify() == []
    assert registry.verify(["sst2@1"]) == []


def test_a_damaged_blob_is_a_fault_of_every_version_that_has_it(
    registry: Registry, add: Add
) -> None:
    first = add()
    add(content=b"two")
    path = damage(registry, first, "adapter_config.json")
    faults = registry.verify()
    assert [(f.reference, f.filename, f.path) for f in faults] == [
        ("sst2@1", "adapter_config.json", path),
        ("sst2@2", "adapter_config.json", path),
    ]
    assert "is damaged" in faults[0].problem
    damage(registry, first, "adapter_model.safetensors")
    assert len(registry.verify(["sst2@2"])) == 1
    with pytest.raises(UnknownReference):
        registry.verify(["sst2@9"])


@pytest.mark.parametrize(
    ("drop", "change", "problem"),
    [
        (
            "tr_version_file_no_delete",
            "DELETE FROM version_file WHERE version_id = 1 AND name = 'adapter_config.json'",
            "its files are not those that were added",
        ),
        (
            "tr_base_model_no_update",
            "UPDATE base_model SET identity = replace(identity, 'llama', 'gpt2')",
            "the identity of the base org/base@aaaaaaa is not the one that was stored",
        ),
        (
            "tr_version_no_delete",
            "DELETE FROM version WHERE id = 1",
            "the adapter sst2 has 1 versions, and 2 were taken",
        ),
        (
            "tr_blob_is_unused",
            "DELETE FROM blob",
            "the database is damaged: a row of version_file points to no row of blob",
        ),
    ],
)
def test_rows_changed_by_hand_are_faults(
    registry: Registry, add: Add, execute: Any, drop: str, change: str, problem: str
) -> None:
    add()
    add(content=b"two")
    execute(f"DROP TRIGGER {drop}")
    execute(change, foreign_keys=False)
    assert problem in [fault.problem for fault in registry.verify()]
    assert any(drop in finding.text for finding in registry.check())


def test_a_database_with_flipped_bytes_gives_answers_or_errors_of_ours(
    registry: Registry, add: Add, execute: Any, base: BaseIdentity
) -> None:
    for i in range(5):
        add(content=bytes([i]))
    registry.alias("sst2@2", "production")
    execute("PRAGMA wal_checkpoint(TRUNCATE)")
    path = registry.home / "registry.db"
    whole = path.read_bytes()
    chance = random.Random(7)
    refused = 0
    for _ in range(60):
        content = bytearray(whole)
        for _ in range(chance.choice((1, 20, 400))):
            content[chance.randrange(len(content))] ^= 1 << chance.randrange(8)
        if chance.random() < 0.3:
            del content[chance.randrange(len(content)) :]
        for name in ("registry.db-wal", "registry.db-shm"):
            (registry.home / name).unlink(missing_ok=True)
        path.write_bytes(content)
        for use in (
            lambda: Registry(registry.home).list(),
            lambda: Registry(registry.home).adapters(),
            lambda: Registry(registry.home).get("sst2@production"),
            lambda: Registry(registry.home).log("sst2"),
            lambda: Registry(registry.home).verify(),
            lambda: Registry(registry.home).alias("sst2@1", "production"),
        ):
            try:
                use()
            except HubError as error:
                assert "\n" not in str(error)
                refused += 1
        assert Registry(registry.home).check()
    assert refused > 30


@pytest.mark.parametrize("emptied", [True, False])
def test_a_database_that_was_lost_beside_its_blobs_is_a_fault(
    registry: Registry, add: Add, emptied: bool
) -> None:
    add()
    for path in registry.home.glob("registry.db*"):
        path.unlink()
    if emptied:
        (registry.home / "registry.db").touch()
    again = Registry(registry.home)
    [fault] = again.verify()
    assert ("is empty" if emptied else "is missing") in fault.problem
    assert "2 blobs are in" in fault.problem
    [error] = [finding for finding in again.check() if finding.level == "error"]
    assert error.text == fault.problem


def test_a_home_without_anything_has_no_faults(registry: Registry) -> None:
    assert registry.verify() == []
    assert not registry.home.exists()
