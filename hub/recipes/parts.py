"""Parts: the versions that a registry's compositions are made of."""

from __future__ import annotations

import json
import logging
from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

from hub.binding import UNKNOWN, check_bases
from hub.errors import FileError
from hub.recipes.recipe import RECIPE, Recipe, format_recipe, parse_recipe
from hub_registry import CorruptBlob, Fault, Version

if TYPE_CHECKING:
    from hub.composition import Operator, Part
    from hub.registration import Registry

log = logging.getLogger("hub")


def add_recipe(
    registry: Registry, recipe: Recipe, parts: Sequence[Version], *, name: str, note: str | None
) -> Version:
    """Store a composition of these versions, in the order of its recipe.

    Raises BaseMismatch where they are not for one base, AttachError where they can act together on
    no model, and what `Registry.add_files` raises.
    """
    from hub.attachment.admission import check_meaning

    check_parts(recipe, parts, Path(name, RECIPE))
    outlines = load_parts(registry, parts, partial(outline, registry))
    check_meaning(recipe.fill([outlines[part.reference] for part in parts]))
    tree = recipe.fill([part.reference for part in parts])
    adapters = list_adapters(registry, parts)
    for text in check_bases([(version.reference, version.base) for version in adapters]):
        log.warning(text)
    known = [version.base for version in adapters if version.base.architecture != UNKNOWN]
    return registry.add_files(
        {RECIPE: format_recipe(recipe.label(None, [None] * len(parts)))},
        name=name,
        task=recipe.task,
        method=tree.name,
        base=known[0] if known else adapters[0].base,
        config={"composition": str(tree)},
        parents=parts,
        note=note,
        kind="composition",
    )


def list_adapters(registry: Registry, parts: Sequence[Version]) -> list[Version]:
    """The adapters among these versions and in the compositions among them, each once, in the order
    of their first place."""
    known = {version.reference: version for version in registry.collect(parts)}
    found: dict[str, Version] = {}
    seen: set[str] = set()
    due = [part.reference for part in reversed(parts)]
    while due:
        version = known[due.pop()]
        if version.reference in seen:
            continue
        seen.add(version.reference)
        if version.kind == "composition":
            due += reversed(version.parents)
        else:
            found[version.reference] = version
    return list(found.values())


def read_recipe(registry: Registry, version: Version, parts: Mapping[str, Version]) -> Recipe:
    """A composition's recipe, held against the versions that are its parents, which are among
    `parts`. Raises CorruptBlob, FileError."""
    where = Path(version.reference, RECIPE)
    recipe = parse_recipe(registry.read(version, RECIPE), where)
    check_parts(recipe, [parts[parent] for parent in version.parents], where)
    return recipe


def check_parts(recipe: Recipe, parts: Sequence[Version], where: Path) -> None:
    """Raise FileError where a recipe is made of other parts than these."""
    if [entry.digest for entry in recipe.parts] != [part.digest for part in parts]:
        raise FileError(
            f"{where} is made of other parts than {', '.join(part.reference for part in parts)}; "
            "the registry's database is damaged: restore it from a backup"
        )


def load_composition(registry: Registry, version: Version) -> Operator:
    """A composition with its adapters loaded, each once. Raises what `Registry.load` raises."""
    loaded = load_parts(registry, [version], registry.load)
    return loaded[version.reference]  # type: ignore[return-value]


def load_parts(
    registry: Registry, parts: Sequence[Version], load: Callable[[Version], Part]
) -> dict[str, Part]:
    """These versions, and all that they are made of, by reference: an adapter as `load` gives it,
    once, a composition filled with those. Raises what `load` raises, and CorruptBlob, FileError."""
    loaded: dict[str, Part] = {}
    versions = {one.reference: one for one in registry.collect(parts)}
    for reference, one in versions.items():
        if one.kind == "composition":
            recipe = read_recipe(registry, one, versions)
            loaded[reference] = recipe.fill([loaded[part] for part in one.parents])
        else:
            loaded[reference] = load(one)
    return loaded


def outline(registry: Registry, version: Version) -> Part:
    """An adapter without its tensors, but for those of a trained head. Raises what `Registry.load`
    raises."""
    from hub.adapter import Adapter
    from hub.files import CONFIG

    if json.loads(registry.read(version, CONFIG)).get("modules_to_save"):
        return registry.load(version)
    return Adapter(version.method, None, {}, reference=version.reference)


def find_part_faults(
    registry: Registry, compositions: Sequence[Version], parts: Mapping[str, Version]
) -> Iterator[Fault]:
    """Where a recipe is not the one of the parts that a composition has. A damaged blob is left to
    who reads them all."""
    for version in compositions:
        try:
            read_recipe(registry, version, parts)
        except CorruptBlob:
            continue
        except FileError as error:
            yield Fault(str(error), version.reference, RECIPE)
