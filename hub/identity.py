"""Who a loaded base model is: the torch side of `hub_registry.identity`."""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import lru_cache
from itertools import islice
from pathlib import Path
from typing import Any
from weakref import WeakKeyDictionary

import torch
from torch import nn

from hub.errors import BaseMismatch
from hub.quantization import get_shape, is_quantized, sample_weight
from hub.sites import ATTACHED
from hub_registry.identity import BaseIdentity, Comparison, TensorSample, compare

SAMPLES = 16
COMPARED = 4
COMMIT = re.compile(r"[0-9a-f]{40}")
SHA256 = re.compile(r"[0-9a-f]{64}")

Fact = tuple[str, torch.Size, torch.dtype, torch.device]
"""A weight's name, shape, dtype and device."""


@dataclass
class Known:
    """What was made of a model's samples, as long as they are what is read of it.

    values: what was read, of the weights on each device. identity: the last one, and what else it
    was made of. compared: the bases that it was held against, with what came of it.
    """

    facts: list[Fact]
    values: list[torch.Tensor]
    samples: dict[str, TensorSample]
    identity: tuple[Any, BaseIdentity] | None = None
    compared: list[tuple[BaseIdentity, Comparison]] = field(default_factory=list)


_known = WeakKeyDictionary[nn.Module, Known]()


def identify_base(model: nn.Module, tokenizer: Any = None) -> BaseIdentity:
    """The identity of the pretrained part of `model`, and of `tokenizer` where one is given.

    A task's head is not part of it: the same backbone under a new classifier is the same base.
    16 values of every tensor are read, at positions that depend on its name and size alone; of a
    quantized weight those that it stands for.
    """
    config = getattr(model, "config", None)
    repo = getattr(config, "_name_or_path", None) or None
    revision = getattr(config, "_commit_hash", None)
    told: dict[str, Any] = {
        "architecture": getattr(config, "model_type", type(model).__name__),
        "precision": name_dtype(getattr(model, "dtype", torch.float32)),
        "repo": repo,
        "revision": revision if revision and COMMIT.fullmatch(revision) else None,
        "quantization": name_quantization(config),
        "tokenizer": hash_tokenizer(tokenizer) if tokenizer is not None else None,
    }
    sample = sample_backbone(model)
    known = _known.get(model)
    if known is None or known.samples is not sample:
        return BaseIdentity(**told, files=hash_cached_files(repo, revision), sample=sample)
    if known.identity is None or known.identity[0] != told:
        files = hash_cached_files(repo, revision)
        known.identity = told, BaseIdentity(**told, files=files, sample=sample)
        known.compared.clear()
    return known.identity[1]


def verify_base(expected: BaseIdentity, model: nn.Module, *, who: str, allow_other: bool) -> str:
    """Compare `model` with the base that an adapter was made for; a note, empty when all is well.

    Raises BaseMismatch, unless `allow_other`, when it is another one. `who` names the adapter.
    """
    found = identify_base(model)
    comparison = compare_known(expected, found, _known.get(model))
    reasons = "; ".join(comparison.reasons)
    if comparison.verdict == "same":
        return reasons
    text = f"{who} was made for {expected.label}, this model is {found.label}: {reasons}"
    if comparison.verdict == "different" and not allow_other:
        raise BaseMismatch(
            f"{text}; load that base (in Python, allow_other_base=True attaches it all the same)"
        )
    return text


def compare_known(expected: BaseIdentity, found: BaseIdentity, known: Known | None) -> Comparison:
    """What `compare` says; once for each of the bases that a model was held against last."""
    if known is None or known.identity is None or known.identity[1] is not found:
        return compare(expected, found)
    for base, comparison in known.compared:
        if base is expected:
            return comparison
    known.compared[:] = [(expected, compare(expected, found)), *known.compared[: COMPARED - 1]]
    return known.compared[0][1]


