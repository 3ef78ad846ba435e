"""Chains: from a composition to what acts at one site, and to what acts there for a whole batch."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn

from hub.adapter import Adapter
from hub.attachment.frames import Ruler
from hub.attachment.mixing import JoinedNode, RowsNode
from hub.attachment.nodes import AverageNode, Chain, FuseNode, SplitNode, extends, run_extend
from hub.attachment.repeated import RepeatedNode
from hub.attachment.routing import Table, list_adapters, show
from hub.composition import MAKE_FUSE, Average, Fuse, Leaf, Operator, Part, Split, fold
from hub.discovery import installed_methods
from hub.errors import AttachError
from hub.sites import Site


@dataclass(frozen=True)
class Here:
    """One site, what its chains are made of, and what they need.

    modules: of each adapter that acts here, its module. methods: of each of these, its adapter's
        method.
    """

    site: Site
    modules: Mapping[Adapter, nn.Module]
    methods: Mapping[nn.Module, str]
    ruler: Ruler


def build_chain(tree: Part, here: Here) -> Chain:
    """What a composition without rows of its own does at a site; empty for nothing.

    Raises AttachError where it has no meaning there.
    """

    def find(leaf: Leaf) -> Chain:
        module = here.modules.get(leaf) if isinstance(leaf, Adapter) else None
        return () if module is None else (module,)

    def join(node: Operator, chains: list[Chain]) -> Chain:
        if isinstance(node, Fuse):
            return build_fuse(node, chains[:-1], here)
        if not any(chains):
            return ()
        if isinstance(node, Average):
            check_lengths(node, chains, here.site)
            return (AverageNode(chains, node.shares),)
        if isinstance(node, Split):
            check_split(node, chains, here.site)
            return (SplitNode(chains, node.at, here.site, here.ruler),)
        return tuple(module for chain in chains for module in chain)

    return fold(tree, find, join)


def build_fuse(tree: Fuse, chains: Sequence[Chain], here: Here) -> Chain:
    """AdapterFusion at a site. Raises AttachError where its attention is for other parts."""
    if not isinstance(tree.by, Adapter):
        raise AttachError(f"{tree.by} was not loaded")
    attention: Any = here.modules.get(tree.by)
    if not any(chains) and attention is None:
        return ()
    if any(extends(module) for chain in chains for module in chain):
        raise AttachError(
            f"{show(tree)} has no meaning at {here.site.path}: virtual tokens are no output that "
            "attention could choose; stack what puts them in front with the fuse instead"
        )
    node = FuseNode(chains, attention)
    acts = {"input": node.changes_input, "output": node.changes_output}
    found = {place for place, there in acts.items() if there}
    known = set() if attention is None else set(attention.places)
    if found != known:
        act, made = (" and ".join(sorted(places)) or "nothing" for places in (found, known))
        raise AttachError(
            f"{show(tree)} has no meaning at {here.site.path}: its parts change {act} there, and "
            f"{tree.by.label} was made for some that change {made}; make one for these: {MAKE_FUSE}"
        )
    return (node,)


def check_lengths(tree: Average, chains: Sequence[Chain], site: Site) -> None:
    """Raise AttachError where parts put different numbers of virtual tokens in front."""
    if not any(extends(module) for chain in chains for module in chain):
        return
    counts = [count_virtual(chain) for chain in chains]
    if len(set(counts)) > 1:
        raise AttachError(
            f"{show(tree)} has no meaning: its parts put {', '.join(map(str, counts))} virtual "
            f"positions in front at {site.path or 'the input'}, and a mean needs equally many"
        )


def check_split(tree: Split, chains: Sequence[Chain], site: Site) -> None:
    """Raise AttachError where parts of a sequence have no meaning."""
    members = [module for chain in chains for module in chain]
    if any(map(extends, members)):
        names = {a.label for a in list_adapters([tree])}
        raise AttachError(
            f"{show(tree)} has no meaning: virtual tokens stand in front of the whole sequence "
            f"and not at a part of it; split the others of {', '.join(sorted(names))}"
        )
    if site.expert is None and (site.row_axis is None or site.position_axis is None):
        raise AttachError(
            f"{show(tree)} has no meaning at {site.path}: it is given vectors that are no "
            "positions of a sequence; leave that module out of the adapters"
        )


def count_virtual(chain: Chain) -> int:
    """How many virtual positions a chain puts in front."""
    with torch.no_grad():
        return len(run_extend(chain)) if any(map(extends, chain)) else 0


def lay_table(table: Table, here: Here, chains: Sequence[Chain], before: Chain = ()) -> Chain:
    """What acts at a site for a whole batch; `chains` are those of the table's lines, and `before`
    is what acted there until now.

    Raises AttachError where rows can't be told apart there.
    """
    if table.rows is None or not any(chains):
        return join_rows(chains[:1], None, here, before)
    if here.site.row_axis is None and here.site.expert is None:
        raise AttachError(
            f"rows with adapters of their own have no meaning at {here.site.path}: which row a "
            "vector belongs to is not known there; leave that module out of the adapters"
        )
    if table.copies == 1:
        return join_rows(chains, table.rows, here, before)
    joined = join_rows(chains, table.rows, here)
    return (RepeatedNode(joined, here.site.path), *joined)


def join_rows(
    chains: Sequence[Chain], rows: tuple[int, ...] | None, here: Here, before: Chain = ()
) -> Chain:
    """One chain for rows with these, each step of it what one method does, by its plugin's faster
    way where it has one.

    rows: for each row its chain's number; None for one chain that all rows have.
    """
    if rows is None and len(chains[0]) < 2:
        return chains[0]
    methods = here.methods
    left = list(chains)
    steps: list[Any] = []
    while any(left):
        method = methods.get(next(chain[0] for chain in left if chain))
        taken = []
        for number, chain in enumerate(left):
            end = next((n for n, m in enumerate(chain) if methods.get(m) != method), len(chain))
            end = min(end, 1) if method is None else end
            taken.append(chain[:end])
            left[number] = chain[end:]
        place = len(steps)
        node = before[place] if place < len(before) else None
        known = node.module if isinstance(node, JoinedNode) else None
        steps += join_step(taken, rows, method, here.site, known)
    return tuple(steps)


def join_step(
    chains: Sequence[Chain],
    rows: tuple[int, ...] | None,
    method: str | None,
    site: Site,
    before: nn.Module | None,
) -> Chain:
    """One step: chains of one method, or of a node each."""
    if rows is None and len(chains[0]) == 1:
        return chains[0]
    if method is not None and site.kind in ("projection", "branch", "norm"):
        joined = None
        if site.expert is None and (rows is None or site.row_axis == 0):
            joined = installed_methods().call(
                "hub_compose", method, site=site, chains=chains, rows=rows, before=before
            )
        if joined is not None and rows is None:
            return (joined,)
        if joined is not None and rows is not None:
            return (JoinedNode(joined, RowsNode(chains, rows, site.row_axis or 0)),)
    return chains[0] if rows is None else (RowsNode(chains, rows, site.row_axis or 0),)
