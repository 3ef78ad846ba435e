"""Hanging the hooks of what acts in front of a sequence and at its attention."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import nn
from torch.utils.hooks import RemovableHandle

from hub.attachment.crossing import Crossing
from hub.attachment.effects import Switch
from hub.attachment.fronts import Front, choose_word, count_virtual
from hub.attachment.prefixes import AttentionEffect, CacheFiller, FeedEffect
from hub.sites import Site, find_stacks
from hub.sites.linears import get_sizes

Effects = Sequence[tuple[Site, list[nn.Module]]]


def hang_fronts(model: nn.Module, effects: Effects, switch: Switch) -> list[RemovableHandle]:
    """The hooks for what acts at `effects`, sites of kind attention and embedding."""
    looks = [(site, modules) for site, modules in effects if site.kind == "attention"]
    inputs = [(site, modules) for site, modules in effects if site.kind == "embedding"]
    stacks = find_stacks(model)
    handles: list[RemovableHandle] = []
    prompts: list[nn.Module] = []
    place, axis = None, 1
    for site, modules in inputs:
        if stacks.encoder:
            host = model.get_submodule(stacks.encoder)
            encoder = Front(
                switch, host, choose_word(model), prompts=modules, axis=site.axis, cut=False
            )
            handles += hang_front(encoder, host, model, site.path)
            crossing = Crossing(encoder, model)
            handles.append(model.register_forward_pre_hook(crossing.enter, with_kwargs=True))
            handles.append(model.register_forward_hook(crossing.leave, with_kwargs=True))
        else:
            prompts, place, axis = modules, site.path, site.axis
    blank = count_prefix([look for look in looks if look[0].inserted])
    moved = count_prefix([look for look in looks if not look[0].inserted])
    front = None
    if prompts or blank or moved:
        host = model.get_submodule(stacks.decoder)
        front = Front(
            switch,
            host,
            choose_word(model),
            blank=blank,
            prompts=prompts,
            moved=moved,
            offset=max(site.offset for site, _ in effects),
            axis=axis,
        )
        handles += hang_front(front, host, model, place)
    return handles + hang_looks(model, looks, front, switch)


def hang_front(
    front: Front, host: nn.Module, model: nn.Module, place: str | None
) -> list[RemovableHandle]:
    """The hooks of one front on its host, with the input embeddings at `place` in the model."""
    handles = [
        host.register_forward_pre_hook(front.enter, with_kwargs=True),
        host.register_forward_hook(front.leave, with_kwargs=True, always_call=True),
    ]
    if place is not None:
        embeddings = model.get_submodule(place)
        handles.append(embeddings.register_forward_hook(front.embed, with_kwargs=True))
    return handles


def hang_looks(
    model: nn.Module, looks: Effects, front: Front | None, switch: Switch
) -> list[RemovableHandle]:
    """The hooks at each attention, or at what feeds it."""
    handles: list[RemovableHandle] = []
    by_layer: dict[int, tuple[str, AttentionEffect]] = {}
    for site, modules in looks:
        prefixes, outputs = find_prefixes(modules), [m for m in modules if not extends(m)]
        if site.inserted and prefixes:
            assert front is not None
            start = 0
            for path in site.feeds:
                feed = model.get_submodule(path)
                part = (start, start + get_sizes(feed)[1])
                effect = FeedEffect(switch, front, prefixes, part, site.axis)
                handles.append(feed.register_forward_hook(effect))
                start = part[1]
            prefixes = []
        if prefixes or outputs:
            module = model.get_submodule(site.path)
            look = AttentionEffect(switch, front, site, prefixes, outputs)
            handles.append(module.register_forward_hook(look))
            if prefixes and site.cached:
                by_layer[module.layer_idx] = (site.path, look)  # type: ignore[index]
    if front is not None and by_layer:
        front.fill = CacheFiller(model, by_layer)
    return handles


def extends(module: nn.Module) -> bool:
    """Whether a method's module puts virtual positions in front."""
    return hasattr(module, "extend")


def find_prefixes(modules: Sequence[nn.Module]) -> list[nn.Module]:
    """Those that put virtual positions in front."""
    return [module for module in modules if extends(module)]


def count_prefix(looks: Effects) -> int:
    """How many positions the prefixes at these attentions have, the same at each."""
    with torch.no_grad():
        counts = [sum(map(count_virtual, find_prefixes(modules))) for _, modules in looks]
    return max(counts, default=0)
