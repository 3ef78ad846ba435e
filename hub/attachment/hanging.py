"""Hanging the hooks of what acts in front of a sequence and at its attention."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

from torch import nn
from torch.utils.hooks import RemovableHandle

from hub.attachment.chains import count_virtual
from hub.attachment.crossing import Crossing
from hub.attachment.effects import Switch
from hub.attachment.frames import Ruler
from hub.attachment.fronts import Front
from hub.attachment.layouts import Ahead
from hub.attachment.nodes import Chain, extends
from hub.attachment.places import Place
from hub.attachment.prefixes import AttentionEffect, CacheFiller, FeedEffect
from hub.attachment.routing import Table
from hub.composition import Part
from hub.sites import Site, find_shift, find_stacks
from hub.sites.linears import get_sizes
from hub.sites.shifting import choose_padding, choose_word


class Fronts:
    """What an attachment has in front of a model's tokens, or of its encoder's and its decoder's,
    and at each attention.

    Prompts stand in front of an encoder's tokens where there is one, prefixes at the decoder.
    """

    def __init__(self, model: nn.Module, switch: Switch, sites: Iterable[Site]) -> None:
        self.model = model
        self.switch = switch
        self.stacks = find_stacks(model)
        words = choose_word(model), choose_padding(model)
        inputs = [site for site in sites if site.kind == "embedding"]
        axis = inputs[0].axis if inputs else 1
        self.encoder: Front | None = None
        if self.stacks.encoder:
            host = model.get_submodule(self.stacks.encoder)
            shift = partial(find_shift, model, "encoder")
            self.encoder = Front(switch, host, *words, axis=axis, cut=False, shift=shift)
        self.decoder = Front(
            switch,
            model.get_submodule(self.stacks.decoder),
            *words,
            offset=max((site.offset for site in sites), default=0),
            axis=axis,
            shift=partial(find_shift, model, "decoder" if self.encoder else ""),
        )
        self.inputs: list[Place] = []
        self.looks: list[Look] = []
        self.handles: list[RemovableHandle] = []
        self.wanted_by: Any = None  # what hangs now was hung for this

    def find_ruler(self, site: Site) -> Ruler:
        """What tells positions apart at a site."""
        if self.encoder is None:
            return Ruler(self.decoder)
        stacks = {self.stacks.encoder: self.encoder, self.stacks.decoder: self.decoder}
        inside = [front for path, front in stacks.items() if site.owner.startswith(f"{path}.")]
        return Ruler(*inside or stacks.values())  # embeddings that both look up their tokens in

    def hang(self, places: Iterable[Place], *, ruled: bool, again: bool) -> bool:
        """Hang the hooks that the places of kind attention and embedding call for; `ruled` says
        that something asks for positions. Where they hang already this is only done `again`, so
        that they come after other hooks. Whether anything was hung."""
        there = [place for place in places if place.site.kind in ("attention", "embedding")]
        wanted_by = ruled, [(place, place.extends, place.changes_output) for place in there]
        if (wanted_by == self.wanted_by and not again) or not (ruled or there or self.handles):
            return False
        self.unhang()
        self.wanted_by = wanted_by
        self.inputs = [place for place in there if place.site.kind == "embedding" and place.extends]
        looks = [place for place in there if place.site.kind == "attention"]
        before = self.encoder or self.decoder
        wanted = [front for front in (self.encoder, self.decoder) if front is not None and ruled]
        wanted += [before] if self.inputs else []
        wanted += [self.decoder] if any(place.extends for place in looks) else []
        for front in dict.fromkeys(wanted):
            front.ruled = ruled
            self._hang_front(front, self.inputs[:1] if front is before else [])
        self.looks = [self._hang_look(place) for place in looks]
        cached: dict[int, tuple[str, AttentionEffect]] = {}
        for look in self.looks:
            site = look.place.site
            if look.direct is not None and look.place.extends and site.cached:
                module: Any = self.model.get_submodule(site.path)
                cached[module.layer_idx] = site.path, look.direct
        self.decoder.fill = CacheFiller(self.model, cached) if cached else None
        return True

    def unhang(self) -> None:
        """Take all of them off."""
        for handle in self.handles:
            handle.remove()
        self.handles, self.inputs, self.looks, self.wanted_by = [], [], [], None
        for front in (self.encoder, self.decoder):
            if front is not None:
                front.ruled, front.fill = False, None
                front.lay([Ahead()], None)

    def lay(self, table: Table) -> None:
        """Let every row have in front what its line puts there. Raises AttachError."""
        if not self.handles:
            return
        prompts = [concat(place.chain(line) for place in self.inputs) for line in table.lines]
        here = [() if self.encoder else chain for chain in prompts]
        ahead = [
            Ahead(self._count(line, inserted=True), chain, self._count(line, inserted=False))
            for line, chain in zip(table.lines, here, strict=True)
        ]
        self.decoder.lay(ahead, table.rows)
        if self.encoder is not None:
            self.encoder.lay([Ahead(prompts=chain) for chain in prompts], table.rows)
        for look in self.looks:
            look.lay(table)

    def _count(self, line: Part, *, inserted: bool) -> int:
        """How many positions a line's prefixes have, the same at each attention."""
        looks = [look.place for look in self.looks if look.place.site.inserted == inserted]
        return max((count_virtual(place.chain(line)) for place in looks), default=0)

    def _hang_front(self, front: Front, inputs: Sequence[Place]) -> None:
        """The hooks of one front on its host, and on the input embeddings."""
        stack = self.stacks.encoder if front is self.encoder else self.stacks.decoder
        host = self.model.get_submodule(stack)
        self.handles += [
            host.register_forward_pre_hook(front.enter, with_kwargs=True),
            host.register_forward_hook(front.leave, with_kwargs=True, always_call=True),
        ]
        for place in inputs:
            embeddings = self.model.get_submodule(place.site.path)
            self.handles.append(embeddings.register_forward_hook(front.embed, with_kwargs=True))
        if front is self.encoder and inputs:
            crossing = Crossing(front, self.model)
            self.handles += [
                self.model.register_forward_pre_hook(crossing.enter, with_kwargs=True),
                self.model.register_forward_hook(crossing.leave, with_kwargs=True),
            ]

    def _hang_look(self, place: Place) -> Look:
        """The hooks at one attention, or at what feeds it."""
        site, feeds, direct = place.site, [], None
        if site.inserted and place.extends:
            start = 0
            for path in site.feeds:
                feed = self.model.get_submodule(path)
                part = (start, start + get_sizes(feed)[1])
                feeds.append(FeedEffect(self.switch, self.decoder, part, site.axis))
                self.handles.append(feed.register_forward_hook(feeds[-1]))
                start = part[1]
        if (place.extends and not site.inserted) or place.changes_output:
            direct = AttentionEffect(self.switch, self.decoder, site)
            module = self.model.get_submodule(site.path)
            self.handles.append(module.register_forward_hook(direct))
        return Look(place, direct, tuple(feeds))


@dataclass(frozen=True)
class Look:
    """The hooks for one attention.

    direct: at its function; None where nothing acts there.
    feeds: at the projections that make its keys and values.
    """

    place: Place
    direct: AttentionEffect | None
    feeds: tuple[FeedEffect, ...]

    def lay(self, table: Table) -> None:
        """Let every row have what its line does here."""
        prefixes = tuple(self.place.chain(line) for line in table.lines)
        prefixes = tuple(tuple(filter(extends, chain)) for chain in prefixes)
        there = prefixes if any(prefixes) else ()
        for feed in self.feeds:
            feed.prefixes = there
        if self.direct is not None:
            self.direct.prefixes = () if self.place.site.inserted else there
            self.direct.outputs = self.place.acting.chains[1]


def concat(chains: Iterable[Chain]) -> Chain:
    """Several chains as one."""
    return tuple(module for chain in chains for module in chain)
