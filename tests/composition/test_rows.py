"""Each row of a batch has a part of its own, of any method, and equals its own run."""

from __future__ import annotations

from functools import cache
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor
from transformers import AutoConfig, AutoModelForCausalLM, set_seed

import hub
from hub.errors import AttachError
from tests.architectures.cells import Cell, build_model
from tests.composition.batches import (
    CLOSE,
    Batch,
    attach_alone,
    build_batch,
    make_batch,
    make_rows,
    measure,
    pick,
)
from tests.tiny import SPECIAL

# Positions told, learned, counted by the mask, by distance or by none; experts; no attention.
KINDS = ["llama", "gpt2", "bert", "t5", "opt", "bloom", "gpt_neox", "gptj", "mixtral", "mamba"]


def run_rows(batch: Batch, inputs: dict[str, Any], **more: Any) -> Tensor:
    """The logits."""
    with torch.no_grad():
        logits: Tensor = batch.model(**inputs, **more).logits
    return logits


def run_alone(batch: Batch, inputs: dict[str, Any]) -> list[Tensor]:
    """The logits of each row in a run of its own."""
    found = []
    for row, part in enumerate(batch.parts.values()):
        with attach_alone(batch.model, part):
            found.append(run_rows(batch, pick(inputs, row))[0])
    return found


def find_wrong(batch: Batch, inputs: dict[str, Any]) -> dict[str, float]:
    """The rows that are not what they are alone."""
    alone = run_alone(batch, inputs)
    with batch.attach():
        together = run_rows(batch, inputs)
    wrong = {}
    mask = inputs["attention_mask"].bool()
    for name, found, expected, real in zip(batch.parts, together, alone, mask, strict=True):
        seen = real if "decoder_input_ids" not in inputs and found.dim() > 1 else ...
        apart = measure(found[seen], expected[seen])
        if not apart < CLOSE:
            wrong[name] = apart
    return wrong


@pytest.mark.parametrize("padding", [None, "left"])
@pytest.mark.parametrize("kind", KINDS)
def test_each_row_equals_its_own_run(kind: str, padding: str | None) -> None:
    batch = build_batch(kind)
    assert len(batch.parts) > 8
    assert find_wrong(batch, make_rows(batch, padding=padding)) == {}


@pytest.mark.parametrize("kind", ["llama", "bert"])
def test_rows_that_are_padded_on_the_right_equal_their_own_runs(kind: str) -> None:
    batch = build_batch(kind)
    assert find_wrong(batch, make_rows(batch, padding="right")) == {}


@pytest.mark.parametrize("kind", ["bert", "gpt2", "llama", "albert"])
def test_pooled_rows_equal_their_own_runs(kind: str) -> None:
    batch = build_batch(kind, "classification")
    batch = batch.without("stack", "average")  # of adapters with a head each
    inputs = make_rows(batch, padding=None if kind == "bert" else "right")
    assert find_wrong(batch, inputs) == {}


def test_rows_of_a_model_that_has_the_sequence_first() -> None:
    config = AutoConfig.for_model(
        "xlnet", **SPECIAL, d_model=32, n_layer=2, n_head=4, d_inner=48, vocab_size=99
    )
    set_seed(0)
    model: Any = AutoModelForCausalLM.from_config(config).eval()
    batch = make_batch(model)
    assert "prompt" in batch.parts
    # What relates positions is looked up without rows.
    batch = batch.without("full", "diff")
    assert find_wrong(batch, make_rows(batch)) == {}


def test_positions_that_are_counted_by_the_id_of_the_padding() -> None:
    """RoBERTa's begin behind it, whatever the mask says."""
    model = build_model(Cell("masked", "roberta"))
    model.config.pad_token_id = model.base_model.embeddings.padding_idx
    batch = make_batch(model).only("lora", "prefix", "prompt", "ptuning", "none")
    inputs = make_rows(batch)
    assert find_wrong(batch, inputs) == {}
    ids = inputs.pop("input_ids")
    with batch.attach(), pytest.raises(AttachError, match="counts positions by its token ids"):
        model(inputs_embeds=model.get_input_embeddings()(ids), **inputs)


@cache
def run_parts(kind: str) -> tuple[Batch, dict[str, Tensor], dict[int, Tensor]]:
    """Rows, all of the same tokens, and what each part makes of them."""
    batch = build_batch(kind)
    inputs = pick(make_rows(batch), *[0] * len(batch.parts))
    return batch, inputs, dict(enumerate(run_alone(batch, inputs)))


