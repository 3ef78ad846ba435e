"""Reading the sites out of a trace, kind by kind."""

import sys
from collections.abc import Iterator
from dataclasses import dataclass, replace

from torch import nn

from hub.sites.attention import can_extend, find_input, find_looks, find_stacks
from hub.sites.axes import find_axes, find_encoded
from hub.sites.dataflow import Flow
from hub.sites.experts import list_stacked
from hub.sites.layers import find_layer, list_alternatives, list_containers, number_layers
from hub.sites.linears import get_sizes, has_bias, is_linear, is_transposed
from hub.sites.norms import find_norms
from hub.sites.residuals import Branch, find_branches
from hub.sites.roles import (
    Attention,
    Projection,
    find_attentions,
    find_branch_role,
    find_projection_roles,
)
from hub.sites.site import Site
from hub.sites.streams import find_norm_after, find_streams
from hub.sites.ties import find_ties
from hub.sites.tracing import Call, Trace


@dataclass(frozen=True, slots=True)
class Findings:
    """What was read from a trace: `calls` are the first ones, by path; `part` are the nodes that
    have a part in what the model gives, `felt` the paths of the modules that returned one. What
    only picks keys or tokens, and what is computed in vain, would never learn."""

    trace: Trace
    modules: dict[str, nn.Module]
    calls: dict[str, Call]
    branches: list[Branch]
    attentions: list[Attention]
    layers: dict[str, int]
    part: set[int]
    felt: set[str]


def read_sites(trace: Trace, model: nn.Module, modules: dict[str, nn.Module]) -> tuple[Site, ...]:
    """The sites that a traced forward of `model` shows, in the order in which they run."""
    calls: dict[str, Call] = {}
    for call in trace.calls:
        calls.setdefault(call.path, call)
    lists = list_containers(modules)
    branches = find_branches(trace, lists)
    places = [branch.path for branch in branches]
    layers = number_layers(modules, lists, places)
    attentions = find_attentions(trace.flow)
    part = trace.flow.find_contributors(trace.outputs)
    felt = {call.path for call in trace.calls if any(node in part for _, node in call.returned)}
    findings = Findings(trace, modules, calls, branches, attentions, layers, part, felt)
    sites = [
        *_make_projections(findings, _find_head(model)),
        *_make_embeddings(findings),
        *_make_experts(findings),
        *_make_branches(findings),
        *_make_norms(findings),
        *_make_attentions(findings, model),
        *_make_input(findings, model),
    ]
    sites = [s for s in sites if s.kind not in ("projection", "norm") or s.owner in felt]
    order = {path: (turn, 0) for turn, path in enumerate(calls)}
    for site in sites:
        if site.kind == "attention":  # before what its output goes through
            order.setdefault(site.path, order[site.feeds[0]])
    encoded = find_encoded(trace, find_stacks(model).encoder)
    sites = [find_axes(trace, calls, encoded, site) for site in sites]
    for group in list_alternatives(modules, layers, places):
        sites = [
            replace(site, row_axis=None, position_axis=None)
            if any(site.path.startswith(f"{item}.") for item in group)
            else site
            for site in sites
        ]
        sites += _add_untaken(sites, group, modules, calls)
        inside = [path for path in modules if any(path.startswith(f"{item}.") for item in group)]
        start = min((order[path] for path in inside if path in order), default=(0, 0))[0]
        order.update((path, (start, place)) for place, path in enumerate(inside))
    ties = find_ties(modules)
    sites = [
        replace(site, tied=ties.get(site.path)) if site.kind == "projection" else site
        for site in sites
    ]
    return tuple(sorted(sites, key=lambda site: order[site.owner]))


def _make_norms(findings: Findings) -> Iterator[Site]:
    for path, width in find_norms(findings.trace, findings.modules).items():
        layer = find_layer(path, findings.layers)
        block = findings.layers.get(layer or "")
        name = findings.calls[path].input_name
        bias = has_bias(findings.modules[path])
        yield Site("norm", path, "norm", block, width, width, input_name=name, bias=bias)


def _is_in_block(findings: Findings, path: str, block: int | None) -> bool:
    layer = find_layer(path, findings.layers)
    return layer is not None and findings.layers[layer] == block


def _make_branches(findings: Findings) -> Iterator[Site]:
    done = set()
    streams = find_streams(findings.trace, findings.branches)
    norms = find_norms(findings.trace, findings.modules)
    for branch in findings.branches:
        layer = find_layer(branch.path, findings.layers)
        if (branch.path, branch.element) in done or (layer is None and findings.layers):
            continue
        if branch.node not in findings.part:
            continue
        done.add((branch.path, branch.element))
        block = findings.layers.get(layer or "")
        inside = {path for path in norms if _is_in_block(findings, path, block)}
        width = findings.trace.flow.nodes[branch.node].shape[-1]
        yield Site(
            "branch",
            branch.path,
            find_branch_role(findings.trace.flow, branch, findings.attentions),
            findings.layers.get(layer or ""),
            width,
            width,
            output_index=branch.element,
            input_name=findings.calls[branch.path].input_name,
            stream=streams.get((branch.path, branch.element)),
            norm=find_norm_after(findings.trace, branch, findings.branches, inside),
        )


