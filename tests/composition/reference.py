"""What compositions mean, computed by plain means: an adapter's tensors, its paper's equation, own
hooks on the bare model, and an attention function written out.

Nothing of `hub.attachment` is used, nor the live modules of any method. A composition is read by
recursion: at each place an operator makes one value of what its parts give.

The places are the input and the output of a projection, a norm or an embedding, the output of a
branch, the output of an attention, the keys and values in front of it, and the tokens in front of
the input.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from functools import cache
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from transformers import AttentionInterface, AttentionMaskInterface
from transformers.masking_utils import eager_mask

import hub
from hub.composition import Part

NAME = "written_out"
Change = Callable[..., Tensor]


class Meaningless(Exception):
    """A composition has no meaning; the text is the reason."""


@dataclass(frozen=True)
class Layout:
    """Where a tiny model has what the equations speak of, as patterns of paths with {} for a layer.

    stream: a module that is given the stream that the feed-forward's branch is added to. norm: what
    comes right after that sum. attention: the module that attends, with its projections of keys and
    values.
    """

    stream: str
    norm: str | None
    attention: str
    keys: str
    values: str


LAYOUTS = {
    "llama": Layout(
        "model.layers.{}.post_attention_layernorm",
        None,
        "model.layers.{}.self_attn",
        "model.layers.{}.self_attn.k_proj",
        "model.layers.{}.self_attn.v_proj",
    ),
    "bert": Layout(
        "bert.encoder.layer.{}.intermediate.dense",
        "bert.encoder.layer.{}.output.LayerNorm",
        "bert.encoder.layer.{}.attention.self",
        "bert.encoder.layer.{}.attention.self.key",
        "bert.encoder.layer.{}.attention.self.value",
    ),
}


@dataclass
class Effects:
    """What one adapter does, by the path of a module: f(x) to an input, f(x, y) to an output, a
    branch f(stream, y), an attention f(query, y); the keys and values that it puts in front of an
    attention, (n, keys + values), and the tokens in front of the input, (n, d_model)."""

    inputs: dict[str, Change] = field(default_factory=dict)
    outputs: dict[str, Change] = field(default_factory=dict)
    branches: dict[str, Change] = field(default_factory=dict)
    attentions: dict[str, Change] = field(default_factory=dict)
    keys: dict[str, Tensor] = field(default_factory=dict)
    tokens: Tensor | None = None


@cache
def read_effects(model: Any, adapter: hub.Adapter) -> Effects:
    """An adapter's equation with its tensors in it."""
    held: dict[str, dict[str, Tensor]] = {}
    modules = dict(model.named_modules())
    for name, tensor in adapter.tensors.items():
        path, own = name.rpartition(".")[0], name.rpartition(".")[2]
        while path and path not in modules:
            path, _, front = path.rpartition(".")
            own = f"{front}.{own}"
        held.setdefault(path, {})[own] = tensor.detach()
    effects = Effects()
    READERS[adapter.method](model, adapter.config, held, effects)
    return effects


def read_lora(model: Any, config: Any, held: Any, effects: Effects) -> None:
    """y + s B A x"""
    for path, own in held.items():
        A, B = own["lora_A.weight"], own["lora_B.weight"]
        s = config.alpha / config.r
        effects.outputs[path] = lambda x, y, A=A, B=B, s=s: y + s * x @ A.T @ B.T


def read_ia3(model: Any, config: Any, held: Any, effects: Effects) -> None:
    """l * y for keys and values, W (l * x) for the feed-forward"""
    for path, own in held.items():
        l = own["ia3_l"]  # noqa: E741
        if len(l) == 1:
            effects.inputs[path] = lambda x, l=l: x * l[0]  # noqa: E741
        else:
            effects.outputs[path] = lambda x, y, l=l: y * l[:, 0]  # noqa: E741


def squeeze(own: Mapping[str, Tensor], x: Tensor, f: Callable[[Tensor], Tensor]) -> Tensor:
    """W_up f(W_down x + b_down) + b_up"""
    h = f(x @ own["down.weight"].T + own["down.bias"])
    return h @ own["up.weight"].T + own["up.bias"]


