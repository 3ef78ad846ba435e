"""Attaching a composition to a base model, and taking it off again without a trace."""

from __future__ import annotations

from collections import ChainMap
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from types import MappingProxyType, TracebackType

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
from hub.attachment.containing import Container
from hub.attachment.fitting import fit_adapter
from hub.attachment.installing import Installation
from hub.attachment.merging import Swap, merge_line, swap_weights
from hub.attachment.routing import Routing, Rows, list_adapters, list_answering, show
from hub.attachment.substitutes import announce_substitutes
from hub.attachment.summary import Summary, summarize
from hub.composition import Part
from hub.errors import AttachError
from hub.quantization import Undo, prepare_training, put_back
from hub.sites import ATTACHED, Site, unwrap_model


def attach(
    model: nn.Module,
    composition: Composition,
    *,
    rows: Rows = None,
    trainable: Trainable = None,
    allow_other_base: bool = False,
) -> Attachment:
    """Put a composition of adapters onto a base model.

    The model stays what it is: its class, modules and parameters; the adapters' tensors become
    parameters of it too, under ``hub_adapters``, and the base's own are frozen. Use the result as
    a context manager, or call `detach`; either leaves the base bit for bit as it was.

    rows: of a composition with a `BatchSplit`, each row's part of the next batches; see
        `Attachment.route`. Left out, all rows have all of a composition without one.
    trainable: which adapters learn: True, False, or some of them by object or reference; when
        left out, those made new and not those loaded. What learns is kept in float32, what only
        serves follows the base's precision.
    allow_other_base: attach to a base that is not the one the adapter was made for. Without it
        that is an error; the same base in another precision is not, and is noted.

    Raises BaseMismatch on another base; AttachError where the adapter's tensors don't fit, two
    adapters bring a trained head for one row, a combination has no meaning, or the model carries
    adapters already; and what `load` raises for a reference. Whatever is raised, the model is as it
    was.
    """
    model = unwrap_model(model)
    carried = Attachment.of(model)
    if carried is not None:
        names = ", ".join(adapter.label for adapter in carried.active)
        raise AttachError(
            f"this model carries {names or 'an attachment'} already"
            f"{', merged' if carried.merged else ''}; detach first, add to that attachment, or "
            "attach them together as hub.Stack(...)"
        )
    attachment = Attachment(model)
    try:
        attachment._begin(composition, rows, trainable, allow_other_base)
    except BaseException:
        attachment.detach()
        raise
    return attachment


