"""Attention: where positions look at each other, and where virtual tokens go in."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from torch import nn

from hub.sites.attending import AttentionCall
from hub.sites.dataflow import VIEWS, Flow
from hub.sites.roles import Attention, Projection, walk_back
from hub.sites.tracing import Call, Trace


@dataclass(frozen=True, slots=True)
class Stacks:
    """The paths of an encoder-decoder model's two halves; empty in a model that has one."""

    encoder: str = ""
    decoder: str = ""


@dataclass(frozen=True, slots=True)
class Look:
    """A module that attends: the projections that feed its keys and values, the axis of positions
    in what they give (None where rows and positions are one axis), how many heads the keys have,
    whether the keys are turned by their position on the way, and its call of an attention function,
    where it makes one."""

    path: str
    feeds: tuple[str, ...]
    axis: int | None
    heads: int
    turned: bool
    call: AttentionCall | None


def find_stacks(model: nn.Module) -> Stacks:
    """The encoder and the decoder of `model`, where it has both."""
    config: Any = getattr(model, "config", None)
    if not getattr(config, "is_encoder_decoder", False):
        return Stacks()
    paths = {id(module): path for path, module in model.named_modules()}
    found = []
    for name in ("get_encoder", "get_decoder"):
        find = getattr(model, name, None)
        found.append(paths.get(id(find())) if callable(find) else None)
    encoder, decoder = found
    return (
        Stacks() if not encoder or not decoder or encoder == decoder else Stacks(encoder, decoder)
    )


def find_looks(
    trace: Trace, attentions: list[Attention], projections: list[Projection], own: bool
) -> list[Look]:
    """Every module that attends, in the order in which it first does; those that attend to their
    own positions alone, where `own`."""
    made = {projection.returned: projection for projection in projections}
    operands: list[tuple[AttentionCall | Attention, AttentionCall | None]] = [
        *((call, call) for call in trace.attention),
        *((attention, None) for attention in attentions),
    ]
    callers = {call.path for call in trace.attention}
    askers = {
        feed.given
        for operand, _ in operands
        for feed in find_feeds(trace.flow, (operand.query,), made)
    }
    shared = {projection.path for projection in projections if projection.given not in askers}
    looks: dict[tuple[str, ...], Look] = {}
    for operand, call in operands:
        feeds = find_feeds(trace.flow, (operand.key, operand.value), made)
        feeds = keep_first(trace.flow, feeds, made)
        paths = tuple(dict.fromkeys(feed.path for feed in feeds))
        if not feeds or paths in looks:
            continue
        if own and not shared.isdisjoint(paths):
            continue  # what they read asks nothing: it is another stack's
        path = call.path if call is not None else paths[0].rpartition(".")[0]
        if path in (look.path for look in looks.values()) or (call is None and path in callers):
            continue  # the module makes more of what it attends with than one projection of each
        shape = trace.flow.nodes[operand.key].shape
        looks[paths] = Look(
            path,
            paths,
            find_axis(trace.flow, feeds, trace.length),
            shape[1] if len(shape) == 4 else 0,
            not is_view(trace.flow, operand.key, {feed.returned for feed in feeds}),
            call,
        )
    return list(looks.values())


def find_feeds(
    flow: Flow, operands: tuple[int, ...], made: Mapping[int, Projection]
) -> list[Projection]:
    """The projections that these operands of an attention are made of, in their order."""
    return [
        made[node]
        for operand in operands
        for node in walk_back(flow, operand, made.keys())
        if node in made and flow.nodes[made[node].given].varies
    ]


def keep_first(
    flow: Flow, feeds: list[Projection], made: Mapping[int, Projection]
) -> list[Projection]:
    """Those of the feeds that don't read another one: where keys and values are made from one
    latent vector, a cache keeps that, and it is what a prefix can stand for."""
    sources = {feed.returned for feed in feeds}
    return [
        feed
        for feed in feeds
        if sources.isdisjoint(
            node for node in walk_back(flow, feed.given, made.keys()) if node != feed.returned
        )
    ]


def is_view(flow: Flow, node: int, sources: set[int]) -> bool:
    """Whether `node` holds the values of one of `sources`, in whatever shape."""
    while node not in sources:
        here = flow.nodes[node]
        if here.operation not in VIEWS or not here.parents:
            return False
        node = here.parents[0]
    return True


def find_axis(flow: Flow, feeds: list[Projection], length: int) -> int | None:
    """The axis of the positions in what projections give for a row of `length` tokens; None where
    there is no one axis that has them all."""
    axes: set[int | None] = set()
    for feed in feeds:
        shape = flow.nodes[feed.returned].shape
        places = [1 - axis for axis in (0, 1) if len(shape) == 3 and shape[axis] == 1]
        axes.add(places[0] if places and shape[places[0]] >= length else None)
    return axes.pop() if len(axes) == 1 else None


def can_extend(trace: Trace, looks: list[Look]) -> bool:
    """Whether keys and values can be given to the attention alone: all of it goes through
    transformers' functions, each module looks at keys of its own, and positions can be moved."""
    calls = [look.call for look in looks]
    keys = [call.key for call in trace.attention]
    return (
        trace.keeps_positions
        and None not in calls
        and all(call.plain for call in trace.attention)
        and len(set(keys)) == len(keys) == len({call.path for call in trace.attention})
        and len(looks) == len(keys)
    )


def find_input(
    model: nn.Module, modules: Mapping[str, nn.Module], calls: Mapping[str, Call], host: str
) -> str | None:
    """The path of the module that turns the token ids of the model, or of its half at `host`, into
    vectors; None where none is known to."""
    find = getattr(model, "get_input_embeddings", None)
    try:
        embeddings = find() if callable(find) else None
    except (AttributeError, NotImplementedError):
        embeddings = None
    weight = getattr(embeddings, "weight", None)
    start = f"{host}." if host else ""
    inside = [path for path in calls if path.startswith(start)]
    for path in inside:
        if modules[path] is embeddings:
            return path
    for path in inside:
        if weight is not None and getattr(modules[path], "weight", None) is weight:
            return path
    return None