def read_houlsby(model: Any, config: Any, held: Any, effects: Effects) -> None:
    """y + bottleneck(y)"""
    for path, own in held.items():
        effects.branches[path] = lambda x, y, own=own: y + squeeze(own, y, F.gelu)


def read_pfeiffer(model: Any, config: Any, held: Any, effects: Effects) -> None:
    """y + bottleneck(n(x + y))"""
    layout = find_layout(model)
    for path, own in held.items():
        norm: Any = nn.Identity()
        if layout.norm is not None:
            norm = model.get_submodule(layout.norm.format(find_layer(path)))
        effects.branches[path] = lambda x, y, own=own, norm=norm: (
            y + squeeze(own, norm(x + y), F.relu)
        )


def read_parallel(model: Any, config: Any, held: Any, effects: Effects) -> None:
    """y + s bottleneck(x)"""
    for path, own in held.items():
        effects.branches[path] = lambda x, y, own=own: y + config.scale * squeeze(own, x, F.relu)


def read_bitfit(model: Any, config: Any, held: Any, effects: Effects) -> None:
    """y + db"""
    for path, own in held.items():
        effects.outputs[path] = lambda x, y, b=own["bias"]: y + b


def read_differences(model: Any, config: Any, held: Any, effects: Effects) -> None:
    """What the module gives with D and db for its weight and bias, on top of y."""
    for path, own in held.items():
        D: Any = find_difference(own, "weight")
        db = find_difference(own, "bias")
        module = model.get_submodule(path)
        effects.outputs[path] = lambda x, y, m=module, D=D, db=db: y + apply_weights(m, x, D, db)


def find_difference(own: Mapping[str, Tensor], name: str) -> Tensor | None:
    """The values themselves, or w under its gates."""
    if f"{name}.w" not in own:
        return own.get(f"{name}.values")
    gates = [own[f"{name}.gate"], own[f"{name}.group"]]
    z = [(torch.sigmoid(5 + 500 * g) * 3 - 1.5).clamp(0, 1) for g in gates]
    return own[f"{name}.w"] * z[0] * z[1]


def apply_weights(module: Any, x: Tensor, D: Tensor, db: Tensor | None) -> Tensor:
    """The linear part of a module with other parameters."""
    if isinstance(module, nn.Linear):
        return F.linear(x, D, db)
    if isinstance(module, nn.Embedding):
        return F.embedding(x, D)
    if isinstance(module, nn.LayerNorm):
        return F.layer_norm(x, module.normalized_shape, D, db, module.eps)
    scale = torch.rsqrt(x.square().mean(-1, keepdim=True) + module.variance_epsilon)
    normed: Tensor = x * scale * D
    return normed


def read_prefix(model: Any, config: Any, held: Any, effects: Effects) -> None:
    """P_K and P_V of each attention, in the model's order"""
    paths = list_attentions(model)
    parts = held[""]["prompt_embeddings"].chunk(len(paths), dim=1)
    effects.keys.update(zip(paths, parts, strict=True))


def read_prompt(model: Any, config: Any, held: Any, effects: Effects) -> None:
    """P"""
    effects.tokens = held[""]["prompt_embeddings"]


def read_ptuning(model: Any, config: Any, held: Any, effects: Effects) -> None:
    """MLP(E)"""
    own = {name.removeprefix("prompt_encoder."): tensor for name, tensor in held[""].items()}
    h = own["embedding"]
    for layer in (0, 2, 4):
        h = h.relu() if layer else h
        h = h @ own[f"mlp.{layer}.weight"].T + own[f"mlp.{layer}.bias"]
    effects.tokens = h


