"""Fronts: virtual positions in front of what a model is given, and off what it gives.

A front is two hooks on the module that takes token ids: the model, or one half of an
encoder-decoder model. Before the forward it puts placeholder tokens in front of the ids and widens
masks, labels and whatever else has a value for each token; a hook on the input embeddings gives the
placeholders their vectors. After the forward it takes the positions off every output again.

A forward that goes on from a cache finds the positions in it. So that this is known, a cache is
marked by the forward that fills it.
"""

from __future__ import annotations

import inspect
import itertools
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from hub.attachment.caches import (
    Mark,
    count_cached,
    find_cache,
    find_room,
    is_filled,
    read_mark,
    write_mark,
)
from hub.attachment.checking import check_mask, check_room, check_tokens
from hub.attachment.cutting import cut_output
from hub.attachment.effects import Switch
from hub.attachment.frames import Frame, find_frame, pop_frame, push_frame
from hub.attachment.placing import arrange, find_order
from hub.errors import AttachError
from hub.sites.tracing import list_words

IGNORED = -100  # a label that counts for nothing

_numbers = itertools.count()


class Front:
    """What is put in front of the tokens of one module, the host.

    word: the token id of a placeholder.
    blank: placeholders whose vectors don't matter, since their keys and values are replaced.
    prompts: modules whose `extend` gives virtual tokens, (n, d_model), one after the other.
    moved: positions that attention alone is given, by which the tokens' positions move on.
    offset: positions that the model puts before all of these by itself.
    axis: that of the positions in what the input embeddings give.
    cut: whether the outputs shall be those of the tokens given alone.
    fill: puts what attention alone is given into a cache for so many rows, where it can.
    number: tells the caches that it filled from those of other fronts; a copy of a model keeps it.
    """

    def __init__(
        self,
        switch: Switch,
        host: nn.Module,
        word: int,
        *,
        blank: int = 0,
        prompts: Sequence[nn.Module] = (),
        moved: int = 0,
        offset: int = 0,
        axis: int = 1,
        cut: bool = True,
    ) -> None:
        self.switch = switch
        self.number = next(_numbers)
        self.parameters = list_parameters(host)
        self.word = word
        self.blank = blank
        self.prompts = tuple(prompts)
        self.moved = moved
        self.offset = offset
        self.axis = axis
        self.cut = cut
        self.fill: Callable[[Any, int], bool] | None = None
        with torch.no_grad():
            self.count = blank + sum(count_virtual(module) for module in self.prompts)

    @property
    def frame(self) -> Frame | None:
        """The forward that runs in this thread; None outside of one, such as while gradient
        checkpointing runs a layer again."""
        return find_frame(self)

    def enter(
        self, module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]
    ) -> tuple[tuple[Any, ...], dict[str, Any]] | None:
        """The forward pre-hook: put the positions in front. Raises AttachError."""
        kwargs = {**dict(zip(self.parameters, args, strict=False)), **kwargs}
        kept = find_cache(kwargs)
        known = read_mark(kept)
        if not self.switch.on or (known is not None and known.number != self.number):
            if known is not None:
                raise AttachError(
                    "this cache holds virtual tokens of adapters that do not act now; start from "
                    "an empty cache"
                )
            return None
        ids = kwargs.get("input_ids")
        given = ids if ids is not None else kwargs.get("inputs_embeds")
        if given is None:
            return None
        rows, length = given.shape[:2]
        if known is None:
            if is_filled(kept):
                raise AttachError(
                    "this cache was filled without the adapters' virtual tokens, so they can't "
                    "come before it; start from an empty cache"
                )
            behind = self.fill is not None and self.fill(kept, rows)
            cached = self.count + (self.moved if behind else 0)
            frame = Frame(self.count, rows, length, cached, behind, find_room(kept))
        else:
            frame = Frame(0, rows, length, known.cached, known.behind, known.room)
        held = count_cached(kept)
        check_room(frame.room, held, frame)
        check_mask(kwargs.get("attention_mask"), frame)
        check_tokens(kwargs, held, frame)
        frame.order = self._find_order(kwargs.get("attention_mask"), frame)
        self._move_positions(kwargs, frame, held)
        for name in kwargs if frame.inserted else ("attention_mask",):
            if isinstance(kwargs.get(name), Tensor):
                kwargs[name] = self._widen(name, kwargs[name], frame)
        if ids is None and frame.inserted:
            blank = given.new_zeros(rows, self.count, *given.shape[2:])
            vectors = arrange(torch.cat([blank, given], dim=1), frame.order)
            kwargs["inputs_embeds"] = self.put_prompts(vectors, frame.order)
            frame.placed = True
        push_frame(self, frame)
        return (), kwargs

    def leave(
        self, module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any], output: Any
    ) -> Any:
        """The forward hook, called after a failure too: take the positions off."""
        frame = pop_frame(self)
        if frame is None or output is None:
            return None
        if self.prompts and frame.inserted and not frame.placed:
            raise AttachError(
                f"{type(module).__name__} did not look its {frame.rows} x {frame.length} tokens up "
                "in its input embeddings, so the virtual tokens found no place; this model can't "
                "take them"
            )
        given = find_cache(kwargs)
        for kept in (find_cache(output), given if count_cached(given) else None):
            write_mark(kept, Mark(self.number, frame.cached, frame.behind, frame.room))
        return cut_output(output, frame) if self.cut else None

    def embed(
        self, module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any], output: Any
    ) -> Any:
        """The forward hook on the input embeddings: give the placeholders their vectors."""
        frame = self.frame
        if frame is None or not frame.inserted:
            return None
        if frame.placed:
            return None  # the same table looked up for something else, such as token types
        if isinstance(output, tuple):
            vectors = self.embed(module, args, kwargs, output[0])
            return None if vectors is None else (vectors, *output[1:])
        vectors = output.transpose(0, 1) if self.axis == 0 else output
        total = self.offset + frame.inserted + frame.length
        if vectors.shape[0] != frame.rows or vectors.shape[1] < total:
            return None
        frame.placed = True
        body, padding = vectors[:, :total], vectors[:, total:]  # some models pad to a length
        body = self.put_prompts(body, frame.order, self.offset)
        vectors = torch.cat([body, padding], dim=1) if padding.shape[1] else body
        return vectors.transpose(0, 1) if self.axis == 0 else vectors

    def put_prompts(self, vectors: Tensor, order: Tensor | None, offset: int = 0) -> Tensor:
        """(rows, positions, d_model) with the virtual tokens in the place of their placeholders."""
        if not self.prompts:
            return vectors
        tokens = torch.cat([module.extend() for module in self.prompts])  # type: ignore[operator]
        tokens = tokens.to(vectors.device, vectors.dtype)
        start, end = offset + self.blank, offset + self.count
        if order is None:
            rows = tokens[None].expand(len(vectors), -1, -1)
            return torch.cat([vectors[:, :start], rows, vectors[:, end:]], dim=1)
        virtual = (order < len(tokens)).unsqueeze(-1)
        found = tokens[order.clamp(max=len(tokens) - 1)]
        body = torch.where(virtual, found, vectors[:, offset:])
        return torch.cat([vectors[:, :offset], body], dim=1)

    def spread_mask(self, mask: Tensor) -> Tensor:
        """A mask with ones for the positions in front, (rows, count + seq)."""
        front = mask.new_ones(len(mask), self.count)
        order = find_order(mask, self.count) if not self.blank else None
        return arrange(torch.cat([front, mask], dim=1), order)

    def _find_order(self, mask: Any, frame: Frame) -> Tensor | None:
        # Blanks stay in front: a layer that checkpointing runs again knows of no padding.
        if self.blank or not frame.inserted or not isinstance(mask, Tensor) or mask.dim() != 2:
            return None
        if mask.shape[1] == frame.inserted + frame.length:
            mask = mask[:, : frame.length]  # spread on the way here
        return find_order(mask, self.count)

    def _move_positions(self, kwargs: dict[str, Any], frame: Frame, held: int) -> None:
        """Let the tokens' positions begin after those in front of them."""
        by = self.count + self.moved
        positions = kwargs.get("position_ids")
        if positions is not None and not frame.inserted:
            kwargs["position_ids"] = positions + by
        elif positions is not None:
            front = torch.arange(frame.inserted, device=positions.device) + self.moved
            front = front.expand(*positions.shape[:-1], -1)
            moved = torch.cat([front.to(positions.dtype), positions + by], dim=-1)
            if frame.order is not None:
                moved = moved.expand(*moved.shape[:-2], frame.rows, -1)
                moved = moved.gather(-1, frame.order.expand_as(moved))
            kwargs["position_ids"] = moved
        elif self.moved and not frame.behind and "position_ids" in self.parameters:
            # What the model does not see in its cache, it can't count.
            device = next(v.device for v in kwargs.values() if isinstance(v, Tensor))
            count = frame.inserted + frame.length
            start = held + self.moved
            positions = torch.arange(start, start + count, device=device)
            kwargs["position_ids"] = positions.expand(frame.rows, -1)
        places = kwargs.get("cache_position")
        if places is not None:
            front = torch.arange(frame.inserted, device=places.device)
            kwargs["cache_position"] = torch.cat([front, places + frame.cached])
        kept_logits = kwargs.get("logits_to_keep")
        if isinstance(kept_logits, Tensor):
            kwargs["logits_to_keep"] = kept_logits + frame.inserted
        elif kept_logits:  # that many from the end
            kwargs["logits_to_keep"] = min(kept_logits, frame.length)
        elif self._spares_logits(kwargs, frame):
            kwargs["logits_to_keep"] = frame.length

    def _spares_logits(self, kwargs: dict[str, Any], frame: Frame) -> bool:
        """Whether the head need not run on what is taken off again: it can be told so, the tokens
        are the last positions, and no loss is asked for."""
        losing = any(kwargs.get(name) is not None for name in ("labels", "shift_labels"))
        known = "logits_to_keep" in self.parameters
        return known and bool(frame.inserted) and frame.order is None and not losing

    def _widen(self, name: str, value: Tensor, frame: Frame) -> Tensor:
        """An argument with values for the positions in front, where it has one for each token."""
        if name in ("position_ids", "cache_position", "logits_to_keep", "inputs_embeds"):
            return value
        if name.startswith(("encoder_", "cross_", "past_")):
            return value
        if name in ("start_positions", "end_positions"):
            return value + frame.inserted
        if name == "attention_mask":
            return self._widen_mask(value, frame)
        if self.blank and "causal" in name and value.shape == (frame.length, frame.length):
            # What blanks may look at does not matter, and everyone may look at them.
            return nn.functional.pad(value, (frame.inserted, 0, frame.inserted, 0))
        if not frame.inserted or value.shape[:2] != (frame.rows, frame.length):
            return value
        front = value[:, :1].expand(-1, frame.inserted, *value.shape[2:])
        if name == "input_ids":
            front = torch.full_like(front, self.word)
        elif name.endswith("labels"):
            if value.is_floating_point():
                return value
            front = torch.full_like(front, IGNORED)
        elif name.endswith("mask"):
            front = torch.ones_like(front)
        return arrange(torch.cat([front, value], dim=1), frame.order)

    def _widen_mask(self, mask: Tensor, frame: Frame) -> Tensor:
        if not frame.cached:
            return mask  # of whatever shape: nothing is in front but at the attention
        if frame.inserted and mask.shape[1] == frame.length + frame.inserted:
            return mask  # spread on the way here
        mask = self.spread_mask(mask) if self.count else mask
        behind = frame.cached - self.count
        return torch.cat([mask.new_ones(len(mask), behind), mask], dim=1) if behind else mask


def list_parameters(module: nn.Module) -> tuple[str, ...]:
    """The names of what the forward of `module` takes, in order."""
    return tuple(inspect.signature(module.forward).parameters)


def choose_word(model: nn.Module) -> int:
    """The id of a token that means nothing special to `model`, for placeholders.

    From the middle: the lowest ids are special even where no configuration says so.
    """
    words = list_words(model)
    return words[len(words) // 2]


def count_virtual(module: nn.Module) -> int:
    """How many virtual positions a module puts in front."""
    extended: Tensor = module.extend()  # type: ignore[operator]
    return int(extended.shape[0])
