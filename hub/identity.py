"""Who a loaded base model is: the torch side of `hub_registry.identity`."""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from torch import nn

from hub.errors import BaseMismatch
from hub.quantization import get_shape, is_quantized, sample_weight
from hub.sites import ATTACHED
from hub_registry.identity import BaseIdentity, TensorSample, compare

SAMPLES = 16
COMMIT = re.compile(r"[0-9a-f]{40}")
SHA256 = re.compile(r"[0-9a-f]{64}")


def identify_base(model: nn.Module, tokenizer: Any = None) -> BaseIdentity:
    """The identity of the pretrained part of `model`, and of `tokenizer` where one is given.

    A task's head is not part of it: the same backbone under a new classifier is the same base.
    16 values of every tensor are read, at positions that depend on its name and size alone; of a
    quantized weight those that it stands for.
    """
    config = getattr(model, "config", None)
    repo = getattr(config, "_name_or_path", None) or None
    revision = getattr(config, "_commit_hash", None)
    return BaseIdentity(
        architecture=getattr(config, "model_type", type(model).__name__),
        precision=name_dtype(getattr(model, "dtype", torch.float32)),
        repo=repo,
        revision=revision if revision and COMMIT.fullmatch(revision) else None,
        quantization=name_quantization(config),
        tokenizer=hash_tokenizer(tokenizer) if tokenizer is not None else None,
        files=hash_cached_files(repo, revision),
        sample=dict(sample_backbone(model)),
    )


def verify_base(expected: BaseIdentity, model: nn.Module, *, who: str, allow_other: bool) -> str:
    """Compare `model` with the base that an adapter was made for; a note, empty when all is well.

    Raises BaseMismatch, unless `allow_other`, when it is another one. `who` names the adapter.
    """
    found = identify_base(model)
    comparison = compare(expected, found)
    reasons = "; ".join(comparison.reasons)
    if comparison.verdict == "same":
        return reasons
    text = f"{who} was made for {expected.label}, this model is {found.label}: {reasons}"
    if comparison.verdict == "different" and not allow_other:
        raise BaseMismatch(
            f"{text}; load that base (in Python, allow_other_base=True attaches it all the same)"
        )
    return text


def sample_backbone(model: nn.Module) -> Iterator[tuple[str, TensorSample]]:
    """Samples of the weights of the pretrained part, by names that every task class shares."""
    backbone = getattr(model, "base_model", model)
    known: set[int] = set()
    for path, module in backbone.named_modules():
        if path.split(".")[0] != ATTACHED:
            yield from sample_module(f"{path}." if path else "", module, known)
    output = getattr(model, "get_output_embeddings", lambda: None)()
    if isinstance(output, nn.Module):
        for path, module in output.named_modules():
            yield from sample_module(f"lm_head.{path}." if path else "lm_head.", module, known)


def sample_module(
    prefix: str, module: nn.Module, known: set[int]
) -> Iterator[tuple[str, TensorSample]]:
    """Samples of a module's own weights; not of those in `known`, by their ids, which grows."""
    quantized = is_quantized(module)
    for name, tensor in module.named_parameters(recurse=False):
        if id(tensor) in known:
            continue
        known.add(id(tensor))
        if quantized and name == "weight":
            sample = sample_quantized(prefix + name, module)
            if sample is not None:
                yield prefix + name, sample
        elif tensor.is_floating_point():
            yield prefix + name, sample_tensor(prefix + name, tensor)


def sample_tensor(name: str, tensor: torch.Tensor) -> TensorSample:
    """Up to 16 values of a tensor, at positions that its name and size fix."""
    shape, dtype = tuple(tensor.shape), name_dtype(tensor.dtype)
    if tensor.is_meta or tensor.numel() == 0:
        return TensorSample(shape, (), dtype)
    flat = tensor.detach().reshape(-1)
    positions = choose_positions(name, tensor.numel())
    values = flat[torch.tensor(positions, device=flat.device)].float().tolist()
    return TensorSample(shape, tuple(values), dtype)


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
