"""`generate` for rows with parts of their own: each gives what it gives alone."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import pytest
import torch
from torch import Tensor
from transformers import StaticCache

import hub
from hub.errors import AttachError
from tests.composition.batches import (
    CLOSE,
    Batch,
    attach_alone,
    build_batch,
    make_rows,
    measure,
    pick,
)

KINDS = ["llama", "gpt2", "opt", "bloom", "gpt_neox", "mixtral", "mamba", "t5"]
NEW = 3
BEAMS = dict(num_beams=2, num_return_sequences=2)
WAYS: dict[str, dict[str, Any]] = {
    "cache": {},
    "beams": BEAMS,
    "no cache": dict(use_cache=False),
    "beams, no cache": dict(use_cache=False, **BEAMS),
}


def generate(batch: Batch, inputs: Mapping[str, Any], **options: Any) -> Any:
    """New tokens, with their logits."""
    options = {
        **dict(do_sample=False, pad_token_id=0, eos_token_id=None),
        **dict(max_new_tokens=NEW, min_new_tokens=NEW),
        **options,
    }
    given = {name: value for name, value in inputs.items() if name != "decoder_input_ids"}
    with torch.no_grad():
        return batch.model.generate(
            **given, **options, output_logits=True, return_dict_in_generate=True
        )


def find_wrong(batch: Batch, inputs: Mapping[str, Any], found: Any, **options: Any) -> list[str]:
    """The rows whose tokens or logits are not those that they give alone."""
    wrong = []
    logits = torch.stack(found.logits, 1)
    count = len(batch.parts)
    for row, (name, part) in enumerate(batch.parts.items()):
        with attach_alone(batch.model, part):
            alone = generate(batch, pick(inputs, row), **options)
        own = slice(*(len(found.sequences) // count * place for place in (row, row + 1)))
        seen = slice(*(len(logits) // count * place for place in (row, row + 1)))
        same = torch.equal(found.sequences[own, -NEW:], alone.sequences[:, -NEW:])
        if not same or not measure(logits[seen], torch.stack(alone.logits, 1)) < CLOSE:
            wrong.append(name)
    return wrong


def choose_parts(kind: str) -> Batch:
    """Those that differ in what a cache holds of them, and some others."""
    names = ["lora", "ia3", "prefix", "none", "prompt", "houlsby", "ptuning", "stack"]
    batch = build_batch(kind)
    return batch.only(*(name for name in names if name in batch.parts))


@pytest.mark.parametrize(
    ("kind", "way"),
    [(kind, way) for kind in KINDS for way in WAYS if kind in ("llama", "t5") or "no" not in way],
)
def test_each_row_generates_what_it_does_alone(kind: str, way: str) -> None:
    batch = choose_parts(kind)
    inputs = make_rows(batch, padding="right" if kind == "t5" else "left")
    with batch.attach():
        found = generate(batch, inputs, **WAYS[way])
    assert find_wrong(batch, inputs, found, **WAYS[way]) == []


def test_sampled_rows_are_those_of_the_part_that_they_come_from() -> None:
    """Several samples of a row have its part, as its beams do."""
    batch = build_batch("llama").only("lora", "prompt", "none")
    inputs = make_rows(batch)
    options = dict(do_sample=True, num_return_sequences=3, top_k=1)
    with batch.attach():
        found = generate(batch, inputs, **options)
    assert find_wrong(batch, inputs, found, **options) == []


def test_rows_that_end_early_leave_the_others_as_they_are() -> None:
    batch = build_batch("llama").only("lora", "prompt", "prefix", "none")
    inputs = make_rows(batch)
    with batch.attach():
        whole = generate(batch, inputs).sequences
        end = int(whole[1, -2])  # where the second row ends early
        found = generate(batch, inputs, eos_token_id=end, min_new_tokens=0).sequences
    for row, other in zip(found[:, 6:], whole[:, 6:], strict=True):
        places = (other == end).nonzero().flatten().tolist()
        last = places[0] + 1 if places else NEW
        assert torch.equal(row[:last], other[:last])
        assert not row[last:].any()


def test_a_static_cache_serves_rows_with_what_it_serves_alone() -> None:
    names = ["lora", "ia3", "prefix", "houlsby", "none"]
    batch = build_batch("llama").only(*names)
    inputs = make_rows(batch, padding="left")
    options = dict(cache_implementation="static", disable_compile=True)
    with batch.attach():
        found = generate(batch, inputs, **options)
    assert find_wrong(batch, inputs, found, **options) == []


def test_a_static_cache_that_virtual_tokens_can_not_use_is_refused() -> None:
    batch = build_batch("llama").only("lora", "prompt")
    with batch.attach(), pytest.raises(AttachError, match="cache_implementation='dynamic'"):
        generate(batch, make_rows(batch), cache_implementation="static", disable_compile=True)
    kept = StaticCache(config=batch.model.config, max_cache_len=8)
    with batch.attach(), pytest.raises(AttachError, match="holds 8 positions and needs 9"):
        batch.model(input_ids=make_rows(batch)["input_ids"], past_key_values=kept)


@pytest.mark.parametrize("kind", ["llama", "gpt2", "opt", "bloom", "mamba"])
def test_a_forward_goes_on_from_the_cache_of_its_rows(kind: str) -> None:
    batch = build_batch(kind)
    ids = make_rows(batch)["input_ids"]
    name = "cache_params" if kind == "mamba" else "past_key_values"
    with batch.attach(), torch.no_grad():
        whole = batch.model(input_ids=ids).logits
        first = batch.model(input_ids=ids[:, :4], use_cache=True)
        parts, kept = [first.logits], first[name]
        for place in range(4, 6):
            rest = batch.model(input_ids=ids[:, place : place + 1], use_cache=True, **{name: kept})
            parts.append(rest.logits)
            kept = rest[name]
    assert measure(torch.cat(parts, dim=1), whole) < CLOSE


@contextmanager
def keep_cache(batch: Batch, ids: Tensor) -> Iterator[tuple[hub.Attachment, Any]]:
    with batch.attach() as attachment, torch.no_grad():
        yield attachment, batch.model(input_ids=ids, use_cache=True).past_key_values


@pytest.mark.parametrize("rows", [[1, 0, 2], [2, 2, 2], None, [0, 1, None]])
def test_a_cache_with_virtual_tokens_is_refused_under_other_rows(rows: Any) -> None:
    batch = build_batch("llama").only("lora", "prompt", "prefix")
    ids = make_rows(batch)["input_ids"]
    with keep_cache(batch, ids) as (attachment, kept):
        if rows is None:
            with attachment.disabled(), pytest.raises(AttachError, match="do not act now"):
                batch.model(input_ids=ids[:, :1], past_key_values=kept)
            return
        attachment.route(rows)
        with pytest.raises(AttachError, match="do not act now; start from an empty cache"):
            batch.model(input_ids=ids[:, :1], past_key_values=kept)


def test_a_cache_without_virtual_tokens_is_taken_under_other_rows() -> None:
    """As continuous batching does: a row's adapter may change what follows."""
    batch = build_batch("llama").only("lora", "houlsby", "none")
    ids = make_rows(batch)["input_ids"]
    with keep_cache(batch, ids) as (attachment, kept):
        attachment.route([1, 1, 0])
        batch.model(input_ids=ids[:, :1], past_key_values=kept)


@pytest.mark.parametrize("kind", ["llama", "t5", "mamba"])
@pytest.mark.parametrize("way", ["cache", "beams"])
def test_parallel_generates_a_row_for_each_part(kind: str, way: str) -> None:
    batch = choose_parts(kind)
    inputs = make_rows(batch.only("lora", "none"), padding="right" if kind == "t5" else "left")
    composition = hub.Parallel(*batch.parts.values())
    with hub.attach(batch.model, composition, trainable=False):
        found = generate(batch, inputs, **WAYS[way]).sequences
    each = len(found) // len(batch.parts)
    for place, (name, part) in enumerate(batch.parts.items()):
        with attach_alone(batch.model, part):
            alone = generate(batch, inputs, **WAYS[way]).sequences
        own = found[place * each : (place + 1) * each]
        assert torch.equal(own[:, -NEW:], alone[:, -NEW:]), name
