"""Numbering: which positions the model shall count for what it gets, with what is in front."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from hub.attachment.frames import Frame
from hub.attachment.layouts import Layout, pick
from hub.attachment.placing import arrange, take_tokens


def number_all(positions: Tensor, layout: Layout, frame: Frame) -> Tensor:
    """The positions of all, (..., rows, inserted + length), from those of the tokens, (..., rows,
    length)."""
    uneven, owner = layout.uneven, frame.owner
    by: Any = layout.count + layout.moved
    if uneven is not None:
        by = pick(uneven.ahead, owner).to(positions.dtype).unsqueeze(-1)
    if not frame.inserted:
        return torch.add(positions, by)
    if uneven is None:
        front = torch.arange(frame.inserted, device=positions.device) + layout.moved
    else:
        front = count_steps(pick(uneven.real, owner)) + pick(uneven.moved, owner).unsqueeze(-1)
        positions = positions.expand(*positions.shape[:-2], frame.rows, -1)
    front = front.expand(*positions.shape[:-1], -1)
    numbered = torch.cat([front.to(positions.dtype), positions + by], dim=-1)
    if frame.order is not None:
        numbered = numbered.expand(*numbered.shape[:-2], frame.rows, -1)
        numbered = numbered.gather(-1, frame.order.expand_as(numbered))
    return numbered


def count_all(layout: Layout, frame: Frame, held: int, device: torch.device) -> Tensor:
    """The positions of all, (rows, inserted + length), where none are given and a cache holds
    `held`. As a model counts them that counts its padding; where it is told by positions what a
    row leaves empty, without that."""
    uneven, owner = layout.uneven, frame.owner
    if uneven is None or layout.shift.by != "positions":
        start = held + layout.moved
        whole = torch.arange(start, start + frame.inserted + frame.length, device=device)
        return whole.expand(frame.rows, -1)
    if not frame.inserted:
        return count_own(frame, held, device) + pick(uneven.ahead, owner).unsqueeze(1)
    steps = pick(uneven.real, owner)
    steps = torch.cat([steps, steps.new_ones(frame.rows, frame.length)], dim=1)
    return count_steps(arrange(steps, frame.order)) + pick(uneven.moved, owner).unsqueeze(1)


def find_own(kwargs: Mapping[str, Any], frame: Frame, held: int, device: torch.device) -> Tensor:
    """Which of its row's own positions each one is, see `Frame.places`; from the arguments of a
    forward before they are widened, and what its cache holds."""
    mask, told = kwargs.get("attention_mask"), kwargs.get("position_ids")
    if isinstance(mask, Tensor) and mask.dim() == 2:
        if frame.inserted and mask.shape[1] == frame.inserted + frame.length:
            mask = take_tokens(mask, frame.order, frame.inserted)  # spread on the way here
        own = (mask.cumsum(1) - 1)[:, -frame.length :].to(device)
    elif mask is not None and isinstance(told, Tensor) and told.dim() == 2:
        own = told.expand(frame.rows, -1)  # of a mask of another kind they tell of the padding
    else:
        own = count_own(frame, held, device).expand(frame.rows, -1)
    if not frame.inserted:
        return own
    front = torch.full((frame.rows, frame.inserted), -1, device=device)
    places: Tensor = arrange(torch.cat([front, own], dim=1), frame.order)
    return places


def count_own(frame: Frame, held: int, device: torch.device) -> Tensor:
    """The tokens' own positions behind those that a cache holds, (length,)."""
    start = frame.find_start(held)
    return torch.arange(start, start + frame.length, device=device)


def count_steps(steps: Tensor) -> Tensor:
    """The position of each place that counts, (rows, places); one that does not has the last
    before it, or 0."""
    return (steps.cumsum(1) - 1).clamp(min=0)
