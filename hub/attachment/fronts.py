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
from dataclasses import dataclass, replace
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
from hub.attachment.chains import count_virtual
from hub.attachment.checking import check_mask, check_room, check_tokens
from hub.attachment.cutting import cut_output
from hub.attachment.effects import Switch
from hub.attachment.frames import Frame, find_frame, pop_frame, push_frame
from hub.attachment.mixing import count_each
from hub.attachment.nodes import Chain, run_extend
from hub.attachment.placing import arrange, find_order, find_places, take_tokens
from hub.errors import AttachError
from hub.sites.shifting import IGNORED, Shift

_numbers = itertools.count()


@dataclass(frozen=True)
class Ahead:
    """What one line of a composition puts in front of a row.

    blank: placeholders whose vectors don't matter, since their keys and values are replaced.
    prompts: the chain whose `extend` gives virtual tokens, (n, d_model).
    moved: positions that attention alone is given, by which the tokens' positions move on.
    """

    blank: int = 0
    prompts: Chain = ()
    moved: int = 0

    @property
    def sizes(self) -> tuple[int, int, int]:
        """How many of each kind."""
        return self.blank, count_virtual(self.prompts), self.moved


class Front:
    """What is put in front of the tokens of one module, the host.

    Rows may have different things in front of them. There is room for the most of each kind then,
    and what a row leaves empty comes before what it has, or behind its tokens, hidden by the mask.

    word: the token id of a placeholder; padding: that of a place which a row leaves empty.
    offset: positions that the model puts before all of these by itself.
    axis: that of the positions in what the input embeddings give.
    cut: whether the outputs shall be those of the tokens given alone.
    fill: puts what attention alone is given into a cache for so many rows, where it can.
    number: tells the caches that it filled from those of other fronts, and of other tables; a copy
        of a model keeps it.
    ruled: whether someone asks at which positions of a row it acts.
    real: of each line, which of the places in front it fills, (lines, count), before they are
        brought in order; real_moved: the same of what attention alone is given; ahead, prompts: how
        many it has of all, and of prompts, (lines,). None where all lines have the same.
    blanks: of each line, which of the first places are its blanks, (lines, count); free: how many
        of them come behind those, (lines,).
    shift: finds how rows with differently much in front of them can be told apart, see
        `find_shift`; asked when there are such.
    """

    def __init__(
        self,
        switch: Switch,
        host: nn.Module,
        word: int,
        padding: int,
        *,
        offset: int = 0,
        axis: int = 1,
        cut: bool = True,
        shift: Callable[[], Shift] | None = None,
    ) -> None:
        self.switch = switch
        self.parameters = list_parameters(host)
        self.word = word
        self.padding = padding
        self.offset = offset
        self.axis = axis
        self.cut = cut
        self.ask_shift = shift
        self.ruled = False
        self._found: Shift | None = None
        self.fill: Callable[[Any, int], bool] | None = None
        self.lay([Ahead()], None)

    def lay(self, lines: Sequence[Ahead], rows: Sequence[int] | None) -> None:
        """Say what is in front from now on: of every row the first line, or each row's own.

        Raises AttachError where this base can't tell rows with differently much apart.
        """
        sizes = [line.sizes for line in lines]
        blank, prompt, moved = (max(size) for size in zip(*sizes, strict=True))
        uneven = len(set(sizes)) > 1
        self.shift = self._find_shift() if len({size[:2] for size in sizes}) > 1 else Shift()
        if len({size[2] for size in sizes}) > 1:  # what attention alone is given is in no mask
            self.shift = replace(self.shift, by="positions")
        self.number = next(_numbers)
        self.lines = tuple(lines)
        self.rows = None if rows is None or len(lines) == 1 else tuple(rows)
        self.blank, self.moved, self.count = blank, moved, blank + prompt
        self.ahead = torch.tensor([sum(size) for size in sizes]) if uneven else None
        self.real = self.real_moved = self.prompts = self.blanks = self.free = None
        if uneven:
            self.real = mark_ends([size[0] + size[1] for size in sizes], self.count)
            self.real_moved = mark_ends([size[2] for size in sizes], moved)
            self.prompts = torch.tensor([size[1] for size in sizes])
            blanks = torch.tensor([size[0] for size in sizes])
            self.free = self.count - blanks if self.shift.behind else self.prompts
            place = torch.arange(self.count) + self.free.unsqueeze(1)
            self.blanks = (place < self.count) & (place >= (self.count - blanks).unsqueeze(1))

    @property
    def acts(self) -> bool:
        """Whether there is anything for it to do."""
        return bool(self.count or self.moved or self.ruled)

    def _find_shift(self) -> Shift:
        if self._found is None and self.ask_shift is not None:
            before, self.switch.on = self.switch.on, False
            try:
                self._found = self.ask_shift()
            finally:
                self.switch.on = before
        return self._found or Shift()

    def find_owner(self, rows: int, device: torch.device) -> Tensor | None:
        """Which line each of `rows` rows has, (rows,); None where there is one. Raises AttachError
        where they are another number than those that were laid."""
        if self.rows is None:
            return None
        each = count_each(rows, len(self.rows))
        return torch.tensor(self.rows, device=device).repeat_interleave(each)

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
        changed = known is not None and known.number != self.number
        if not self.switch.on or not self.acts or changed:
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
            if is_filled(kept) and (self.count or self.moved):
                raise AttachError(
                    "this cache was filled without the adapters' virtual tokens, so they can't "
                    "come before it; start from an empty cache"
                )
            behind = self.fill is not None and bool(self.moved) and self.fill(kept, rows)
            cached = self.count + (self.moved if behind else 0)
            frame = Frame(self.count, rows, length, cached, behind, find_room(kept))
        else:
            frame = Frame(0, rows, length, known.cached, known.behind, known.room)
        frame.owner = self.find_owner(rows, given.device)
        held = count_cached(kept)
        if self.shift.by == "ids" and ids is None:
            raise AttachError(
                f"{type(module).__name__} counts positions by its token ids, so rows with "
                "differently many virtual positions need input_ids and not inputs_embeds; give "
                "them equally many"
            )
        # What goes on from states alone has no earlier positions to be hidden.
        hides = self.ahead is not None and bool(frame.inserted or held)
        if hides and kwargs.get("attention_mask") is None:
            if "attention_mask" not in self.parameters:
                raise AttachError(
                    f"{type(module).__name__} takes no attention_mask, which rows with differently "
                    "many virtual positions need; give them equally many"
                )
            whole = frame.find_start(held) + length
            kwargs["attention_mask"] = given.new_ones(rows, whole, dtype=torch.long)
        check_room(frame.room, held, frame)
        check_mask(kwargs.get("attention_mask"), frame)
        check_tokens(kwargs, held, frame)
        mask = kwargs.get("attention_mask")
        if frame.inserted and isinstance(mask, Tensor) and mask.dim() == 2:
            spread = mask.shape[1] == frame.inserted + length  # on the way here
            frame.order = self.find_order(mask, frame.owner, spread=spread)
        if self.ruled:
            frame.places = self._measure(kwargs, frame, held, given.device)
        self._move_positions(kwargs, frame, held)
        if frame.inserted and self.shift.follows and isinstance(kwargs.get("labels"), Tensor):
            kwargs["labels"] = self._drop_labels(kwargs["labels"], mask, frame)
        for name in kwargs if frame.inserted else ("attention_mask",):
            if isinstance(kwargs.get(name), Tensor):
                kwargs[name] = self._widen(name, kwargs[name], frame)
        if ids is None and frame.inserted:
            blank = given.new_zeros(rows, self.count, *given.shape[2:])
            vectors = arrange(torch.cat([blank, given], dim=1), frame.order)
            kwargs["inputs_embeds"] = self.put_prompts(vectors, frame)
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
        if self.count > self.blank and frame.inserted and not frame.placed:
            raise AttachError(
                f"{type(module).__name__} did not look its {frame.rows} x {frame.length} tokens up "
                "in its input embeddings, so the virtual tokens found no place; this model can't "
                "take them"
            )
        given = find_cache(kwargs)
        found = (find_cache(output), given if count_cached(given) else None)
        for kept in found if self.count or self.moved else ():
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
        body = self.put_prompts(body, frame, self.offset)
        vectors = torch.cat([body, padding], dim=1) if padding.shape[1] else body
        return vectors.transpose(0, 1) if self.axis == 0 else vectors

    def put_prompts(self, vectors: Tensor, frame: Frame, offset: int = 0) -> Tensor:
        """(rows, positions, d_model) with the virtual tokens in the place of their placeholders."""
        count = self.count - self.blank
        if not count:
            return vectors
        order, like = frame.order, vectors.new_zeros(0, vectors.shape[-1])
        tables = [
            run_extend(line.prompts).to(like) if line.prompts else like for line in self.lines
        ]
        tokens = line_up(tables, count, frame.owner)  # (rows or 1, count, d_model)
        start, end = offset + self.blank, offset + self.count
        tokens = tokens.expand(len(vectors), -1, -1)
        if order is None and self.prompts is None:
            return torch.cat([vectors[:, :start], tokens, vectors[:, end:]], dim=1)
        body = vectors[:, offset:]
        place = torch.arange(body.shape[1], device=body.device) if order is None else order
        place = place.expand(len(body), -1) - self.blank  # among the virtual tokens
        first: int | Tensor = 0
        if self.prompts is not None:  # a row that has fewer has its blanks before them, or nothing
            first = count - self.prompts.to(body.device)[frame.owner].unsqueeze(1)
        found = arrange(tokens, place.clamp(min=0, max=count - 1))
        virtual = ((place >= first) & (place < count)).unsqueeze(-1)
        return torch.cat([vectors[:, :offset], torch.where(virtual, found, body)], dim=1)

    def spread_mask(self, mask: Tensor, owner: Tensor | None = None) -> Tensor:
        """A mask with ones for the positions in front, (rows, count + seq); zeros for the room that
        a row leaves empty."""
        front = mask.new_ones(len(mask), self.count)
        if self.real is not None and owner is not None:
            front = self.real.to(mask.device)[owner].to(mask.dtype)
        order = self.find_order(mask, owner, spread=False)
        spread: Tensor = arrange(torch.cat([front, mask], dim=1), order)
        return spread

    def _measure(
        self, kwargs: dict[str, Any], frame: Frame, held: int, device: torch.device
    ) -> Tensor:
        """Which of its row's own positions each one is; see `Frame.places`."""
        mask, told = kwargs.get("attention_mask"), kwargs.get("position_ids")
        if isinstance(mask, Tensor) and mask.dim() == 2:
            if frame.inserted and mask.shape[1] == frame.inserted + frame.length:
                mask = take_tokens(mask, frame.order, frame.inserted)  # spread on the way here
            own = (mask.cumsum(1) - 1)[:, -frame.length :].to(device)
        elif mask is not None and isinstance(told, Tensor) and told.dim() == 2:
            own = told.expand(frame.rows, -1)  # of a mask of another kind they tell of the padding
        else:
            start = frame.find_start(held)
            own = torch.arange(start, start + frame.length, device=device).expand(frame.rows, -1)
        if not frame.inserted:
            return own
        front = torch.full((frame.rows, frame.inserted), -1, device=device)
        places: Tensor = arrange(torch.cat([front, own], dim=1), frame.order)
        return places

    def find_order(self, mask: Tensor, owner: Tensor | None, *, spread: bool) -> Tensor | None:
        """What comes at each place where rows are padded on the left, see `placing.find_order`.

        mask: of the tokens alone, or, `spread`, what `spread_mask` made of that.
        """
        empty = None
        if self.real is not None and owner is not None:
            empty = (~self.real).sum(1).to(mask.device)[owner].unsqueeze(1)
        if spread:
            padding = (mask.cumsum(1) == 0).sum(1, keepdim=True)
            if empty is not None and not self.shift.behind:
                padding = padding - empty
            mask = torch.arange(mask.shape[1] - self.count, device=mask.device) >= padding
        # Blanks stay in front: a layer that checkpointing runs again knows of no padding.
        moving: int | Tensor = self.count - self.blank
        if moving and self.prompts is not None and owner is not None:
            moving = self.prompts.to(mask.device)[owner].unsqueeze(1)
        if self.shift.behind and empty is not None:
            return find_order(mask, self.count, moving, empty)
        return find_order(mask, self.count, moving) if self.count > self.blank else None

    def _move_positions(self, kwargs: dict[str, Any], frame: Frame, held: int) -> None:
        """Let the tokens' positions begin after those in front of them."""
        positions = kwargs.get("position_ids")
        known = "position_ids" in self.parameters
        if positions is not None:
            kwargs["position_ids"] = self._number(positions, frame)
        elif known and frame.owner is not None and self.shift.by == "positions":
            kwargs["position_ids"] = self._count(frame, held, frame.owner)
        elif known and self.moved and not frame.behind:
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
        frame.kept = kwargs.get("logits_to_keep")

    def _number(self, positions: Tensor, frame: Frame) -> Tensor:
        """The positions of all, from those of the tokens, (..., rows, length)."""
        by: Any = self.count + self.moved
        if self.ahead is not None and frame.owner is not None:
            by = self.ahead.to(positions)[frame.owner].unsqueeze(-1)
        if not frame.inserted:
            return torch.add(positions, by)
        front = torch.arange(frame.inserted, device=positions.device) + self.moved
        if self.real is not None and self.real_moved is not None and frame.owner is not None:
            real = self.real.to(positions)[frame.owner]
            moved = self.real_moved.sum(1).to(positions)[frame.owner].unsqueeze(-1)
            front = (real.cumsum(1) - 1).clamp(min=0) + moved
            positions = positions.expand(*positions.shape[:-2], frame.rows, -1)
        front = front.expand(*positions.shape[:-1], -1)
        moved = torch.cat([front.to(positions.dtype), positions + by], dim=-1)
        if frame.order is not None:
            moved = moved.expand(*moved.shape[:-2], frame.rows, -1)
            moved = moved.gather(-1, frame.order.expand_as(moved))
        numbered: Tensor = moved
        return numbered

    def _count(self, frame: Frame, held: int, owner: Tensor) -> Tensor:
        """The positions of all, (rows, inserted + length), as a model counts them that counts its
        padding, but not the room that a row leaves empty."""
        assert self.real is not None and self.real_moved is not None and self.ahead is not None
        if not frame.inserted:
            start = frame.find_start(held)
            own = torch.arange(start, start + frame.length, device=owner.device)
            return own + self.ahead.to(owner)[owner].unsqueeze(1)
        steps = self.real.to(owner)[owner]
        steps = torch.cat([steps, steps.new_ones(frame.rows, frame.length)], dim=1)
        moved = self.real_moved.to(owner).sum(1)[owner].unsqueeze(1)
        counted: Tensor = (arrange(steps, frame.order).cumsum(1) - 1).clamp(min=0) + moved
        return counted

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
            return find_places(frame.order, frame.inserted, value)
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
            if self.real is not None and frame.owner is not None:
                real = self.real.to(front.device)[frame.owner]
                front = front.masked_fill(~real, self.padding)
        elif name.endswith("labels"):
            if value.is_floating_point():
                return value
            front = torch.full_like(front, IGNORED)
        elif name.endswith("mask"):
            front = torch.ones_like(front)
        return arrange(torch.cat([front, value], dim=1), frame.order)

    def _drop_labels(self, labels: Tensor, mask: Any, frame: Frame) -> Tensor:
        """Without the label of the first token of a row that has nothing in front: in a run of its
        own nothing is asked for it, and here a place that it leaves empty would be."""
        assert self.real is not None and frame.owner is not None
        empty = ~self.real.any(1).to(labels.device)[frame.owner]
        if isinstance(mask, Tensor) and mask.dim() == 2:
            empty = empty & mask[:, 0].bool()
        first = torch.arange(frame.length, device=labels.device) == 0
        return labels.masked_fill(empty.unsqueeze(1) & first, IGNORED)

    def _widen_mask(self, mask: Tensor, frame: Frame) -> Tensor:
        if not frame.cached:
            return mask  # of whatever shape: nothing is in front but at the attention
        if frame.inserted and mask.shape[1] == frame.length + frame.inserted:
            return mask  # spread on the way here
        mask = self.spread_mask(mask, frame.owner) if self.count else mask
        behind = frame.cached - self.count
        if not behind:
            return mask
        front = mask.new_ones(len(mask), behind)
        if self.real_moved is not None and frame.owner is not None:
            front = self.real_moved.to(mask.device)[frame.owner].to(mask.dtype)
        return torch.cat([front, mask], dim=1)


def list_parameters(module: nn.Module) -> tuple[str, ...]:
    """The names of what the forward of `module` takes, in order."""
    return tuple(inspect.signature(module.forward).parameters)


def mark_ends(counts: Sequence[int], most: int) -> Tensor:
    """For each count that many ones at the end of `most` places, (counts, most), bool."""
    place = torch.arange(most)
    return place >= most - torch.tensor(list(counts)).unsqueeze(-1)


def line_up(
    tables: Sequence[Tensor], count: int, owner: Tensor | None, behind: Tensor | None = None
) -> Tensor:
    """Tables of (n, width) at the end of `count` places, one for each row: (rows, count, width).

    owner: which table each row has; None for the one that there is, (1, count, width).
    behind: how many places each table leaves free at the end; None for none.
    """
    if len(tables) == 1:
        return tables[0].unsqueeze(0)
    free = [0] * len(tables) if behind is None else behind.tolist()
    padded = [
        nn.functional.pad(table, (0, 0, count - len(table) - after, after))
        for table, after in zip(tables, free, strict=True)
    ]
    return torch.stack(padded)[owner]
