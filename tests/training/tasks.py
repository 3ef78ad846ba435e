"""A word-level tokenizer for the tiny models, and small tasks that they can learn."""

from __future__ import annotations

from typing import Any

from tokenizers import Tokenizer, models, pre_tokenizers, processors
from transformers import PreTrainedTokenizerFast

SPECIAL = ["<pad>", "<s>", "</s>", "<unk>"]
WORDS = [f"w{number}" for number in range(60)] + ["yes", "no", "red", "blue"]
TEMPLATE = "{{ x }}|||{{ y }}"
LABELS = "{{ text }}|||{{ label }}"
ROWS = [
    {"x": " ".join(f"w{(7 * i + j) % 40}" for j in range(2 + i % 3)), "y": f"w{40 + i} w{50 + i}"}
    for i in range(8)
]
LABELLED = [
    {"text": f"{'red' if i % 2 else 'blue'} w{i} w{2 * i}", "label": "yes" if i % 2 else "no"}
    for i in range(12)
]


def make_tokenizer(around: str = "<s> $A", **special: Any) -> PreTrainedTokenizerFast:
    """A token a word; the special ones have the numbers that `tests/tiny.py` gives them."""
    vocabulary = {word: number for number, word in enumerate(SPECIAL + WORDS)}
    inner = Tokenizer(models.WordLevel(vocabulary, unk_token="<unk>"))
    inner.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    inner.post_processor = processors.TemplateProcessing(
        single=around, special_tokens=[("<s>", 1), ("</s>", 2)]
    )
    names = {"pad_token": "<pad>", "bos_token": "<s>", "eos_token": "</s>", "unk_token": "<unk>"}
    return PreTrainedTokenizerFast(tokenizer_object=inner, **{**names, **special})