def sample_backbone(model: nn.Module) -> dict[str, TensorSample]:
    """Samples of the weights of the pretrained part, by names that every task class shares."""
    samples: dict[str, TensorSample | None] = {}
    plain: dict[str, torch.Tensor] = {}
    for name, tensor, module in list_weights(model):
        floating = tensor.is_floating_point()
        common = floating and type(tensor) is nn.Parameter
        if not common and tensor is module._parameters.get("weight") and is_quantized(module):
            samples[name] = sample_quantized(name, module)
        elif floating:
            samples[name] = None  # its place in the order
            plain[name] = tensor
    read = sample_known(model, plain)
    if len(read) == len(samples):
        return read
    samples |= read
    return {name: sample for name, sample in samples.items() if sample is not None}


def sample_known(model: nn.Module, tensors: Mapping[str, torch.Tensor]) -> dict[str, TensorSample]:
    """Samples of a model's tensors by name: those of before, as long as they say the same, which is
    read anew each time."""
    facts = [(name, t.shape, t.dtype, t.device) for name, t in tensors.items()]
    values = pick_values(tensors)
    known = _known.get(model)
    alike = known is not None and known.facts == facts
    if known is None or not alike or not all(map(torch.equal, known.values, values)):
        known = _known[model] = Known(facts, values, make_samples(tensors, values))
    return known.samples


def list_weights(model: nn.Module) -> Iterator[tuple[str, torch.Tensor, nn.Module]]:
    """Every weight of the pretrained part once, by name, with the module that holds it."""
    backbone = getattr(model, "base_model", model)
    output = getattr(model, "get_output_embeddings", lambda: None)()
    known: set[int] = set()
    for start, part in (("", backbone), ("lm_head.", output)):
        for path, module in walk_modules(part, start) if isinstance(part, nn.Module) else ():
            for name, tensor in module._parameters.items():
                if tensor is not None and id(tensor) not in known:
                    known.add(id(tensor))
                    yield path + name, tensor, module


def walk_modules(module: nn.Module, start: str) -> Iterator[tuple[str, nn.Module]]:
    """A module and all in it but adapters, each once, after what its weights' names begin with: in
    the order of torch's `named_modules`, which takes thrice as long."""
    left, known = [(start, module)], {id(getattr(module, ATTACHED, None))}
    while left:
        path, module = left.pop()
        if id(module) not in known:
            known.add(id(module))
            yield path, module
            children = [child for child in module._modules.items() if child[1] is not None]
            left += [(f"{path}{name}.", child) for name, child in reversed(children)]  # type: ignore[misc]


def sample_tensor(name: str, tensor: torch.Tensor) -> TensorSample:
    """Up to 16 values of a tensor, at positions that its name and size fix."""
    return sample_tensors({name: tensor})[name]


def sample_tensors(tensors: Mapping[str, torch.Tensor]) -> dict[str, TensorSample]:
    """The same of each tensor by its name."""
    return make_samples(tensors, pick_values(tensors))


def pick_values(tensors: Mapping[str, torch.Tensor]) -> list[torch.Tensor]:
    """The values of all tensors, one after the other, in float32; those of each device together,
    in the order in which the devices come."""
    groups: dict[torch.device, list[torch.Tensor]] = {}
    with torch.no_grad():
        for name, tensor in tensors.items():
            if tensor.is_meta or not tensor.numel():
                continue
            device = tensor.device
            index = find_index(name, tensor.numel(), device)
            picked = tensor.reshape(-1).index_select(0, index)
            groups.setdefault(device, []).append(picked)
        return [torch.cat([picked.float() for picked in group]) for group in groups.values()]


def make_samples(
    tensors: Mapping[str, torch.Tensor], values: Sequence[torch.Tensor]
) -> dict[str, TensorSample]:
    """Samples with the values that were picked."""
    left = {picked.device: iter(picked.tolist()) for picked in values}
    samples = {}
    for name, tensor in tensors.items():
        count = 0 if tensor.is_meta else min(tensor.numel(), SAMPLES)
        own = tuple(islice(left[tensor.device], count)) if count else ()
        samples[name] = TensorSample(tuple(tensor.shape), own, name_dtype(tensor.dtype))
    return samples


