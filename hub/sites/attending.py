"""What goes through transformers' attention functions in a forward."""

from __future__ import annotations

import inspect
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from hub.interfaces import Function, FunctionHook, watch_functions
from hub.sites.dataflow import Flow

PADDED = 2


@dataclass(frozen=True, slots=True)
class AttentionCall:
    """One call of an attention function: by which module, the nodes of query, key and value, how
    many heads the keys have and how wide those of a position are, all heads together. `plain` where
    positions are told apart by a mask that the values have no say in: a bias by distance, or a
    choice among the keys, would have to know of positions that are put in front."""

    path: str
    query: int
    key: int
    value: int
    heads: int
    key_width: int
    value_width: int
    plain: bool


@contextmanager
def watch_attention(
    modules: Mapping[str, nn.Module], flow: Flow, calls: list[AttentionCall]
) -> Iterator[None]:
    """Add to `calls` what goes through transformers' attention functions inside."""
    watch_functions()
    handles = [
        module.register_forward_hook(Recorder(path, flow, calls))
        for path, module in modules.items()
    ]
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()


class Recorder(FunctionHook):
    """Notes what an attention function is given."""

    def __init__(self, path: str, flow: Flow, calls: list[AttentionCall]) -> None:
        self.path = path
        self.flow = flow
        self.calls = calls

    def run(
        self, function: Function, name: str, module: nn.Module, *given: Any, **more: Any
    ) -> Any:
        """Note it, and attend as asked."""
        tensors = [value for value in given if isinstance(value, Tensor)]
        if len(tensors) >= 3 and all(value.dim() == 4 for value in tensors[:3]):
            query, key, value = tensors[:3]
            self.calls.append(
                AttentionCall(
                    self.path,
                    self.flow.find_node(query),
                    self.flow.find_node(key),
                    self.flow.find_node(value),
                    key.shape[1],
                    key.shape[1] * key.shape[3],
                    value.shape[1] * value.shape[3],
                    more.get("position_bias") is None
                    and key.shape[1] == value.shape[1]
                    and not any(
                        self.flow.is_computed(self.flow.find_node(mask))
                        for mask in [*tensors[3:], *list_tensors(more)]
                    ),
                )
            )
        return function(module, *given, **more)


def list_tensors(values: Mapping[str, Any]) -> list[Tensor]:
    """The tensors among an attention function's named arguments that bear on what is attended to;
    positions don't."""
    return [v for name, v in values.items() if isinstance(v, Tensor) and "position_ids" not in name]


def fills_cache(
    model: nn.Module,
    inputs: Mapping[str, Any],
    modules: Mapping[str, nn.Module],
    calls: Sequence[AttentionCall],
) -> bool:
    """Whether a plain cache of `model` keeps just the keys and values that its attention functions
    are given, each module its own. A tiny forward."""
    from transformers.cache_utils import DynamicCache

    if "past_key_values" not in inspect.signature(model.forward).parameters:
        return False
    if any(value.is_meta for value in inputs.values() if isinstance(value, Tensor)):
        return True  # there are no values to run on, and nearly every model does
    config: Any = model.config
    kept = DynamicCache(config=config)
    try:
        with torch.no_grad():
            model(**{**inputs, "use_cache": True, "past_key_values": kept})
    except Exception:  # a model that takes a cache of its own alone says so in its own way
        return False
    for call in calls:
        place = getattr(modules[call.path], "layer_idx", None)
        if not isinstance(place, int) or place >= len(kept.layers):
            return False
        for name, width in (("keys", call.key_width), ("values", call.value_width)):
            held = getattr(kept.layers[place], name, None)
            shape = tuple(held.shape) if isinstance(held, Tensor) else ()
            if len(shape) != 4 or (shape[1], shape[1] * shape[3]) != (call.heads, width):
                return False
    return True


def keeps_positions(model: nn.Module, inputs: Mapping[str, Any]) -> bool:
    """Whether telling `model` the positions 0, 1, ... gives what it gives when it counts by itself,
    also where the first tokens are padding. Then the positions can be moved on.

    A tiny forward with them and one without.
    """
    names = inspect.signature(model.forward).parameters
    ids = inputs.get("input_ids")
    if ids is None or not {"position_ids", "attention_mask"} <= set(names):
        return False
    if ids.is_meta:  # there are no values to compare, and nearly every model does
        return True
    positions = torch.arange(ids.shape[1], device=ids.device)[None]
    mask = torch.ones_like(ids)
    mask[:, :PADDED] = 0
    inputs = {**inputs, "attention_mask": mask}
    with torch.no_grad():
        counted = model(**inputs)[0]
        told = model(**inputs, position_ids=positions)[0]
    if counted.shape[:2] == ids.shape:
        counted, told = counted[:, PADDED:], told[:, PADDED:]
    return bool(torch.allclose(counted, told, rtol=1e-4, atol=1e-5, equal_nan=True))
