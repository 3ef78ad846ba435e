"""The registry with adapters and compositions in it: what `hub_registry` stores as files, read and
written as such.

A version's files are the adapter's own, and their digest is the same in every registry: `hub.json`
says there which version a folder was written from, and nothing inside a registry, where the number
is known. A peft folder stays the two files that it is; its base is then registered as unknown. Of a
composition there is its recipe, and its parts are its parents.
"""

from __future__ import annotations

import builtins
import copy
import dataclasses
import json
from collections.abc import Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any

import hub_registry
from hub.binding import guess_base, settle_base
from hub.lineage import add_parents, forget_parents, read_parents
from hub_registry import (
    BadName,
    BaseIdentity,
    CorruptBlob,
    Fault,
    RegistryError,
    UnknownReference,
    Version,
)

if TYPE_CHECKING:
    from torch import nn

    from hub.adapter import Adapter
    from hub.composition import Operator


class Registry(hub_registry.Registry):
    """Versions of adapters, in a database and a folder of blobs; see `hub_registry.Registry`.

    `home` is the argument, or HUB_HOME, or `~/.cache/pefthub`; `url` is the argument, or
    HUB_REGISTRY, or a SQLite file in `home`.
    """

    def add(
        self,
        adapter: Adapter | Operator | str | Path | Mapping[str, bytes],
        *,
        name: str,
        task: str | None = None,
        note: str | None = None,
        parents: Sequence[Version | str] = (),
        base: nn.Module | BaseIdentity | None = None,
        names: Mapping[str, str] | None = None,
    ) -> Version:
        """Store an adapter or a composition as the next version of `name`.

        adapter: an Adapter, which has the version's reference afterwards; a composition of
            versions, given as references or as the adapters that were loaded from them, of which
            an alias means its version from now on, or such a one as text; or a folder, peft's own
            too; or the bytes of files by path, as they came from elsewhere. All are checked as if
            to be loaded.
        task, parents: what it is for and what it was made from; told in its `hub.json` too. When
            parents are left out they are those that its lineage names, where these are versions
            here, of the content that they had.
        base: the model that it was trained on, where its files do not say. Nothing checks that
            it was this one; an adapter without it attaches to any base with a note.
        names: for the folder of a composition, whose parts become versions too: what they are to
            be called here, by the names that they have there.

        The same content under the same name is the version that it already is. Raises FileError,
        MethodError, ConfigError, BaseMismatch (`base` is not what the files say, or parts are for
        different ones), UnknownReference (a parent, a part), RegistryError (a part that is no
        version of this registry), BadName, AlreadyExists (the same files, described otherwise, or
        a part's name is another's), StorageError.
        """
        from hub.adapter import Adapter
        from hub.composition import Operator, is_written
        from hub.recipes.bundles import is_composition

        if isinstance(adapter, str) and is_written(adapter):
            from hub.notation import parse_composition

            adapter = parse_composition(adapter)  # type: ignore[assignment]
        if isinstance(adapter, Operator):
            refuse_options(parents, base)
            refuse_names(names)
            return self._add_composition(adapter, name, task, note)
        if isinstance(adapter, Adapter):
            described = copy.copy(adapter)
            contents: dict[str, bytes] | None = None
        else:
            contents, where = read_source(adapter)
            if is_composition(contents, where):
                refuse_options(parents, base)
                return self._add_bundle(contents, where, name, task, note, names)
            described = Adapter.parse(contents, where)
        refuse_names(names)
        versions = [self.get(one) if isinstance(one, str) else one for one in parents]
        described.reference = None
        described.task = task if task is not None else described.task
        described.base = settle_base(described, name, base)
        if versions:
            described.lineage = add_parents(forget_parents(described.lineage), versions)
        files = describe_contents(described, contents)
        if not isinstance(adapter, Mapping):
            files = self._keep_moment(name, files)
        versions = versions or self._find_parents(name, described.lineage, files)
        version = self.add_files(
            files,
            name=name,
            task=described.task,
            method=described.method,
            base=described.base or guess_base(files),
            config=dataclasses.asdict(described.config),
            metrics=described.metrics,
            parents=versions,
            note=note,
        )
        if isinstance(adapter, Adapter):
            adapter.task, adapter.base = described.task, described.base
            adapter.lineage = described.lineage
            adapter.reference, adapter.digest = version.reference, version.digest
        return version

    def load(self, reference: str | Version) -> Adapter | Operator:
        """The adapter of a version, or its composition with the adapters in it loaded, each once;
        the bytes verified.

        Raises UnknownReference, BadName, CorruptBlob, FileError, MethodError, ConfigError.
        """
        from hub.adapter import Adapter

        version = self.get(reference) if isinstance(reference, str) else reference
        if version.kind == "composition":
            from hub.recipes.parts import load_composition

            return load_composition(self, version)
        adapter = Adapter.parse(
            self.read_files(version), Path(version.reference), reference=version.reference
        )
        adapter.task, adapter.digest = version.task, version.digest
        return adapter

    def read_files(self, version: Version) -> dict[str, bytes]:
        """The bytes of a version's own files by name, verified. Raises CorruptBlob."""
        return {name: self.read(version, name) for name in version.files}

    def export(self, version: Version | str, folder: Path) -> Path:
        """Write every file to a new or empty folder, verified, all or none; of a composition with
        those of all its parts. Raises CorruptBlob, AlreadyExists, BadName, UnknownReference."""
        version = self.get(version) if isinstance(version, str) else version
        if version.kind != "composition":
            return super().export(version, folder)
        from hub.files import write_files
        from hub.recipes.bundles import pack_version
        from hub_registry.exporting import make_new_folder

        contents = pack_version(self, version)
        with make_new_folder(Path(folder)) as temporary:
            write_files(temporary, contents)
        return Path(folder).absolute()

    def verify(self, references: Sequence[str] = ()) -> builtins.list[Fault]:
        """Read every blob of these versions and their parts, or everything, and say what is not as
        it was stored. Raises BadName, UnknownReference."""
        from hub.recipes.parts import find_part_faults

        if references:
            versions = {one.reference: one for one in self.collect(references)}
            faults = super().verify(list(versions))
        else:
            faults = super().verify()
            versions = {one.reference: one for one in self.collect(self.list(kind="composition"))}
        compositions = [one for one in versions.values() if one.kind == "composition"]
        return faults + list(find_part_faults(self, compositions, versions))

    def _add_composition(
        self, tree: Operator, name: str, task: str | None, note: str | None
    ) -> Version:
        from hub.recipes.parts import add_recipe
        from hub.recipes.pinning import pin_composition

        recipe, parts = pin_composition(self, tree, task)
        return add_recipe(self, recipe, parts, name=name, note=note)

    def _add_bundle(
        self,
        contents: Mapping[str, bytes],
        where: Path,
        name: str,
        task: str | None,
        note: str | None,
        names: Mapping[str, str] | None,
    ) -> Version:
        from hub.recipes.arrivals import Arrival
        from hub.recipes.bundles import parse_bundle

        bundle = parse_bundle(contents, where)
        if task is not None:
            bundle = bundle.assign(task)
        return Arrival(self, bundle, where, names=names).register(name, note)

    def _find_parents(
        self, name: str, lineage: Mapping[str, Any], files: Mapping[str, bytes]
    ) -> builtins.list[Version]:
        """The versions here that a lineage names; none where these files are a version of `name`
        already, whose parents were found when it was added."""
        from hub.recipes.bundles import digest_contents

        found: dict[str, Version] = {}
        for reference, digest in read_parents(lineage).items():
            if digest is None:
                continue
            with suppress(UnknownReference, BadName):
                version = self.get(reference)
                if version.digest == digest:
                    found[version.reference] = version
        if found:
            digest = digest_contents(files)
            if any(version.digest == digest for version in self.list(name)):
                return []
        return list(found.values())

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
            try:
                known = json.loads(self.read(version, MANIFEST))
            except CorruptBlob:
                continue
            if {**known, "created": None} == {**said, "created": None}:
                return {**files, MANIFEST: edit_manifest(files[MANIFEST], created=known["created"])}
        return dict(files)


def read_source(source: str | Path | Mapping[str, bytes]) -> tuple[dict[str, bytes], Path]:
    """The bytes of an adapter's or a composition's files, and what to call the place. Raises
    FileError."""
    from hub.recipes.bundles import read_folder
    from hub.references import locate_folder

    if isinstance(source, Mapping):
        return dict(source), Path("adapter")
    folder = source if isinstance(source, Path) else locate_folder(source)
    return read_folder(folder), folder


def refuse_options(parents: Sequence[object], base: object) -> None:
    """Raise RegistryError where a composition is given what its parts say."""
    if parents:
        raise RegistryError("the parents of a composition are its parts; leave parents out")
    if base is not None:
        raise RegistryError("a composition is bound to the base of its parts; leave the base out")


def refuse_names(names: Mapping[str, str] | None) -> None:
    """Raise RegistryError where names are given, and there are no parts that arrive."""
    if names:
        raise RegistryError(
            f"{', '.join(names)} can't be given other names: they are for the parts of a "
            "composition in a folder or at a remote, and this is none"
        )


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
