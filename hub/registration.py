"""The registry with adapters in it: what `hub_registry` stores as files, read and written as such.

A version's files are the adapter's own, and their digest is the same in every registry: `hub.json`
says there which version a folder was written from, and nothing inside a registry, where the number
is known. A peft folder stays the two files that it is; its base is then registered as unknown.
"""

from __future__ import annotations

import copy
import dataclasses
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import hub_registry
from hub.errors import BaseMismatch
from hub_registry import BaseIdentity, RegistryError, Version

if TYPE_CHECKING:
    from torch import nn

    from hub.adapter import Adapter

UNKNOWN = "unknown"  # the architecture and precision of a base that nothing is known of


class Registry(hub_registry.Registry):
    """Versions of adapters, in a database and a folder of blobs; see `hub_registry.Registry`.

    `home` is the argument, or HUB_HOME, or `~/.cache/pefthub`; `url` is the argument, or
    HUB_REGISTRY, or a SQLite file in `home`.
    """

    def add(
        self,
        adapter: Adapter | str | Path | Mapping[str, bytes],
        *,
        name: str,
        task: str | None = None,
        note: str | None = None,
        parents: Sequence[Version | str] = (),
        base: nn.Module | BaseIdentity | None = None,
    ) -> Version:
        """Store an adapter as the next version of `name`.

        adapter: an Adapter, which has the version's reference afterwards; or a folder, peft's own
            too, or the bytes of its files by name: all are checked as if to be loaded.
        task, parents: what it is for and what it was made from; told in its `hub.json` too.
        base: the model that it was trained on, where its files do not say. Nothing checks that
            it was this one; an adapter without it attaches to any base with a note.

        The same content under the same name is the version that it already is. Raises FileError,
        MethodError, ConfigError, BaseMismatch (`base` is not what the files say), UnknownReference
        (a parent), BadName, AlreadyExists (the same files, described otherwise), StorageError.
        """
        from hub.adapter import Adapter

        parents = [self._resolve(parent) for parent in parents]
        if isinstance(adapter, Adapter):
            described = copy.copy(adapter)
            contents: dict[str, bytes] | None = None
        else:
            contents, where = read_source(adapter)
            described = Adapter.parse(contents, where)
        described.reference = None
        described.task = task if task is not None else described.task
        described.base = settle_base(described, name, base)
        if parents:
            described.lineage = {**described.lineage, "parents": parents}
        files = self._keep_moment(name, describe_contents(described, contents))
        version = self.add_files(
            files,
            name=name,
            task=described.task,
            method=described.method,
            base=described.base or guess_base(files),
            config=dataclasses.asdict(described.config),
            metrics=described.metrics,
            parents=parents,
            note=note,
        )
        if isinstance(adapter, Adapter):
            adapter.task, adapter.base = described.task, described.base
            adapter.lineage, adapter.reference = described.lineage, version.reference
        return version

    def load(self, reference: str | Version) -> Adapter:
        """The adapter of a version, its bytes verified.

        Raises UnknownReference, BadName, CorruptBlob, FileError, MethodError, ConfigError, and
        RegistryError for a version that is no single adapter.
        """
        from hub.adapter import Adapter

        version = self.get(reference) if isinstance(reference, str) else reference
        adapter = Adapter.parse(
            self.read_files(version), Path(version.reference), reference=version.reference
        )
        adapter.task = version.task
        return adapter

    def read_files(self, version: Version) -> dict[str, bytes]:
        """The bytes of a version's files by name, verified. Raises CorruptBlob, and RegistryError
        for a version that is no single adapter."""
        if version.kind != "adapter":
            raise RegistryError(
                f"{version.reference} is a {version.kind} and not one adapter; "
                f"its parts are {', '.join(version.parents)}"
            )
        return {name: self.read(version, name) for name in version.files}

    def _resolve(self, parent: Version | str) -> str:
        return parent.reference if isinstance(parent, Version) else self.get(parent).reference

    def _keep_moment(self, name: str, files: Mapping[str, bytes]) -> dict[str, bytes]:
        """The files with the time of the version that says all the same, where there is one."""
        from hub.files import MANIFEST, edit_manifest

        if MANIFEST not in files:
            return dict(files)
        said = json.loads(files[MANIFEST])
        tensors = {entry["sha256"] for entry in said["files"].values()}
        for version in self.list(name):
            if MANIFEST not in version.files or not tensors <= {
                entry.sha256 for entry in version.files.values()
            }:
                continue
            known = json.loads(self.read(version, MANIFEST))
            if {**known, "created": None} == {**said, "created": None}:
                return {**files, MANIFEST: edit_manifest(files[MANIFEST], created=known["created"])}
        return dict(files)


def read_source(source: str | Path | Mapping[str, bytes]) -> tuple[dict[str, bytes], Path]:
    """The bytes of an adapter's files, and what to call the place. Raises FileError."""
    from hub.files import read_contents
    from hub.references import locate_folder

    if isinstance(source, Mapping):
        return dict(source), Path("adapter")
    folder = source if isinstance(source, Path) else locate_folder(source)
    return read_contents(folder), folder


def describe_contents(adapter: Adapter, contents: Mapping[str, bytes] | None) -> dict[str, bytes]:
    """The files to store: written anew for an adapter in memory, else those that there are, with
    what `adapter` says in their `hub.json`."""
    from hub.files import MANIFEST, edit_manifest, format_manifest

    if contents is None:
        return adapter.format()
    if MANIFEST in contents:
        manifest = edit_manifest(
            contents[MANIFEST],
            version=None,
            task=adapter.task,
            lineage=adapter.lineage,
            base=adapter.base.to_json() if adapter.base is not None else None,
        )
    elif adapter.base is not None:
        manifest = format_manifest(adapter.describe(), contents)
    else:
        return dict(contents)
    return {**contents, MANIFEST: manifest}


def settle_base(
    adapter: Adapter, name: str, base: nn.Module | BaseIdentity | None
) -> BaseIdentity | None:
    """The identity that the adapter has, else that of `base`. Raises BaseMismatch where the two
    are known and different."""
    from hub.identity import identify_base

    if base is None:
        return adapter.base
    given = base if isinstance(base, BaseIdentity) else identify_base(base)
    if adapter.base is None:
        return given
    comparison = hub_registry.compare(adapter.base, given)
    if comparison.verdict == "different":
        raise BaseMismatch(
            f"{name} was made for {adapter.base.label}, and {given.label} was given as its base: "
            f"{'; '.join(comparison.reasons)}; leave the base out, its files say it"
        )
    return adapter.base


def guess_base(files: Mapping[str, bytes]) -> BaseIdentity:
    """The identity of a base of which no more is known than the name in peft's configuration."""
    from hub.files import CONFIG

    config: dict[str, Any] = json.loads(files[CONFIG])
    repo, revision = config.get("base_model_name_or_path"), config.get("revision")
    return BaseIdentity(
        architecture=UNKNOWN,
        precision=UNKNOWN,
        repo=repo if isinstance(repo, str) and repo else None,
        revision=revision if isinstance(revision, str) and revision else None,
    )
