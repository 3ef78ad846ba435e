"""Nodes: what a composition is at one site.

A line of adapters is there a chain: the modules that its adapters have at the site, in order, with
a node where an operator stands. A chain acts at three places, each by itself: on what goes into the
site's module (`before`), on what comes out (`forward`), and in front of the sequence (`extend`).
An operator is what it says at each of them.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from hub.attachment.frames import Ruler
from hub.errors import AttachError
from hub.sites import Site

Chain = tuple[Any, ...]
"""Modules and nodes that act one after the other."""


@dataclass(frozen=True, slots=True)
class Slice:
    """Which part of a batch something is.

    stream: the residual stream in the same shape, where it is known.
    index: which rows of the site's row axis are there, (k,); None for all.
    tokens: of what holds single tokens, (k, ...), their places in the batch, one row after the
        other; None where it has the batch's own axes. total: how many there are in the batch.
    """

    stream: Tensor | None = None
    index: Tensor | None = None
    tokens: Tensor | None = None
    total: int = 0


WHOLE = Slice()


class Node:
    """An operator at one site.

    chains: one for each part; an empty one leaves everything as it is.
    """

    def __init__(self, chains: Sequence[Chain]) -> None:
        self.chains = tuple(chains)
        members = [module for chain in chains for module in chain]
        self.changes_input = any(map(changes_input, members))
        self.changes_output = any(map(changes_output, members))
        self.reads_stream = any(map(reads_stream, members))
        self.extends = any(map(extends, members))

    def before(self, x: Tensor, given: Slice = WHOLE) -> Tensor:
        """What goes into the site's module instead of x."""
        raise NotImplementedError

    def forward(self, x: Tensor, y: Tensor, given: Slice = WHOLE) -> Tensor:
        """What comes out of the site instead of y."""
        raise NotImplementedError

    def extend(self) -> Tensor:
        """The virtual positions, (n, width)."""
        raise NotImplementedError


class AverageNode(Node):
    """The weighted mean of what the parts give."""

    def __init__(self, chains: Sequence[Chain], shares: Sequence[float]) -> None:
        super().__init__(chains)
        self.shares = tuple(shares)

    def before(self, x: Tensor, given: Slice = WHOLE) -> Tensor:
        """The mean of the inputs."""
        return self._weigh([run_before(chain, x, given) for chain in self.chains])

    def forward(self, x: Tensor, y: Tensor, given: Slice = WHOLE) -> Tensor:
        """The mean of the outputs."""
        return self._weigh([run_after(chain, x, y, given) for chain in self.chains])

    def extend(self) -> Tensor:
        """The mean of the virtual positions, as many as each part has."""
        return self._weigh([run_extend(chain) for chain in self.chains])

    def _weigh(self, values: Sequence[Tensor]) -> Tensor:
        total = values[0] * self.shares[0]
        for share, value in zip(self.shares[1:], values[1:], strict=True):
            total = total + value * share
        return total.to(values[0].dtype)


class SplitNode(Node):
    """Each part at its own positions.

    at: where the next part begins.
    ruler: knows which of a row's own positions are where; None where that is never known.
    """

    def __init__(
        self, chains: Sequence[Chain], at: Sequence[int], site: Site, ruler: Ruler
    ) -> None:
        super().__init__(chains)
        self.at = tuple(at)
        self.site = site
        self.ruler = ruler

    def before(self, x: Tensor, given: Slice = WHOLE) -> Tensor:
        """Each part's input at its positions."""
        return self._choose([run_before(chain, x, given) for chain in self.chains], given)

    def forward(self, x: Tensor, y: Tensor, given: Slice = WHOLE) -> Tensor:
        """Each part's output at its positions."""
        return self._choose([run_after(chain, x, y, given) for chain in self.chains], given)

    def _choose(self, values: Sequence[Tensor], given: Slice) -> Tensor:
        # Every part runs at every position: where it is to act may differ from row to row.
        chosen = values[0]
        places = self._find_places(chosen, given)
        for start, value in zip(self.at, values[1:], strict=True):
            chosen = torch.where(places >= start, value, chosen)
        return chosen

    def _find_places(self, value: Tensor, given: Slice) -> Tensor:
        """Which of its row's own positions each vector is at, in a shape to go with `value`."""
        places = self.ruler.read(self.site.path)  # (rows, positions)
        if given.tokens is not None:
            places = places.flatten()[given.tokens]
            return places.view(*places.shape, *[1] * (value.dim() - places.dim()))
        rows, positions = self.site.row_axis, self.site.position_axis
        assert rows is not None and positions is not None
        if self.site.role == "head":
            places = self.ruler.keep(places)
        places = places.flatten() if rows == positions else places
        if given.index is not None:
            places = places.index_select(0, given.index)
        shape = [1] * value.dim()
        shape[rows] = len(places)
        shape[positions] = places.shape[-1]
        found = value.shape[rows], value.shape[positions]
        # Where one vector goes for all rows, such as that of a position, each gets its own.
        if found[1] != shape[positions] or found[0] not in (1, shape[rows]):
            raise AttachError(
                f"a split can't act at {self.site.path}: it is given {tuple(value.shape)}, which "
                f"are not the {tuple(places.shape)} positions of the batch"
            )
        return (places.T if positions < rows else places).reshape(shape)


