"""Shifting: whether a row of a model is the same when it has padding before it, or behind it.

Rows with differently many virtual tokens are of different lengths. That has a meaning only where
what is padded has no part in the rest. Before a row, positions must count from the first token that
is not padding: by the mask, by the id of the padding, or because they are told. Behind it a row
can't go on from a cache, and may not be where a head looks for its last token.
"""

from __future__ import annotations

import inspect
from dataclasses import dataclass, replace
from typing import Any, Literal

import torch
from torch import Tensor, nn

from hub.errors import AttachError
from hub.sites.tracing import keep_state, list_words, make_inputs

IGNORED = -100  # a label that counts for nothing
PADDED = (7, 1)  # odd, so that it shows where positions are taken by twos or more


@dataclass(frozen=True)
class Shift:
    """How the rows of a model can be of different lengths.

    by: what tells it where a row is: the mask alone, the id of its padding too, or its positions.
    behind: whether the padding must come behind a row.
    follows: whether a label is that of the position after the one that it is held against, so that
        what stands before a row is asked for its first.
    """

    by: Literal["mask", "ids", "positions"] = "mask"
    behind: bool = False
    follows: bool = False


def find_shift(model: nn.Module, half: str = "") -> Shift:
    """How rows of `model`, or of its encoder or decoder, can be of different lengths. A few tiny
    forwards, which leave the model as it was.

    Raises AttachError where they can't.
    """
    trial = Trial(model, half)
    with keep_state(model), torch.no_grad():
        for way in trial.list_ways():
            if trial.blind or all(trial.holds(way, count) for count in PADDED):
                return replace(way, follows=trial.follows())
    raise AttachError(
        f"rows of {type(model).__name__} can't have differently many virtual positions in front: "
        "what is padded has a part in the rest of a row; give them equally many, or batch them "
        "apart"
    )


class Trial:
    """A model, or a half of one, that is given a row with padding and without.

    blind: there are no values to compare.
    """

    def __init__(self, model: nn.Module, half: str) -> None:
        self.model = model
        self.half = half
        start = "decoder_" if half == "decoder" else ""
        self.ids_name, self.mask_name = f"{start}input_ids", f"{start}attention_mask"
        self.names = inspect.signature(model.forward).parameters
        self.inputs = next(make_inputs(model))
        self.ids: Tensor = self.inputs.get(self.ids_name, torch.empty(1, 0))
        self.blind = self.ids.is_meta

    def list_ways(self) -> list[Shift]:
        """The ways to try, the best first."""
        if self.ids_name not in self.inputs or self.mask_name not in self.names:
            return []
        behind = [Shift("mask", behind=True), Shift("ids", behind=True)]
        if self.half == "encoder":
            return behind
        ways = [Shift("mask"), Shift("ids")]
        if not self.half and "position_ids" in self.names:
            ways.insert(0, Shift("positions"))
        can_generate = getattr(self.model, "can_generate", None)
        generates = can_generate is not None and can_generate()
        return ways if generates else ways + behind

    def holds(self, way: Shift, count: int) -> bool:
        """Whether a row with so much padding is what it is without."""
        found = self.run(way, count)
        if way.by == "positions":
            places = torch.arange(count + self.ids.shape[1], device=self.ids.device)[None]
            if not is_same(found, self.run(way, count, places)):
                return False  # what is padded is counted in another way than ours
            found = self.run(way, count, (places - count).clamp(min=0))
        return is_same(self.run(way, 0), found)

    def follows(self) -> bool:
        """Whether a label is that of the next position: then the first one never counts."""
        if "labels" not in self.names or self.half == "encoder" or self.blind:
            return False
        labels = torch.full_like(self.ids, IGNORED)
        labels[:, 0] = choose_word(self.model)
        try:
            loss = self.model(**self.inputs, labels=labels).loss
        except (RuntimeError, ValueError, IndexError):  # its labels are not those of positions
            return False
        return not bool(loss > 0)  # of nothing the mean is no number

    def run(self, way: Shift, count: int, places: Tensor | None = None) -> Tensor:
        """What the model says of the row; `places` are its positions, where they are told."""
        word = choose_padding(self.model) if way.by == "ids" else choose_word(self.model)
        padding, own = self.ids.new_full((len(self.ids), count), word), torch.ones_like(self.ids)
        parts = [(padding, torch.zeros_like(padding)), (self.ids, own)]
        ids, mask = (
            torch.cat(part, dim=1) for part in zip(*parts[:: -1 if way.behind else 1], strict=True)
        )
        told = {} if places is None else {"position_ids": places}
        given = {**self.inputs, self.ids_name: ids, self.mask_name: mask, **told}
        output = self.model(**given)
        start = 0 if way.behind else count
        result = getattr(output, "encoder_last_hidden_state", None)
        result = output[0] if result is None or self.half != "encoder" else result
        said: Tensor = result
        # Of a classifier's two axes none is that of the positions.
        return said[:, start : start + self.ids.shape[1]] if said.dim() > 2 else said


def choose_word(model: nn.Module) -> int:
    """The id of a token that means nothing special to `model`, for placeholders.

    From the middle: the lowest ids are special even where no configuration says so.
    """
    words = list_words(model)
    return words[len(words) // 2]


def choose_padding(model: nn.Module) -> int:
    """The id of what `model` is padded with; any where it has none."""
    config: Any = getattr(model, "config", None)
    known = getattr(config, "pad_token_id", None)
    return known if isinstance(known, int) and known >= 0 else choose_word(model)


def is_same(one: Tensor, other: Tensor) -> bool:
    """Whether two results differ by no more than rounding does, which is the more the coarser
    their precision and the more layers they come from."""
    if one.shape != other.shape:
        return False
    apart, scale = (value.float().square().mean().sqrt() for value in (one - other, one))
    return bool(apart <= torch.finfo(one.dtype).eps ** 0.65 * scale)  # 3e-5, or 4% in bfloat16
