"""One tiny forward of a model, watched: what ran, in which order, and which value came from which.

The model is the user's own, so everything that the forward could change is put back: training
flags, buffers, random states, and what a module sets on itself (BigBird swaps its attention for
another when the input is short).
"""

import inspect
import random
import re
import sys
import warnings
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._pytree import tree_leaves

from hub.errors import AttachError
from hub.quantization import Undo, keep_layouts, put_back
from hub.sites.attending import AttentionCall, fills_cache, keeps_positions, watch_attention
from hub.sites.dataflow import Flow

TOKENS = 8
# Adapters that are attached already are no part of the base model.
ATTACHED = "hub_adapters"


@dataclass(frozen=True, slots=True)
class Call:
    """One call of a module, which returned when the forward had made `moment` nodes.

    `given` is the node of its first tensor, `input_name` that tensor's keyword where none came by
    position; `returned` are the tensors that came out: element of the tuple, None for a tensor by
    itself, and node. `tensors` is how many it was given.
    """

    path: str
    moment: int
    given: int | None
    input_name: str | None
    returned: tuple[tuple[int | None, int], ...]
    tensors: int


@dataclass(frozen=True, slots=True)
class Trace:
    """The data flow of a forward, its module calls in the order in which they returned, its calls
    of attention functions, and the nodes of what the model gives: its logits, or all its tensors
    where nothing has that name.

    keeps_positions: the positions that the model counts can be told to it instead.
    fills_cache: a plain cache keeps what the attention functions are given.
    length: how many tokens the model was given.
    decoded: the node of the tokens that its decoder was given; None where it has none.
    """

    flow: Flow
    calls: tuple[Call, ...]
    attention: tuple[AttentionCall, ...]
    keeps_positions: bool
    fills_cache: bool
    length: int
    outputs: tuple[int, ...]
    decoded: int | None = None


def trace_forward(model: nn.Module, example: Mapping[str, Any] | None = None) -> Trace:
    """Run `model` once on `example`, or on 8 tokens of its own making, leaving the model as it was.

    Raises AttachError where the forward fails.
    """
    failure: Exception | None = None
    for inputs in [example] if example is not None else make_inputs(model):
        try:
            return _watch_forward(model, inputs)
        except Exception as error:
            failure = failure or error
    kind = type(model).__name__
    given = "the example" if example is not None else f"{TOKENS} tokens"
    detail = str(failure).strip().split("\n")[0]
    raise AttachError(
        f"can't find the sites of {kind}: its forward on {given} failed with "
        f"{type(failure).__name__}: {detail}; give it a batch that it takes, once: "
        "hub.sites.find_sites(model, example={...})"
    ) from failure


def list_modules(model: nn.Module) -> dict[str, nn.Module]:
    """Every module of the base model below its root, by path."""
    return {
        path: module
        for path, module in model.named_modules()
        if path and path.split(".")[0] != ATTACHED
    }


def _watch_forward(model: nn.Module, inputs: Mapping[str, Any]) -> Trace:
    flow = Flow()
    calls: list[Call] = []
    attention: list[AttentionCall] = []
    modules = list_modules(model)
    with keep_state(model), torch.compiler.set_stance("force_eager"), torch.no_grad():
        with ExitStack() as stack:
            for path, module in modules.items():
                hook = _make_hook(path, flow, calls)
                stack.callback(module.register_forward_hook(hook, with_kwargs=True).remove)
            stack.enter_context(watch_attention(modules, flow, attention))
            stack.enter_context(flow)
            for value in inputs.values():
                if isinstance(value, Tensor):
                    flow.mark_input(value)
            decoded = inputs.get("decoder_input_ids")
            decoded = flow.find_node(decoded) if isinstance(decoded, Tensor) else None
            output = model(**inputs)
            output = getattr(output, "logits", output)
            outputs = tuple(
                flow.find_node(leaf) for leaf in tree_leaves(output) if isinstance(leaf, Tensor)
            )
        told = bool(attention) and keeps_positions(model, inputs)
        cached = told and fills_cache(model, inputs, modules, attention)
    length = next(value.shape[1] for value in inputs.values() if isinstance(value, Tensor))
    return Trace(flow, tuple(calls), tuple(attention), told, cached, length, outputs, decoded)


def _make_hook(path: str, flow: Flow, calls: list[Call]) -> Callable[..., None]:
    def record(module: nn.Module, args: Any, kwargs: dict[str, Any], output: Any) -> None:
        by_place = next((value for value in args if isinstance(value, Tensor)), None)
        name, value = None, by_place
        if by_place is None:
            by_name = ((name, value) for name, value in kwargs.items() if isinstance(value, Tensor))
            name, value = next(by_name, (None, None))
        given = None if value is None else flow.find_node(value)
        returned = tuple(
            (element, flow.find_node(value)) for element, value in _list_outputs(output)
        )
        tensors = sum(isinstance(value, Tensor) for value in (*args, *kwargs.values()))
        calls.append(Call(path, len(flow.nodes), given, name, returned, tensors))

    return record


