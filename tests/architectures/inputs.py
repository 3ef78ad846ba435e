"""Batches of token ids that an architecture takes: no special tokens, no images."""

from __future__ import annotations

import inspect
import re
from collections.abc import Iterator, Mapping
from typing import Any

import torch

from tests.architectures.shrinking import VOCABULARY

ROWS = 2
LENGTH = 8


def find_inputs(model: Any, task: str) -> dict[str, Any]:
    """A batch that the bare model takes.

    Raises the first error where none of those that are tried does.
    """
    failure: Exception | None = None
    for length in (LENGTH, 16, 64):
        for ended, masked, cached in ((0, 1, 1), (1, 1, 1), (0, 0, 1), (0, 1, 0)):
            inputs = make_inputs(model, task, length, ended=ended, masked=masked, cached=cached)
            try:
                check_logits(model, inputs)
            except Exception as error:
                failure = failure or error
            else:
                return inputs
    assert failure is not None
    raise failure


def check_logits(model: Any, inputs: dict[str, Any]) -> None:
    """Raise ValueError unless the logits are there, finite, and the same in another forward."""
    with torch.no_grad():
        logits = [run(model, inputs) for _ in range(2)]
    if logits[0].shape[0] != ROWS or not torch.isfinite(logits[0]).all():
        raise ValueError(f"the logits are {tuple(logits[0].shape)} or not finite")
    if not torch.equal(*logits):
        raise ValueError("two forwards differ")


def run(model: Any, inputs: dict[str, Any], seed: int = 0) -> torch.Tensor:
    """The logits, with the same random numbers each time."""
    torch.manual_seed(seed)
    logits: torch.Tensor = model(**inputs).logits
    return logits


def make_inputs(
    model: Any,
    task: str,
    length: int,
    *,
    ended: int = 0,
    masked: int = 1,
    cached: int = 1,
    seed: int = 1,
) -> dict[str, Any]:
    """Rows of words; `ended` by the end-of-sequence token, with an attention mask where `masked`,
    asking for no cache where not `cached`."""
    parameters = inspect.signature(model.forward).parameters
    words = list_words(model)
    generator = torch.Generator().manual_seed(seed)

    def draw() -> torch.Tensor:
        places = torch.randint(0, len(words), (ROWS, length), generator=generator)
        return torch.tensor(words)[places]

    name = "input_ids" if "input_ids" in parameters else model.main_input_name
    inputs: dict[str, Any] = {name: draw()}
    if ended:
        inputs[name][:, -1] = end_token(model)
    if masked and "attention_mask" in parameters:
        inputs["attention_mask"] = torch.ones_like(inputs[name])
    if not cached and "use_cache" in parameters:
        inputs["use_cache"] = False
    if task == "seq2seq" and "decoder_input_ids" in parameters:
        inputs["decoder_input_ids"] = draw()
    return inputs


def list_words(model: Any) -> list[int]:
    """The token ids that no configuration gives a meaning."""
    settings = model.config.to_dict()
    vocabulary = min(
        (n for name, n in walk_numbers(settings) if name.endswith("vocab_size") and n > 16),
        default=VOCABULARY,
    )
    special = {
        number
        for name, number in walk_numbers(settings)
        if re.search("_(id|ids|index|token)$", name)
    }
    return [word for word in range(3, vocabulary) if word not in special]


def end_token(model: Any) -> int:
    """The end-of-sequence token."""
    ids = [
        number for name, number in walk_numbers(model.config.to_dict()) if name == "eos_token_id"
    ]
    return max(ids, default=2)


def walk_numbers(settings: Mapping[str, Any]) -> Iterator[tuple[str, int]]:
    """Every whole number in a configuration, its parts included, and its name."""
    for name, value in settings.items():
        if isinstance(value, Mapping):
            yield from walk_numbers({str(key): item for key, item in value.items()})
        else:
            values = value if isinstance(value, list | tuple) else [value]
            yield from ((name, n) for n in values if isinstance(n, int) and not isinstance(n, bool))
