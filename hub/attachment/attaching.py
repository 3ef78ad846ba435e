"""Attaching a composition to a base model, and taking it off again without a trace."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from contextlib import contextmanager
from types import TracebackType
from typing import Any

import torch
from torch import nn
from torch.utils.hooks import RemovableHandle

from hub.adapter import Adapter
from hub.attachment.admission import (
    Composition,
    Trainable,
    check_bases,
    check_conflicts,
    choose_learners,
    resolve_composition,
)
from hub.attachment.effects import CheckpointGuard, HeadHook, Switch, hang_effects
from hub.attachment.experts import hang_experts
from hub.attachment.fitting import Fit, fit_adapter
from hub.attachment.gradients import ask_gradients
from hub.attachment.hanging import hang_fronts
from hub.attachment.merging import Swap, merge_fits, swap_weights
from hub.attachment.substitutes import announce_substitutes
from hub.attachment.summary import Summary, summarize
from hub.discovery import installed_methods
from hub.errors import AttachError
from hub.quantization import Undo, prepare_training, put_back
from hub.sites import ATTACHED, Site, unwrap_model


def attach(
    model: nn.Module,
    composition: Composition,
    *,
    trainable: Trainable = None,
    allow_other_base: bool = False,
) -> Attachment:
    """Put a composition of adapters onto a base model.

    The model stays what it is: its class, modules and parameters; the adapters' tensors become
    parameters of it too, under ``hub_adapters``, and the base's own are frozen. Use the result as
    a context manager, or call `detach`; either leaves the base bit for bit as it was.

    trainable: which adapters learn: True, False, or some of them by object or reference; when
        left out, those made new and not those loaded. What learns is kept in float32, what only
        serves follows the base's precision.
    allow_other_base: attach to a base that is not the one the adapter was made for. Without it
        that is an error; the same base in another precision is not, and is noted.

    Raises BaseMismatch on another base; AttachError where the adapter's tensors don't fit, two
    adapters bring a trained head, or the model carries adapters already; and what `load` raises
    for a reference. Whatever is raised, the model is as it was.
    """
    model = unwrap_model(model)
    carried = Attachment.of(model)
    if carried is not None:
        names = ", ".join(adapter.label for adapter in carried.active)
        raise AttachError(
            f"this model carries {names} already{', merged' if carried.merged else ''}; detach "
            "first, or attach them together as hub.Stack(...)"
        )
    adapters = resolve_composition(composition)
    learners = choose_learners(adapters, trainable)
    notes = check_bases(adapters, model, allow_other_base)
    fits = [fit_adapter(a, model, learns=a in learners) for a in adapters]
    check_conflicts(fits)
    return Attachment(model, fits, notes)


class Attachment:
    """What is on a model, and the way to take it off.

    active: the adapters in the order in which they act.
    notes: what was noticed about their bases and is no error.
    """

    def __init__(self, model: nn.Module, fits: list[Fit], notes: tuple[str, ...]) -> None:
        self._model = model
        self._fits = fits
        self.notes = notes
        self._switch = Switch()
        self._handles: list[RemovableHandle] = []
        self._flags = [(parameter, parameter.requires_grad) for parameter in model.parameters()]
        self._undo: Swap = []
        self._prepared: Undo = []
        self._attached = True
        for parameter, _ in self._flags:
            parameter.requires_grad_(False)
        try:
            if any(fit.learns for fit in fits):
                self._prepared = prepare_training(model)
            self._install()
        except BaseException:
            self.detach()
            raise

    @staticmethod
    def of(model: nn.Module) -> Attachment | None:
        """What is attached to `model`, also to a deep copy of an attached one; None if nothing."""
        container = getattr(unwrap_model(model), ATTACHED, None)
        return container.attachment if isinstance(container, Container) else None

    @property
    def active(self) -> tuple[Adapter, ...]:
        """The adapters in the order in which they act."""
        return tuple(fit.adapter for fit in self._fits) if self._attached else ()

    @property
    def merged(self) -> bool:
        """Whether the adapters are folded into the base's weights at present."""
        return self._switch.merged

    def parameters(self) -> Iterator[nn.Parameter]:
        """The parameters that learn."""
        for fit in self._fits:
            if fit.learns:
                yield from fit.parameters()

    def modules(self, adapter: Adapter) -> dict[Site, nn.Module]:
        """The live modules of one attached adapter by the site where they act."""
        for fit in self._fits:
            if fit.adapter is adapter:
                return dict(fit.sites)
        raise AttachError(f"adapter {adapter.label} is not attached here")

    def summary(self) -> Summary:
        """Trainable and total parameters, per adapter and of the base; prints as a table."""
        return summarize(self._model, self._fits, ATTACHED)

    def detach(self) -> None:
        """Take everything off. The base is bit for bit what it was. Again does nothing."""
        if not self._attached:
            return
        self._restore_weights()
        self._uninstall()
        for parameter, learned in self._flags:
            parameter.requires_grad_(learned)
        put_back(self._prepared)
        self._switch.on = False
        self._attached = False

    @contextmanager
    def disabled(self) -> Iterator[None]:
        """The bare base for a moment. Raises AttachError while merged."""
        self._refuse_when_merged("show the bare base")
        before, self._switch.on = self._switch.on, False
        try:
            yield
        finally:
            self._switch.on = before and self._attached

    def merge(self) -> None:
        """Fold the adapters into the base's weights; what they replace is kept.

        `unmerge` and `detach` put the very same weights back. While merged the model holds
        nothing of ours, so it can be saved as a model of its own.

        A quantized weight stays as it is, and its layer computes with the sum, which is kept in the
        model's precision beside it; what that costs is logged, and such a model can't be saved.

        Raises AttachError where an adapter's effect is no change of weights, or where the weight
        has a second use that must not change; nothing is merged then.
        """
        if not self._attached:
            raise AttachError("nothing is attached any more; attach again, then merge")
        if not self._switch.on:
            raise AttachError("the adapters are disabled; merge after that, not inside it")
        if self.merged:
            return
        merged = merge_fits(self._model, self._fits)
        self._undo = swap_weights(merged)
        self._switch.merged = True
        self._uninstall()
        self._handles += announce_substitutes([new for _, name, new in merged if name != "data"])
        self._model.add_module(ATTACHED, Container(self))

    def unmerge(self) -> None:
        """Put the base's weights back and the adapters beside them. Again does nothing."""
        if self.merged:
            self._restore_weights()
            self._uninstall()
            self._install()

    def __enter__(self) -> Attachment:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.detach()

    def __repr__(self) -> str:
        state = "merged" if self.merged else "attached" if self._attached else "detached"
        return f"<Attachment of {', '.join(f.adapter.label for f in self._fits)}, {state}>"

    def _refuse_when_merged(self, what: str) -> None:
        if self.merged:
            raise AttachError(f"the adapters are merged; call unmerge() first to {what}")

    def _restore_weights(self) -> None:
        swap_weights(self._undo)
        self._undo = []
        self._switch.merged = False

    def _install(self) -> None:
        """Hang the live modules and the hooks into the model."""
        container = Container(self)
        for number, fit in enumerate(self._fits):
            container.add_module(f"{number}_{escape(fit.adapter.label)}", collect_modules(fit))
        container.train(self._model.training)
        self._model.add_module(ATTACHED, container)
        effects = order_effects(self._fits)
        for site, modules in effects:
            if site.kind in ("projection", "branch", "norm") and site.expert is None:
                self._handles += hang_effects(self._model, site, modules, self._switch)
        self._handles += hang_experts(self._model, effects, self._switch)
        # Last, so that what a prefix puts in place of keys and values stays.
        self._handles += hang_fronts(self._model, effects, self._switch)
        for fit in self._fits:
            for path, head in fit.heads.items():
                self._hook(self._model.get_submodule(path), HeadHook(head, self._switch), True)
        if any(fit.learns for fit in self._fits):
            self._handles += ask_gradients(self._model)
        self._hook(self._model, CheckpointGuard(self._switch))
        forget_compiled()

    def _uninstall(self) -> None:
        """Take the hooks and the live modules out of the model."""
        for handle in self._handles:
            handle.remove()
        self._handles.clear()
        if hasattr(self._model, ATTACHED):
            delattr(self._model, ATTACHED)
        forget_compiled()

    def _hook(self, module: nn.Module, hook: Any, keywords: bool = False) -> None:
        self._handles.append(module.register_forward_hook(hook, with_kwargs=keywords))