def _make_attentions(findings: Findings, model: nn.Module) -> Iterator[Site]:
    decoder = find_stacks(model).decoder
    looks = find_looks(
        findings.trace, findings.attentions, _list_projections(findings), own=bool(decoder)
    )
    inserted = bool(decoder) or not can_extend(findings.trace, looks)
    offset = max((site.offset for site in _make_input(findings, model)), default=0)
    for look in looks:
        if decoder and not look.path.startswith(f"{decoder}."):
            continue
        if findings.felt.isdisjoint(look.feeds):
            continue
        site = Site(
            "attention",
            look.path,
            "decoder" if decoder else "attention",
            findings.layers.get(find_layer(look.path, findings.layers) or ""),
            in_features=0,
            out_features=0,
            feeds=look.feeds,
            heads=look.heads,
            direct=look.call is not None,
            inserted=inserted,
            axis=look.axis or 0,
            width=get_sizes(findings.modules[look.feeds[0]])[0],
            turned=look.turned,
            cached=findings.trace.fills_cache,
            offset=offset,
        )
        if inserted and look.axis is not None:
            sizes = [get_sizes(findings.modules[path])[1] for path in look.feeds]
            keys, values = sizes if len(sizes) == 2 else (sum(sizes), 0)
            yield replace(site, in_features=keys, out_features=values)
        elif look.call is not None and not inserted:
            keys, values = look.call.key_width, look.call.value_width
            yield replace(site, in_features=keys, out_features=values)


def _make_input(findings: Findings, model: nn.Module) -> Iterator[Site]:
    stacks = find_stacks(model)
    path = find_input(model, findings.modules, findings.calls, stacks.encoder)
    if path is None:
        return
    returned = findings.calls[path].returned
    if not returned:
        return
    shape = findings.trace.flow.nodes[returned[0][1]].shape
    offset = shape[1] - findings.trace.length if len(shape) == 3 else 0
    role = "encoder" if stacks.encoder else "input"
    axis = 0 if shape[:2] == (findings.trace.length, 1) else 1
    yield Site(
        "embedding", path, role, None, shape[-1], shape[-1], offset=max(offset, 0), axis=axis
    )


def _list_projections(findings: Findings) -> list[Projection]:
    """Every call of a linear layer that was one: a class built on Linear may split its weight, or
    choose experts by what came out."""
    nodes = findings.trace.flow.nodes
    found = []
    for call in findings.trace.calls:
        module = findings.modules[call.path]
        alone = [node for element, node in call.returned if element is None]
        if is_linear(module) and call.given is not None and alone:
            rows, columns = get_sizes(module)
            shape = nodes[call.given].shape
            if shape[-1:] == (rows,) and nodes[alone[0]].shape == (*shape[:-1], columns):
                found.append(Projection(call.path, call.given, alone[0], rows, columns))
    return found


def _make_projections(findings: Findings, head: nn.Module | None) -> Iterator[Site]:
    modules = findings.modules
    projections = _list_projections(findings)
    roles = find_projection_roles(
        findings.trace.flow, projections, findings.branches, findings.attentions
    )
    end = max((branch.moment for branch in findings.branches), default=sys.maxsize)
    for path, projection in {projection.path: projection for projection in projections}.items():
        layer = find_layer(path, findings.layers)
        role = roles.get(path, "other")
        if layer is None:
            last = findings.calls[path].moment > end
            role = "head" if last or modules[path] is head else "other"
        yield Site(
            "projection",
            path,
            role,
            findings.layers.get(layer or ""),
            projection.in_features,
            projection.out_features,
            transposed=is_transposed(modules[path]),
            input_name=findings.calls[path].input_name,
            bias=has_bias(modules[path]),
        )


def _make_embeddings(findings: Findings) -> Iterator[Site]:
    for path, call in findings.calls.items():
        module = findings.modules[path]
        if isinstance(module, nn.Embedding) and _looks_up(findings.trace.flow, call):
            layer = find_layer(path, findings.layers)
            yield Site(
                "projection",
                path,
                "embedding",
                findings.layers.get(layer or ""),
                *get_sizes(module),
                transposed=True,
                input_name=call.input_name,
            )


def _looks_up(flow: Flow, call: Call) -> bool:
    """Whether a call gave the rows that its first tensor names, scaled or not.

    Some embeddings of positions count for themselves, whatever they are given.
    """
    node = call.returned[0][1] if call.returned else None
    while node is not None and flow.nodes[node].operation != "embedding":
        node = flow.find_source(node)
    return node is not None and flow.nodes[node].parents[1] == call.given


def _make_experts(findings: Findings) -> Iterator[Site]:
    for path in findings.calls:
        module = findings.modules[path]
        for stacked in list_stacked(module):
            for expert in range(stacked.count):
                yield Site(
                    "projection",
                    f"{path}.{stacked.name}.{expert}",
                    stacked.role,
                    findings.layers.get(find_layer(path, findings.layers) or ""),
                    stacked.in_features,
                    stacked.out_features,
                    transposed=bool(module.is_transposed),
                    bias=bool(module.has_bias),
                    expert=expert,
                )


def _add_untaken(
    sites: list[Site], group: list[str], modules: dict[str, nn.Module], first: dict[str, Call]
) -> list[Site]:
    """The projections of the alternatives that no token took, made like those of one that was."""
    taken = [item for item in group if item in first]
    if not taken:
        return []
    like = [site for site in sites if site.path.startswith(taken[0] + ".")]
    added = []
    for item in group:
        for site in like if item not in first else []:
            path = item + site.path.removeprefix(taken[0])
            if path in modules and is_linear(modules[path]):
                rows, columns = get_sizes(modules[path])
                added.append(replace(site, path=path, in_features=rows, out_features=columns))
    return added


def _find_head(model: nn.Module) -> nn.Module | None:
    """The model's output embeddings, where it has any."""
    find = getattr(model, "get_output_embeddings", None)
    head = find() if callable(find) else None
    return head if isinstance(head, nn.Module) else None
