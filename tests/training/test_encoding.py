"""A language model learns the completion and its end, whatever is cut or padded."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from hub.errors import DataError, TrainError
from hub.training.data import read_examples
from hub.training.encoding import collate, find_kind, make_encoder
from hub.training.labels import settle_labels
from tests.tiny import build_tiny
from tests.training.tasks import LABELS, TEMPLATE, make_tokenizer

LLAMA = build_tiny("llama")
CLASSIFIER = build_tiny("bert", "classification", num_labels=3)
T5 = build_tiny("t5")


def encode(model: Any, rows: list[dict[str, Any]], tokenizer: Any, **options: Any) -> Any:
    kind = find_kind(model)
    encoder = make_encoder(model, tokenizer, kind, options.pop("max_length", None))
    examples = read_examples(rows, TEMPLATE)
    labels = settle_labels(examples, model.config) if kind == "classification" else None
    return encoder.encode(examples, labels)


def test_causal_row_learns_completion_and_end_alone(tokenizer: Any) -> None:
    (row,), cut = encode(LLAMA, [{"x": "w0 w1", "y": "w2 w3"}], tokenizer)
    assert row["input_ids"].tolist() == [1, 4, 5, 6, 7, 2]
    assert row["labels"].tolist() == [-100, -100, -100, 6, 7, 2]
    assert cut == 0


def test_end_is_not_added_twice(tokenizer: Any) -> None:
    (row,), _ = encode(LLAMA, [{"x": "w0", "y": "w2 </s>"}], tokenizer)
    assert row["input_ids"].tolist() == [1, 4, 6, 2]


def test_end_that_a_tokenizer_adds_to_every_text_is_not_in_the_prompt() -> None:
    (row,), _ = encode(LLAMA, [{"x": "w0", "y": "w2"}], make_tokenizer("<s> $A </s>"))
    assert row["input_ids"].tolist() == [1, 4, 6, 2]


def test_encoder_decoder_row_has_the_completion_as_labels() -> None:
    (row,), _ = encode(T5, [{"x": "w0", "y": "w2"}], make_tokenizer("$A </s>"))
    assert row["input_ids"].tolist() == [4, 2]
    assert row["labels"].tolist() == [6, 2]


def test_classifier_row_has_the_text_and_its_class() -> None:
    rows, cut = encode(
        CLASSIFIER,
        [{"x": "w0 w1 w2 w3", "y": "no"}, {"x": "w1", "y": "yes"}],
        make_tokenizer("<s> $A </s>"),
        max_length=5,
    )
    assert rows[0]["input_ids"].tolist() == [1, 4, 5, 6, 2]
    assert [int(row["labels"]) for row in rows] == [0, 1]
    assert cut == 1


@settings(deadline=None)
@given(prompt=st.integers(0, 30), completion=st.integers(1, 12), max_length=st.integers(2, 20))
def test_what_is_too_long_is_cut_from_the_left_of_the_prompt(
    prompt: int, completion: int, max_length: int
) -> None:
    words = [f"w{number}" for number in range(prompt)]
    answer = [f"w{40 + number}" for number in range(completion)]
    row = {"x": " ".join(words), "y": " ".join(answer)}
    if completion + 2 > max_length:
        with pytest.raises(DataError, match=r"row 1: the completion .* raise max_length"):
            encode(LLAMA, [row], make_tokenizer(), max_length=max_length)
        return
    (found,), cut = encode(LLAMA, [row], make_tokenizer(), max_length=max_length)
    kept = words[max(0, prompt - (max_length - completion - 2)) :]
    expected = make_tokenizer().convert_tokens_to_ids(["<s>", *kept, *answer, "</s>"])
    assert found["input_ids"].tolist() == expected
    assert found["labels"].tolist() == [-100] * (1 + len(kept)) + expected[1 + len(kept) :]
    assert cut == (len(kept) < prompt)


@pytest.mark.parametrize("left", [False, True])
def test_batch_masks_its_padding_even_when_that_is_the_end_token(left: bool) -> None:
    tokenizer = make_tokenizer(pad_token=None)
    model = build_tiny("llama", pad_token_id=None)
    encoder = make_encoder(model, tokenizer, "causal", None)
    assert encoder.pad == 2
    rows, _ = encode(model, [{"x": "w0", "y": "w2"}, {"x": "w0 w1 w1", "y": "w2"}], tokenizer)
    batch = collate(rows, encoder.pad, left)
    short = [1, 4, 6, 2]
    filled = [2, 2, *short] if left else [*short, 2, 2]
    mask = [0, 0, 1, 1, 1, 1] if left else [1, 1, 1, 1, 0, 0]
    assert batch["input_ids"].tolist() == [filled, [1, 4, 5, 5, 6, 2]]
    assert batch["attention_mask"].tolist() == [mask, [1] * 6]
    assert batch["labels"].tolist()[1] == [-100, -100, -100, -100, 6, 2]
    if not left:
        assert batch["labels"].tolist()[0] == [-100, -100, 6, 2, -100, -100]


def test_tokenizer_without_an_end_is_refused() -> None:
    with pytest.raises(DataError, match="no end-of-sequence token"):
        make_encoder(LLAMA, make_tokenizer(eos_token=None), "causal", None)


def test_tokenizer_of_another_model_is_refused(tokenizer: Any) -> None:
    tokenizer.add_tokens([f"extra{number}" for number in range(40)])
    with pytest.raises(DataError, match="row 2 has the token 107, the model knows 99"):
        encode(LLAMA, [{"x": "w0", "y": "w1"}, {"x": "extra39", "y": "w1"}], tokenizer)


def test_max_length_beyond_the_model_is_refused(tokenizer: Any) -> None:
    with pytest.raises(DataError, match="max_length is 65; this model takes from 2 to 64"):
        make_encoder(LLAMA, tokenizer, "causal", 65)


def test_virtual_tokens_take_positions(tokenizer: Any) -> None:
    encoder = make_encoder(LLAMA, tokenizer, "causal", None, front=4)
    assert encoder.max_length == 60
    with pytest.raises(DataError, match=r"max_length is 61; .* 2 to 60 tokens beside 4 virtual"):
        make_encoder(LLAMA, tokenizer, "causal", 61, front=4)
    with pytest.raises(
        DataError, match=r"63 virtual tokens leave no room .* takes 64 tokens; make"
    ):
        make_encoder(LLAMA, tokenizer, "causal", None, front=63)
    # T5 counts no positions.
    assert make_encoder(T5, tokenizer, "seq2seq", 70, front=4).max_length == 70


def test_model_that_learns_no_completions_is_refused() -> None:
    with pytest.raises(TrainError, match="BertForMaskedLM learns no completions"):
        find_kind(build_tiny("bert"))


def settle(labels: list[Any], config: Any, known: tuple[str, ...] = ()) -> list[int]:
    examples = read_examples([{"text": "w0", "label": label} for label in labels], LABELS)
    settled = settle_labels(examples, config, known)
    return [settled.find(example) for example in examples.items]


def test_labels_follow_the_models_own_names() -> None:
    config = build_tiny(
        "bert", "classification", id2label={0: "pos", 1: "neg"}, label2id={"pos": 0, "neg": 1}
    ).config
    assert settle(["neg", "pos", "neg"], config) == [1, 0, 1]
    assert settle([1, 0], config) == [1, 0]


def test_labels_without_names_are_numbered_in_sorted_order() -> None:
    assert settle(["c", "a", " b "], CLASSIFIER.config) == [2, 0, 1]


def test_whole_numbers_are_classes_as_they_are() -> None:
    assert settle([2, 0, 2], CLASSIFIER.config) == [2, 0, 2]


def test_labels_of_an_adapter_come_first() -> None:
    assert settle(["a", "b"], CLASSIFIER.config, ("z", "b", "a")) == [2, 1]


@pytest.mark.parametrize(
    ("labels", "known", "message"),
    [
        ([0, 3], (), "row 2: the label '3' is none of 0 to 2"),
        (["a", "b", "c", "d"], (), "4 labels .* the model's head 3; .* a head for 4"),
        (["a", "d"], ("a", "b"), "row 2: the label 'd' is none of a, b"),
        (["1", "-1"], ("a", "b"), "is none of a, b"),
    ],
)
def test_label_out_of_range_is_refused(
    labels: list[Any], known: tuple[str, ...], message: str
) -> None:
    with pytest.raises(DataError, match=message):
        settle(labels, CLASSIFIER.config, known)


def test_regression_head_is_refused() -> None:
    config = build_tiny("bert", "classification", num_labels=1).config
    with pytest.raises(DataError, match="has 1 label; only"):
        settle([0], config)


def test_encoding_leaves_tensors_small(tokenizer: Any) -> None:
    (row,), _ = encode(LLAMA, [{"x": "w0", "y": "w2"}], tokenizer)
    assert row["input_ids"].dtype == torch.int32
