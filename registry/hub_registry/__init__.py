"""The registry of adapters: base identities, versions, aliases and blobs. It knows no torch.

    registry = Registry()
    version = registry.add_files({"adapter_config.json": path, ...}, name="sst2", ...)
    registry.alias("sst2@1", "production")
    registry.get("sst2@production").files

Importing this package loads no database library; the first use of `Registry` does.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from hub_registry.errors import (
    AlreadyExists,
    BadIdentity,
    BadName,
    CorruptBlob,
    HubError,
    RegistryError,
    SchemaError,
    StorageError,
    UnknownReference,
)
from hub_registry.identity import BaseIdentity, Comparison, TensorSample, compare
from hub_registry.names import Reference, parse_reference
from hub_registry.records import (
    AdapterRow,
    Event,
    Fault,
    FileEntry,
    Finding,
    Swept,
    Version,
    digest_files,
)

if TYPE_CHECKING:
    from hub_registry.registry import Registry

__all__ = [
    "AdapterRow",
    "AlreadyExists",
    "BadIdentity",
    "BadName",
    "BaseIdentity",
    "Comparison",
    "CorruptBlob",
    "Event",
    "Fault",
    "FileEntry",
    "Finding",
    "HubError",
    "Reference",
    "Registry",
    "RegistryError",
    "SchemaError",
    "StorageError",
    "Swept",
    "TensorSample",
    "UnknownReference",
    "Version",
    "compare",
    "digest_files",
    "parse_reference",
]


def __getattr__(name: str) -> Any:
    if name == "Registry":
        from hub_registry.registry import Registry

        return Registry
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