class Attachment:
    """What is on a model, and the way to take it off.

    notes: what was noticed about the adapters' bases and is no error.
    """

    def __init__(self, model: nn.Module) -> None:
        self.notes: tuple[str, ...] = ()
        self._model = model
        self._container = Container(self)
        self._installation = Installation(model, self._container)
        self._loaded: dict[str, Part] = {}
        self._routing = Routing(None)
        self._handles: list[RemovableHandle] = []
        self._flags: list[tuple[nn.Parameter, bool]] = []
        self._undo: Swap = []
        self._prepared: Undo = []
        self._attached = True

    @staticmethod
    def of(model: nn.Module) -> Attachment | None:
        """What is attached to `model`, also to a deep copy of an attached one; None if nothing."""
        container = getattr(unwrap_model(model), ATTACHED, None)
        return container.attachment if isinstance(container, Container) else None

    @property
    def active(self) -> tuple[Adapter, ...]:
        """The adapters that act on some row, in the order in which they act."""
        return tuple(list_adapters(self.lines))

    @property
    def lines(self) -> tuple[Part, ...]:
        """The compositions that rows have at present, without rows of their own, each once."""
        table = self._installation.switch.table
        return table.lines if self._attached and table is not None else ()

    @property
    def resident(self) -> Mapping[int, Part]:
        """What rows can be routed to, by number: a composition's parts for rows, and what was
        added."""
        return MappingProxyType(self._routing.routes if self._attached else {})

    def add(
        self,
        composition: Composition,
        *,
        trainable: Trainable = None,
        allow_other_base: bool = False,
    ) -> int:
        """Let an adapter or a composition be resident: ready to be routed to, not active.

        The number to route by. The options are those of `attach`, and so are the errors; after one
        everything is as it was.
        """
        self._check_attached("add to it")
        self._refuse_when_merged("add to them")
        loaded = dict(self._loaded)
        number = self._routing.add(resolve_composition(composition, loaded))
        try:
            self._take([number], trainable, allow_other_base)
            self._prepare()
        except BaseException:
            self._remove(number)
            raise
        self._loaded.update(loaded)
        return number

    def remove(self, part: int | Part) -> None:
        """Let what was resident be gone: by its number, or as what it is. Its number is free then.

        Raises AttachError while it acts on some row, and on what is not there.
        """
        self._check_attached("remove from it")
        self._refuse_when_merged("remove from them")
        number = self._routing.find(part)
        table = self._installation.switch.table
        if number is None:
            raise AttachError("the bare base can't be removed; route to it with None")
        if table is not None and any(line in table.lines for line in self._routing.lines[number]):
            raise AttachError(
                f"{show(self._routing.routes[number])} acts on the rows of this batch; route them "
                "elsewhere first"
            )
        self._remove(number)

    def route(self, rows: Rows) -> None:
        """Say what each row of the next batches has.

        rows: one entry for each row: the number of what is resident, or that itself, or None for
            the bare base; or one such entry for all rows. A batch of m times as many rows has each
            row's part m times in turn, as the beams of `generate` do.

        No module changes. Raises AttachError on what is not resident, or has no meaning in one
        batch; then everything is as it was.
        """
        self._check_attached("route its rows")
        self._refuse_when_merged("route rows to them")
        self._installation.lay(self._routing.lay(rows))

    @property
    def merged(self) -> bool:
        """Whether the adapters are folded into the base's weights at present."""
        return self._installation.switch.merged

    def parameters(self) -> Iterator[nn.Parameter]:
        """The parameters that learn."""
        for fit in self._installation.fits.values():
            if fit.learns:
                yield from fit.parameters()

    def modules(self, adapter: Adapter) -> dict[Site, nn.Module]:
        """The live modules of one attached adapter by the site where they act."""
        fit = self._installation.fits.get(adapter)
        if fit is None:
            raise AttachError(f"adapter {adapter.label} is not attached here")
        return dict(fit.sites)

    def summary(self) -> Summary:
        """Trainable and total parameters, per adapter and of the base; prints as a table."""
        return summarize(self._model, list(self._installation.fits.values()), ATTACHED)

    def detach(self) -> None:
        """Take everything off. The base is bit for bit what it was. Again does nothing."""
        if not self._attached:
            return
        self._restore_weights()
        self._uninstall()
        for parameter, learned in self._flags:
            parameter.requires_grad_(learned)
        put_back(self._prepared)
        self._installation.switch.on = False
        self._attached = False

    @contextmanager
    def disabled(self) -> Iterator[None]:
        """The bare base for a moment. Raises AttachError while merged."""
        self._refuse_when_merged("show the bare base")
        switch = self._installation.switch
        before, switch.on = switch.on, False
        try:
            yield
        finally:
            switch.on = before and self._attached

    def merge(self) -> None:
        """Fold the adapters into the base's weights; what they replace is kept.

        `unmerge` and `detach` put the very same weights back. While merged the model holds
        nothing of ours, so it can be saved as a model of its own.

        A quantized weight stays as it is, and its layer computes with the sum, which is kept in the
        model's precision beside it; what that costs is logged, and such a model can't be saved.

        Raises AttachError where an adapter's effect is no change of weights, or where the weight
        has a second use that must not change; nothing is merged then.
        """
        self._check_attached("merge")
        switch, table = self._installation.switch, self._installation.switch.table
        if not switch.on:
            raise AttachError("the adapters are disabled; merge after that, not inside it")
        if self.merged or table is None:
            return
        if table.rows is not None or table.copies > 1:
            raise AttachError(
                "rows have adapters of their own, and the base has one set of weights; route all "
                "rows to one part, then merge"
            )
        merged = merge_line(self._model, table.lines[0], self._installation.fits)
        self._undo = swap_weights(merged)
        switch.merged = True
        self._uninstall()
        self._handles += announce_substitutes([new for _, name, new in merged if name != "data"])
        self._model.add_module(ATTACHED, self._container)

    def unmerge(self) -> None:
        """Put the base's weights back and the adapters beside them. Again does nothing."""
        if self.merged:
            table = self._installation.switch.table
            self._restore_weights()
            self._uninstall()
            self._installation.hang()
            assert table is not None
            self._installation.lay(table)

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
        return f"<Attachment of {', '.join(map(show, self._routing.routes.values()))}, {state}>"

    def _begin(
        self, composition: Composition, rows: Rows, trainable: Trainable, allow_other_base: bool
    ) -> None:
        """Put the first composition on. Raises AttachError and BaseMismatch."""
        self._routing = Routing(resolve_composition(composition, self._loaded), self._loaded)
        table = self._routing.begin() if rows is None else self._routing.lay(rows)
        self._take(list(self._routing.routes), trainable, allow_other_base)
        self._flags = [(p, p.requires_grad) for p in self._model.parameters()]
        for parameter, _ in self._flags:
            parameter.requires_grad_(False)
        self._prepare()
        self._installation.hang()
        self._installation.lay(table)

    def _take(self, numbers: list[int], trainable: Trainable, allow_other_base: bool) -> None:
        """Fit the adapters of these routes that are not there yet. Raises AttachError and
        BaseMismatch."""
        there = self._installation.fits
        lines = [line for number in numbers for line in self._routing.lines[number]]
        new = [adapter for adapter in list_adapters(lines) if adapter not in there]
        learners = choose_learners(new, trainable)
        notes = check_bases(new, self._model, allow_other_base)
        blueprints = self._installation.blueprints
        answering = {adapter for line in lines for adapter in list_answering(line)}
        fits = {
            adapter: fit_adapter(
                *(adapter, self._model, blueprints),
                learns=adapter in learners,
                answers=adapter in answering,
            )
            for adapter in new
        }
        for line in lines:
            check_conflicts(line, ChainMap(fits, there))
        self._installation.take(fits.values(), lines)
        self.notes += notes

    def _prepare(self) -> None:
        """Let the base be one that something on it can learn."""
        if not self._prepared and any(fit.learns for fit in self._installation.fits.values()):
            self._prepared = prepare_training(self._model)

    def _remove(self, number: int) -> None:
        """Take a route out, and the adapters that no other has."""
        gone = self._routing.lines[number]
        self._routing.remove(number)
        lines = {line for lines in self._routing.lines.values() for line in lines}
        kept = {*list_adapters(lines)}
        self._installation.forget(line for line in gone if line not in lines)
        for adapter in list_adapters(gone):
            if adapter not in kept and adapter in self._installation.fits:
                self._installation.drop(adapter)
        for reference, part in list(self._loaded.items()):
            if not self._installation.fits.keys() >= {*list_adapters([part])}:
                del self._loaded[reference]  # what comes back is read anew

    def _check_attached(self, what: str) -> None:
        if not self._attached:
            raise AttachError(f"nothing is attached any more; attach again, then {what}")

    def _refuse_when_merged(self, what: str) -> None:
        if self.merged:
            raise AttachError(f"the adapters are merged; call unmerge() first to {what}")

    def _restore_weights(self) -> None:
        swap_weights(self._undo)
        self._undo = []
        self._installation.switch.merged = False

    def _uninstall(self) -> None:
        """Take the hooks and the live modules out of the model."""
        for handle in self._handles:
            handle.remove()
        self._handles.clear()
        self._installation.unhang()
