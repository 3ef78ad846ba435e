"""Checking what a forward with virtual positions is given, before it is changed."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from hub.attachment.frames import Frame
from hub.errors import AttachError


def check_room(room: int, held: int, frame: Frame) -> None:
    """Raise AttachError where a cache of a fixed size, which holds `held` positions, has no place
    for what comes in."""
    wanted = held + frame.inserted + frame.length
    if 0 < room < wanted:
        raise AttachError(
            f"the cache holds {room} positions and needs {wanted}, with those that the adapters "
            "put in front; make it larger, or let it grow (cache_implementation='dynamic')"
        )


def check_mask(mask: Any, frame: Frame) -> None:
    """Raise AttachError on a mask that has no values for the tokens alone."""
    if mask is None or not frame.cached or (isinstance(mask, Tensor) and mask.dim() == 2):
        return
    given = f"shape {tuple(mask.shape)}" if isinstance(mask, Tensor) else type(mask).__name__
    raise AttachError(
        f"attention_mask is {given}; virtual tokens need one of (batch, seq), with a 1 for each "
        "token that counts. generate makes another for a static cache: let the cache grow "
        "(cache_implementation='dynamic')"
    )


def check_tokens(kwargs: Mapping[str, Any], held: int, frame: Frame) -> None:
    """Raise AttachError where a forward that goes on from a cache of `held` positions is not given
    the tokens behind those: `generate` takes the virtual ones there for tokens of the text, and
    leaves out as many.

    The mask tells, or where it was left out for being all ones, the positions.
    """
    if frame.inserted or not held or not frame.cached or torch.compiler.is_compiling():
        return
    tokens = held - frame.cached
    total = tokens + frame.length
    mask, positions = kwargs.get("attention_mask"), kwargs.get("position_ids")
    if isinstance(mask, Tensor) and mask.dim() == 2:
        total = mask.shape[1]
    elif isinstance(positions, Tensor) and positions.dim() == 2:
        total = int(positions.max()) + 1
    if total != tokens + frame.length:
        raise AttachError(
            f"the {frame.length} tokens given do not follow the {tokens} that the cache holds "
            f"besides the adapters' {frame.cached} virtual ones; to go on from a cache, give "
            "generate the new tokens alone, and the mask of all"
        )
