"""A composition's own file, its recipe: the tree over numbered parts, and what the parts are.

    composition.json
        composition   the tree as it is printed, its leaves the numbers of its parts, from 1 in the
                      order of their first place, and `none`: "stack(1, average(2, 3; 0.7, 0.3))"
        parts         the content digest of each part
        task          what the composition is for
        sha256        of all that, so that an edited weight is found

A recipe is the same in every registry, and so is its content digest: names and numbers belong to a
registry. Outside of one a recipe says beside, in `version`, from which version it and each of its
parts was written. A part may be a composition again; its digest is that of its recipe.
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from hub.documents import format_json, read_json
from hub.errors import AttachError, FileError
from hub_registry.records import digest_files

if TYPE_CHECKING:
    from hub.composition import Operator, Part

RECIPE = "composition.json"
FORMAT = 1
DIGEST = re.compile(r"[0-9a-f]{64}")


@dataclass(frozen=True)
class PartEntry:
    """A part of a recipe: its content digest, and the version that it was written from, a label."""

    digest: str
    version: str | None = None


@dataclass(frozen=True)
class Recipe:
    """What `composition.json` says.

    composition: the tree over the numbers of the parts. version: as of a part.
    """

    composition: str
    parts: tuple[PartEntry, ...]
    task: str | None = None
    version: str | None = None

    @property
    def digest(self) -> str:
        """The content digest, the same as that of the version in a registry."""
        plain = format_recipe(self.label(None, [None] * len(self.parts)))
        return digest_files({RECIPE: hashlib.sha256(plain).hexdigest()})

    def label(self, version: str | None, parts: Sequence[str | None]) -> Recipe:
        """The same, written from these versions."""
        entries = tuple(
            replace(entry, version=label) for entry, label in zip(self.parts, parts, strict=True)
        )
        return replace(self, parts=entries, version=version)

    def fill(self, parts: Sequence[Part]) -> Operator:
        """The composition of these parts, given in the order of the recipe.

        Raises AttachError where the tree is none, or a composition leads a fuse.
        """
        from hub.composition import Fuse, Operator, replace_leaves, walk
        from hub.notation import parse_composition

        tree = parse_composition(self.composition)
        if not isinstance(tree, Operator):
            raise AttachError(f"{self.composition!r} is a part and no composition")
        numbers = dict.fromkeys(leaf for leaf in tree.leaves() if leaf is not None)
        if list(numbers) != [str(number) for number in range(1, len(self.parts) + 1)]:
            raise AttachError(
                f"the parts of {self.composition!r} are not the numbers 1 to {len(self.parts)} in "
                "the order of their first place"
            )
        found = dict(zip(numbers, parts, strict=True))
        for node in walk(tree):
            if isinstance(node, Fuse) and isinstance(found[node.by], Operator):
                raise AttachError(f"what leads a fuse is one adapter, and {node.by} is none")
        filled = replace_leaves(tree, lambda leaf: None if leaf is None else found[leaf])
        assert isinstance(filled, Operator)
        return filled


def format_recipe(recipe: Recipe) -> bytes:
    """The bytes of `composition.json`."""
    return format_json(
        {
            "format": FORMAT,
            "composition": recipe.composition,
            "parts": [{"digest": part.digest, "version": part.version} for part in recipe.parts],
            "task": recipe.task,
            "version": recipe.version,
            "sha256": sum_recipe(recipe),
        }
    )


def sum_recipe(recipe: Recipe) -> str:
    """The sha256 of what a recipe says, its labels apart."""
    digests = [part.digest for part in recipe.parts]
    said = {"composition": recipe.composition, "parts": digests, "task": recipe.task}
    return hashlib.sha256(format_json(said)).hexdigest()


def parse_recipe(data: bytes, where: Path) -> Recipe:
    """What the bytes of a `composition.json` say; `where` names it in the FileError that it raises.

    The tree is read by `Recipe.fill`.
    """
    document = read_json(where, data)
    if document.get("format") != FORMAT:
        raise FileError(
            f"{where} has format {document.get('format')!r}, this pefthub reads {FORMAT}; "
            "upgrade pefthub"
        )
    try:
        recipe = Recipe(
            composition=take_text(document, "composition"),
            parts=tuple(map(read_entry, document["parts"])),
            task=take_text(document, "task", optional=True),
            version=take_text(document, "version", optional=True),
        )
        told = take_text(document, "sha256")
        if not recipe.parts:
            raise TypeError("it has no parts")
    except (KeyError, TypeError, AttributeError) as error:
        raise FileError(
            f"{where} lacks what it must say: {error}; fetch the composition anew"
        ) from error
    found = sum_recipe(recipe)
    if told != found:
        raise FileError(
            f"{where} is not what was written: the sha256 of what it says is {found[:12]}, not "
            f"{told[:12]}; it was changed or damaged: fetch it anew"
        )
    return recipe


def read_entry(entry: Any) -> PartEntry:
    """A part as `composition.json` says it. Raises KeyError, TypeError."""
    digest = take_text(entry, "digest")
    if not DIGEST.fullmatch(digest):
        raise TypeError(f"the digest of a part is {digest!r}, not a sha256 in hex")
    return PartEntry(digest, take_text(entry, "version", optional=True))


def take_text(document: Any, name: str, *, optional: bool = False) -> Any:
    """The text in a field; where it is optional it may be None. Raises KeyError, TypeError."""
    value = document[name]
    if not isinstance(value, str) and not (optional and value is None):
        raise TypeError(f"{name} is {value!r}, not text")
    return value
