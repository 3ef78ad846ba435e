"""Arrivals: compositions from elsewhere, a remote or a folder, on their way into a registry.

A part comes under the name that it was published under, and is the version that it already is
where the registry has its content under that name. A name that stands for something else is never
added to, unless that was at the same remote before, or the user says that they belong together.
What a killed arrival left is nothing else: all of it arrives again.
"""

from __future__ import annotations

import logging
from collections.abc import Collection, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from hub.adapter import Adapter
from hub.binding import check_bases
from hub.errors import FileError
from hub.recipes.bundles import Bundle, Contents, digest_contents
from hub.recipes.parts import add_recipe
from hub.recipes.recipe import RECIPE, PartEntry, Recipe
from hub_registry import AlreadyExists, UnknownReference, Version
from hub_registry.names import check_name

if TYPE_CHECKING:
    from hub.registration import Registry

log = logging.getLogger("hub")

Key = tuple[str, str]
"""A part: its content digest, and its name in the registry."""


class Arrival:
    """A composition that is to be registered.

    where: what errors call the place that it comes from; remote: what publications call it, None
        for a folder that is no remote.
    names: what parts are to be called here, by the names that they were published under.
    """

    def __init__(
        self,
        registry: Registry,
        bundle: Bundle,
        where: Path,
        *,
        remote: str | None = None,
        names: Mapping[str, str] | None = None,
    ) -> None:
        self.registry = registry
        self.bundle = bundle
        self.where = where
        self.remote = remote
        self.names = dict(names or {})

    def register(self, name: str, note: str | None) -> Version:
        """Store the parts that are not here yet, and the composition as the next version of `name`.

        Everything is checked before the first of them is stored. Raises FileError, MethodError,
        ConfigError, BaseMismatch, AttachError (it can be attached to no model), BadName,
        UnknownReference (`names` names no part), AlreadyExists (a part's name is another's),
        StorageError.
        """
        from hub.attachment.admission import check_meaning

        check_name(name)
        composition = self.bundle.load(self.where)
        check_meaning(composition)
        adapters = dict.fromkeys(a for a in composition.leaves() if isinstance(a, Adapter))
        check_bases([(a.label, a.base) for a in adapters if a.base is not None])
        self._check_names()
        recipe = self.bundle.recipe
        known = find_same(self.registry.list(name), recipe.digest)
        if known is not None:
            self._note_names(known)
            return self._store_again(known, note)
        found, missing = self._look()
        for key, entry in sorted(missing.items(), key=lambda item: self._rank(item[1])):
            found[key] = self._store(self.bundle.parts[entry.digest], found, key[1], note)
        return self._store(recipe, found, name, note)

    def list_digests(self, name: str) -> set[str]:
        """The content digests of the parts that are to be called so. Raises FileError, BadName."""
        recipes = [self.bundle.recipe, *self.bundle.recipes()]
        keys = {self._find_key(entry) for recipe in recipes for entry in recipe.parts}
        return {digest for digest, called in keys if called == name}

    def _look(self) -> tuple[dict[Key, Version], dict[Key, PartEntry]]:
        """The parts that are here, and those that are to be stored. Raises AlreadyExists."""
        found: dict[Key, Version] = {}
        missing: dict[Key, PartEntry] = {}
        due = list(self.bundle.recipe.parts)
        while due:
            entry = due.pop(0)
            key = self._find_key(entry)
            if key in found or key in missing:
                continue
            version = self._find_here(entry, key[1])
            if version is not None:
                found[key] = version
                continue
            missing[key] = entry
            part = self.bundle.parts[entry.digest]
            due += part.parts if isinstance(part, Recipe) else ()
        return found, missing

    def _find_here(self, entry: PartEntry, name: str) -> Version | None:
        """The version that a part already is; None where it may be the next of `name`. Raises
        AlreadyExists where it may not."""
        same = find_same(self.registry.list(name), entry.digest)
        published = find_name(entry, self.where)
        if same is not None or published in self.names:
            return same
        other = find_other(self.registry, name, self.list_digests(name), self.remote)
        if other is None:
            return None
        raise AlreadyExists(
            f"{entry.version}, a part of {self.where}, can't come as {name}: that is here already "
            f"({other.reference}) and was never there; name the part {name} to make this its next "
            f"version, or otherwise (--part {published}=NAME, in Python names=)"
        )

    def _store(
        self, part: Recipe | Contents, found: Mapping[Key, Version], name: str, note: str | None
    ) -> Version:
        entries = part.parts if isinstance(part, Recipe) else ()
        parents = [found[self._find_key(entry)] for entry in entries]
        return add_arrived(self.registry, part, name, note, parents)

    def _store_again(self, known: Version, note: str | None) -> Version:
        """Add what is here already, which mends it where it is damaged."""
        for version in self.registry.collect([known]):
            part = self.bundle.parts.get(version.digest)
            if part is not None:
                add_again(self.registry, version, part)
        add_again(self.registry, known, self.bundle.recipe, note)
        return known

    def _note_names(self, known: Version) -> None:
        """Say which of `names` are not needed, since the composition is here with other names."""
        there = {name_of(version.reference) for version in self.registry.collect([known])}
        spare = [f"{old}={new}" for old, new in self.names.items() if new not in there]
        if spare:
            log.warning(
                f"{known.reference} is here already, {known.config['composition']}, so nothing is "
                f"renamed: {', '.join(spare)} {'were' if len(spare) > 1 else 'was'} not needed"
            )

    def _find_key(self, entry: PartEntry) -> Key:
        published = find_name(entry, self.where)
        return entry.digest, check_name(self.names.get(published, published))

    def _rank(self, entry: PartEntry) -> tuple[bool, int, str, int]:
        """Adapters first, by their numbers elsewhere; compositions after their parts."""
        is_recipe = isinstance(self.bundle.parts[entry.digest], Recipe)
        position = list(self.bundle.parts).index(entry.digest) if is_recipe else 0
        name, _, number = str(entry.version).partition("@")
        return is_recipe, position, name, int(number) if number.isdigit() else 0

    def _check_names(self) -> None:
        """Raise UnknownReference where `names` names no part."""
        recipes = [self.bundle.recipe, *self.bundle.recipes()]
        parts = {find_name(entry, self.where) for recipe in recipes for entry in recipe.parts}
        for name in sorted(self.names.keys() - parts):
            raise UnknownReference(
                f"{self.where} has no part {name!r}; its parts are {', '.join(sorted(parts))}"
            )


