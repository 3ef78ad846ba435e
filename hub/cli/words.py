"""The words that an adapter's virtual tokens are nearest to, for `hub show`."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from hub.cli import models
from hub.cli.output import notify, print_table
from hub.errors import HubError
from hub.references import take_adapter

if TYPE_CHECKING:
    import torch

    from hub.readings import Word
    from hub.registration import Registry
    from hub_registry import Version

SINGLE = "model.safetensors"
INDEX = "model.safetensors.index.json"
CONFIG = "adapter_config.json"
# What every adapter with virtual tokens says there, so that others need not be opened.
SIGN = "num_virtual_tokens"


def find_words(
    registry: Registry, version: Version, base: str | None, count: int
) -> list[list[Word]] | None:
    """The nearest words of each virtual token; None where there is nothing to say.

    base: where the words are; the base that the adapter was trained on when left out, where it is
    on this machine: else a note says how to name one. Raises HubError.
    """
    if base is None and SIGN not in read_fields(registry, version):
        return None
    with models.quiet_libraries():
        from hub.readings import find_virtual_tokens, read_words, verify_table

        adapter = take_adapter(registry.load(version), version.reference)
        if base is None and find_virtual_tokens(adapter) is None:
            return None
        place = base or models.name_base(version.base)
        way = f"see the nearest words with hub show {version.reference} --base BASE"
        if place is None:
            notify(f"{version.reference} does not say which base it is for; {way}")
            return None
        try:
            name, table, tokenizer = load_table(place, fetch=base is not None)
        except HubError:
            if base is not None:
                raise
            notify(f"the base {place} can't be read on this machine; {way}")
            return None
        verify_table(adapter, name, table, place)
        return read_words(adapter, table, tokenizer, count)


def read_fields(registry: Registry, version: Version) -> dict[str, Any]:
    """What the version's `adapter_config.json` says; nothing where it has none."""
    if CONFIG not in version.files:
        return {}
    fields = json.loads(registry.read(version, CONFIG))
    return fields if isinstance(fields, dict) else {}


def print_words(words: list[list[Word]]) -> None:
    """A line for each virtual token."""
    click.echo("\nnearest words, and their cosine distance")
    print_table(
        ("token", "words"),
        (
            (
                str(place),
                ", ".join(
                    f"{json.dumps(w.word, ensure_ascii=False)} {w.distance:.3f}" for w in row
                ),
            )
            for place, row in enumerate(words)
        ),
    )


def describe_words(words: list[list[Word]]) -> list[dict[str, Any]]:
    """As JSON shows them."""
    return [
        {"token": place, "nearest": [vars(word) for word in row]} for place, row in enumerate(words)
    ]


def load_table(base: str, *, fetch: bool) -> tuple[str, torch.Tensor, Any]:
    """A base's input embeddings, what it calls them, and its tokenizer.

    No other weight is read. fetch: whether to ask the Hub for what is not on this machine.
    Raises HubError.
    """
    import torch
    from transformers import AutoConfig, AutoModel, AutoTokenizer

    where = models.locate(base) | ({} if fetch else {"local_files_only": True})
    with models.explain_loading(base, "embeddings"):
        config = AutoConfig.from_pretrained(**where)
        with torch.device("meta"):
            model: Any = AutoModel.from_config(config)  # type: ignore[no-untyped-call]
        shape = model.get_input_embeddings().weight.shape
        paths = {id(module): path for path, module in model.named_modules()}
        name = f"{paths[id(model.get_input_embeddings())]}.weight"
        table = read_tensor(where, name, shape)
        if table is None:
            raise HubError(
                f"the base {base} has no safetensors file with its input embeddings ({name}); save "
                "it anew with transformers"
            )
        tokenizer = AutoTokenizer.from_pretrained(**where)
    return name, table, tokenizer


def read_tensor(where: dict[str, Any], name: str, shape: Any) -> torch.Tensor | None:
    """One tensor out of a base's files; None where it is not in them."""
    from safetensors import safe_open
    from transformers.utils.hub import cached_file

    place = {key: value for key, value in where.items() if key != "trust_remote_code"}
    repo = place.pop("pretrained_model_name_or_path")
    place["_raise_exceptions_for_missing_entries"] = False

    files = [SINGLE]
    index = cached_file(repo, INDEX, **place)
    if index is not None:
        parts = json.loads(Path(index).read_text())["weight_map"]
        files = sorted({file for key, file in parts.items() if is_called(key, name)})
    for file in files:
        path = cached_file(repo, file, **place)
        if path is None:
            continue
        with safe_open(path, "pt") as tensors:
            for key in sorted(tensors.keys(), key=len):
                if is_called(key, name) and tuple(tensors.get_slice(key).get_shape()) == shape:
                    return tensors.get_tensor(key)  # type: ignore[no-any-return]
    return None


def is_called(key: str, name: str) -> bool:
    """Whether a file means the tensor `name` by `key`: classes for a task put a word before it."""
    return key == name or key.endswith(f".{name}")
