"""Bundles: a version's files as they are outside of a registry, in a folder or at a remote.

An adapter's are its own, see `hub.files`. A composition's are its recipe, and the files of all that
it is made of, each in a folder that is called by its content digest; the parts of a part stand
beside it, so nothing is there twice and a part that stays the same keeps its place:

    composition.json
    parts/0f3c.../adapter_config.json, adapter_model.safetensors, hub.json
    parts/77ab.../composition.json
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Callable, Collection, Iterator, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING

from hub.adapter import Adapter
from hub.composition import Operator
from hub.documents import format_json, read_json
from hub.errors import AttachError, FileError
from hub.files import CONFIG, FILES, MANIFEST, TENSORS, edit_manifest, read_contents, read_file
from hub.recipes.parts import read_recipe
from hub.recipes.recipe import DIGEST, RECIPE, Recipe, format_recipe, parse_recipe
from hub_registry import Version, digest_files

if TYPE_CHECKING:
    from hub.registration import Registry

Contents = Mapping[str, bytes]
"""Files by their path."""

PARTS = "parts"
PART_FILE = re.compile(rf"{PARTS}/{DIGEST.pattern}/({'|'.join([RECIPE, *FILES])})")


@dataclass(frozen=True)
class Bundle:
    """A composition whole, verified.

    parts: by content digest, each part after its own parts; an adapter as its files.
    """

    recipe: Recipe
    parts: Mapping[str, Recipe | Contents]

    def load(self, where: Path) -> Operator:
        """The composition, each of its parts loaded once. Raises FileError, MethodError,
        ConfigError."""
        labels = self.label_parts()
        loaded: dict[str, Adapter | Operator] = {}

        def fill(recipe: Recipe, path: Path) -> Operator:
            try:
                return recipe.fill([loaded[entry.digest] for entry in recipe.parts])
            except AttachError as error:
                raise FileError(f"{path}: {error}; fetch the composition anew") from error

        for digest, part in self.parts.items():
            path = where / PARTS / digest
            if isinstance(part, Recipe):
                loaded[digest] = fill(part, path / RECIPE)
            else:
                loaded[digest] = Adapter.parse(part, path, reference=labels[digest])
        return fill(self.recipe, where / RECIPE)

    def label_parts(self) -> dict[str, str | None]:
        """The version that each part was written from, by its digest."""
        recipes = (*self.recipes(), self.recipe)
        return {entry.digest: entry.version for recipe in recipes for entry in recipe.parts}

    def assign(self, task: str) -> Bundle:
        """The same composition for a task."""
        return replace(self, recipe=replace(self.recipe, task=task))

    def recipes(self) -> Iterator[Recipe]:
        """Those of the parts that are compositions."""
        return (part for part in self.parts.values() if isinstance(part, Recipe))


def is_composition(names: Collection[str], where: Path) -> bool:
    """Whether files of these names are a composition's. Raises FileError where they are an
    adapter's as well."""
    both = [name for name in (CONFIG, TENSORS) if name in names]
    if RECIPE in names and both:
        raise FileError(
            f"{where} holds a composition ({RECIPE}) and an adapter ({both[0]}); remove the files "
            "of the one that is not meant"
        )
    return RECIPE in names


def is_part_file(path: str) -> bool:
    """Whether a file is one of a part."""
    return PART_FILE.fullmatch(path) is not None


def digest_contents(contents: Contents, where: Path = Path()) -> str:
    """The content digest of a version's files, the same as in a registry: without what else is
    there, and without the numbers that are told outside of one. Raises FileError."""
    if RECIPE in contents:
        return parse_recipe(contents[RECIPE], where / RECIPE).digest
    files = {name: contents[name] for name in FILES if name in contents}
    if MANIFEST in files:
        manifest = read_json(where / MANIFEST, files[MANIFEST])
        files[MANIFEST] = format_json({**manifest, "version": None})
    return digest_files({name: hashlib.sha256(data).hexdigest() for name, data in files.items()})


def list_files(folder: Path) -> list[str]:
    """The paths of the files that are in a folder, and in its folders of parts. Raises OSError."""
    places = (*folder.iterdir(), *folder.glob(f"{PARTS}/*/*"))
    return sorted(place.relative_to(folder).as_posix() for place in places if place.is_file())


