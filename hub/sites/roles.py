"""Roles: what a projection and a branch do, told from what their values are used for."""

from collections.abc import Iterable, Set
from dataclasses import dataclass

from hub.sites.dataflow import VIEWS, Flow
from hub.sites.residuals import Branch

# What leaves an activation what it was: views, joins, parts and sums. Anything else bends it.
_LINEAR = VIEWS | frozenset(
    [
        *("add", "add_", "addcmul", "cat", "chunk", "clamp", "div", "div_", "index", "index_add"),
        *("index_add_", "index_put_", "index_select", "mul", "mul_", "neg", "select", "slice"),
        *("split", "split_with_sizes", "stack", "sub", "sub_", "sum", "unbind", "write"),
    ]
)
# What lets a position see another one, besides the product of two values and a convolution.
_MIXING = frozenset(
    [
        *("constant_pad_nd", "cumprod", "cumsum", "_fft_c2c", "_fft_c2r", "_fft_r2c", "flip"),
        *("logcumsumexp", "roll"),
    ]
)


@dataclass(frozen=True, slots=True)
class Projection:
    """A call of a linear layer: the nodes that went in and came out, its sizes."""

    path: str
    given: int
    returned: int
    in_features: int
    out_features: int


@dataclass(frozen=True, slots=True)
class Attention:
    """The nodes of an attention: its operands and what comes out."""

    query: int
    key: int
    value: int
    out: int


def find_branch_role(flow: Flow, branch: Branch, attentions: Iterable[Attention]) -> str:
    """attention, cross-attention (its keys come from another stream), feedforward (each position by
    itself) or mixer (positions see each other in another way)."""
    cone = _find_cone(flow, branch)
    inside = [attention for attention in attentions if attention.out in cone]
    if inside:
        own = any(_comes_from(flow, attention.key, branch.origin) for attention in inside)
        return "attention" if own else "cross-attention"
    return "mixer" if any(_does_mix(flow, node) for node in cone) else "feedforward"


def find_projection_roles(
    flow: Flow,
    projections: list[Projection],
    branches: list[Branch],
    attentions: list[Attention],
) -> dict[str, str]:
    """The role of every projection that has one, by path."""
    made = {projection.returned: projection for projection in projections}
    stops = made.keys() | {node for branch in branches for node in (branch.start, branch.total)}
    roles: dict[str, str] = {}
    for attention in attentions:
        for path, role in _name_operands(flow, attention, made, stops).items():
            roles.setdefault(path, role)
    outs = {attention.out for attention in attentions}
    for projection in projections:
        if not outs.isdisjoint(walk_back(flow, projection.given, stops | outs)):
            roles.setdefault(projection.path, "output")
    for branch in branches:
        cone = _find_cone(flow, branch)
        if cone & outs:
            continue
        inside = [projection for projection in projections if projection.returned in cone]
        width = flow.nodes[branch.node].shape[-1]
        for path, role in _name_feedforward(flow, inside, cone, width).items():
            roles.setdefault(path, role)
    return roles


def find_attentions(flow: Flow) -> list[Attention]:
    """Every attention of a forward: a fused operation, or a softmax over the product of two values
    that is then multiplied with a third."""
    users: dict[int, list[int]] = {}
    for place, node in enumerate(flow.nodes):
        for parent in node.parents:
            users.setdefault(parent, []).append(place)
    found = []
    for place, node in enumerate(flow.nodes):
        if "attention" in node.operation or "attn" in node.operation:
            fused = (node.operation, node.parents)
            before = flow.nodes[place - 1]
            if len(node.parents) >= 3 and fused != (before.operation, before.parents):
                query, key, value = node.parents[:3]
                found.append(Attention(query, key, value, place))
        elif node.operation in ("_softmax", "_safe_softmax"):
            scores = _find_scores(flow, place)
            sums = _find_sums(flow, place, users)
            if scores is not None and sums is not None:
                query, key = flow.get_factors(scores)
                value, out = sums
                found.append(Attention(query, key, value, out))
    return found


def _find_scores(flow: Flow, softmax: int) -> int | None:
    products = [node for node in walk_back(flow, softmax) if flow.is_product(node)]
    return min(products, default=None)


