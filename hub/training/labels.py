"""Labels: which text is which class of a sequence classifier."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from hub.errors import DataError
from hub.training.data import Example, Examples, shorten


@dataclass(frozen=True)
class Labels:
    """Which text is which class.

    names: the classes' names by their number; empty where the data has numbers alone.
    numbered: the data gives the classes' numbers.
    count: how many classes the model's head knows.
    """

    names: tuple[str, ...]
    numbered: bool
    count: int

    def find(self, example: Example) -> int:
        """The class of an example. Raises DataError on one that is not known."""
        text = example.completion.strip()
        if self.numbered and is_number(text) and int(text) < self.count:
            return int(text)
        if not self.numbered and text in self.names:
            return self.names.index(text)
        known = f"0 to {self.count - 1}" if self.numbered else ", ".join(self.names)
        raise DataError(
            f"row {example.number}: the label {shorten(text)} is none of {known}; correct the row, "
            "or load the base with a head for as many labels as there are"
        )

    def name(self, number: int) -> str:
        """A class as the data would write it."""
        return str(number) if self.numbered or number >= len(self.names) else (self.names[number])


def settle_labels(examples: Examples, config: Any, known: Sequence[str] = ()) -> Labels:
    """The classes of a dataset for a sequence classifier.

    known: the names that an adapter was trained with, by number. They come first, then the
        model's own `label2id`; whole numbers are taken as they are, and other names numbered in
        sorted order. Raises DataError where the classes don't fit the model's head.
    """
    count = int(config.num_labels)
    if count < 2 or config.problem_type in ("regression", "multi_label_classification"):
        raise DataError(
            f"the model's head has {count} label{'s' if count > 1 else ''}"
            + (
                f" and is for {config.problem_type.replace('_', ' ')}"
                if config.problem_type
                else ""
            )
            + "; only one class of two or more can be learned; load the base with a head for that"
        )
    texts = {example.completion.strip() for example in examples.items}
    own = [str(config.id2label.get(number, number)) for number in range(count)]
    for names in (known, own):
        if names and texts <= set(names):
            return Labels(tuple(names), numbered=False, count=count)
    if all(is_number(text) for text in texts):
        return Labels((), numbered=True, count=count)
    names = known or sorted(texts)
    if len(names) > count:
        raise DataError(
            f"the data has {len(names)} labels ({shorten(', '.join(names))}), the model's head "
            f"{count}; load the base with a head for {len(names)}"
        )
    return Labels(tuple(names), numbered=False, count=count)


def is_number(text: str) -> bool:
    return text.isascii() and text.isdigit()