def read_folder(folder: Path) -> dict[str, bytes]:
    """The files of the adapter or the composition in a folder, unchecked. Raises FileError."""
    if not (folder / RECIPE).is_file():
        return read_contents(folder)
    try:
        names = list_files(folder)
    except OSError as error:
        raise FileError(f"can't read {folder}: {error.strerror or error}") from error
    is_composition(names, folder)
    return gather_contents(names, lambda name: read_file(folder / name), folder)


def load_contents(
    contents: Contents, where: Path, *, reference: str | None = None
) -> Adapter | Operator:
    """The adapter, or the composition, in these files. `where` is what errors call the place they
    are in. Raises FileError, MethodError, ConfigError."""
    if is_composition(contents, where):
        return parse_bundle(contents, where).load(where)
    return Adapter.parse(contents, where, reference=reference)


def pack_version(registry: Registry, version: Version) -> dict[str, bytes]:
    """All files of a version by their path, with the references that they have in this registry.
    Raises CorruptBlob, FileError."""
    versions = {one.reference: one for one in registry.collect([version])}
    contents: dict[str, bytes] = {}
    for reference, one in versions.items():
        folder = "" if reference == version.reference else f"{PARTS}/{one.digest}/"
        if one.kind == "composition":
            recipe = read_recipe(registry, one, versions)
            contents[folder + RECIPE] = format_recipe(recipe.label(reference, one.parents))
            continue
        files = registry.read_files(one)
        if MANIFEST in files:
            files[MANIFEST] = edit_manifest(files[MANIFEST], version=reference)
        contents |= {f"{folder}{name}": data for name, data in files.items()}
    return contents


def gather_contents(
    names: Collection[str], read: Callable[[str], bytes], where: Path
) -> dict[str, bytes]:
    """The files of a composition out of those that there are, unchecked: what its recipe calls for,
    and nothing else. Raises FileError for a recipe, and what `read` raises."""
    contents = {RECIPE: read(RECIPE)}
    due, done = [RECIPE], set[str]()
    while due:
        recipe = due.pop()
        for entry in parse_recipe(contents[recipe], where / recipe).parts:
            if entry.digest in done:
                continue
            done.add(entry.digest)
            paths = [f"{PARTS}/{entry.digest}/{name}" for name in (RECIPE, *FILES)]
            if paths[0] in names:
                del paths[1:]
                due += paths
            contents |= {path: read(path) for path in paths if path in names}
    return contents


def parse_bundle(contents: Contents, where: Path) -> Bundle:
    """Hold a composition's files against the digests in its recipe. `where` names them in the
    FileError that it raises where a part is missing or is not the one."""
    top = parse_recipe(contents[RECIPE], where / RECIPE)
    parts: dict[str, Recipe | Contents] = {}
    due: list[tuple[str, str | None]] = [
        (entry.digest, entry.version) for entry in reversed(top.parts)
    ]
    while due:
        digest, label = due[-1]
        part = parts.get(digest) or read_part(contents, where, digest, label)
        missing = [
            (entry.digest, entry.version)
            for entry in (part.parts if isinstance(part, Recipe) else ())
            if entry.digest not in parts
        ]
        if missing:
            due += reversed(missing)
        else:
            parts[digest] = part
            due.pop()
    return Bundle(top, parts)


def read_part(contents: Contents, where: Path, digest: str, label: str | None) -> Recipe | Contents:
    """A part, with the digest that a recipe tells. Raises FileError."""
    folder = f"{PARTS}/{digest}"
    files = {
        name: contents[f"{folder}/{name}"]
        for name in (RECIPE, *FILES)
        if f"{folder}/{name}" in contents
    }
    path = where / folder
    who = f"the part {label}" if label is not None else "a part"
    for name in () if RECIPE in files else (CONFIG, TENSORS):
        if name not in files:
            raise FileError(f"{path} has no {name}, and {who} needs it; fetch the composition anew")
    found = digest_contents(files, path)
    if found != digest:
        raise FileError(
            f"{path} is not {who} that {RECIPE} describes: its content digest is {found[:12]}; it "
            "was changed or damaged: fetch it anew"
        )
    return parse_recipe(files[RECIPE], path / RECIPE) if RECIPE in files else files