def _find_sums(flow: Flow, softmax: int, users: dict[int, list[int]]) -> tuple[int, int] | None:
    """The value that a softmax weighs and the weighted sum."""
    seen = {softmax}
    pending = [softmax]
    while pending:
        node = pending.pop(0)
        for user in users.get(node, []):
            if user in seen:
                continue
            seen.add(user)
            factors = flow.get_factors(user)
            if node in factors and flow.is_product(user):
                return factors[1 - factors.index(node)], user
            if not factors:
                pending.append(user)
    return None


def _name_operands(
    flow: Flow, attention: Attention, made: dict[int, Projection], stops: Set[int]
) -> dict[str, str]:
    names: dict[str, str] = {}
    for name, operand in zip(
        ("query", "key", "value"),
        (attention.query, attention.key, attention.value),
        strict=True,
    ):
        for node in walk_back(flow, operand, stops):
            if node in made and flow.nodes[made[node].given].varies:
                path = made[node].path
                names[path] = name if names.get(path, name) == name else "qkv"
    return names


def _name_feedforward(
    flow: Flow, projections: list[Projection], cone: set[int], width: int
) -> dict[str, str]:
    made = {projection.returned: projection for projection in projections}
    sources = {
        projection.path: _find_sources(flow, projection.given, made, cone)
        for projection in projections
    }
    used = {source.path for found in sources.values() for source in found}
    names: dict[str, str] = {}
    for projection in projections:
        found = sources[projection.path]
        alone = not found and len(projections) > 1  # a gate of its own, a router
        if projection.path in used or alone or projection.out_features != width:
            continue
        names[projection.path] = "out"
        first = {
            source: bent
            for source, bent in found.items()
            if not sources[source.path] and source.out_features >= projection.in_features
        }
        mixed = len(set(first.values())) > 1
        for source, bent in first.items():
            names[source.path] = "gate" if mixed and bent else "in"
    return names


def _find_sources(
    flow: Flow, node: int, made: dict[int, Projection], cone: set[int]
) -> dict[Projection, bool]:
    """The nearest projections that a value comes from; whether an activation lies in between."""
    found: dict[Projection, bool] = {}
    seen: set[tuple[int, bool]] = set()
    pending = [(node, False)]
    while pending:
        node, bent = pending.pop()
        here = flow.nodes[node]
        if (node, bent) in seen or node not in cone or not here.floating:
            continue
        seen.add((node, bent))
        if node in made:
            found[made[node]] = found.get(made[node], False) or bent
            continue
        bent = bent or here.operation not in _LINEAR
        pending += [(parent, bent) for parent in here.parents]
    return found


def _find_cone(flow: Flow, branch: Branch) -> set[int]:
    """What is computed between a stream and a branch, the branch included."""
    behind = {branch.node}
    pending = [branch.node]
    while pending:
        for parent in flow.nodes[pending.pop()].parents:
            if parent > branch.start and parent not in behind:
                behind.add(parent)
                pending.append(parent)
    cone: set[int] = set()
    for node in sorted(behind):
        if any(parent == branch.start or parent in cone for parent in flow.nodes[node].parents):
            cone.add(node)
    return cone


def _comes_from(flow: Flow, node: int, ancestor: int) -> bool:
    seen = {node}
    pending = [node]
    while pending:
        here = pending.pop()
        if here == ancestor:
            return True
        for parent in flow.nodes[here].parents:
            if parent >= ancestor and parent not in seen:
                seen.add(parent)
                pending.append(parent)
    return False


def walk_back(flow: Flow, node: int, stops: Set[int] = frozenset()) -> list[int]:
    """`node` and what it was computed from, up to `stops` and matrix products, both included."""
    found = [node]
    seen = {node}
    for here in found:
        if here in stops or flow.get_factors(here):
            continue
        for parent in flow.nodes[here].parents:
            varies = flow.nodes[parent].varies and flow.nodes[parent].floating
            if varies and parent not in seen:
                seen.add(parent)
                found.append(parent)
    return found


def _does_mix(flow: Flow, node: int) -> bool:
    here = flow.nodes[node]
    if here.operation == "convolution":
        return any(length > 1 for length in flow.nodes[here.parents[1]].shape[2:])
    return here.floating and (here.operation in _MIXING or flow.is_product(node))
