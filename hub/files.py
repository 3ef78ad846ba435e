"""An adapter's files: peft's two, and `hub.json` beside them.

    adapter_config.json         peft's fields
    adapter_model.safetensors   peft's key names, `base_model.model.{path of the site}.{tensor}`
    hub.json                    method, base identity, task, metrics, lineage, digests of the two

A folder is written so that a failure at any point leaves what was there before. What is read is
checked against the digests, and every tensor for values that are not numbers.
"""

from __future__ import annotations

import hashlib
import json
import math
import os
import tempfile
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load as parse_tensors
from safetensors.torch import save as format_tensors

from hub.documents import format_json, read_json
from hub.errors import FileError
from hub_registry.errors import BadIdentity
from hub_registry.identity import BaseIdentity

CONFIG = "adapter_config.json"
TENSORS = "adapter_model.safetensors"
MANIFEST = "hub.json"
FILES = (CONFIG, TENSORS, MANIFEST)
PICKLES = ("adapter_model.bin", "adapter_model.pt", "pytorch_adapter.bin")
FORMAT = 1
BASES = 4

_bases: list[tuple[Any, BaseIdentity | None]] = []  # those read last, and what was told of them


@dataclass(frozen=True)
class Manifest:
    """What `hub.json` says, and peft's files do not.

    files: sha256 in hex by file name, of the other two files.
    version: the reference that the folder was written from, such as "sst2@3"; a label only.
    """

    method: str
    base: BaseIdentity | None = None
    task: str | None = None
    metrics: Mapping[str, float] = field(default_factory=dict)
    lineage: Mapping[str, Any] = field(default_factory=dict)
    files: Mapping[str, str] = field(default_factory=dict)
    version: str | None = None
    created: str = field(default_factory=lambda: datetime.now(UTC).isoformat(timespec="seconds"))


@dataclass(frozen=True)
class AdapterFiles:
    """What a folder holds; `manifest` is None for a folder that peft or another tool wrote."""

    config: dict[str, Any]
    tensors: dict[str, torch.Tensor]
    manifest: Manifest | None


def write_files(folder: str | Path, contents: Mapping[str, bytes]) -> Path:
    """Write files by their path into `folder`, which is made where it is missing.

    All are staged and synced before the first takes its place, those last that say what the others
    are, so that a full disk changes nothing and a kill in between is found by the digests. Raises
    FileError.
    """
    folder = Path(folder)
    # What lies in a folder inside is a part, and what is beside the folders says which parts.
    ordered = sorted(contents, key=lambda name: ("/" not in name, name == MANIFEST))
    staged: list[tuple[str, Path]] = []
    try:
        folder.mkdir(parents=True, exist_ok=True)
        try:
            for name in ordered:
                target = folder / name
                target.parent.mkdir(parents=True, exist_ok=True)
                handle, temporary = tempfile.mkstemp(prefix=f".{target.name}.", dir=target.parent)
                staged.append((temporary, target))
                with os.fdopen(handle, "wb") as file:
                    file.write(contents[name])
                    file.flush()
                    os.fsync(file.fileno())
            for temporary, target in staged:
                Path(temporary).chmod(0o644)
                Path(temporary).replace(target)
        finally:
            for temporary, target in staged:
                Path(temporary).unlink(missing_ok=True)
                with suppress(OSError):  # it holds something, as it should
                    for parent in target.relative_to(folder).parents[:-1]:
                        (folder / parent).rmdir()
    except OSError as error:
        raise FileError(
            f"can't write an adapter into {folder}: {error.strerror or error}; "
            "choose a folder that can be written and has room"
        ) from error
    return folder


def format_files(
    config: Mapping[str, Any], tensors: Mapping[str, torch.Tensor], manifest: Manifest
) -> dict[str, bytes]:
    """The bytes of the three files by name, the manifest with the digests of the other two."""
    check_finite(tensors, "the adapter")
    plain = {name: t.detach().cpu().contiguous().clone() for name, t in sorted(tensors.items())}
    files = {
        CONFIG: format_json(config),
        TENSORS: format_tensors(plain, metadata={"format": "pt"}),
    }
    return {**files, MANIFEST: format_manifest(manifest, files)}


def format_manifest(manifest: Manifest, contents: Mapping[str, bytes]) -> bytes:
    """The bytes of `hub.json`, with the digests of the other two files in `contents`."""
    files = {
        name: {"sha256": hashlib.sha256(contents[name]).hexdigest(), "size": len(contents[name])}
        for name in (CONFIG, TENSORS)
    }
    document = {
        "format": FORMAT,
        "method": manifest.method,
        "version": manifest.version,
        "task": manifest.task,
        "metrics": dict(manifest.metrics),
        "lineage": dict(manifest.lineage),
        "created": manifest.created,
        "files": files,
        "base": manifest.base.to_json() if manifest.base is not None else None,
    }
    return format_json(document)


def edit_manifest(data: bytes, **fields: Any) -> bytes:
    """The bytes of a checked `hub.json` with other values in these fields, in the one layout."""
    return format_json({**json.loads(data), **fields})


def read_contents(folder: str | Path) -> dict[str, bytes]:
    """The bytes of an adapter's files by name, unchecked. Raises FileError where one is missing."""
    folder = Path(folder)
    try:
        names = os.listdir(folder)  # noqa: PTH208 - a Path takes longer to make than a file to find
    except (FileNotFoundError, NotADirectoryError):
        what = "is a file" if folder.exists() else "does not exist"
        raise FileError(
            f"{folder} {what}; give the folder that holds {CONFIG} and {TENSORS}"
        ) from None
    except OSError as error:
        raise FileError(f"can't read {folder}: {error.strerror or error}") from error
    present = [name for name in FILES if name in names]
    if TENSORS not in present:
        refuse_pickle(folder)
    for name in (CONFIG, TENSORS):
        if name not in present:
            there = ", ".join(sorted(names)[:8]) or "nothing"
            raise FileError(f"{folder} has no {name}; it holds {there}")
    return {name: read_file(folder / name) for name in present}