def add_arrived(
    registry: Registry,
    part: Recipe | Contents,
    name: str,
    note: str | None,
    parents: Sequence[Version] = (),
) -> Version:
    """Store an adapter's files, or a composition of `parents`, as the next version of `name`.

    Where another process stored the same meanwhile, with a note of its own, it is that version.
    Raises what `Registry.add` raises.
    """
    try:
        if isinstance(part, Recipe):
            return add_recipe(registry, part, parents, name=name, note=note)
        return registry.add(part, name=name, note=note)
    except AlreadyExists:
        digest = part.digest if isinstance(part, Recipe) else digest_contents(part)
        version = find_same(registry.list(name), digest)
        if version is None:
            raise
        return version


def add_again(
    registry: Registry, version: Version, part: Recipe | Contents, note: str | None = None
) -> None:
    """Store what a version already is, which mends its blobs where they are damaged. Raises
    AlreadyExists where it has another note."""
    if isinstance(part, Recipe):
        parents = [registry.get(parent) for parent in version.parents]
        add_recipe(registry, part, parents, name=version.adapter, note=note)
    else:
        registry.add(part, name=version.adapter, task=version.task, note=note)


def find_same(versions: Sequence[Version], digest: str) -> Version | None:
    """The version with this content."""
    return next((version for version in versions if version.digest == digest), None)


def find_other(
    registry: Registry, name: str, digests: Collection[str], remote: str | None
) -> Version | None:
    """The newest version that makes `name` another than the one of what arrives from a remote, or
    a folder; None where there is no such.

    digests: all that arrives under that name.
    """
    if remote is not None and remote in {there for _, there, _ in registry.publications(name)}:
        return None
    versions = registry.list(name)
    return next((version for version in versions if version.digest not in digests), None)


def find_name(entry: PartEntry, where: Path) -> str:
    """The name that a part was published under. Raises FileError where it has none."""
    if entry.version is None:
        raise FileError(
            f"{where / RECIPE} does not say what its part {entry.digest[:12]} is called; fetch the "
            "composition anew"
        )
    return name_of(entry.version)


def name_of(reference: str) -> str:
    """The name in a reference."""
    return reference.partition("@")[0]
