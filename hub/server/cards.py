"""README.md's metadata, and the tags that the Hub derives from it."""

from __future__ import annotations

import json
import re
from collections.abc import Collection
from functools import lru_cache
from typing import Any

import yaml

Card = dict[str, Any]

LARGEST = 1024 * 1024  # bytes of a README.md that is read for its metadata
_LARGEST_METADATA = 256 * 1024  # characters
_DEEPEST = 64  # levels of lists and mappings

_FRONT_MATTER = re.compile(r"\s*---[ \t]*\r?\n(.*?)^---[ \t]*\r?$", re.DOTALL | re.MULTILINE)
_ONE = ("library_name", "pipeline_tag", "license", "base_model_relation")
_MANY = ("tags", "language", "datasets", "base_model")


class CardError(ValueError):
    """Metadata that can't be read; the message is one line for whoever wrote it."""


@lru_cache(maxsize=1024)
def parse_card(readme: bytes) -> Card:
    """The metadata as JSON has it; empty without a front matter. Shared: not to be changed.

    Raises `CardError`.
    """
    try:
        text = readme.decode()
    except UnicodeDecodeError as error:
        raise CardError(f"README.md is not UTF-8: {error}") from error
    matter = _FRONT_MATTER.match(text)
    if matter is None:
        return {}
    card = _load_yaml(matter[1])
    if not isinstance(card, dict):
        raise CardError(f"the metadata is a {type(card).__name__}, and must be a mapping")
    for key in _ONE:
        if not isinstance(card.get(key, ""), str):
            raise CardError(f"{key} is {card[key]!r}, and must be a text")
    for key in _MANY:
        value = card.get(key, "")
        values = value if isinstance(value, list) else [value]
        if not all(isinstance(each, str) for each in values):
            raise CardError(f"{key} is {value!r}, and must be a text or a list of texts")
    return card


def derive_tags(card: Card, paths: Collection[str]) -> list[str]:
    """What `list_models(filter=...)` looks in, from a card and the names of the files."""
    library = find_library(card, paths)
    tags = [library] if library else []
    if any(path.endswith(".safetensors") for path in paths):
        tags.append("safetensors")
    tags += _listed(card, "tags")
    tags += [card["pipeline_tag"]] if card.get("pipeline_tag") else []
    tags += _listed(card, "language")
    tags += [f"dataset:{dataset}" for dataset in _listed(card, "datasets")]
    relation = card.get("base_model_relation") or (
        "adapter" if "adapter_config.json" in paths else "finetune"
    )
    for base in _listed(card, "base_model"):
        tags += [f"base_model:{base}", f"base_model:{relation}:{base}"]
    tags += [f"license:{card['license']}"] if card.get("license") else []
    return list(dict.fromkeys(tags))


def find_library(card: Card, paths: Collection[str]) -> str | None:
    """The library that loads the repo: what the card says, or peft by its file."""
    named: str | None = card.get("library_name")
    return named or ("peft" if "adapter_config.json" in paths else None)


def _listed(card: Card, key: str) -> list[str]:
    value = card.get(key) or []
    return [value] if isinstance(value, str) else list(value)


def _load_yaml(text: str) -> Any:
    """YAML as JSON has it: dates are texts, and what is no number is null."""
    if len(text) > _LARGEST_METADATA:
        raise CardError(f"the metadata is over {_LARGEST_METADATA} characters")
    try:
        _check_shape(text)
        loaded = yaml.safe_load(text)
        return json.loads(
            json.dumps({} if loaded is None else loaded, default=str),
            parse_constant=lambda constant: None,
        )
    except (yaml.YAMLError, TypeError, ValueError, RecursionError) as error:
        if isinstance(error, CardError):
            raise
        raise CardError(f"the metadata is no YAML: {' '.join(str(error).split())}") from error


def _check_shape(text: str) -> None:
    """Refuse what a short text can cost a long time or much memory with."""
    depth = 0
    for event in yaml.parse(text):
        if isinstance(event, yaml.AliasEvent):
            raise CardError("the metadata has a YAML alias (*name), write its value instead")
        depth += isinstance(event, yaml.CollectionStartEvent)
        depth -= isinstance(event, yaml.CollectionEndEvent)
        if depth > _DEEPEST:
            raise CardError(f"the metadata is nested more than {_DEEPEST} deep")