@settings(max_examples=20, deadline=None)
@given(st.data(), st.lists(st.integers(0, 13), min_size=1, max_size=6))
def test_rows_have_any_parts_in_any_order(data: st.DataObject, rows: list[int]) -> None:
    batch, inputs, alone = run_parts("llama")
    each = data.draw(st.integers(1, 2))
    with batch.attach() as attachment:
        attachment.route(rows)
        # A batch of m times as many rows has each row's part m times in turn.
        found = run_rows(batch, pick(inputs, *range(len(rows) * each)))
    for row, logits in enumerate(found):
        assert measure(logits, alone[rows[row // each]]) < CLOSE


def test_embeddings_in_place_of_ids_give_the_same() -> None:
    batch = build_batch("llama").without("full", "diff")  # these change the embeddings
    inputs = make_rows(batch, padding="left")
    with batch.attach():
        expected = run_rows(batch, inputs)
        ids = inputs.pop("input_ids")
        vectors = batch.model.get_input_embeddings()(ids)
        found = run_rows(batch, {**inputs, "inputs_embeds": vectors})
    real = inputs["attention_mask"].bool()
    assert measure(found[real], expected[real]) < CLOSE


@pytest.mark.parametrize("kind", ["llama", "bert", "t5"])
def test_the_loss_is_the_mean_over_the_rows(kind: str) -> None:
    batch = build_batch(kind)
    for padding in (None, "left", "right"):
        inputs = make_rows(batch, padding=padding)
        labels = inputs.get("decoder_input_ids", inputs["input_ids"])
        if "decoder_input_ids" not in inputs:
            labels = labels.masked_fill(inputs["attention_mask"] == 0, -100)
        losses, counts = [], []
        for row, (name, part) in enumerate(batch.parts.items()):
            one, own = pick(inputs, row), labels[row : row + 1]
            with attach_alone(batch.model, part), torch.no_grad():
                losses.append(batch.model(**one, labels=own).loss)
            # Of the first token only what stands in front of it is asked.
            led = name in ("prompt", "ptuning", "stack") or not int(one["attention_mask"][0, 0])
            unasked = kind == "llama" and not led
            counts.append(int((own != -100).sum()) - unasked)
        with batch.attach(), torch.no_grad():
            loss = batch.model(**inputs, labels=labels).loss
        weights = torch.tensor(counts) / sum(counts)
        expected = (torch.stack(losses) * weights).sum()
        torch.testing.assert_close(loss, expected, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("kind", ["llama", "bert", "t5", "mixtral"])
def test_what_else_a_model_gives_has_the_bare_models_shapes(kind: str) -> None:
    batch = make_batch(build_model_of_its_own(kind))
    inputs = {**make_rows(batch, padding="left"), "output_hidden_states": True}
    inputs["output_attentions"] = True
    if kind == "mixtral":
        inputs["output_router_logits"] = True

    def describe() -> dict[str, Any]:
        with torch.no_grad():
            output = batch.model(**inputs)
        return {
            name: [tuple(part.shape) for part in (value if isinstance(value, tuple) else [value])]
            for name, value in output.items()
            if name != "past_key_values"
        }

    bare = describe()
    assert any("attentions" in name for name in bare)
    with batch.attach():
        assert describe() == bare


def build_model_of_its_own(kind: str) -> Any:
    """A model whose attention can be looked at."""
    from tests.tiny import build_tiny

    model = build_tiny(kind)
    model.set_attn_implementation("eager")
    return model


@pytest.mark.parametrize("kind", ["llama", "bert"])
def test_hidden_states_and_attentions_of_a_row_are_its_own(kind: str) -> None:
    batch = make_batch(build_model_of_its_own(kind))
    inputs = make_rows(batch, padding="left" if kind == "llama" else "right")
    more = {"output_hidden_states": True, "output_attentions": True}
    with batch.attach(), torch.no_grad():
        together = batch.model(**inputs, **more)
    for row, (name, part) in enumerate(batch.parts.items()):
        real = inputs["attention_mask"][row].bool()
        with attach_alone(batch.model, part), torch.no_grad():
            alone = batch.model(**pick(inputs, row), **more)
        for whole, one in zip(together.hidden_states, alone.hidden_states, strict=True):
            assert measure(whole[row][real], one[0][real]) < CLOSE, name
        for whole, one in zip(together.attentions, alone.attentions, strict=True):
            both = real[:, None] & real
            assert measure(whole[row][:, both], one[0][:, both]) < CLOSE, name


def test_a_trained_head_answers_for_its_own_rows() -> None:
    for kind in ("llama", "bert"):
        batch = build_batch(kind, "classification")
        assert all(
            adapter.heads for adapter in batch.parts.values() if isinstance(adapter, hub.Adapter)
        )
        # In a stack two heads would answer for one row.
        parts = ["lora", "none", "houlsby", "prompt"]
        assert find_wrong(batch.only(*parts), make_rows(batch.only(*parts))) == {}


def test_heads_of_other_shapes_can_not_share_a_batch() -> None:
    model = build_batch("llama", "classification").model
    one, two = (hub.Adapter.create("lora", model) for _ in range(2))
    for name, tensor in two.tensors.items():
        if name.startswith("score"):
            two.tensors[name] = torch.nn.Parameter(torch.cat([tensor, tensor]))
    with pytest.raises(AttachError):
        hub.attach(model, hub.BatchSplit(one, two), rows=[0, 1])
    assert hub.Attachment.of(model) is None


@pytest.mark.parametrize(
    ("cell", "parts", "reason"),
    [
        (Cell("seq2seq", "bart"), ["prefix", "lora"], "what is padded has a part in the rest"),
        (Cell("causal", "rwkv"), ["prompt", "lora"], "what is padded has a part in the rest"),
        (Cell("masked", "fnet"), ["prompt", "lora"], "what is padded has a part in the rest"),
        (Cell("seq2seq", "switch_transformers"), ["lora", "none"], "which row a vector belongs to"),
        (Cell("seq2seq", "t5"), ["full", "none"], "relative_attention_bias: which row a vector"),
    ],
    ids=lambda value: value.name if isinstance(value, Cell) else None,
)
def test_rows_that_have_no_meaning_are_refused(cell: Cell, parts: list[str], reason: str) -> None:
    model = build_model(cell)
    known = {"none": None}
    for name in parts:
        if name != "none":
            known[name] = hub.Adapter.create(name, model)
    batch = Batch(model, {name: known[name] for name in parts})
    with pytest.raises(AttachError, match=reason):
        batch.attach()
    assert hub.Attachment.of(model) is None


@pytest.mark.parametrize("method", ["prompt", "prefix"])
def test_rows_with_equally_many_virtual_tokens_need_no_padding(method: str) -> None:
    """So they have a meaning where padded rows have none."""
    model = build_model(Cell("seq2seq", "bart"))
    one, two = (hub.Adapter.create(method, model, tokens=3) for _ in range(2))
    batch = Batch(model, {"one": one, "two": two})
    assert find_wrong(batch, make_rows(batch)) == {}
