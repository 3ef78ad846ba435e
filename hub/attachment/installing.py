"""Installing: the live modules and hooks of an attachment in its model."""

from __future__ import annotations

import sys
from collections.abc import Iterable
from typing import Any

import torch
from torch import nn
from torch.utils.hooks import RemovableHandle

from hub.adapter import Adapter
from hub.attachment.answers import Head, HeadHook, find_head, list_heads
from hub.attachment.effects import Acting, CheckpointGuard, Switch
from hub.attachment.experts import hang_experts
from hub.attachment.fitting import Fit
from hub.attachment.gradients import ask_gradients
from hub.attachment.hanging import Fronts
from hub.attachment.nodes import Chain
from hub.attachment.places import Place
from hub.attachment.repeating import Generator, Repeater
from hub.attachment.routing import Table, list_adapters
from hub.blueprints import keep_blueprints
from hub.composition import Part, Split, walk
from hub.errors import AttachError
from hub.sites import ATTACHED, Site, find_sites

Laid = dict[Acting, tuple[Chain, Chain]]
"""What is to act at each place where a table lets something act."""


class Installation:
    """What the adapters of an attachment have in a model.

    fits: the adapters that are there, whether they act or not.
    switch: whether they act, and on which rows.
    """

    def __init__(self, model: nn.Module, container: nn.Module) -> None:
        self.model = model
        self.container = container
        self.switch = Switch()
        self.fits: dict[Adapter, Fit] = {}
        sites = find_sites(model)
        self.blueprints = keep_blueprints(sites)
        self.fronts = Fronts(model, self.switch, sites)
        self._places: dict[Site, Place] = {}
        self._heads: dict[str, HeadHook] = {}
        self._lines: dict[Part, Laid] = {}
        self._laid: Laid = {}
        self._experts: dict[Place, None] = {}
        self._expert_handles: list[RemovableHandle] = []
        self._handles: list[RemovableHandle] = []
        self._ruled = False
        self._asked = False
        self._hung = False

    def take(self, fits: Iterable[Fit], lines: Iterable[Part]) -> None:
        """Let adapters be there, which act when a table says so. Raises AttachError where one of
        `lines`, which they are to act in, has no meaning."""
        fits = list(fits)
        new: dict[Place, None] = {}
        for fit in fits:
            self.fits[fit.adapter] = fit
            for site, module in fit.sites.items():
                place = self._places.get(site)
                if place is None:
                    ruler = self.fronts.find_ruler(site)
                    place = self._places[site] = Place(self.model, site, self.switch, ruler)
                if place.add(fit.adapter, module, fit.kinds[site]):
                    new[place] = None
            for path in fit.heads:
                self._heads.setdefault(path, HeadHook(self.switch, path))
        for line in lines:
            self._ruled = self._ruled or any(isinstance(node, Split) for node in walk(line))
            self._prepare(Table((line,)))
        if self._hung:
            self._show(fits)
            self._hang(new)

    def forget(self, lines: Iterable[Part]) -> None:
        """Let these no more be ready to act."""
        for line in lines:
            if self._lines.pop(line, None) is not None:
                for place in self._reach([line]):
                    place.forget(line)

    def drop(self, adapter: Adapter) -> None:
        """Let an adapter be gone, which is in no line any more."""
        for site in self.fits.pop(adapter).sites:
            place = self._places[site]
            place.remove(adapter)
            if not place.modules:
                self._places.pop(site).unhang()
        for name, child in list(self.container.named_children()):
            if getattr(child, "adapter", None) is adapter:
                delattr(self.container, name)

    def hang(self) -> None:
        """Put the live modules and the hooks into the model."""
        self._hung = True
        self.container.training = self.model.training
        self._show(self.fits.values())
        self.model.add_module(ATTACHED, self.container)
        self._hang(self._places.values())
        repeater, model = Repeater(self.switch, self.model), self.model
        self._handles += [
            model.register_forward_pre_hook(repeater.enter, with_kwargs=True, prepend=True),
            model.register_forward_hook(repeater.leave, always_call=True),
        ]
        self._handles.append(self.model.register_forward_hook(CheckpointGuard(self.switch)))

    def unhang(self) -> None:
        """Take the hooks and the live modules out of the model."""
        self._hung = self._asked = False
        for handle in (*self._handles, *self._expert_handles):
            handle.remove()
        self._handles, self._expert_handles, self._experts = [], [], {}
        vars(self.model).pop("generate", None)
        self.fronts.unhang()
        for place in self._places.values():
            place.unhang()
        for hook in self._heads.values():
            hook.hung = False
        for name, _ in list(self.container.named_children()):
            delattr(self.container, name)
        if hasattr(self.model, ATTACHED):
            delattr(self.model, ATTACHED)
        forget_compiled()

    def lay(self, table: Table) -> None:
        """Let every row have what a table says. Raises AttachError, and then nothing changed."""
        laid = self._prepare(table)
        answers = [(hook, self._find_heads(path, table)) for path, hook in self._heads.items()]
        before = self.switch.table
        if not self._laid.keys() <= laid.keys():
            for acting in self._laid.keys() - laid.keys():
                acting.chains = (), ()
        for acting, chains in laid.items():
            acting.chains = chains
        self._laid = laid
        try:
            self.fronts.lay(table)
        except BaseException:
            if before is not None:
                self.lay(before)
            raise
        for hook, heads in answers:
            hook.lay(heads, table.rows)
        self.switch.table = table
        self._repeat(table)

    def _show(self, fits: Iterable[Fit]) -> None:
        """Let the live modules be found in the model."""
        for fit in fits:
            number = len(self.container._modules)
            while f"{number}_{escape(fit.adapter.label)}" in self.container._modules:
                number += 1
            name = f"{number}_{escape(fit.adapter.label)}"
            self.container.add_module(name, collect_modules(fit, self.model.training))

    def _hang(self, places: Iterable[Place]) -> None:
        """Hang what these places miss. At one module what acts on its projection comes before what
        acts on the branch that it ends, and what a prefix puts in place of keys is last."""
        ordered = sorted(places, key=lambda place: place.site.kind != "projection")
        missing = {place.site.owner for place in ordered if place.hang()}
        if missing:
            for place in self._places.values():
                if place.site.kind != "projection" and place.site.owner in missing:
                    place.unhang()
                    place.hang()
        changed = bool(missing)
        experts = {place: None for place in ordered if place.site.expert is not None}
        if not experts.keys() <= self._experts.keys():
            for handle in self._expert_handles:
                handle.remove()
            self._experts = {p: None for p in self._places.values() if p.site.expert is not None}
            self._expert_handles = list(hang_experts(self.model, self._experts, self.switch))
            changed = True
        if self.fronts.hang(self._places.values(), ruled=self._ruled, again=bool(missing)):
            if self.switch.table is not None:
                self.fronts.lay(self.switch.table)
            changed = True
        for path, hook in self._heads.items():
            if not hook.hung:
                module = self.model.get_submodule(path)
                self._handles.append(module.register_forward_hook(hook, with_kwargs=True))
                hook.hung = changed = True
        if not self._asked and any(fit.learns for fit in self.fits.values()):
            asking = ask_gradients(self.model)
            self._handles += asking
            self._asked, changed = True, changed or bool(asking)
        if changed:
            forget_compiled()

    def _prepare(self, table: Table) -> Laid:
        """What acts for a table at each place where something does. Raises AttachError."""
        line = table.lines[0]
        if table.rows is None and line in self._lines:
            return self._lines[line]
        places = self._reach(table.lines)
        if table.rows is not None:
            return {place.acting: place.prepare(table) for place in places}
        self._lines[line] = {}  # so that it is forgotten, whatever happens
        try:
            laid = {place.acting: place.prepare(table) for place in places}
        except BaseException:
            self.forget([line])
            raise
        self._lines[line] = laid
        return laid

    def _reach(self, lines: Iterable[Part]) -> Iterable[Place]:
        """The places where some of these act."""
        sites: dict[Site, Any] = {}
        for adapter in list_adapters(lines):
            there = self.fits[adapter].sites
            sites = {**sites, **there} if sites else there
        return [self._places[site] for site in sites]

    def _find_heads(self, path: str, table: Table) -> list[Head]:
        """What answers at a path for each line of a table. Raises AttachError where that would be
        different numbers of values."""
        heads = [find_head(line, path, self.fits) for line in table.lines]
        own = self.model.get_submodule(path)
        shapes = {
            tuple(tuple(parameter.shape) for parameter in (single or own).parameters())
            for head in heads
            for single in list_heads(head)
        }
        if len(shapes) > 1:
            raise AttachError(
                f"trained heads at {path} differ in shape, so they can't answer together; attach "
                "one at a time"
            )
        return heads

    def _repeat(self, table: Table) -> None:
        """Let `generate` repeat its prompts where the table repeats the batch."""
        own = vars(self.model)
        if "generate" in own:
            del own["generate"]
        if table.copies > 1 and hasattr(self.model, "generate"):
            own["generate"] = Generator(self.switch, self.model)


def collect_modules(fit: Fit, training: bool) -> nn.Module:
    """An adapter's live modules under one, named by their kind of site and path, in training mode
    or not."""
    container = nn.Module()
    container.training = training
    vars(container)["adapter"] = fit.adapter
    children = container._modules
    if fit.built.shared is not None:
        children["shared"] = fit.built.shared
    for site, module in fit.sites.items():
        children[f"{site.kind}/{escape(site.path, '/')}"] = module
    for path, head in fit.heads.items():
        children[f"head/{escape(path, '/')}"] = head
    if any(module.training != training for module in children.values() if module is not None):
        container.train(training)  # they were not there when the model's mode changed
    return container


def escape(name: str, dot: str = "_") -> str:
    """A name as torch takes it for a child module: without dots."""
    return name.replace(".", dot)


def forget_compiled() -> None:
    """Let torch.compile look again: by default it takes no notice of hooks that come and go."""
    if "torch._dynamo" in sys.modules:
        torch.compiler.reset()