@lru_cache(maxsize=4096)
def find_index(name: str, count: int, device: torch.device) -> torch.Tensor:
    """The places of `choose_positions` on a device, (16,)."""
    return torch.tensor(choose_positions(name, count), device=device)


def sample_quantized(name: str, module: nn.Module) -> TensorSample | None:
    """The same of a layer's quantized weight, by the shape and at the positions that it has where
    it is not quantized; None where its values can't be told."""
    rows, columns = get_shape(module)
    # bitsandbytes makes its layers of transformers' Conv1D too, whose weight is (in, out).
    turned = getattr(getattr(module, "source_cls", None), "__name__", "") == "Conv1D"
    positions = choose_positions(name, rows * columns)
    if turned:
        positions = [(place % rows) * columns + place // rows for place in positions]
    found = sample_weight(module, positions)
    if found is None:
        return None
    values, errors = found
    shape = (columns, rows) if turned else (rows, columns)
    return TensorSample(shape, tuple(values), "quantized", tuple(errors))


def choose_positions(name: str, count: int) -> list[int]:
    """Up to 16 places in a flattened tensor, the same ones for a name and a size."""
    if count <= SAMPLES:
        return list(range(count))
    digest = hashlib.shake_128(f"{name}:{count}".encode()).digest(8 * SAMPLES)
    return [int.from_bytes(digest[8 * i : 8 * i + 8], "little") % count for i in range(SAMPLES)]


def name_dtype(dtype: torch.dtype) -> str:
    return str(dtype).removeprefix("torch.")


def name_quantization(config: Any) -> str | None:
    """How the weights are quantized: transformers' word for the method, and what tells two of its
    formats apart ("bitsandbytes-nf4-double"); None where they are not."""
    quantization = getattr(config, "quantization_config", None)
    if quantization is None:
        return None
    told = quantization if isinstance(quantization, dict) else vars(quantization)
    method = told.get("quant_method")
    parts = [str(getattr(method, "value", method) or type(quantization).__name__)]
    if parts == ["bitsandbytes"]:
        in_4bit = told.get("_load_in_4bit", told.get("load_in_4bit"))
        parts.append(str(told.get("bnb_4bit_quant_type", "fp4")) if in_4bit else "int8")
        if in_4bit and told.get("bnb_4bit_use_double_quant"):
            parts.append("double")
    elif parts == ["torchao"] and (kind := told.get("quant_type")) is not None:
        group = getattr(kind, "group_size", None) or getattr(kind, "granularity", None)
        parts.append(type(kind).__name__.removesuffix("Config"))
        parts += [str(group)] if group is not None else []
    return "-".join(parts)


def hash_tokenizer(tokenizer: Any) -> str:
    """sha256 of what a tokenizer does: its fast backend's state, or its vocabulary.

    The padding and truncation of the last call are part of that state, and left out.
    """
    backend = getattr(tokenizer, "backend_tokenizer", None)
    if backend is None:
        text = repr(sorted(tokenizer.get_vocab().items()))
    else:
        state = {**json.loads(backend.to_str()), "padding": None, "truncation": None}
        text = json.dumps(state, sort_keys=True)
    return hashlib.sha256(text.encode()).hexdigest()


def hash_cached_files(repo: str | None, revision: str | None) -> dict[str, str]:
    """sha256 of the weight files, where the Hub's cache knows them without reading the bytes."""
    if not repo or not revision or Path(repo).exists():
        return {}
    from huggingface_hub.constants import HF_HUB_CACHE

    snapshot = Path(HF_HUB_CACHE, f"models--{repo.replace('/', '--')}", "snapshots", revision)
    digests = {}
    for file in sorted(snapshot.glob("*.safetensors")):
        blob = file.resolve().name
        if SHA256.fullmatch(blob):
            digests[file.name] = blob
    return digests
