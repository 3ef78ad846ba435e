"""Encoding: examples as the token ids that a model learns from and is measured on.

A language model sees prompt, completion and the end-of-sequence token, and learns the last two
alone: the prompt and the padding have the label -100. What is too long is cut from the left of the
prompt, never from the completion. A sequence classifier sees the prompt, cut from the right, and
learns the completion as a class.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn
from torch.nn.utils.rnn import pad_sequence

from hub.adapter import Adapter, name_task_type
from hub.attachment import Attachment
from hub.composition import Operator, Part, Stack
from hub.errors import DataError, TrainError
from hub.training.data import Example, Examples, shorten, show_progress
from hub.training.labels import Labels
from hub.training.metrics import Kind

Row = dict[str, torch.Tensor]

LONGEST = 1024
IGNORED = -100
CHUNK = 1000
KINDS: dict[str | None, Kind] = {
    "CAUSAL_LM": "causal",
    "SEQ_2_SEQ_LM": "seq2seq",
    "SEQ_CLS": "classification",
}


def find_kind(model: nn.Module) -> Kind:
    """What a model learns from an example. Raises TrainError where it can learn from none."""
    kind = KINDS.get(name_task_type(model))
    if kind is None and getattr(model, "can_generate", bool)():
        kind = "seq2seq" if getattr(model.config, "is_encoder_decoder", False) else "causal"
    if kind is None:
        raise TrainError(
            f"{type(model).__name__} learns no completions; load the base with "
            "AutoModelForCausalLM, AutoModelForSeq2SeqLM or AutoModelForSequenceClassification"
        )
    return kind


@dataclass(frozen=True)
class Encoder:
    """A tokenizer, and what a model needs of it.

    max_length: tokens of prompt and completion together; of each for an encoder-decoder.
    pad: the token that fills a batch up.
    vocabulary: how many tokens the model knows.
    opening, closing: how many special tokens the tokenizer puts around a text.
    """

    tokenizer: Any
    kind: Kind
    max_length: int
    pad: int
    vocabulary: int
    opening: int
    closing: int

    def encode(self, examples: Examples, labels: Labels | None = None) -> tuple[list[Row], int]:
        """Rows to learn from or to be measured on, and how many prompts were cut.

        Raises DataError on a completion that is too long, an empty text, or an unknown label.
        """
        rows, cut = [], 0
        for example, prompt in self._tokenize_prompts(examples.items):
            if self.kind == "classification":
                assert labels is not None
                ids, shorter = self._cut(prompt, self.max_length, left=False)
                target = torch.tensor(labels.find(example))
            else:
                completion = self.encode_completion(example)
                if self.kind == "causal":
                    ids, shorter = self.join(prompt, completion, example.number)
                    target = ids.clone()
                    target[: len(ids) - len(completion)] = IGNORED
                else:
                    ids, shorter = self._cut(prompt, self.max_length)
                    target = torch.tensor(completion, dtype=torch.int32)
            if len(ids) == 0:
                raise DataError(f"row {example.number}: the prompt is empty; fill it in or drop it")
            rows.append({"input_ids": ids, "labels": target})
            cut += shorter
        return rows, cut

    def settle_padding(self, model: Any) -> None:
        """Tell a classifier which token is padding; one over a causal model reads the last other.

        The caller puts the configuration back.
        """
        config = model.config.get_text_config()
        if getattr(config, "pad_token_id", None) is None:
            config.pad_token_id = self.pad

    def encode_prompts(self, examples: Examples, room: int) -> tuple[list[Row], int]:
        """Prompts to generate from, with `room` tokens left for what a causal model adds."""
        rows, cut = [], 0
        limit = self.max_length - (room if self.kind == "causal" else 0)
        for example, prompt in self._tokenize_prompts(examples.items):
            ids, shorter = self._cut(prompt, limit)
            if len(ids) == 0:
                raise DataError(
                    f"row {example.number}: the prompt gives no token to generate from; put a text "
                    "before ||| in the template"
                )
            rows.append({"input_ids": ids})
            cut += shorter
        return rows, cut

    def encode_choices(self, examples: Examples, choices: Sequence[str]) -> tuple[list[Row], int]:
        """For each example a row with each of the choices, all after the same prompt."""
        rows, cut = [], 0
        endings = [self.encode_completion(Example(0, "", choice)) for choice in choices]
        longest = max(endings, key=len)
        for example, prompt in self._tokenize_prompts(examples.items):
            if self.kind == "causal":
                joined, shorter = self.join(prompt, longest, example.number)
                ids = joined[: len(joined) - len(longest)]
            else:
                ids, shorter = self._cut(prompt, self.max_length)
            for ending in endings:
                target = torch.tensor(ending, dtype=torch.int32)
                if self.kind == "causal":
                    blank = torch.full_like(ids, IGNORED)
                    row = {
                        "input_ids": torch.cat([ids, target]),
                        "labels": torch.cat([blank, target]),
                    }
                else:
                    row = {"input_ids": ids, "labels": target}
                rows.append(row)
            cut += shorter
        return rows, cut

    def encode_completion(self, example: Example) -> list[int]:
        """A completion's tokens with the end. Raises DataError where it alone is too long."""
        special = self.kind == "seq2seq"
        ids = list(
            self.tokenizer(example.completion, add_special_tokens=special, verbose=False).input_ids
        )
        if ids[-1:] != [self.tokenizer.eos_token_id]:
            ids.append(self.tokenizer.eos_token_id)
        self._check_known(ids, example.number)
        room = self.max_length - (self.opening if self.kind == "causal" else 0)
        if len(ids) > room:
            raise DataError(
                f"row {example.number}: the completion {shorten(example.completion, 40)} has "
                f"{len(ids)} tokens with its end, and max_length={self.max_length} leaves room for "
                f"{room}; raise max_length or drop the row"
            )
        return ids

    def join(self, prompt: list[int], completion: list[int], number: int) -> tuple[Any, bool]:
        """Prompt and completion in one row, the prompt cut to fit."""
        ids, shorter = self._cut(prompt, self.max_length - len(completion))
        return torch.cat([ids, torch.tensor(completion, dtype=torch.int32)]), shorter

    def _cut(self, ids: list[int], limit: int, left: bool = True) -> tuple[torch.Tensor, bool]:
        """The text of a prompt cut to `limit` tokens; its special tokens stay."""
        end = len(ids) - self.closing
        opening, text, closing = ids[: self.opening], ids[self.opening : end], ids[end:]
        if self.kind == "causal":
            closing = []
        room = max(0, limit - len(opening) - len(closing))
        kept = text[max(0, len(text) - room) :] if left else text[:room]
        row = torch.tensor([*opening, *kept, *closing], dtype=torch.int32)
        return row, len(kept) < len(text)

    def _tokenize_prompts(self, examples: Sequence[Example]) -> Iterator[tuple[Example, list[int]]]:
        """Every example with the tokens of its prompt."""
        starts = range(0, len(examples), CHUNK)
        for start in show_progress(starts, "tokenizing"):
            chunk = examples[start : start + CHUNK]
            encoded = self.tokenizer([e.prompt for e in chunk], verbose=False)
            for example, ids in zip(chunk, encoded.input_ids, strict=True):
                self._check_known(ids, example.number)
                yield example, ids

    def _check_known(self, ids: list[int], number: int) -> None:
        if max(ids, default=0) >= self.vocabulary:
            raise DataError(
                f"row {number} has the token {max(ids)}, the model knows {self.vocabulary}; load "
                "the tokenizer that belongs to this model"
            )


