"""Evaluation measures what a user would by hand, whatever the batch size, and changes nothing."""

from __future__ import annotations

import math
from functools import cache
from typing import Any

import pytest
import torch

import hub
from hub.errors import AttachError, DataError
from tests.snapshots import shake_adapter, take_snapshot
from tests.tiny import build_tiny
from tests.training.tasks import LABELLED, LABELS, ROWS, TEMPLATE, make_tokenizer

BIG = dict(initializer_range=0.3)
TOKENIZER = make_tokenizer()
MODELS = {
    "llama": build_tiny("llama", **BIG),
    "gpt2": build_tiny("gpt2", pad_token_id=None, **BIG),
    "t5": build_tiny("t5"),
}
TOKENIZERS = {"t5": make_tokenizer("$A </s>")}
CLASSIFIERS = {
    "llama": build_tiny("llama", "classification", num_labels=2, pad_token_id=None, **BIG),
    "bert": build_tiny("bert", "classification", num_labels=2, **BIG),
}
CHOICES = sorted({row["y"] for row in ROWS})
ALL = ("perplexity", "accuracy", "exact_match", "rougeL")


@cache
def measure(kind: str, batch_size: int = 8) -> Any:
    return hub.evaluate(
        MODELS[kind],
        None,
        ROWS,
        tokenizer=TOKENIZERS.get(kind, TOKENIZER),
        template=TEMPLATE,
        metrics=ALL,
        choices=CHOICES,
        max_new_tokens=4,
        batch_size=batch_size,
    )


def sum_loss(model: Any, prompt: str, completion: str) -> tuple[float, int]:
    """By the model's own loss on one row without padding, which is a mean over its tokens."""
    answer = [*TOKENIZER(completion, add_special_tokens=False).input_ids, 2]
    kind = model.config.model_type
    ids = TOKENIZERS.get(kind, TOKENIZER)(prompt).input_ids
    with torch.no_grad():
        if model.config.is_encoder_decoder:
            out = model(torch.tensor([ids]), labels=torch.tensor([answer]))
        else:
            labels = torch.tensor([[-100] * len(ids) + answer])
            out = model(torch.tensor([ids + answer]), labels=labels)
    return float(out.loss) * len(answer), len(answer)


@pytest.mark.parametrize("kind", MODELS)
def test_perplexity_and_accuracy_agree_with_the_models_own_loss(kind: str) -> None:
    model = MODELS[kind]
    found = measure(kind)
    losses = [sum_loss(model, row["x"], row["y"]) for row in ROWS]
    total, tokens = (sum(part) for part in zip(*losses, strict=True))
    assert found.metrics["perplexity"] == pytest.approx(math.exp(total / tokens), rel=1e-4)
    best = [min(CHOICES, key=lambda c: sum_loss(model, row["x"], c)[0]) for row in ROWS]
    right = sum(b == row["y"] for b, row in zip(best, ROWS, strict=True))
    assert found.metrics["accuracy"] == right / len(ROWS)
    assert found.samples == len(ROWS)


@pytest.mark.parametrize("kind", MODELS)
def test_generation_agrees_with_one_prompt_at_a_time(kind: str) -> None:
    model = MODELS[kind]
    texts = []
    for row in ROWS:
        ids = torch.tensor([TOKENIZERS.get(kind, TOKENIZER)(row["x"]).input_ids])
        out = model.generate(
            ids,
            attention_mask=torch.ones_like(ids),
            max_new_tokens=4,
            do_sample=False,
            pad_token_id=0,
            eos_token_id=2,
        )
        new = out[0] if model.config.is_encoder_decoder else out[0, ids.shape[1] :]
        texts.append(TOKENIZER.decode(new, skip_special_tokens=True))
    assert measure(kind).predictions == tuple(texts)
    assert len(set(texts)) > 1


@pytest.mark.parametrize("kind", MODELS)
@pytest.mark.parametrize("batch_size", [3, 8])
def test_batch_size_changes_no_number(kind: str, batch_size: int) -> None:
    one, other = measure(kind, 1), measure(kind, batch_size)
    assert other.predictions == one.predictions
    assert other.metrics == pytest.approx(one.metrics, rel=1e-4)


@pytest.mark.parametrize("kind", CLASSIFIERS)
@pytest.mark.parametrize("batch_size", [1, 5, 12])
def test_classifier_accuracy_agrees_with_one_text_at_a_time(kind: str, batch_size: int) -> None:
    model = CLASSIFIERS[kind]
    found = hub.evaluate(
        model, None, LABELLED, tokenizer=TOKENIZER, template=LABELS, batch_size=batch_size
    )
    answers = []
    for row in LABELLED:
        with torch.no_grad():
            logits = model(torch.tensor([TOKENIZER(row["text"]).input_ids])).logits
        answers.append(("no", "yes")[int(logits.argmax())])
    assert found.predictions == tuple(answers)
    right = sum(a == row["label"] for a, row in zip(answers, LABELLED, strict=True))
    assert found.metrics == {"accuracy": right / len(LABELLED)}


