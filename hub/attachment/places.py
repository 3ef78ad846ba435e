"""Places: the sites of a model where adapters of an attachment act, with their hooks."""

from __future__ import annotations

from collections import Counter

from torch import nn
from torch.utils.hooks import RemovableHandle

from hub.adapter import Adapter
from hub.attachment.chains import Here, build_chain, lay_table
from hub.attachment.effects import Acting, Switch, hang_effects
from hub.attachment.frames import Ruler
from hub.attachment.nodes import Chain, Kind, changes_input, changes_output, extends
from hub.attachment.routing import Table
from hub.composition import Part
from hub.sites import Site


class Place:
    """One site, the modules that the adapters there have at it, and the hooks that they call for.

    acting: what acts for the table that was laid.
    """

    def __init__(self, model: nn.Module, site: Site, switch: Switch, ruler: Ruler) -> None:
        self.model = model
        self.site = site
        self.switch = switch
        self.modules: dict[Adapter, nn.Module] = {}
        self.methods: dict[nn.Module, str] = {}
        self.here = Here(site, self.modules, self.methods, ruler)
        self.acting = Acting()
        self._chains: dict[Part, Chain] = {}
        self._kinds: dict[Adapter, Kind] = {}
        self._counts: Counter[Kind] = Counter()
        self._handles: list[RemovableHandle] = []
        self._hung = (False, False, False)

    @property
    def extends(self) -> bool:
        """Whether something here puts virtual positions in front."""
        return any(kind.extends for kind in self._counts)

    @property
    def changes_output(self) -> bool:
        """Whether something here changes what comes out."""
        return any(kind.outputs for kind in self._counts)

    def add(self, adapter: Adapter, module: nn.Module, kind: Kind) -> bool:
        """Let an adapter act here; whether no other that is here is of this kind."""
        self.modules[adapter] = module
        self.methods[module] = adapter.method
        self._kinds[adapter] = kind
        self._counts[kind] += 1
        return self._counts[kind] == 1

    def remove(self, adapter: Adapter) -> None:
        """Let an adapter be gone."""
        del self.methods[self.modules.pop(adapter)]
        kind = self._kinds.pop(adapter)
        self._counts[kind] -= 1
        if not self._counts[kind]:
            del self._counts[kind]

    def forget(self, line: Part) -> None:
        """Let a line no more be ready to act."""
        self._chains.pop(line, None)

    def chain(self, line: Part) -> Chain:
        """What a line does here. Raises AttachError where it has no meaning."""
        known = self._chains.get(line)
        if known is None:
            known = build_chain(line, self.here)
            if known:
                self._chains[line] = known
        return known

    def prepare(self, table: Table) -> tuple[Chain, Chain]:
        """What is to change the input and the output for a table. Raises AttachError."""
        line = table.lines[0]
        if table.rows is None and isinstance(line, Adapter):  # of which there may be hundreds
            kind, alone = self._kinds[line], (self.modules[line],)
            return alone if kind.inputs else (), alone if kind.outputs else ()
        chains = [self.chain(line) for line in table.lines]
        if self.extends:
            chains = [tuple(m for m in chain if not extends(m)) for chain in chains]
        before = () if table.rows is None else self.acting.chains[1]
        chain = lay_table(table, self.here, chains, before)
        return tuple(filter(changes_input, chain)), tuple(filter(changes_output, chain))

    def hang(self) -> bool:
        """Hang the hooks that the modules call for; whether any were missing."""
        if self.site.kind not in ("projection", "branch", "norm") or self.site.expert is not None:
            return False
        kinds = list(self._counts)
        wanted = (
            any(kind.inputs for kind in kinds),
            any(kind.outputs for kind in kinds),
            any(kind.streams for kind in kinds),
        )
        if wanted == self._hung:
            return False
        self.unhang()
        self._hung = inputs, outputs, streams = wanted
        self._handles = hang_effects(
            self.model,
            self.site,
            self.switch,
            self.acting,
            inputs=inputs,
            outputs=outputs,
            streams=streams,
        )
        return True

    def unhang(self) -> None:
        """Take the hooks off."""
        for handle in self._handles:
            handle.remove()
        self._handles, self._hung = [], (False, False, False)