class Container(nn.Module):
    """The model's child that holds the adapters' live modules while they are attached, and nothing
    while they are merged: then it only tells that they are."""

    def __init__(self, attachment: Attachment) -> None:
        super().__init__()
        self.attachment = attachment


def order_effects(fits: list[Fit]) -> list[tuple[Site, list[nn.Module]]]:
    """The modules at each site, in order: projections before the branches that they end."""
    at: dict[Site, list[tuple[str, nn.Module]]] = {}
    for fit in fits:
        for site, module in fit.sites.items():
            at.setdefault(site, []).append((fit.adapter.method, module))
    ordered = sorted(at, key=lambda site: site.kind != "projection")
    return [(site, join_neighbours(site, at[site])) for site in ordered]


def join_neighbours(site: Site, effects: list[tuple[str, nn.Module]]) -> list[nn.Module]:
    """One module for neighbours of one method, where its plugin has a faster way."""
    joined: list[nn.Module] = []
    start = 0
    for end in range(1, len(effects) + 1):
        if end < len(effects) and effects[end][0] == effects[start][0]:
            continue
        modules = [module for _, module in effects[start:end]]
        if len(modules) > 1:
            one = installed_methods().call(
                "hub_compose", effects[start][0], site=site, modules=modules
            )
            modules = modules if one is None else [one]
        joined += modules
        start = end
    return joined


def collect_modules(fit: Fit) -> nn.Module:
    """An adapter's live modules under one, named by their kind of site and path."""
    container = nn.Module()
    if fit.built.shared is not None:
        container.add_module("shared", fit.built.shared)
    for site, module in fit.sites.items():
        container.add_module(f"{site.kind}/{escape(site.path, '/')}", module)
    for path, head in fit.heads.items():
        container.add_module(f"head/{escape(path, '/')}", head)
    return container


def escape(name: str, dot: str = "_") -> str:
    """A name as torch takes it for a child module: without dots."""
    return name.replace(".", dot)


def forget_compiled() -> None:
    """Let torch.compile look again: by default it takes no notice of hooks that come and go."""
    if "torch._dynamo" in sys.modules:
        torch.compiler.reset()
