"""Fronts: virtual positions in front of what a model is given, and off what it gives.

A front is two hooks on the module that takes token ids: the model, or one half of an
encoder-decoder model. Before the forward it puts placeholder tokens in front of the ids and widens
masks, labels and whatever else has a value for each token; a hook on the input embeddings gives the
placeholders their vectors. After the forward it takes the positions off every output again.

A forward that goes on from a cache finds the positions in it. So that this is known, a cache is
marked by the forward that fills it.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from hub.attachment.arguments import list_parameters, move_positions, widen_all, widen_mask
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
from hub.attachment.layouts import Ahead, Layout
from hub.attachment.numbering import find_own
from hub.attachment.placing import arrange
from hub.errors import AttachError
from hub.sites.shifting import Shift


class Front:
    """What puts positions in front of the tokens of one module, the host.

    layout: what stands in front of each row now.
    word: the token id of a placeholder; padding: that of a place which a row leaves empty.
    offset: positions that the model puts before all of these by itself.
    axis: that of the positions in what the input embeddings give.
    cut: whether the outputs shall be those of the tokens given alone.
    shift: finds how rows with differently much in front of them can be told apart, see
        `find_shift`; asked once, when there are such.
    fill: puts what attention alone is given into a cache for so many rows, where it can.
    ruled: whether someone asks at which positions of a row it acts.
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
        self.layout = Layout.build(lines, rows, self._find_shift)

    def _find_shift(self) -> Shift:
        if self._found is None and self.ask_shift is not None:
            before, self.switch.on = self.switch.on, False
            try:
                self._found = self.ask_shift()
            finally:
                self.switch.on = before
        return self._found or Shift()

    @property
    def frame(self) -> Frame | None:
        """The forward that runs in this thread; None outside of one, such as while gradient
        checkpointing runs a layer again."""
        return find_frame(self)

    def enter(
        self, module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]
    ) -> tuple[tuple[Any, ...], dict[str, Any]] | None:
        """The forward pre-hook: put the positions in front. Raises AttachError."""
        layout = self.layout
        kwargs = {**dict(zip(self.parameters, args, strict=False)), **kwargs}
        kept = find_cache(kwargs)
        known = read_mark(kept)
        acts = self.switch.on and (layout.count or layout.moved or self.ruled)
        if not acts or (known is not None and known.number != layout.number):
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
        frame = self._begin(layout, kept, known, given)
        held = count_cached(kept)
        if layout.uneven is not None:
            self._hide_empty(module, kwargs, layout, frame, held)
        mask = kwargs.get("attention_mask")
        check_room(frame.room, held, frame)
        check_mask(mask, frame)
        check_tokens(kwargs, held, frame)
        if frame.inserted and isinstance(mask, Tensor) and mask.dim() == 2:
            spread = mask.shape[1] == frame.inserted + frame.length  # on the way here
            frame.order = layout.find_order(mask, frame.owner, spread=spread)
        if self.ruled:
            frame.places = find_own(kwargs, frame, held, given.device)
        move_positions(kwargs, self.parameters, layout, frame, held)
        if frame.inserted:
            widen_all(kwargs, layout, frame, self.word, self.padding)
        elif isinstance(mask, Tensor):
            kwargs["attention_mask"] = widen_mask(mask, layout, frame)
        if ids is None and frame.inserted:
            blank = given.new_zeros(frame.rows, layout.count, *given.shape[2:])
            vectors = arrange(torch.cat([blank, given], dim=1), frame.order)
            kwargs["inputs_embeds"] = layout.put_prompts(vectors, frame)
            frame.placed = True
        push_frame(self, frame)
        return (), kwargs

    def _begin(self, layout: Layout, kept: Any, known: Mark | None, given: Tensor) -> Frame:
        """What is known of a forward with a cache and its mark. Raises AttachError where the cache
        holds tokens alone, or the rows are not those that were laid."""
        rows, length = given.shape[:2]
        if known is not None:
            frame = Frame(0, rows, length, known.cached, known.behind, known.room)
        else:
            if is_filled(kept) and (layout.count or layout.moved):
                raise AttachError(
                    "this cache was filled without the adapters' virtual tokens, so they can't "
                    "come before it; start from an empty cache"
                )
            behind = self.fill is not None and bool(layout.moved) and self.fill(kept, rows)
            cached = layout.count + (layout.moved if behind else 0)
            frame = Frame(layout.count, rows, length, cached, behind, find_room(kept))
        frame.owner = layout.find_owner(rows, given.device)
        return frame

    def _hide_empty(
        self, module: nn.Module, kwargs: dict[str, Any], layout: Layout, frame: Frame, held: int
    ) -> None:
        """See that there is a mask, which hides what rows leave empty. Raises AttachError where the
        model can't be told what that is."""
        ids = kwargs.get("input_ids")
        if layout.shift.by == "ids" and ids is None:
            raise AttachError(
                f"{type(module).__name__} counts positions by its token ids, so rows with "
                "differently many virtual positions need input_ids and not inputs_embeds; give "
                "them equally many"
            )
        # What goes on from states alone has no earlier positions to be hidden.
        if kwargs.get("attention_mask") is not None or not (frame.inserted or held):
            return
        if "attention_mask" not in self.parameters:
            raise AttachError(
                f"{type(module).__name__} takes no attention_mask, which rows with differently "
                "many virtual positions need; give them equally many"
            )
        whole = frame.find_start(held) + frame.length
        given = ids if ids is not None else kwargs["inputs_embeds"]
        kwargs["attention_mask"] = given.new_ones(frame.rows, whole, dtype=torch.long)

    def leave(
        self, module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any], output: Any
    ) -> Any:
        """The forward hook, called after a failure too: take the positions off."""
        layout, frame = self.layout, pop_frame(self)
        if frame is None or output is None:
            return None
        if layout.prompt and frame.inserted and not frame.placed:
            raise AttachError(
                f"{type(module).__name__} did not look its {frame.rows} x {frame.length} tokens up "
                "in its input embeddings, so the virtual tokens found no place; this model can't "
                "take them"
            )
        given = find_cache(kwargs)
        found = (find_cache(output), given if count_cached(given) else None)
        for kept in found if layout.count or layout.moved else ():
            write_mark(kept, Mark(layout.number, frame.cached, frame.behind, frame.room))
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
        body = self.layout.put_prompts(body, frame, self.offset)
        vectors = torch.cat([body, padding], dim=1) if padding.shape[1] else body
        return vectors.transpose(0, 1) if self.axis == 0 else vectors