def _list_outputs(output: Any) -> Iterator[tuple[int | None, Tensor]]:
    if isinstance(output, Tensor):
        yield None, output
        return
    values = output.values() if isinstance(output, Mapping) else output
    if isinstance(output, (tuple, list, Mapping)):
        for element, value in enumerate(values):
            if isinstance(value, Tensor):
                yield element, value


@contextmanager
def keep_state(model: nn.Module) -> Iterator[None]:
    """Evaluation mode inside; afterwards every module, buffer and random state is what it was."""
    modules = list(model.modules())
    tables = [vars(module) for module in modules]
    tables += [
        table[name] for table in list(tables) for name in ("_parameters", "_buffers", "_modules")
    ]
    kept = [(table, dict(table)) for table in tables]
    buffers = [(buffer, buffer.detach().clone()) for buffer in model.buffers()]
    attention = _list_attention(modules)
    layouts: Undo = []
    states = random.getstate(), _get_numpy_state()
    devices = {tensor.device for tensor in model.parameters() if tensor.device.type == "cuda"}
    with torch.random.fork_rng(devices=sorted(devices, key=str)), warnings.catch_warnings():
        warnings.simplefilter("ignore")
        try:
            for module in modules:
                module.training = False
            layouts += keep_layouts(model)
            for config, _ in attention:
                config._attn_implementation_internal = "eager"
            yield
        finally:
            put_back(layouts)
            for config, implementation in attention:
                config._attn_implementation_internal = implementation
            for now, before in kept:
                for name in [name for name in now if name not in before]:
                    del now[name]
                now.update(before)
            with torch.no_grad():
                for buffer, value in buffers:
                    if buffer.device.type != "meta" and not torch.equal(buffer, value):
                        buffer.copy_(value)
            random.setstate(states[0])
            _set_numpy_state(states[1])


def _list_attention(modules: list[nn.Module]) -> list[tuple[Any, str]]:
    """Configurations that ask for an attention kernel which data can't be followed through, and
    its name."""
    configs = {
        id(config): config for module in modules if (config := getattr(module, "config", None))
    }
    named = [
        (config, getattr(config, "_attn_implementation_internal", None))
        for config in configs.values()
    ]
    return [(config, name) for config, name in named if name not in (None, "eager", "sdpa")]


def _get_numpy_state() -> Any:
    numpy = sys.modules.get("numpy")
    return None if numpy is None else numpy.random.get_state()


def _set_numpy_state(state: Any) -> None:
    if state is not None:
        sys.modules["numpy"].random.set_state(state)


def make_inputs(model: nn.Module) -> Iterator[dict[str, Any]]:
    """Inputs to try, the plainest first."""
    parameters = inspect.signature(model.forward).parameters
    weight = next(iter(model.parameters()), torch.empty(0))
    config: Any = getattr(model, "config", None)
    settings = config.to_dict() if hasattr(config, "to_dict") else {}
    fixed = {"use_cache": False} if "use_cache" in parameters else {}
    name = "input_ids"
    if name not in parameters:
        name = getattr(model, "main_input_name", None) or next(iter(parameters), name)
    tables = _list_tables(model)
    device = tables[0].weight.device if tables else weight.device
    words = list_words(model)
    ids = torch.tensor([(words * TOKENS)[:TOKENS]], device=device)
    # Some classifiers read the state at the end-of-sequence token and refuse an input without one.
    ended = ids.clone()
    ended[0, -1] = max(_collect(settings, "eos_token_id"), default=words[-1])
    for tokens in (ids, ended):
        inputs = {name: tokens, **fixed}
        if "decoder_input_ids" in parameters:
            inputs["decoder_input_ids"] = ids.clone()
        yield inputs
    width = next((m.in_features for m in model.modules() if isinstance(m, nn.Linear)), 1)
    yield {name: torch.ones(1, TOKENS, width, device=device, dtype=weight.dtype), **fixed}


def list_words(model: nn.Module) -> tuple[int, ...]:
    """The token ids that mean nothing special to `model`; at least one id."""
    config: Any = getattr(model, "config", None)
    settings = config.to_dict() if hasattr(config, "to_dict") else {}
    vocabulary = min(_collect(settings, "vocab_size"), default=0) or max(
        (table.num_embeddings for table in _list_tables(model)), default=2
    )
    return _list_others(vocabulary, frozenset(_collect(settings, r".*_token_(id|index)")))


@lru_cache(maxsize=8)
def _list_others(count: int, special: frozenset[int]) -> tuple[int, ...]:
    return tuple(word for word in range(count) if word not in special) or (0,)


def _list_tables(model: nn.Module) -> list[nn.Embedding]:
    return [module for module in model.modules() if isinstance(module, nn.Embedding)]


def _collect(settings: Mapping[str, Any], pattern: str) -> set[int]:
    """Every number in a configuration, its parts included, whose whole name matches."""
    found: set[int] = set()
    for name, value in settings.items():
        if isinstance(value, Mapping):
            found |= _collect(value, pattern)
        elif re.fullmatch(pattern, str(name)):
            values = value if isinstance(value, list) else [value]
            found.update(number for number in values if isinstance(number, int))
    return found
