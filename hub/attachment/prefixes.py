"""Prefixes: keys and values in front of those of the tokens, at one attention or through all.

Where a model's attention goes through transformers' functions and its positions can be moved, a
prefix is given to the attention alone: into a plain cache once, else beside the keys and values
at every call. Elsewhere blank tokens go through the model, and what feeds the keys and values
gives the prefix for them.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from hub.attachment.caches import count_cached
from hub.attachment.effects import Switch
from hub.attachment.fitting import find_place
from hub.attachment.fronts import Front
from hub.attachment.layouts import pick
from hub.attachment.nodes import Chain, run_after, run_extend
from hub.attachment.placing import line_up
from hub.errors import AttachError
from hub.interfaces import Function, FunctionHook
from hub.sites import Site


class AttentionEffect(FunctionHook):
    """What adapters do at one attention that can be reached directly.

    prefixes: of each line of the front a chain whose `extend` gives keys and values, (n, keys +
        values).
    outputs: the chain that changes what comes out, given the query.
    """

    def __init__(self, switch: Switch, front: Front, site: Site) -> None:
        self.switch = switch
        self.front = front
        self.heads = site.heads
        self.widths = (site.in_features, site.out_features)
        self.prefixes: tuple[Chain, ...] = ()
        self.outputs: Chain = ()

    def run(
        self, function: Function, name: str, module: nn.Module, *given: Any, **more: Any
    ) -> Any:
        """Attend with the prefix in front. Raises AttachError where the function can't."""
        frame = self.front.frame
        given_already = not self.prefixes or (frame is not None and frame.behind)
        if not self.switch.on or (given_already and not self.outputs):
            return function(module, *given, **more)
        query, key, value = given[:3]
        mask = given[3] if len(given) > 3 else more.pop("attention_mask", None)
        rest = given[4:]
        count = 0
        if not given_already:
            length = key.shape[2]
            front_key, front_value, real = self.make(key)
            count = front_key.shape[2]
            key = torch.cat([front_key, key], dim=2)
            value = torch.cat([front_value, value], dim=2)
            causal = more.get("is_causal")
            causal = getattr(module, "is_causal", True) if causal is None else causal
            mask = widen_mask(mask, name, query, count, length, bool(causal), real)
        output, weights = function(module, query, key, value, mask, *rest, **more)
        if count and weights is not None:
            weights = weights[..., count:]
        return run_after(self.outputs, query, output), weights

    def make(self, like: Tensor) -> tuple[Tensor, Tensor, Tensor | None]:
        """Keys and values of the prefix for as many rows as `like`: (rows, heads, n, head_dim), and
        which of them are none, (rows, n); None where all are."""
        layout = self.front.layout
        rows, count = len(like), layout.moved
        owner = layout.find_owner(rows, like.device)
        empty = like.new_zeros(0, sum(self.widths))
        tables = [run_extend(chain).to(empty) if chain else empty for chain in self.prefixes]
        extended = line_up(tables, count, owner).expand(rows, -1, -1)
        parts = torch.split(extended, list(self.widths), dim=2)
        key, value = (part.view(rows, count, self.heads, -1).transpose(1, 2) for part in parts)
        uneven = layout.uneven
        return key, value, None if uneven is None else pick(uneven.real_moved, owner)


