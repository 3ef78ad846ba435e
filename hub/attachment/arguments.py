"""Arguments: what a forward is given, by name, and what it gets with something in front.

Masks, ids, labels and whatever else has a value for each token get one for each place too, and
positions move on.
"""

from __future__ import annotations

import inspect
from collections.abc import Collection
from typing import Any

import torch
from torch import Tensor, nn

from hub.attachment.frames import Frame
from hub.attachment.layouts import Layout, pick
from hub.attachment.numbering import count_all, number_all
from hub.attachment.placing import arrange, find_places
from hub.sites.shifting import IGNORED

# What is changed elsewhere, and what is not about these tokens.
MOVED = ("position_ids", "cache_position", "logits_to_keep", "inputs_embeds")
ELSEWHERE = ("encoder_", "cross_", "past_")


def list_parameters(module: nn.Module) -> tuple[str, ...]:
    """The names of what the forward of `module` takes, in order."""
    return tuple(inspect.signature(module.forward).parameters)


def move_positions(
    kwargs: dict[str, Any], known: Collection[str], layout: Layout, frame: Frame, held: int
) -> None:
    """Let the tokens' positions begin after those in front of them, `held` of all in the cache.
    `known`: what the forward takes."""
    positions = kwargs.get("position_ids")
    if positions is not None:
        kwargs["position_ids"] = number_all(positions, layout, frame)
    elif "position_ids" in known and (
        # What the model does not see in its cache, it can't count.
        layout.shift.by == "positions" or (layout.moved and not frame.behind)
    ):
        device = next(v.device for v in kwargs.values() if isinstance(v, Tensor))
        kwargs["position_ids"] = count_all(layout, frame, held, device)
    places = kwargs.get("cache_position")
    if places is not None:
        front = torch.arange(frame.inserted, device=places.device)
        kwargs["cache_position"] = torch.cat([front, places + frame.cached])
    kept_logits = kwargs.get("logits_to_keep")
    if isinstance(kept_logits, Tensor):
        kwargs["logits_to_keep"] = kept_logits + frame.inserted
    elif kept_logits:  # that many from the end
        kwargs["logits_to_keep"] = min(kept_logits, frame.length)
    elif spares_logits(kwargs, known, frame):
        kwargs["logits_to_keep"] = frame.length
    frame.kept = kwargs.get("logits_to_keep")


def spares_logits(kwargs: dict[str, Any], known: Collection[str], frame: Frame) -> bool:
    """Whether the head need not run on what is taken off again: it can be told so, the tokens are
    the last positions, and no loss is asked for."""
    if not frame.inserted or frame.order is not None or "logits_to_keep" not in known:
        return False
    return all(kwargs.get(name) is None for name in ("labels", "shift_labels"))


def widen_all(
    kwargs: dict[str, Any], layout: Layout, frame: Frame, word: int, padding: int
) -> None:
    """Give each argument that has a value for each token one for each place put in front.

    word: the id of a placeholder; padding: that of a place which a row leaves empty.
    """
    labels, mask = kwargs.get("labels"), kwargs.get("attention_mask")
    if layout.shift.follows and isinstance(labels, Tensor):
        kwargs["labels"] = drop_labels(labels, mask, layout, frame)
    for name, value in list(kwargs.items()):
        if not isinstance(value, Tensor) or name in MOVED or name.startswith(ELSEWHERE):
            continue
        if name == "attention_mask":
            kwargs[name] = widen_mask(value, layout, frame)
        elif name in ("start_positions", "end_positions"):
            kwargs[name] = find_places(frame.order, frame.inserted, value)
        elif layout.blank and "causal" in name and value.shape == (frame.length, frame.length):
            # What blanks may look at does not matter, and everyone may look at them.
            kwargs[name] = nn.functional.pad(value, (frame.inserted, 0, frame.inserted, 0))
        elif is_by_token(name, value, frame):
            if name == "input_ids":
                front = make_ids(value, layout, frame, word, padding)
            else:
                front = make_front(name, value, frame)
            kwargs[name] = arrange(torch.cat([front, value], dim=1), frame.order)


def is_by_token(name: str, value: Tensor, frame: Frame) -> bool:
    """Whether an argument has a value for each token; labels that are numbers are of a row."""
    if name.endswith("labels") and value.is_floating_point():
        return False
    return value.shape[:2] == (frame.rows, frame.length)


def widen_mask(mask: Tensor, layout: Layout, frame: Frame) -> Tensor:
    """The mask of the tokens, (rows, seq), with what the cache holds in front of them too."""
    if not frame.cached:
        return mask  # of whatever shape: nothing is in front but at the attention
    if frame.inserted and mask.shape[1] == frame.length + frame.inserted:
        return mask  # spread on the way here
    mask = layout.spread_mask(mask, frame.owner) if layout.count else mask
    behind = frame.cached - layout.count
    if not behind:
        return mask
    if layout.uneven is None:
        front = mask.new_ones(len(mask), behind)
    else:
        front = pick(layout.uneven.real_moved, frame.owner).to(mask.dtype)
    return torch.cat([front, mask], dim=1)


def make_ids(ids: Tensor, layout: Layout, frame: Frame, word: int, padding: int) -> Tensor:
    """The ids of the places in front, (rows, inserted)."""
    front = ids.new_full((frame.rows, frame.inserted), word)
    if layout.uneven is not None:
        front = front.masked_fill(~pick(layout.uneven.real, frame.owner), padding)
    return front


def make_front(name: str, value: Tensor, frame: Frame) -> Tensor:
    """Values of another argument for the places in front, (rows, inserted, ...)."""
    front = value[:, :1].expand(-1, frame.inserted, *value.shape[2:])
    if name.endswith("labels"):
        return torch.full_like(front, IGNORED)
    return torch.ones_like(front) if name.endswith("mask") else front


def drop_labels(labels: Tensor, mask: Any, layout: Layout, frame: Frame) -> Tensor:
    """Without the label of the first token of a row that has nothing in front: in a run of its own
    nothing is asked for it, and here a place that it leaves empty would be."""
    assert layout.uneven is not None, "how labels follow is asked for rows that differ"
    empty = pick(layout.uneven.empty == layout.count, frame.owner)
    if isinstance(mask, Tensor) and mask.dim() == 2:
        empty = empty & mask[:, 0].bool()
    first = torch.arange(frame.length, device=labels.device) == 0
    return labels.masked_fill(empty.unsqueeze(1) & first, IGNORED)
