"""Parts of a sequence with adapters of their own."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor

import hub
from hub.composition import Part
from hub.errors import AttachError
from tests.architectures.cells import Cell, build_model
from tests.composition.batches import CLOSE, OPTIONS, attach_alone, measure
from tests.snapshots import shake_adapter
from tests.tiny import build_tiny

GREEDY: dict[str, Any] = dict(do_sample=False, pad_token_id=0, eos_token_id=None)
KINDS = ["llama", "gpt2", "opt", "bloom", "gpt_neox", "mixtral", "llama4"]
IDS = torch.randint(5, 90, (2, 7), generator=torch.Generator().manual_seed(3))
AT = 3


def build(kind: str) -> Any:
    return build_model(Cell("causal", "llama4_text")) if kind == "llama4" else build_tiny(kind)


def make(model: Any, method: str, seed: int = 1, **options: Any) -> hub.Adapter:
    adapter = hub.Adapter.create(method, model, **{**OPTIONS[method], **options})
    shaken: hub.Adapter = shake_adapter(adapter, seed=seed, scale=0.2)
    return shaken


def run(model: Any, ids: Tensor = IDS, **more: Any) -> Tensor:
    with torch.no_grad():
        logits: Tensor = model(input_ids=ids, **more).logits
    return logits


def run_in_turn(model: Any, parts: list[Part], at: list[int]) -> Tensor:
    """One part after the other, each on the keys and values that those before it left."""
    bounds = [0, *at, IDS.shape[1]]
    found, kept = [], None
    for part, start, end in zip(parts, bounds, bounds[1:], strict=False):
        with attach_alone(model, part), torch.no_grad():
            output = model(input_ids=IDS[:, start:end], past_key_values=kept, use_cache=True)
        found.append(output.logits)
        kept = output.past_key_values
    return torch.cat(found, dim=1)


@pytest.mark.parametrize("kind", KINDS)
def test_each_part_of_a_sequence_goes_on_from_the_one_before(kind: str) -> None:
    model = build(kind)
    lora, houlsby, ia3 = make(model, "lora"), make(model, "houlsby"), make(model, "ia3")
    parts: list[Part] = [hub.Stack(lora, houlsby), ia3, None, lora]
    at = [2, 3, 6]
    expected = run_in_turn(model, parts, at)
    with hub.attach(model, hub.Split(*parts, at=at), trainable=False):
        assert measure(run(model), expected) < CLOSE
        # A position beyond the end is that of a part without positions, and one token is enough.
        assert measure(run(model, IDS[:, :1]), expected[:, :1]) < CLOSE


@pytest.mark.parametrize("kind", ["llama", "gpt2", "opt", "bloom"])
def test_positions_are_counted_behind_padding_and_in_a_cache(kind: str) -> None:
    model = build(kind)
    split = hub.Split(make(model, "lora"), make(model, "houlsby"), None, at=[AT, 8])
    padded = torch.cat([torch.zeros(1, 2, dtype=torch.long), IDS[:1, :5]], dim=1)
    both = torch.cat([padded, IDS[1:]])
    options = dict(max_new_tokens=4, **GREEDY)
    with hub.attach(model, split, trainable=False):
        alone = [
            model.generate(ids, attention_mask=torch.ones_like(ids), **options)[0, -4:]
            for ids in (IDS[:1, :5], IDS[1:])
        ]
        for more in ({}, {"use_cache": False}):
            made = model.generate(both, attention_mask=(both != 0).long(), **options, **more)
            for row, expected in zip(made, alone, strict=True):
                assert torch.equal(row[-4:], expected)


def test_a_static_cache_is_told_positions_by_their_numbers() -> None:
    model = build("llama")
    split = hub.Split(make(model, "lora"), make(model, "houlsby"), at=AT)
    both = IDS.clone()
    both[0, :2] = 0
    options = dict(attention_mask=(both != 0).long(), max_new_tokens=3, **GREEDY)
    with hub.attach(model, split, trainable=False):
        expected = model.generate(both, **options)
        static = dict(cache_implementation="static", disable_compile=True)
        assert torch.equal(model.generate(both, **options, **static), expected)


@pytest.mark.parametrize("kept", [1, 3, torch.tensor([0, 4])])
def test_the_head_acts_on_the_positions_that_are_kept(kept: Any) -> None:
    model = build("llama")
    split = hub.Split(make(model, "full"), make(model, "full", seed=2), at=AT)
    prompt = make(model, "prompt")
    for composition in (split, hub.Stack(prompt, split)):
        with hub.attach(model, composition, trainable=False):
            whole = run(model)
            found = run(model, logits_to_keep=kept)
        places = kept if isinstance(kept, Tensor) else slice(-kept, None)
        assert measure(found, whole[:, places]) < CLOSE


def test_a_split_of_an_encoder_decoder_counts_each_ones_own_tokens() -> None:
    for kind in ("t5", "bart"):
        model = build_tiny(kind)
        ids = {"input_ids": IDS, "decoder_input_ids": IDS[:, :4]}
        inside = r".*(SelfAttention\.[qkvo]|self_attn\.\w+_proj)"
        one, two = (make(model, "lora", seed=seed, targets=inside) for seed in (1, 2))
        with hub.attach(model, hub.Split(one, one, at=2), trainable=False):
            whole = run_both(model, ids)
        with hub.attach(model, one, trainable=False):
            assert measure(whole, run_both(model, ids)) < CLOSE
            encoded = model.get_encoder()(input_ids=IDS)
        # Beyond the encoder's tokens nothing is split; the decoder's are.
        with hub.attach(model, hub.Split(one, two, at=4), trainable=False):
            split = model.get_encoder()(input_ids=IDS)
            assert not torch.allclose(split[0], encoded[0])
            assert run_both(model, ids).isfinite().all()
        with hub.attach(model, hub.Split(one, two, at=7), trainable=False):
            assert measure(model.get_encoder()(input_ids=IDS)[0], encoded[0]) < CLOSE


def run_both(model: Any, ids: dict[str, Tensor]) -> Tensor:
    with torch.no_grad():
        logits: Tensor = model(**ids).logits
    return logits


@pytest.mark.parametrize(
    ("cell", "options", "where"),
    [
        (Cell("seq2seq", "t5"), {}, "EncDecAttention.k"),
        (Cell("classification", "bert"), {"targets": ("pooler.dense",)}, "pooler.dense"),
        (Cell("seq2seq", "switch_transformers"), {}, "expert_0"),
    ],
    ids=lambda value: value.name if isinstance(value, Cell) else None,
)
def test_what_has_no_positions_is_not_split(
    cell: Cell, options: dict[str, Any], where: str
) -> None:
    model = build_model(cell)
    adapter = hub.Adapter.create("lora", model, head=False, **options)
    with pytest.raises(AttachError, match=rf"{where}.*no positions of a sequence; leave that"):
        hub.attach(model, hub.Split(adapter, None, at=2))
    assert hub.Attachment.of(model) is None
