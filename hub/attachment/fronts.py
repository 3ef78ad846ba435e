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
import threading
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from hub.attachment.effects import Switch
from hub.attachment.placing import arrange, find_order, take_tokens
from hub.errors import AttachError
from hub.sites.tracing import list_words

MARK = "hub_front"
CACHES = ("past_key_values", "cache_params", "state", "mems", "past_buckets_states")
IGNORED = -100  # a label that counts for nothing

_running = threading.local()
_numbers = itertools.count()


@dataclass(slots=True)
class Frame:
    """One forward of a front's module.

    inserted: positions put in front of its tokens, 0 where the cache holds them already.
    rows, length: of what it was given.
    cached: how many positions in front the cache holds, in the end.
    behind: whether the keys and values that are given to attention alone are among them.
    order: where the rows are padded on the left, what comes at each place, (rows, inserted +
        length): the virtual tokens behind the padding.
    placed: whether the placeholders have got their vectors.
    """

    inserted: int
    rows: int
    length: int
    cached: int
    behind: bool
    order: Tensor | None = None
    placed: bool = False


@dataclass(frozen=True, slots=True)
class Mark:
    """What stands on a cache: the number of the front that filled it, and a frame's `cached` and
    `behind`."""

    number: int
    cached: int
    behind: bool


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
        frames: list[tuple[int, Frame]] = getattr(_running, "frames", [])
        if frames and frames[-1][0] == id(self):  # asked at every attention of every token
            return frames[-1][1]
        return next((frame for owner, frame in reversed(frames) if owner == id(self)), None)

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
            behind = bool(self.moved) and self._fill_cache(kept, rows)
            cached = self.count + (self.moved if behind else 0)
            frame = Frame(self.count, rows, length, cached, behind)
        else:
            frame = Frame(0, rows, length, known.cached, known.behind)
        check_room(kept, frame)
        check_mask(kwargs.get("attention_mask"), frame)
        check_tokens(kwargs, kept, frame)
        frame.order = self._find_order(kwargs.get("attention_mask"), frame)
        self._move_positions(kwargs, frame, kept)
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
            write_mark(kept, Mark(self.number, frame.cached, frame.behind))
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

    def _fill_cache(self, kept: Any, rows: int) -> bool:
        return self.fill is not None and bool(self.fill(kept, rows))

    def _move_positions(self, kwargs: dict[str, Any], frame: Frame, kept: Any) -> None:
        """Let the tokens' positions begin after those in front of them."""
        by = self.count + self.moved
        positions = kwargs.get("position_ids")
        if positions is not None:
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
            start = count_cached(kept) + self.moved
            positions = torch.arange(start, start + count, device=device)
            kwargs["position_ids"] = positions.expand(frame.rows, -1)
        places = kwargs.get("cache_position")
        if places is not None:
            front = torch.arange(frame.inserted, device=places.device)
            kwargs["cache_position"] = torch.cat([front, places + frame.cached])
        kept_logits = kwargs.get("logits_to_keep")
        if isinstance(kept_logits, Tensor):
            kwargs["logits_to_keep"] = kept_logits + frame.inserted
        elif isinstance(kept_logits, int):  # that many from the end
            kwargs["logits_to_keep"] = min(kept_logits, frame.length)

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


class Crossing:
    """The hooks on a whole encoder-decoder model whose encoder has a front: what the decoder sees
    of it has more positions than the encoder was given tokens."""

    def __init__(self, front: Front, model: nn.Module) -> None:
        self.front = front
        self.parameters = list_parameters(model)

    def enter(
        self, module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]
    ) -> tuple[tuple[Any, ...], dict[str, Any]] | None:
        """The forward pre-hook: widen the mask of what is encoded. Raises AttachError where that
        lacks the virtual tokens."""
        if not self.front.switch.on:
            return None
        kwargs = {**dict(zip(self.parameters, args, strict=False)), **kwargs}
        mask, encoded = kwargs.get("attention_mask"), kwargs.get("encoder_outputs")
        if mask is not None:
            length = mask.shape[1]
            there = length + self.front.count if encoded is None else encoded[0].shape[1]
            if there == length:
                raise AttachError(
                    f"encoder_outputs has {there} positions for the {length} of attention_mask, "
                    f"and the adapters' {self.front.count} virtual tokens belong in front; encode "
                    "while they act, and give the mask of the tokens alone"
                )
            if there == length + self.front.count:
                kwargs["attention_mask"] = self.front.spread_mask(mask)
        return (), kwargs

    def leave(
        self, module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any], output: Any
    ) -> Any:
        """The forward hook: what the model says of its encoder is about the tokens given."""
        if not self.front.switch.on or not isinstance(output, Mapping):
            return None
        count, mask = self.front.count, kwargs.get("attention_mask")
        order = find_order(mask[:, :-count], count) if mask is not None else None
        changed = {}
        for name, value in output.items():
            if value is not None and (name == "cross_attentions" or name.startswith("encoder_")):
                parts = [value] if isinstance(value, Tensor) else value
                parts = tuple(self._cut(part, order, name) for part in parts)
                value = parts[0] if isinstance(value, Tensor) else parts
            changed[name] = value
        return type(output)(**changed)

    def _cut(self, value: Tensor, order: Tensor | None, name: str) -> Tensor:
        if name != "cross_attentions":
            value = take_tokens(value, order, self.front.count, 2 if value.dim() == 4 else 1)
        return take_tokens(value, order, self.front.count, 3) if value.dim() == 4 else value


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