def read_llama_adapter(model: Any, config: Any, held: Any, effects: Effects) -> None:
    """o + g softmax(Q K_P^T / sqrt(head_dim)) V_P"""
    layout = find_layout(model)
    for path, own in held.items():
        layer = find_layer(path)
        prompt, gate = own["adaption_prompt"][0], own["adaption_gate"]
        made = []
        for name in (layout.keys, layout.values):
            module = model.get_submodule(name.format(layer))
            made.append(F.linear(prompt, module.weight, module.bias).detach())

        def attend(x: Tensor, y: Tensor, made: Any = made, gate: Any = gate) -> Tensor:
            heads, width = x.shape[1], x.shape[3]
            keys, values = (t.view(len(t), -1, width).transpose(0, 1) for t in made)
            keys, values = (
                t.repeat_interleave(heads // len(t), dim=0)[None] for t in (keys, values)
            )
            shares = gate * (x @ keys.transpose(-1, -2) / math.sqrt(width)).softmax(-1)
            return y + (shares @ values).transpose(1, 2)

        effects.attentions[path] = attend


READERS: dict[str, Callable[[Any, Any, Any, Effects], None]] = {
    "lora": read_lora,
    "ia3": read_ia3,
    "houlsby": read_houlsby,
    "pfeiffer": read_pfeiffer,
    "parallel": read_parallel,
    "bitfit": read_bitfit,
    "full": read_differences,
    "diff": read_differences,
    "prefix": read_prefix,
    "prompt": read_prompt,
    "ptuning": read_ptuning,
    "llama_adapter": read_llama_adapter,
}


def find_layout(model: Any) -> Layout:
    """The layout of a tiny model."""
    return LAYOUTS[model.config.model_type]


def find_layer(path: str) -> str:
    """The number of the layer that a path is in."""
    return next(part for part in path.split(".") if part.isdigit())


def list_attentions(model: Any) -> list[str]:
    """The paths of the modules that attend, in order."""
    pattern = find_layout(model).attention
    return [pattern.format(layer) for layer in range(model.config.num_hidden_layers)]


class Reader:
    """A composition without rows of its own, read at one place after the other.

    positions: which of the sequence's own positions each place in it is, (seq,).
    """

    def __init__(self, model: Any, tree: Part) -> None:
        self.tree = tree
        acting = [adapter for adapter in list_adapters(tree) if adapter.method != "fusion"]
        self.effects = {adapter: read_effects(model, adapter) for adapter in acting}
        self.positions = torch.empty(0)
        self.find_places(tree)

    def find_places(self, tree: Part) -> set[tuple[str, str]]:
        """The kinds and paths of the places where something acts; those of a fuse are those of its
        attention. Raises Meaningless where that was made for parts that act elsewhere."""
        if isinstance(tree, hub.Adapter):
            effects = self.effects[tree]
            kinds = ("inputs", "outputs", "branches", "attentions")
            return {(kind, path) for kind in kinds for path in getattr(effects, kind)}
        if not isinstance(tree, hub.composition.Operator):
            return set()
        places = {place for part in tree.parts for place in self.find_places(part)}
        if isinstance(tree, hub.Fuse):
            assert isinstance(tree.by, hub.Adapter)
            if places != list_attentions_of(tree.by).keys():
                raise Meaningless("an attention for parts that act elsewhere")
        return places

    def change(self, kind: str, path: str, x: Tensor, y: Tensor | None) -> Tensor:
        """What the composition makes of an input, or of an output where there is a y."""
        return self._change(self.tree, kind, path, x, y)

    def _change(self, tree: Part, kind: str, path: str, x: Tensor, y: Tensor | None) -> Tensor:
        value = x if y is None else y
        if tree is None:
            return value
        if isinstance(tree, hub.Adapter):
            change = getattr(self.effects[tree], kind).get(path)
            if change is None:
                return value
            changed: Tensor = change(x) if y is None else change(x, y)
            return changed
        assert not isinstance(tree, str)
        if isinstance(tree, hub.Stack):
            for part in tree.parts:
                if y is None:
                    x = self._change(part, kind, path, x, None)
                else:
                    y = self._change(part, kind, path, x, y)
            return x if y is None else y
        given = [self._change(part, kind, path, x, y) for part in tree.parts]
        if isinstance(tree, hub.Average):
            return average(given, tree.weights)
        if isinstance(tree, hub.Fuse):
            assert isinstance(tree.by, hub.Adapter)
            where = list_attentions_of(tree.by).get((kind, path))
            return value if where is None else attend(tree.by.tensors, where, value, given)
        assert isinstance(tree, hub.Split)
        whole = given[0]
        positions = self.positions[-whole.shape[1] :].view(1, -1, *[1] * (whole.dim() - 2))
        for start, own in zip(tree.at, given[1:], strict=True):
            whole = torch.where(positions >= start, own, whole)
        return whole

    def extend(self, path: str | None) -> Tensor | None:
        """The keys and values in front of an attention, or the tokens in front of the input."""
        return self._extend(self.tree, path)

    def _extend(self, tree: Part, path: str | None) -> Tensor | None:
        if tree is None:
            return None
        if isinstance(tree, hub.Adapter):
            effects = self.effects[tree]
            return effects.tokens if path is None else effects.keys.get(path)
        assert not isinstance(tree, str)
        given = [self._extend(part, path) for part in tree.parts]
        there = [value for value in given if value is not None]
        if not there:
            return None
        if isinstance(tree, hub.Stack):
            return torch.cat(there)
        if isinstance(tree, hub.Split):
            raise Meaningless("virtual tokens are no part of a sequence")
        if isinstance(tree, hub.Fuse):
            raise Meaningless("virtual tokens are no output of a layer")
        assert isinstance(tree, hub.Average)
        if len({0 if value is None else len(value) for value in given}) > 1:
            raise Meaningless("a mean of different numbers of virtual tokens")
        return average(there, tree.weights)


def average(values: Sequence[Tensor], weights: Sequence[float]) -> Tensor:
    """The weighted mean."""
    total = sum(weights)
    return torch.stack([v * (w / total) for v, w in zip(values, weights, strict=True)]).sum(0)


def list_attentions_of(by: hub.Adapter) -> dict[tuple[str, str], str]:
    """Where a fusion has an attention, a kind of place and a path, and what its tensors there begin
    with."""
    found = {}
    for name in by.tensors:
        start, _, own = name.rpartition(".query.")
        path, _, site = start.rpartition(".")
        kind, _, place = site.rpartition("_")
        if own == "weight":
            kinds = {"branch": "branches", "attention": "attentions"}
            found["inputs" if place == "input" else kinds.get(kind, "outputs"), path] = start
    return found


def attend(tensors: Mapping[str, Tensor], where: str, y: Tensor, parts: Sequence[Tensor]) -> Tensor:
    """A fusion's equation, for the tensors of one place: y and each part (..., d), part by part. In
    float64, since its scores may be large."""
    own = {name: t.double() for name, t in tensors.items() if name.startswith(f"{where}.")}
    Q, K, V = (own.get(f"{where}.{name}.weight") for name in ("query", "key", "value"))
    dtype, y, parts = y.dtype, y.double(), [z.double() for z in parts]
    q = y @ Q.T + own[f"{where}.query.bias"]  # type: ignore[union-attr]
    scores = [(q * ((z - y) @ K.T + own[f"{where}.key.bias"])).sum(-1) for z in parts]  # type: ignore[union-attr]
    largest = torch.stack(scores).amax(0)
    powers = [(score - largest).exp() for score in scores]
    shares = [power / torch.stack(powers).sum(0) for power in powers]
    chosen = sum(s[..., None] * (z - y) for s, z in zip(shares, parts, strict=True))
    fused: Tensor = y + (chosen if V is None else chosen @ V.T)
    return fused.to(dtype)


def list_adapters(tree: Part) -> list[hub.Adapter]:
    """The adapters among the leaves."""
    leaves = tree.leaves() if isinstance(tree, hub.composition.Operator) else [tree]
    return [leaf for leaf in dict.fromkeys(leaves) if isinstance(leaf, hub.Adapter)]


def expand(tree: Part) -> list[Part]:
    """What the rows of a composition can choose from, in order: for a `BatchSplit` or a `Parallel`
    each of its parts, for another operator each choice of one for each part."""
    if not isinstance(tree, hub.composition.Operator):
        return [tree]
    choices = [expand(part) for part in tree.parts]
    if isinstance(tree, hub.BatchSplit | hub.Parallel):
        return [line for lines in choices for line in lines]
    lines: list[list[Part]] = [[]]
    for options in choices:
        lines = [[*line, option] for line in lines for option in options]
    return [tree.rebuild(line) for line in lines]


def evaluate(model: Any, tree: Part, ids: Tensor) -> Tensor:
    """The logits of rows without padding, (rows, seq, vocabulary), under a composition without rows
    of its own. Raises Meaningless."""
    reader = Reader(model, tree)
    heads = {path: reader.extend(path) for path in list_attentions(model)}
    tokens = reader.extend(None)
    moved = max((len(value) for value in heads.values() if value is not None), default=0)
    count, length = (0 if tokens is None else len(tokens)), ids.shape[1]
    reader.positions = torch.cat([torch.full((count,), -1), torch.arange(length)])
    with hang(model, reader, heads), torch.no_grad():
        vectors = model.get_input_embeddings()(ids)
        if tokens is not None:
            vectors = torch.cat([tokens.expand(len(ids), -1, -1), vectors], dim=1)
        positions = torch.arange(moved, moved + count + length).expand(len(ids), -1)
        logits: Tensor = model(inputs_embeds=vectors, position_ids=positions).logits
    return logits[:, count:]


@contextmanager
def hang(model: Any, reader: Reader, heads: Mapping[str, Tensor | None]) -> Iterator[None]:
    """Let a composition act on the model by hooks, and through an attention written out."""
    modules = dict(model.named_modules())
    kinds: dict[str, list[str]] = {"inputs": [], "outputs": [], "branches": []}
    for kind, paths in kinds.items():
        for effects in reader.effects.values():
            paths += [path for path in getattr(effects, kind) if path not in paths]
    streams: dict[str, Tensor] = {}
    stream = find_layout(model).stream

    def attend(
        module: nn.Module,
        query: Tensor,
        key: Tensor,
        value: Tensor,
        mask: Tensor | None,
        **_: Any,
    ) -> tuple[Tensor, None]:
        path = next(path for path in heads if modules[path] is module)
        front = heads[path]
        if front is not None:
            parts = front.chunk(2, dim=1)
            parts = [t.view(len(t), key.shape[1], -1).transpose(0, 1)[None] for t in parts]
            key, value = (
                torch.cat([part.expand(len(own), -1, -1, -1), own], dim=2)
                for part, own in zip(parts, (key, value), strict=True)
            )
            mask = None if mask is None else F.pad(mask, (len(front), 0))
        groups = query.shape[1] // key.shape[1]
        key, value = (own.repeat_interleave(groups, dim=1) for own in (key, value))
        scores = query @ key.transpose(-1, -2) / math.sqrt(query.shape[3])
        scores = scores if mask is None else scores + mask
        out = (scores.softmax(-1) @ value).transpose(1, 2)
        return reader.change("attentions", path, query, out), None

    def hook_input(path: str) -> Any:
        return lambda module, args: (reader.change("inputs", path, args[0], None), *args[1:])

    def hook_output(path: str) -> Any:
        return lambda module, args, y: reader.change("outputs", path, args[0], y)

    def hook_branch(path: str) -> Any:
        def change(module: nn.Module, args: Any, output: Any) -> Any:
            y = output[0] if isinstance(output, tuple) else output
            y = reader.change("branches", path, streams.get(find_layer(path), y), y)
            return (y, *output[1:]) if isinstance(output, tuple) else y

        return change

    def keep_stream(layer: str) -> Any:
        return lambda module, args: streams.__setitem__(layer, args[0])

    kept = model.config._attn_implementation
    AttentionInterface.register(NAME, attend)
    AttentionMaskInterface.register(NAME, eager_mask)
    with ExitStack() as stack:
        model.set_attn_implementation(NAME)
        stack.callback(model.set_attn_implementation, kept)
        for layer in range(model.config.num_hidden_layers):
            module = modules[stream.format(layer)]
            stack.callback(module.register_forward_pre_hook(keep_stream(str(layer))).remove)
        for path in kinds["inputs"]:
            stack.callback(modules[path].register_forward_pre_hook(hook_input(path)).remove)
        # What acts on a projection comes before what acts on the branch that it ends.
        for path in kinds["outputs"]:
            stack.callback(modules[path].register_forward_hook(hook_output(path)).remove)
        for path in kinds["branches"]:
            stack.callback(modules[path].register_forward_hook(hook_branch(path)).remove)
        yield