def parse_adapter(contents: Mapping[str, bytes], where: Path) -> AdapterFiles:
    """Check the bytes of an adapter's files. `where` names them in the FileError that it raises."""
    manifest = read_manifest(where, contents) if MANIFEST in contents else None
    tensors = read_tensors(where / TENSORS, contents[TENSORS])
    return AdapterFiles(read_json(where / CONFIG, contents[CONFIG]), tensors, manifest)


def read_manifest(folder: Path, contents: Mapping[str, bytes]) -> Manifest:
    """`hub.json`, after holding the other files against the digests in it. Raises FileError."""
    where = folder / MANIFEST
    document = read_json(where, contents[MANIFEST])
    if document.get("format") != FORMAT:
        raise FileError(
            f"{where} has format {document.get('format')!r}, this pefthub reads {FORMAT}; "
            "upgrade pefthub"
        )
    try:
        digests = {name: entry["sha256"] for name, entry in document["files"].items()}
        manifest = Manifest(
            method=document["method"],
            base=read_base(document["base"]),
            task=document["task"],
            metrics=document["metrics"],
            lineage=document["lineage"],
            files=digests,
            version=document["version"],
            created=document["created"],
        )
        check_manifest(manifest)
    except (KeyError, TypeError, ValueError, AttributeError, OverflowError, BadIdentity) as error:
        raise FileError(
            f"{where} lacks what it must say: {error}; fetch the adapter anew"
        ) from error
    for name in (CONFIG, TENSORS):
        found = hashlib.sha256(contents[name]).hexdigest()
        if digests.get(name) != found:
            raise FileError(
                f"{folder / name} is not the file that {MANIFEST} describes: its sha256 is "
                f"{found[:12]}, not {str(digests.get(name))[:12]}; it was changed or damaged: "
                f"fetch it anew, or remove {MANIFEST} to load it unverified"
            )
    return manifest


def read_base(told: Any) -> BaseIdentity | None:
    """The base identity that a manifest tells; one object for all adapters of one base. Raises
    BadIdentity."""
    for known, base in _bases:
        if known == told:
            return base
    base = BaseIdentity.from_json(told) if told is not None else None
    _bases[:] = [(told, base), *_bases[: BASES - 1]]
    return base


def check_manifest(manifest: Manifest) -> None:
    """Raise TypeError where a field holds another kind of value than it must."""
    for name in ("method", "task", "version", "created"):
        value = getattr(manifest, name)
        if not isinstance(value, str) and (value is not None or name == "method"):
            raise TypeError(f"{name} is {value!r}, not text")
    if not isinstance(manifest.lineage, dict) or not isinstance(manifest.metrics, dict):
        raise TypeError("metrics and lineage must be objects")
    for name, value in manifest.metrics.items():
        if not isinstance(value, int | float) or not math.isfinite(value):
            raise TypeError(f"the metric {name} is {value!r}, not a finite number")


def read_tensors(path: Path, data: bytes) -> dict[str, torch.Tensor]:
    """The tensors of a safetensors file, all finite. Raises FileError where it is none, is cut
    short, or holds others."""
    try:
        tensors = parse_tensors(data)
    except (SafetensorError, ValueError) as error:
        if data[:2] in (b"PK", b"\x80\x02", b"\x80\x03", b"\x80\x04", b"\x80\x05"):
            raise FileError(pickle_text(path)) from error
        raise FileError(
            f"{path} can't be read as safetensors ({len(data)} bytes): {error}; it is cut short "
            "or damaged: fetch it anew"
        ) from error
    check_finite(tensors, str(path))
    return tensors


def check_finite(tensors: Mapping[str, torch.Tensor], where: str) -> None:
    """Raise FileError where a tensor holds a NaN or an infinity."""
    for name, tensor in tensors.items():
        if not tensor.is_floating_point() or math.isfinite(sum_values(tensor)):
            continue
        values = tensor.float() if tensor.element_size() == 1 else tensor
        bad = int((~torch.isfinite(values)).sum())
        if bad:  # else they are finite, and their sum too large
            raise FileError(
                f"{where}: {name} holds {bad} of {tensor.numel()} values that are not finite "
                "numbers; the training run diverged or the file is damaged"
            )


def sum_values(tensor: torch.Tensor) -> float:
    """The sum of a floating tensor, which no value that is not finite leaves finite, and which is
    found in a tenth of the time of a look at each."""
    if tensor.requires_grad:
        tensor = tensor.detach()
    if tensor.element_size() == 1:  # torch sums no float8
        tensor = tensor.float()
    return tensor.sum().item()


def refuse_pickle(folder: Path) -> None:
    """Raise FileError where the weights are there as a pickle alone."""
    for name in PICKLES:
        if (folder / name).exists():
            raise FileError(pickle_text(folder / name))


def pickle_text(path: Path) -> str:
    return (
        f"{path} is a pickle, which can run code when it is opened, so it is not; save the "
        f"adapter with safetensors where it was made ({TENSORS})"
    )


def read_file(path: Path) -> bytes:
    """The bytes of a file. Raises FileError."""
    try:
        return path.read_bytes()
    except OSError as error:
        raise FileError(f"can't read {path}: {error.strerror or error}") from error