def count_front(attachment: Attachment | None) -> int:
    """How many positions of the model attached adapters take for themselves, before a row's; the
    most that any row has."""
    if attachment is None:
        return 0
    with torch.no_grad():
        return max((count_virtual(line, attachment) for line in attachment.lines), default=0)


def count_virtual(part: Part, attachment: Attachment) -> int:
    """The positions that an attached composition takes: those in a stack stand side by side, and
    the parts of an average have equally many."""
    if isinstance(part, Operator):
        counts = [count_virtual(inner, attachment) for inner in part.parts]
        return sum(counts) if isinstance(part, Stack) else max(counts)
    if not isinstance(part, Adapter):
        return 0
    modules: Any = attachment.modules(part).values()
    return max((len(module.extend()) for module in modules if hasattr(module, "extend")), default=0)


def make_encoder(
    model: Any, tokenizer: Any, kind: Kind, max_length: int | None, front: int = 0
) -> Encoder:
    """The encoder for a model and its tokenizer.

    max_length: what the model's positions leave, at most 1024, when left out. Padding is the
        model's own token for it, else the tokenizer's, else the end of sequence.
    front: the positions that adapters take.

    Raises DataError where the tokenizer has no end of sequence, or `max_length` is beyond the
    model's positions, or adapters leave none.
    """
    eos, config = tokenizer.eos_token_id, model.config.get_text_config()
    if eos is None and kind != "classification":
        raise DataError(
            "the tokenizer has no end-of-sequence token, so no completion would ever end; set "
            "tokenizer.eos_token to one of its tokens"
        )
    known = [getattr(config, "pad_token_id", None), tokenizer.pad_token_id, eos]
    pad = next((token for token in known if token is not None), None)
    if pad is None:
        raise DataError(
            "neither the model nor the tokenizer has a padding token; set tokenizer.pad_token"
        )
    positions = getattr(config, "max_position_embeddings", None)
    positions = positions if isinstance(positions, int) and positions > 0 else None
    front = front if positions else 0
    limit, beside = (positions or LONGEST) - front, f" beside {front} virtual ones" if front else ""
    if limit < 2:
        raise DataError(
            f"the adapter's {front} virtual tokens leave no room in this model, which takes "
            f"{positions} tokens; make it with fewer"
        )
    if max_length is None:
        max_length = min(limit, LONGEST, max(2, int(tokenizer.model_max_length) - front))
    elif max_length < 2 or (positions and max_length > limit):
        raise DataError(
            f"max_length is {max_length}; this model takes from 2 to {limit} tokens{beside}"
        )
    probe = tokenizer("a", return_special_tokens_mask=True).special_tokens_mask
    opening = next((i for i, special in enumerate(probe) if not special), len(probe))
    closing = next((i for i, special in enumerate(probe[::-1]) if not special), 0)
    vocabulary = model.get_input_embeddings().weight.shape[0]
    # A token that no embedding stands for is hidden by the mask, but the model looks it up first.
    pad = pad if pad < vocabulary else (eos or 0)
    return Encoder(tokenizer, kind, max_length, pad, vocabulary, opening, closing)


def collate(rows: Sequence[Row], pad: int, left: bool = False) -> Row:
    """A batch: `input_ids`, `attention_mask` and `labels`, (batch, seq) or, for classes, (batch,).

    left: pad on the left, for generation.
    """
    side = "left" if left else "right"
    ids = [row["input_ids"].long() for row in rows]
    batch = {
        "input_ids": pad_sequence(ids, True, pad, side),
        "attention_mask": pad_sequence([torch.ones_like(i) for i in ids], True, 0, side),
    }
    if "labels" in rows[0]:
        targets = [row["labels"].long() for row in rows]
        batch["labels"] = (
            pad_sequence(targets, True, IGNORED) if targets[0].dim() else torch.stack(targets)
        )
    return batch
