"""Places: the sites of a model where adapters of an attachment act, with their hooks."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from typing import Any

from torch import nn

from hub.adapter import Adapter
from hub.attachment.chains import Here, build_chain, lay_table
from hub.attachment.effects import Hung, Switch, hang_effects
from hub.attachment.frames import Ruler
from hub.attachment.nodes import Chain, changes_input, changes_output, extends, reads_stream
from hub.attachment.routing import Table
from hub.composition import Part
from hub.sites import Site


class Place:
    """One site, the modules that the adapters there have at it, and what acts at present.

    inner, outer: what changes the input of the site's module, and its output, for the table that
        was laid.
    """

    def __init__(self, model: nn.Module, site: Site, switch: Switch, ruler: Ruler) -> None:
        self.model = model
        self.site = site
        self.switch = switch
        self.modules: dict[Adapter, nn.Module] = {}
        self.methods: dict[nn.Module, str] = {}
        self.here = Here(site, self.modules, self.methods, ruler)
        self.inner: Chain = ()
        self.outer: Chain = ()
        self._chains: dict[Part, Chain] = {}
        self._counts = Counter[Callable[[Any], bool]]()
        self._hung: Hung | None = None
        self._wanted = (False, False, False)

    @property
    def extends(self) -> bool:
        """Whether something here puts virtual positions in front."""
        return self._counts[extends] > 0

    @property
    def changes_output(self) -> bool:
        """Whether something here changes what comes out."""
        return self._counts[changes_output] > 0

    def add(self, adapter: Adapter, module: nn.Module) -> None:
        """Let an adapter act here."""
        self.modules[adapter] = module
        self.methods[module] = adapter.method
        self._counts.update(self._list_kinds(module))

    def remove(self, adapter: Adapter) -> None:
        """Let an adapter be gone."""
        module = self.modules.pop(adapter)
        del self.methods[module]
        self._counts.subtract(self._list_kinds(module))

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
        chains = [self.chain(line) for line in table.lines]
        if self.extends:
            chains = [tuple(m for m in chain if not extends(m)) for chain in chains]
        before = () if table.rows is None else self.outer
        chain = lay_table(table, self.here, chains, before)
        return tuple(filter(changes_input, chain)), tuple(filter(changes_output, chain))

    def lay(self, prepared: tuple[Chain, Chain]) -> None:
        """Let this act from now on."""
        self.inner, self.outer = prepared
        if self._hung is not None:
            self._hung.lay(*prepared)

    def hang(self) -> bool:
        """Hang the hooks that the modules call for; whether any were missing."""
        if self.site.kind not in ("projection", "branch", "norm") or self.site.expert is not None:
            return False
        counts = self._counts
        wanted = counts[changes_input] > 0, counts[changes_output] > 0, counts[reads_stream] > 0
        if wanted == self._wanted and self._hung is not None:
            return False
        self.unhang()
        self._wanted = wanted
        self._hung = hang_effects(self.model, self.site, self.switch, *wanted)
        self._hung.lay(self.inner, self.outer)
        return True

    def unhang(self) -> None:
        """Take the hooks off."""
        if self._hung is not None:
            self._hung.remove()
        self._hung = None

    def _list_kinds(self, module: nn.Module) -> list[Callable[[Any], bool]]:
        """What of this holds for a module: that it changes the input, or the output, reads the
        stream, or puts virtual positions in front."""
        if extends(module):
            return [extends]
        kinds: list[Callable[[Any], bool]] = [
            kind for kind in (changes_input, changes_output) if kind(module)
        ]
        if self.site.stream is not None and reads_stream(module):
            kinds.append(reads_stream)
        return kinds