@pytest.mark.parametrize("kind", ["llama", "gpt2"])
def test_evaluation_leaves_the_model_as_it_was(kind: str) -> None:
    model = build_tiny(kind, pad_token_id=None).train()
    model.generation_config.temperature = 0.5
    before, config = take_snapshot(model), model.config.to_dict()
    generation = model.generation_config.to_dict()
    adapter = hub.Adapter.create("lora", model)
    hub.evaluate(
        model,
        adapter,
        ROWS,
        tokenizer=TOKENIZER,
        template=TEMPLATE,
        metrics=["exact_match", "perplexity"],
    )
    assert take_snapshot(model) == before
    assert model.config.to_dict() == config
    assert model.generation_config.to_dict() == generation


def test_classifier_is_left_as_it_was() -> None:
    model = CLASSIFIERS["llama"]
    config = model.config.to_dict()
    adapter = hub.Adapter.create("lora", model)
    hub.evaluate(model, adapter, LABELLED, tokenizer=TOKENIZER, template=LABELS)
    assert model.config.to_dict() == config
    assert config["pad_token_id"] is None


def perplexity(model: Any, adapter: Any) -> float:
    found = hub.evaluate(model, adapter, ROWS, tokenizer=TOKENIZER, template=TEMPLATE)
    return float(found.metrics["perplexity"])


def test_adapter_attachment_and_bare_base_are_told_apart() -> None:
    model = MODELS["llama"]
    bare = perplexity(model, None)
    a = shake_adapter(hub.Adapter.create("lora", model), seed=1)
    b = shake_adapter(hub.Adapter.create("houlsby", model, size=4), seed=2)
    alone, both = perplexity(model, a), perplexity(model, hub.Stack(a, b))
    assert len({bare, alone, both}) == 3
    with hub.attach(model, hub.Stack(a, b)) as attachment:
        assert perplexity(model, attachment) == both
        assert perplexity(model, None) == bare
        with pytest.raises(AttachError, match="carries"):
            perplexity(model, a)
    with pytest.raises(AttachError, match="is not on this model"):
        perplexity(model, attachment)
    with hub.attach(model, a, trainable=False):
        assert perplexity(model, a) == alone
    assert perplexity(model, None) == bare


def test_names_of_an_adapters_classes_are_used_again() -> None:
    model = CLASSIFIERS["bert"]
    adapter = shake_adapter(hub.Adapter.create("lora", model))
    adapter.lineage = {"labels": ["yes", "no"]}
    plain = hub.evaluate(model, None, LABELLED, tokenizer=TOKENIZER, template=LABELS)
    found = hub.evaluate(model, adapter, LABELLED, tokenizer=TOKENIZER, template=LABELS)
    assert set(plain.references) == set(found.references) == {"yes", "no"}
    with hub.attach(model, adapter), torch.no_grad():
        ids = torch.tensor([TOKENIZER(LABELLED[0]["text"]).input_ids])
        number = int(model(ids).logits.argmax())
    assert found.predictions[0] == ["yes", "no"][number]


def test_cut_prompts_are_counted() -> None:
    found = hub.evaluate(
        MODELS["llama"], None, ROWS, tokenizer=TOKENIZER, template=TEMPLATE, max_length=7
    )
    assert found.truncated == sum(len(row["x"].split()) > 3 for row in ROWS) > 0


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (dict(metrics="accuracy", choices=["w1", "w2"]), "is none of the choices 'w1', 'w2'"),
        (dict(metrics="exact_match", max_new_tokens=64), "less than max_length=64"),
        (dict(batch_size=0), "batch_size is 0"),
        (dict(template="|||{{ y }}", metrics="exact_match"), None),
    ],
)
def test_option_that_does_not_fit_is_refused(options: dict[str, Any], message: str | None) -> None:
    arguments = {"tokenizer": TOKENIZER, "template": TEMPLATE, **options}
    if message is None:
        # The tokenizer begins every text, so there is something to generate from.
        assert hub.evaluate(MODELS["llama"], None, ROWS, **arguments).samples == len(ROWS)
        arguments["tokenizer"] = make_tokenizer("$A")
        message = "row 1: the prompt gives no token"
    with pytest.raises(DataError, match=message):
        hub.evaluate(MODELS["llama"], None, ROWS, **arguments)


def test_what_answers_a_row_several_times_can_not_be_measured() -> None:
    model = MODELS["llama"]
    a, b = (hub.Adapter.create("lora", model, r=2) for _ in range(2))
    for tree in (hub.Parallel(a, b), hub.Stack(a, hub.Parallel(None, b))):
        for metric in ("perplexity", "exact_match"):
            with pytest.raises(AttachError, match=r"answers every row 2 times.*one at a time"):
                hub.evaluate(
                    model, tree, ROWS, tokenizer=TOKENIZER, template=TEMPLATE, metrics=metric
                )
    for rows in (hub.BatchSplit(a, b), hub.Stack(a, hub.BatchSplit(a, None))):
        with pytest.raises(AttachError, match=r"which row has which; measure .* one at a time"):
            hub.evaluate(model, rows, ROWS, tokenizer=TOKENIZER, template=TEMPLATE)
    assert list(model.named_parameters())[-1][0] == "lm_head.weight"
