"""The residual stream beside a branch: where it can be read, and which norm comes after the sum."""

from collections.abc import Collection, Iterable

from hub.sites.dataflow import VIEWS, Flow
from hub.sites.residuals import Branch
from hub.sites.tracing import Call, Trace

# Views that keep the order of the elements, so that a plain reshape turns one into another.
_SAME_ORDER = VIEWS - {"expand", "permute", "t", "transpose"}


def find_streams(trace: Trace, branches: Iterable[Branch]) -> dict[tuple[str, int | None], str]:
    """For each branch, by path and element: a module that is given the stream which the branch is
    added to, each time before the branch is there. The innermost, where there are several.

    Where the sum's other operand can't be reached, the stream that the branch was computed from.
    """
    runs: dict[tuple[str, int | None], list[Branch]] = {}
    for branch in branches:
        runs.setdefault((branch.path, branch.element), []).append(branch)
    found = {}
    for key, group in runs.items():
        for field in ("skip", "start"):
            shared = [set(_find_takers(trace, branch, getattr(branch, field))) for branch in group]
            takers = set.intersection(*shared)
            if takers:
                found[key] = max(takers, key=lambda path: (path.count("."), path))
                break
    return found


def find_norm_after(
    trace: Trace, branch: Branch, branches: Iterable[Branch], norms: Collection[str]
) -> str | None:
    """Which of `norms` is given the sum that `branch` goes into, and makes the stream of it; None
    where the sum itself is the stream, as it is when the norm comes first in a branch."""
    flow = trace.flow
    total = _find_root(flow, branch.total)
    if any(_find_root(flow, other.skip) == total for other in branches):
        return None
    for call in trace.calls:
        given = call.given if call.path in norms else None
        if given is not None and _find_root(flow, given) == total:
            return call.path
    return None


def _find_takers(trace: Trace, branch: Branch, node: int) -> Iterable[str]:
    """The modules whose latest call before the branch returned was given `node`."""
    flow, wanted = trace.flow, _find_root(trace.flow, node)
    size = flow.nodes[branch.node].size
    latest: dict[str, Call] = {}
    around: set[str] = set()
    for call in trace.calls:
        if call.moment <= branch.moment:
            latest[call.path] = call
        elif branch.path.startswith(f"{call.path}.") and call.path not in around:
            around.add(call.path)
            latest[call.path] = call
    for path, call in latest.items():
        given = call.given
        # Where a layer keeps several streams they come in one tensor, larger than the branch.
        alike = given is not None and flow.nodes[given].size == size
        if given is not None and alike and _find_root(flow, given) == wanted:
            yield path


def _find_root(flow: Flow, node: int) -> int:
    """The value that `node` is a view of."""
    while flow.nodes[node].operation in _SAME_ORDER:
        node = flow.nodes[node].parents[0]
    return node
