"""Tiny models as transformers loads them quantized, and what of them must stay."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from torch.utils._python_dispatch import is_traceable_wrapper_subclass
from torchao.quantization import (  # type: ignore[import-untyped]
    Int8WeightOnlyConfig,
    IntxWeightOnlyConfig,
    PerGroup,
)
from transformers import BitsAndBytesConfig, TorchAoConfig

from tests.snapshots import hash_tensor
from tests.tiny import CLASSES, DEFAULT, build_tiny

FORMATS = ("nf4", "int8", "torchao-int8", "torchao-int4")
# bitsandbytes' 4 bit layers take multiples of 64 on some processors.
SIZES: dict[str, dict[str, Any]] = {
    "llama": dict(hidden_size=64, intermediate_size=128),
    "bert": dict(hidden_size=64, intermediate_size=128),
    "gpt2": dict(n_embd=64),
    "t5": dict(d_model=64, d_ff=128, d_kv=16),
}


def make_quantization(form: str) -> Any:
    """What `from_pretrained` takes for `quantization_config`; NF4 with double quantization."""
    if form == "nf4":
        return BitsAndBytesConfig(  # type: ignore[no-untyped-call]
            load_in_4bit=True, bnb_4bit_quant_type="nf4", bnb_4bit_use_double_quant=True
        )
    if form == "int8":
        return BitsAndBytesConfig(load_in_8bit=True)  # type: ignore[no-untyped-call]
    if form == "torchao-int8":
        return TorchAoConfig(Int8WeightOnlyConfig())
    kind: Any = torch
    return TorchAoConfig(IntxWeightOnlyConfig(weight_dtype=kind.int4, granularity=PerGroup(32)))


def save_base(folder: Path, kind: str = "llama", **changes: Any) -> Any:
    """A tiny model, written to a folder."""
    model = build_tiny(kind, **{"initializer_range": 0.1, **SIZES[kind], **changes})
    model.save_pretrained(folder)
    return model


def load_base(folder: Path, form: str, kind: str = "llama", **options: Any) -> Any:
    """The model in a folder, quantized."""
    return CLASSES[DEFAULT.get(kind, "causal")].from_pretrained(
        folder, quantization_config=make_quantization(form), **options
    )


def hash_base(model: Any) -> dict[str, str]:
    """The bytes of every tensor of a model: weights, scales, scales of scales."""
    hashes: dict[str, str] = {}
    for name, tensor in [*model.named_parameters(), *model.named_buffers()]:
        if is_traceable_wrapper_subclass(tensor):
            parts = {part: getattr(tensor, part) for part in tensor.__tensor_flatten__()[0]}
        else:
            parts = {"": tensor.data}
        state = getattr(tensor, "quant_state", None)
        if state is not None:
            parts |= {"absmax": state.absmax}
            if state.nested:
                parts |= {"offset": state.offset, "state2": state.state2.absmax}
        owner = model.get_submodule(name.rpartition(".")[0])
        if tensor.dtype == torch.int8 and hasattr(owner, "state"):
            parts["SCB"] = owner.state.SCB if tensor.SCB is None else tensor.SCB
        hashes |= {f"{name} {part}": hash_tensor(value) for part, value in parts.items()}
    return hashes
