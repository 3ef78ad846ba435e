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
from hub.sites import ATTACHED
from hub_registry.identity import BaseIdentity, TensorSample, compare

SAMPLES = 16
COMMIT = re.compile(r"[0-9a-f]{40}")
SHA256 = re.compile(r"[0-9a-f]{64}")


def identify_base(model: nn.Module, tokenizer: Any = None) -> BaseIdentity:
    """The identity of the pretrained part of `model`, and of `tokenizer` where one is given.

    A task's head is not part of it: the same backbone under a new classifier is the same base.
    16 values of every tensor are read, at positions that depend on its name and size alone.
    """
    config = getattr(model, "config", None)
    named = dict(name_backbone_tensors(model))
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
        sample={name: sample_tensor(name, tensor) for name, tensor in named.items()},
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


def name_backbone_tensors(model: nn.Module) -> Iterator[tuple[str, torch.Tensor]]:
    """The floating tensors of the pretrained part, by names that every task class shares."""
    backbone = getattr(model, "base_model", model)
    for name, tensor in backbone.named_parameters():
        if tensor.is_floating_point() and not name.startswith(f"{ATTACHED}."):
            yield name, tensor
    output = getattr(model, "get_output_embeddings", lambda: None)()
    known = {id(tensor) for tensor in backbone.parameters()}
    if isinstance(output, nn.Module):
        for name, tensor in output.named_parameters():
            if tensor.is_floating_point() and id(tensor) not in known:
                yield f"lm_head.{name}", tensor


def sample_tensor(name: str, tensor: torch.Tensor) -> TensorSample:
    """Up to 16 values of a tensor, at positions that its name and size fix."""
    count = tensor.numel()
    if tensor.is_meta or count == 0:
        return TensorSample(tuple(tensor.shape), (), name_dtype(tensor.dtype))
    if count <= SAMPLES:
        positions = list(range(count))
    else:
        digest = hashlib.shake_128(f"{name}:{count}".encode()).digest(8 * SAMPLES)
        positions = [
            int.from_bytes(digest[8 * i : 8 * i + 8], "little") % count for i in range(SAMPLES)
        ]
    flat = tensor.detach().reshape(-1)
    values = flat[torch.tensor(positions, device=flat.device)].float().tolist()
    return TensorSample(tuple(tensor.shape), tuple(values), name_dtype(tensor.dtype))


def name_dtype(dtype: torch.dtype) -> str:
    return str(dtype).removeprefix("torch.")


def name_quantization(config: Any) -> str | None:
    """How the weights are quantized, in transformers' own word, or None."""
    quantization = getattr(config, "quantization_config", None)
    if quantization is None:
        return None
    method = getattr(quantization, "quant_method", None)
    if isinstance(quantization, dict):
        method = quantization.get("quant_method")
    return str(getattr(method, "value", method) or type(quantization).__name__)


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