def widen_mask(
    mask: Any,
    name: str,
    query: Tensor,
    count: int,
    length: int,
    causal: bool,
    real: Tensor | None = None,
) -> Tensor | None:
    """The mask with `count` keys in front of `length` that everyone may look at; those that `real`,
    (rows, count), says.

    Raises AttachError on a mask of another kind.
    """
    asked = query.shape[2]
    if mask is None:
        if real is None and (not causal or asked == 1 or "flash" in name):
            return None  # flash attention lines the last query up with the last key by itself
        # As in torch, from the first key on: behind the tokens a static cache has empty places.
        mask = torch.ones(asked, length, dtype=torch.bool, device=query.device)
        mask = (mask.tril() if causal and asked > 1 else mask)[None, None]
    if not isinstance(mask, Tensor):
        raise AttachError(
            f"a prefix can't be put in front under {name}; load the model with "
            "attn_implementation='sdpa'"
        )
    mask = mask[..., :length]
    full = torch.ones if mask.dtype == torch.bool or mask.dim() == 2 else torch.zeros
    if real is None:
        front = full(*mask.shape[:-1], count, dtype=mask.dtype, device=mask.device)
        return torch.cat([front, mask], dim=-1)
    if "flash" in name:
        raise AttachError(
            f"rows with prefixes of different lengths can't attend under {name}; load the model "
            "with attn_implementation='sdpa'"
        )
    rows = len(real)
    mask = mask.expand(rows, *mask.shape[1:])
    seen = real if mask.dim() == 2 else real[:, None, None, :].expand(*mask.shape[:-1], -1)
    if mask.dtype == torch.bool or mask.dim() == 2:
        front = seen.to(mask.dtype)
    else:
        hidden = torch.finfo(mask.dtype).min
        front = mask.new_zeros(seen.shape).masked_fill(~seen, hidden)
    return torch.cat([front, mask], dim=-1)


class CacheFiller:
    """Puts the prefixes of all attentions into a plain cache, before the first token.

    effects: by the layer's index in a cache, each with the path of its attention in the model.
    """

    def __init__(self, model: nn.Module, effects: dict[int, tuple[str, AttentionEffect]]) -> None:
        self.model = model
        self.effects = effects

    def __call__(self, cache: Any, rows: int) -> bool:
        """Whether the cache now holds them: not while learning, since checkpointed layers see no
        cache, nor where a cache forgets or is of a kind of its own."""
        from transformers.cache_utils import DynamicCache, DynamicLayer

        if type(cache) is not DynamicCache or torch.is_grad_enabled() or count_cached(cache):
            return False
        if any(type(layer) is not DynamicLayer for layer in cache.layers):
            return False
        for index, (path, effect) in sorted(self.effects.items()):
            # A prefix that learns is in float32 whatever the precision of the tokens' keys.
            device, dtype = find_place(self.model, path)
            key, value, _ = effect.make(torch.empty(rows, 0, device=device, dtype=dtype))
            cache.update(key, value, index)
        return True


class FeedEffect:
    """A forward hook on a projection that feeds keys or values: the prefix for the blank tokens.

    prefixes: of each line of the front a chain whose `extend` gives (n, width of all feeds).
    part: this feed's columns; axis: that of the positions.
    """

    def __init__(self, switch: Switch, front: Front, part: tuple[int, int], axis: int) -> None:
        self.switch = switch
        self.front = front
        self.prefixes: tuple[Chain, ...] = ()
        self.part = part
        self.axis = axis

    def __call__(self, module: nn.Module, args: tuple[Any, ...], output: Tensor) -> Tensor | None:
        layout = self.front.layout
        if not self.switch.on or not layout.blank:
            return None
        frame = self.front.frame
        if frame is None and not torch.is_grad_enabled():
            return None  # the module is called by itself
        if frame is not None and not frame.inserted:
            return None
        start, end = self.part
        owner = layout.find_owner(output.shape[1 - self.axis], output.device)
        empty = output.new_zeros(0, end - start)
        tables = [
            run_extend(chain)[:, start:end].to(empty) if chain else empty for chain in self.prefixes
        ]
        # A row's blanks may be elsewhere than those of other rows.
        uneven = layout.uneven
        count = layout.blank if uneven is None else layout.count
        before = self.front.offset
        after = before + count
        if output.shape[self.axis] < after:
            raise AttachError(
                f"{type(module).__name__} gave {output.shape[self.axis]} positions, fewer than the "
                f"prefix's {count}; this model shortens what it is given"
            )
        head, middle, tail = (
            output.narrow(self.axis, first, last - first)
            for first, last in ((0, before), (before, after), (after, output.shape[self.axis]))
        )
        extended = line_up(tables, count, owner, None if uneven is None else uneven.free)
        extended = extended if self.axis else extended.transpose(0, 1)
        if uneven is None:
            middle = extended.expand_as(middle)
        else:
            blanks = pick(uneven.blanks, owner).unsqueeze(-1)
            middle = torch.where(blanks if self.axis else blanks.transpose(0, 1), extended, middle)
        return torch.cat([head, middle, tail] if before else [middle, tail], dim=self.axis)
