"""Axes: where rows and positions are in what a site gives."""

from __future__ import annotations

from collections.abc import Mapping, Set
from dataclasses import replace

from hub.sites.site import Site
from hub.sites.tracing import Call, Trace


def find_axes(trace: Trace, calls: Mapping[str, Call], encoded: Set[str], site: Site) -> Site:
    """The site with its axes, read off a forward of one row of `trace.length` tokens; `encoded` as
    `find_encoded` gives it."""
    if site.kind == "attention":  # what an attention function gives
        return replace(site, row_axis=0, position_axis=1)
    call = calls.get(site.path)
    if site.expert is not None or call is None:
        return site
    nodes = [node for element, node in call.returned if element == site.output_index]
    if not nodes:
        return site
    node = trace.flow.nodes[nodes[0]]
    rows, positions = read_axes(node.shape, trace.length)
    if rows == positions and not node.varies:
        rows = None  # one vector for each position, the same for all rows
    # Those of the encoder's tokens, which the decoder knows nothing of; and outside of both.
    if site.path in encoded or (trace.decoded is not None and site.role == "head"):
        positions = None
    return replace(site, row_axis=rows, position_axis=positions)


def find_encoded(trace: Trace, encoder: str) -> set[str]:
    """The modules outside of an encoder that only see what it made, such as those that make a
    decoder's keys of it. `encoder` is its path, empty where there is none."""
    if trace.decoded is None or not encoder:
        return set()
    late, _ = trace.flow.find_ancestors([trace.decoded])
    nodes = trace.flow.nodes
    found: set[str] = set()
    other = {encoder}
    for call in trace.calls:
        for _, node in call.returned:
            only = nodes[node].varies and not late[node]
            (found if only else other).add(call.path)
    return {path for path in found - other if not path.startswith(f"{encoder}.")}


def read_axes(shape: tuple[int, ...], length: int) -> tuple[int | None, int | None]:
    """The axes of rows and of positions in a shape for one row of `length` positions; the last
    axis is a vector's."""
    leading = shape[:-1]
    if leading == (length,):
        return 0, 0
    if leading[:2] == (length, 1):
        return 1, 0
    if not leading or leading[0] != 1:
        return None, None
    places = [axis for axis, size in enumerate(leading) if axis and size == length]
    return 0, places[0] if len(places) == 1 else None
