"""Axes: where rows and positions are in what a site gives."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace

from hub.sites.site import Site
from hub.sites.tracing import Call, Trace


def find_axes(trace: Trace, calls: Mapping[str, Call], site: Site) -> Site:
    """The site with its axes, read off a forward of one row of `trace.length` tokens."""
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
    return replace(site, row_axis=rows, position_axis=positions)


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
