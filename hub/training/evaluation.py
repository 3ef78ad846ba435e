"""Evaluation: how good an adapter, a composition or the bare base is on a dataset.

The numbers don't depend on the batch size, up to rounding: they are sums over rows, and padding is
masked.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from typing import Any

import torch
from torch.nn import functional as F

from hub.attachment import Attachment, Composition, attach
from hub.attachment.admission import resolve_composition
from hub.attachment.routing import list_answering
from hub.composition import BatchSplit, Parallel, walk
from hub.errors import AttachError, DataError
from hub.sites import unwrap_model
from hub.training.data import Data, Examples, read_examples, show_progress
from hub.training.encoding import (
    IGNORED,
    Encoder,
    Row,
    collate,
    count_front,
    find_kind,
    make_encoder,
)
from hub.training.keeping import keep_model
from hub.training.labels import Labels, settle_labels
from hub.training.metrics import Metric, choose_metrics, score_perplexity, score_texts

NEW_TOKENS = 64


@dataclass(frozen=True)
class Evaluation:
    """What was measured.

    metrics: the values by the metric's name.
    samples: how many rows.
    predictions: each row's answer: a class, a choice or a text; empty for perplexity alone.
    references: each row's right answer.
    truncated: how many prompts were cut to `max_length`.
    """

    metrics: Mapping[str, float]
    samples: int
    predictions: tuple[str, ...]
    references: tuple[str, ...]
    truncated: int = 0


def evaluate(
    model: Any,
    adapter: Composition | Attachment | None,
    dataset: Data,
    *,
    tokenizer: Any,
    template: str,
    metrics: str | Sequence[str] | None = None,
    batch_size: int = 8,
    max_length: int | None = None,
    max_new_tokens: int | None = None,
    choices: Sequence[str] | None = None,
    allow_other_base: bool = False,
) -> Evaluation:
    """Measure what `adapter` makes of `model` on a dataset. The model is left as it was.

    adapter: an adapter, a reference or a composition, attached while it is measured; an
        attachment, as it is; or None for the bare base.
    dataset, template: as for `hub.train`.
    metrics: accuracy, exact_match, rouge1, rouge2, rougeL or perplexity, see `hub.metrics`; when
        left out, accuracy for a classifier and perplexity for a language model.
    max_length: tokens; the model's limit, at most 1024, when left out.
    max_new_tokens: where text is generated (greedily); 64, at most half of max_length, when left
        out.
    choices: the completions to choose from, for the accuracy of a language model.

    Raises DataError on the dataset, the template or a metric that can't be used, TrainError on a
    model that can't be measured, PackageMissing, and what `attach` raises.
    """
    model = unwrap_model(model)
    kind = find_kind(model)
    chosen = choose_metrics(metrics, kind, bool(choices))
    if batch_size < 1:
        raise DataError(f"batch_size is {batch_size}; it is a whole number from 1")
    examples = read_examples(dataset, template)
    with show_adapter(model, adapter, allow_other_base), keep_model(model):
        shown = None if adapter is None else Attachment.of(model)
        check_answers(shown)
        encoder = make_encoder(model, tokenizer, kind, max_length, count_front(shown))
        labels = None
        if kind == "classification":
            known = find_label_names(model, adapter)
            labels = settle_labels(examples, model.config, known)
        return Evaluator(
            model,
            encoder,
            chosen,
            examples,
            labels=labels,
            batch_size=batch_size,
            max_new_tokens=max_new_tokens,
            choices=choices or (),
        ).run()


def show_adapter(
    model: Any, adapter: Composition | Attachment | None, allow_other_base: bool
) -> AbstractContextManager[Any]:
    """The model with that on it, and as it was afterwards. Raises AttachError."""
    present = Attachment.of(model)
    if adapter is None:
        return present.disabled() if present is not None else nullcontext()
    if isinstance(adapter, Attachment):
        if adapter is not present and not adapter.merged:
            raise AttachError(f"{adapter} is not on this model; attach its adapters anew")
        return nullcontext()
    if present is not None and present.active == (adapter,):
        return nullcontext()
    composition: Any = resolve_composition(adapter)
    check_rows(composition)
    return attach(model, composition, trainable=False, allow_other_base=allow_other_base)


def check_rows(composition: Any) -> None:
    """Raise AttachError where rows have parts of their own, and nobody says which."""
    for node in walk(composition):
        if isinstance(node, BatchSplit):
            raise AttachError(
                f"a {node.name} gives rows adapters of their own, and a dataset does not say which "
                "row has which; measure its parts one at a time"
            )


def check_answers(shown: Attachment | None) -> None:
    """Raise AttachError where a row would have several answers."""
    for route in shown.resident.values() if shown is not None else ():
        for node in walk(route):
            if isinstance(node, Parallel) and len(node.parts) > 1:
                raise AttachError(
                    f"{node} answers every row {len(node.parts)} times, and one answer is "
                    "measured; measure its parts one at a time"
                )


def find_label_names(model: Any, adapter: Any) -> Sequence[str]:
    """The names of the classes that the adapter with the head was trained on, by number."""
    if adapter is None:
        return ()
    attachment = adapter if isinstance(adapter, Attachment) else Attachment.of(model)
    lines = attachment.lines if attachment is not None else ()
    answering = [a for line in lines for a in list_answering(line) if a.heads]
    return next((a.lineage["labels"] for a in answering if "labels" in a.lineage), ())


class Evaluator:
    """A dataset, encoded once, to measure a model on as often as one likes."""

    def __init__(
        self,
        model: Any,
        encoder: Encoder,
        metrics: Sequence[Metric],
        examples: Examples,
        *,
        labels: Labels | None,
        batch_size: int,
        max_new_tokens: int | None,
        choices: Sequence[str],
    ) -> None:
        self._model = model
        self._encoder = encoder
        self._metrics = metrics
        self._labels = labels
        self._batch_size = batch_size
        self._choices = choices
        self._new_tokens = max_new_tokens or min(NEW_TOKENS, encoder.max_length // 2)
        self._references = tuple(example.completion for example in examples.items)
        self._rows: dict[str, list[Row]] = {}
        self._truncated = 0
        if not 0 < self._new_tokens < encoder.max_length:
            raise DataError(
                f"max_new_tokens is {self._new_tokens}; it is from 1 to less than "
                f"max_length={encoder.max_length}"
            )
        for need in {metric.find_need(encoder.kind) for metric in metrics}:
            if need == "generation":
                rows, cut = encoder.encode_prompts(examples, self._new_tokens)
            elif need == "choices":
                self._check_choices(examples)
                rows, cut = encoder.encode_choices(examples, choices)
            else:
                rows, cut = encoder.encode(examples, labels)
            self._rows[str(need)] = rows
            self._truncated = max(self._truncated, cut)

    @torch.no_grad()
    def run(self) -> Evaluation:
        """Measure the model as it is now, in eval mode. What it changes there, it leaves so."""
        self._model.eval()
        references = self._references
        values: dict[str, float] = {}
        answers: dict[str, tuple[str, ...]] = {}
        if "classes" in self._rows:
            answers["classes"], references = self._classify(self._rows["classes"])
        if "choices" in self._rows:
            answers["choices"] = self._choose(self._rows["choices"])
        if "generation" in self._rows:
            answers["generation"] = self._generate(self._rows["generation"])
        for metric in self._metrics:
            need = str(metric.find_need(self._encoder.kind))
            if need == "likelihood":
                losses = self._sum_losses(self._rows[need])
                tokens = sum(count for _, count in losses)
                values[metric.name] = score_perplexity(sum(loss for loss, _ in losses), tokens)
            else:
                values[metric.name] = score_texts(metric.name, answers[need], references)
        predictions = next(reversed(answers.values()), ())
        return Evaluation(values, len(self._references), predictions, references, self._truncated)

    def _classify(self, rows: list[Row]) -> tuple[tuple[str, ...], tuple[str, ...]]:
        """The class with the highest score, and the right one, of each row."""
        assert self._labels is not None
        self._encoder.settle_padding(self._model)
        found = [0] * len(rows)
        for indices, batch in self._batches(rows):
            del batch["labels"]
            scores = self._model(**batch).logits.float()
            for index, best in zip(indices, scores.argmax(-1).tolist(), strict=True):
                found[index] = best
        right = [int(row["labels"]) for row in rows]
        return tuple(map(self._labels.name, found)), tuple(map(self._labels.name, right))

    def _choose(self, rows: list[Row]) -> tuple[str, ...]:
        """The likeliest choice after each prompt."""
        losses = [loss for loss, _ in self._sum_losses(rows)]
        count = len(self._choices)
        groups = [losses[start : start + count] for start in range(0, len(losses), count)]
        return tuple(self._choices[group.index(min(group))] for group in groups)

    def _sum_losses(self, rows: list[Row]) -> list[tuple[float, int]]:
        """Negative log-likelihood of each row's completion in nats, and its tokens."""
        found = [(0.0, 0)] * len(rows)
        self._model.config.use_cache = False
        for indices, batch in self._batches(rows):
            targets = batch["labels"]
            if self._encoder.kind == "causal":
                del batch["labels"]
                logits, targets = self._model(**batch).logits[:, :-1], targets[:, 1:]
            else:
                logits = self._model(**batch).logits
            counted = targets != IGNORED
            losses = F.cross_entropy(
                logits[counted.to(logits.device)].float(),
                targets[counted].to(logits.device),
                reduction="none",
            ).double()
            parts = torch.split(losses, counted.sum(-1).tolist())
            for index, part in zip(indices, parts, strict=True):
                found[index] = (float(part.sum()), len(part))
        return found

    def _generate(self, rows: list[Row]) -> tuple[str, ...]:
        """What the model writes after each prompt."""
        from transformers import GenerationConfig

        encoder, model = self._encoder, self._model
        model.generation_config = GenerationConfig(  # type: ignore[no-untyped-call]
            max_new_tokens=self._new_tokens,
            do_sample=False,
            use_cache=True,
            pad_token_id=encoder.pad,
            eos_token_id=encoder.tokenizer.eos_token_id,
            bos_token_id=encoder.tokenizer.bos_token_id,
            decoder_start_token_id=getattr(model.config, "decoder_start_token_id", None),
        )
        found = [""] * len(rows)
        for indices, batch in self._batches(rows, left=True):
            tokens = model.generate(**batch)
            if encoder.kind == "causal":
                tokens = tokens[:, batch["input_ids"].shape[1] :]
            texts = encoder.tokenizer.batch_decode(tokens, skip_special_tokens=True)
            for index, text in zip(indices, texts, strict=True):
                found[index] = text
        return tuple(found)

    def _batches(self, rows: list[Row], left: bool = False) -> Iterator[tuple[list[int], Row]]:
        """Batches of rows of like length, the longest first, on the model's device."""
        order = sorted(range(len(rows)), key=lambda i: -len(rows[i]["input_ids"]))
        device = self._model.get_input_embeddings().weight.device
        for start in show_progress(range(0, len(order), self._batch_size), "evaluating"):
            indices = order[start : start + self._batch_size]
            batch = collate([rows[i] for i in indices], self._encoder.pad, left)
            yield indices, {name: tensor.to(device) for name, tensor in batch.items()}

    def _check_choices(self, examples: Examples) -> None:
        for example in examples.items:
            if example.completion not in self._choices:
                raise DataError(
                    f"row {example.number}: the completion {example.completion!r} is none of the "
                    f"choices {', '.join(map(repr, self._choices))}; write them as the data does"
                )
