from __future__ import annotations

import os
from collections.abc import Callable

from hub_registry import Registry, Swept, Version

Add = Callable[..., Version]


def leave_behind(registry: Registry) -> None:
    """What a process leaves that is killed while staging, and one killed after placing."""
    registry.blobs.stage(b"temporary")
    placed = registry.blobs.stage(b"unused")
    registry.blobs.place(placed)
    registry.blobs.discard(placed)


def test_what_was_left_behind_is_swept_and_nothing_else(registry: Registry, add: Add) -> None:
    version = add()
    leave_behind(registry)
    assert any(finding.subject == "leftovers" and finding.level == "warning"
               for finding in registry.check())  # fmt: skip
    assert registry.sweep(older_than=0) == Swept(temporary=1, blobs=1, size=15)
    assert registry.sweep(older_than=0) == Swept(0, 0, 0)
    assert registry.list() == [version]
    assert registry.verify() == []


def test_what_is_young_is_left_alone(registry: Registry, add: Add) -> None:
    add()
    leave_behind(registry)
    assert registry.sweep() == Swept(0, 0, 0)
    [(path, _)] = registry.blobs.find_temporary()
    os.utime(path, (0, 0))
    assert registry.sweep() == Swept(temporary=1, blobs=0, size=9)


def test_a_swept_blob_can_be_added_again(registry: Registry, add: Add) -> None:
    leave_behind(registry)
    registry.sweep(older_than=0)
    version = add(content=b"unused")
    assert registry.read(version, "adapter_model.safetensors") == b"unused"
    assert registry.sweep(older_than=0) == Swept(0, 0, 0)