class FuseNode(Node):
    """The attention of AdapterFusion over what the parts give.

    module: has `fuse(y, given)`, and `fuse_inputs(x, given)`, with what stood before and a list of
        what the parts made of it.
    """

    def __init__(self, chains: Sequence[Chain], module: Any) -> None:
        super().__init__(chains)
        self.module = module

    def before(self, x: Tensor, given: Slice = WHOLE) -> Tensor:
        """What the attention chooses of the inputs."""
        fused: Tensor = self.module.fuse_inputs(
            x, [run_before(chain, x, given) for chain in self.chains]
        )
        return fused

    def forward(self, x: Tensor, y: Tensor, given: Slice = WHOLE) -> Tensor:
        """What the attention chooses of the outputs."""
        fused: Tensor = self.module.fuse(
            y, [run_after(chain, x, y, given) for chain in self.chains]
        )
        return fused


class Kind(NamedTuple):
    """What a method's module does at a site: whether it puts virtual positions in front, and where
    it does not, whether it changes what goes in, and what comes out, and reads the stream."""

    extends: bool
    inputs: bool
    outputs: bool
    streams: bool

    @classmethod
    def of(cls, site: Site, module: nn.Module) -> Kind:
        """That of a module at a site."""
        if extends(module):
            return cls(True, False, False, False)
        streams = site.stream is not None and reads_stream(module)
        return cls(False, changes_input(module), changes_output(module), streams)


def run_before(chain: Chain, x: Tensor, given: Slice = WHOLE) -> Tensor:
    """What a chain makes of a site's input."""
    for module in chain:
        if changes_input(module):
            x = module.before(x, given) if isinstance(module, Node) else module.before(x)
    return x


def run_after(chain: Chain, x: Tensor, y: Tensor, given: Slice = WHOLE) -> Tensor:
    """What a chain makes of a site's output."""
    for module in chain:
        if isinstance(module, Node):
            y = module.forward(x, y, given) if module.changes_output else y
        elif changes_output(module):
            stream = given.stream if reads_stream(module) else None
            y = module.forward(x if stream is None else stream, y)
    return y


def run_extend(chain: Chain) -> Tensor:
    """The virtual positions of a chain, side by side: (n, width)."""
    return torch.cat([module.extend() for module in chain if extends(module)])


def changes_input(module: Any) -> bool:
    """Whether a method's module, or a node, changes what goes into its site."""
    return module.changes_input if isinstance(module, Node) else has_method(module, "before")


def changes_output(module: Any) -> bool:
    """Whether it changes what its site gives: a module without `before` must, one with it may."""
    if isinstance(module, Node):
        return module.changes_output
    return not has_method(module, "before") or type(module).forward is not nn.Module.forward


def reads_stream(module: Any) -> bool:
    """Whether it, or something in it, gets the residual stream as its x."""
    return has_method(module, "reads_stream") and module.reads_stream is True


def extends(module: Any) -> bool:
    """Whether it puts virtual positions in front."""
    return module.extends if isinstance(module, Node) else has_method(module, "extend")


def has_method(module: Any, name: str) -> bool:
    """Whether a module has an attribute, as `hasattr` says; but a module of torch's takes its time
    to say no, and this is asked of every module of every adapter that is loaded."""
    if hasattr(type(module), name):
        return True
    if getattr(type(module), "__getattr__", None) is not nn.Module.__getattr__:
        return hasattr(module, name)
    tables = (module._parameters, module._buffers, module._modules)
    return name in vars(module) or any(name in table for table in tables)
