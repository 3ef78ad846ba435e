"""Places: the sites of a model where adapters of an attachment act, with their hooks."""

from __future__ import annotations

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
        self.here = Here(site, self.modules, ruler)
        self.inner: Chain = ()
        self.outer: Chain = ()
        self._chains: dict[Part, Chain] = {}
        self._laid: dict[Part, tuple[Chain, Chain]] = {}
        self._hung: Hung | None = None
        self._wanted = (False, False, False)

    @property
    def extends(self) -> bool:
        """Whether something here puts virtual positions in front."""
        return any(map(extends, self.modules.values()))

    @property
    def changes_output(self) -> bool:
        """Whether something here changes what comes out."""
        return any(
            changes_output(module) for module in self.modules.values() if not extends(module)
        )

    def add(self, adapter: Adapter, module: nn.Module) -> None:
        """Let an adapter act here."""
        self.modules[adapter] = module

    def remove(self, adapter: Adapter) -> None:
        """Forget an adapter."""
        del self.modules[adapter]
        self._chains.clear()
        self._laid.clear()

    def chain(self, line: Part) -> Chain:
        """What a line does here. Raises AttachError where it has no meaning."""
        if line not in self._chains:
            self._chains[line] = build_chain(line, self.here)
        return self._chains[line]

    def prepare(self, table: Table) -> tuple[Chain, Chain]:
        """What is to change the input and the output for a table. Raises AttachError."""
        if table.rows is None and table.lines[0] in self._laid:
            return self._laid[table.lines[0]]
        chains = [self.chain(line) for line in table.lines]
        chains = [tuple(m for m in chain if not extends(m)) for chain in chains]
        chain = lay_table(table, self.here, chains, self.outer)
        prepared = tuple(filter(changes_input, chain)), tuple(filter(changes_output, chain))
        if table.rows is None:
            self._laid[table.lines[0]] = prepared
        return prepared

    def lay(self, prepared: tuple[Chain, Chain]) -> None:
        """Let this act from now on."""
        self.inner, self.outer = prepared
        if self._hung is not None:
            self._hung.lay(*prepared)

    def hang(self) -> bool:
        """Hang the hooks that the modules call for; whether any were missing."""
        if self.site.kind not in ("projection", "branch", "norm") or self.site.expert is not None:
            return False
        members = self.modules.values()
        wanted = (
            any(map(changes_input, members)),
            any(map(changes_output, members)),
            self.site.stream is not None and any(map(reads_stream, members)),
        )
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
