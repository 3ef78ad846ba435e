"""What a card says, read out of the files that are published."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

from hub.binding import UNKNOWN, guess_base
from hub.files import AdapterFiles, parse_adapter
from hub.recipes.bundles import PARTS, Contents, digest_contents, parse_bundle
from hub.recipes.recipe import RECIPE, Recipe
from hub.remotes.cards import Card, PartRow, name_hub_repo
from hub.remotes.publications import Remote
from hub_registry import BaseIdentity, Version


def make_card(remote: Remote, contents: Contents, version: Version | None) -> Card:
    """The card of these files. Raises FileError where they are not what they should be."""
    where = Path(version.reference if version is not None else remote.label)
    common: dict[str, Any] = {
        "title": version.adapter if version is not None else remote.title,
        "address": remote.address,
        "repo": remote.repo,
        "reference": version.reference if version is not None else None,
        "digest": digest_contents(contents, where),
    }
    describe = describe_composition if RECIPE in contents else describe_adapter
    return describe(common, contents, where, version)


def describe_adapter(
    common: dict[str, Any], contents: Contents, where: Path, version: Version | None
) -> Card:
    """The card of an adapter."""
    files = parse_adapter(contents, where)
    manifest, config = files.manifest, files.config
    training = manifest.lineage.get("training") if manifest is not None else None
    metrics = version.metrics if version is not None else manifest.metrics if manifest else {}
    task = version.task if version is not None else manifest.task if manifest else None
    base = find_base(files, contents)
    return Card(
        **common,
        method=name_method(files),
        peft_type=str(config.get("peft_type")),
        task_type=config.get("task_type"),
        base=name_hub_repo(base.repo),
        base_label=replace(base, repo=None).label,
        task=task,
        values=count_values(files),
        metrics=metrics,
        training=training if isinstance(training, dict) else {},
    )


def describe_composition(
    common: dict[str, Any], contents: Contents, where: Path, version: Version | None
) -> Card:
    """The card of a composition: its base is the first that a part says, and it is for what the
    part with a trained head is for, else the first."""
    bundle = parse_bundle(contents, where)
    adapters: list[AdapterFiles] = []
    bases: list[BaseIdentity] = []
    rows, labels = [], bundle.label_parts()
    for digest, part in bundle.parts.items():
        folder, label = f"{PARTS}/{digest}", labels[digest] or digest[:12]
        if isinstance(part, Recipe):
            rows.append(PartRow(label, print_recipe(part), None, folder))
        else:
            files = parse_adapter(part, where / folder)
            adapters.append(files)
            bases.append(find_base(files, part))
            rows.append(PartRow(label, name_method(files), count_values(files), folder))
    base = next((base for base in bases if base.architecture != UNKNOWN), bases[0])
    leading = sorted(adapters, key=lambda files: not files.config.get("modules_to_save"))
    return Card(
        **common,
        method=bundle.recipe.composition.partition("(")[0],
        peft_type="",
        task_type=leading[0].config.get("task_type"),
        base=name_hub_repo(base.repo),
        base_label=replace(base, repo=None).label,
        task=bundle.recipe.task,
        values=sum(row.values or 0 for row in rows),
        metrics=version.metrics if version is not None else {},
        training={},
        composition=print_recipe(bundle.recipe),
        parts=rows,
    )


def print_recipe(recipe: Recipe) -> str:
    """A composition with the versions that its parts were published from."""
    return str(recipe.fill([entry.version or entry.digest[:12] for entry in recipe.parts]))


def find_base(files: AdapterFiles, contents: Contents) -> BaseIdentity:
    """The base that an adapter's files say."""
    known = files.manifest.base if files.manifest is not None else None
    return known or guess_base(contents)


def name_method(files: AdapterFiles) -> str:
    """The method that an adapter's files say."""
    if files.manifest is not None:
        return files.manifest.method
    return str(files.config.get("peft_type")).lower()


def count_values(files: AdapterFiles) -> int:
    """How many numbers an adapter's tensors hold."""
    return sum(tensor.numel() for tensor in files.tensors.values())
