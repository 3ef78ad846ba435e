"""Norms: modules that bring every vector to one scale and weigh its elements, told by what they
compute."""

from collections.abc import Mapping

from torch import nn

from hub.sites.dataflow import Flow
from hub.sites.tracing import Call, Trace

# What a norm divides by is made by one of these, whole or written out.
# The undivided names are what inference mode shows.
_NORMALIZING = frozenset(
    ["layer_norm", "native_layer_norm", "rms_norm", "_fused_rms_norm", "rsqrt", "rsqrt_"]
)


def find_norms(trace: Trace, modules: Mapping[str, nn.Module]) -> dict[str, int]:
    """The width of every norm that ran, by path: the length of the vectors it takes.

    A norm is a module without children whose parameters are all as long as the vectors, that
    takes one tensor, gives one of its shape, and normalizes on the way. One that also takes a gate
    is none: what its weight does can't be told from its input and output.
    """
    widths = {}
    for call in trace.calls:
        width = _get_width(modules[call.path])
        if width is not None and _is_norm(trace.flow, call, width):
            widths[call.path] = width
    return widths


def _get_width(module: nn.Module) -> int | None:
    shapes = {tuple(parameter.shape) for parameter in module.parameters()}
    if any(True for _ in module.children()) or len(shapes) != 1:
        return None
    shape = shapes.pop()
    return shape[0] if len(shape) == 1 else None


def _is_norm(flow: Flow, call: Call, width: int) -> bool:
    alone = call.tensors == 1 and [element for element, _ in call.returned] == [None]
    if call.given is None or not alone:
        return False
    start, end = call.given, call.returned[0][1]
    shape = flow.nodes[end].shape
    if flow.nodes[start].shape != shape or not shape or shape[-1] != width:
        return False
    seen, open_ = set(), [end]
    while open_:
        node = open_.pop()
        if node <= start or node in seen:
            continue
        seen.add(node)
        if flow.nodes[node].operation in _NORMALIZING:
            return True
        open_ += flow.nodes[node].parents
    return False