def push_frame(front: Front, frame: Frame) -> None:
    """Say that a forward begins. One that an interrupt ended did not say that it was over."""
    frames = [item for item in getattr(_running, "frames", []) if item[0] != id(front)]
    _running.frames = [*frames, (id(front), frame)]


def pop_frame(front: Front) -> Frame | None:
    """Say that the forward that began last is over."""
    frames: list[tuple[int, Frame]] = getattr(_running, "frames", [])
    if not frames or frames[-1][0] != id(front):
        return None
    return frames.pop()[1]


def find_cache(values: Any) -> Any:
    """What a forward keeps for the next one, among its arguments or in its output."""
    if isinstance(values, tuple):
        return next((value for value in values if hasattr(value, "get_seq_length")), None)
    if not isinstance(values, Mapping):
        return None
    return next((values[name] for name in CACHES if values.get(name) is not None), None)


def carry_mark(kept: Any) -> Any:
    """The object of a cache that takes an attribute."""
    while isinstance(kept, list | tuple) and kept:
        kept = kept[0]
    return kept


def read_mark(kept: Any) -> Mark | None:
    """What the forward that filled a cache wrote on it; None on one that was emptied since."""
    mark: Mark | None = getattr(carry_mark(kept), MARK, None)
    return None if is_filled(kept) is False else mark


def write_mark(kept: Any, mark: Mark) -> None:
    """Write on a cache what a forward left in it."""
    carrier = carry_mark(kept)
    if hasattr(carrier, "__dict__"):
        setattr(carrier, MARK, mark)


def check_room(kept: Any, frame: Frame) -> None:
    """Raise AttachError where a cache of a fixed size has no place for what comes in. A window that
    slides over the positions always has."""
    layers = getattr(getattr(kept, "self_attention_cache", kept), "layers", ())
    limits = [layer.get_max_length() for layer in layers if not getattr(layer, "is_sliding", False)]
    most = max(limits, default=-1)
    wanted = count_cached(kept) + frame.inserted + frame.length
    if 0 < most < wanted:
        raise AttachError(
            f"the cache holds {most} positions and needs {wanted}, with those that the adapters "
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


def check_tokens(kwargs: Mapping[str, Any], kept: Any, frame: Frame) -> None:
    """Raise AttachError where a forward that goes on from a cache is not given the tokens behind
    those that it holds: `generate` takes the virtual ones there for tokens of the text, and leaves
    out as many.

    The mask tells, or where it was left out for being all ones, the positions.
    """
    held = 0 if frame.inserted else count_cached(kept)
    if not held or not frame.cached or torch.compiler.is_compiling():
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


def is_filled(kept: Any) -> bool | None:
    """Whether a cache holds anything; None where it can't say."""
    if not hasattr(kept, "get_seq_length"):
        return None
    try:
        return bool(kept.get_seq_length())
    except ValueError:  # a cache of states, without positions
        return bool(kept.has_previous_state())


def count_cached(kept: Any) -> int:
    """How many positions a cache holds; 0 where it can't say."""
    count = getattr(kept, "get_seq_length", None)
    try:
        return int(count() or 0) if callable(count) else 0
    except ValueError:  # a cache of states, without positions
        return 0


def cut_output(output: Any, frame: Frame) -> Any:
    """What a model gives, without the positions in front."""
    if isinstance(output, Mapping):
        if not frame.inserted and not any("attentions" in name for name in output):
            return output  # what decoding gives, as it is
        return type(output)(**{name: cut_value(output[name], frame, name) for name in output})
    if isinstance(output, Tensor):
        return cut_value(output, frame)
    return tuple(cut_value(value, frame) for value in output)


def cut_value(value: Any, frame: Frame, name: str = "") -> Any:
    """One output: a tensor, or a tuple with one for each layer."""
    if isinstance(value, tuple | list):
        return type(value)(cut_value(item, frame, name) for item in value)
    if not isinstance(value, Tensor) or not value.is_floating_point():
        return value
    if name == "cross_attentions":  # over the encoder's positions, (rows, heads, asked, encoded)
        return value[..., frame.inserted :, :]
    total = frame.inserted + frame.length
    if value.dim() == 4 and ("attentions" in name or value.shape[-2:] == (total, total)):
        behind = frame.cached - frame.inserted
        value = value[..., behind:] if frame.inserted else value[..., frame.cached :]
        if not frame.inserted:
            return value
        value = take_tokens(value, frame.order, frame.inserted, 2)
        return take_tokens(value, frame.order, frame.inserted, 3)
    if frame.inserted and name == "router_logits" and len(value) == frame.rows * total:
        rows = value.view(frame.rows, total, -1)
        return take_tokens(rows, frame.order, frame.inserted).flatten(0, 1)
    by_token = value.dim() > 2 or name in ("start_logits", "end_logits")
    if frame.inserted and by_token and value.shape[:2] == (frame.rows, total):
        return take_tokens(value, frame.order, frame.inserted)
    return value
