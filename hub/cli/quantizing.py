"""Bases that a command quantizes while it loads them."""

from __future__ import annotations

from collections.abc import Sequence
from importlib.util import find_spec
from typing import TYPE_CHECKING, Any

from hub.errors import PackageMissing

if TYPE_CHECKING:
    from hub.adapter import Adapter

# What --quantize takes, and how an adapter's base identity says it.
QUANTIZATIONS = {"nf4": "bitsandbytes-nf4-double", "int8": "bitsandbytes-int8"}


def make_quantization(name: str, without: Sequence[str]) -> Any:
    """What transformers takes to quantize a base while it loads it: to int8 (LLM.int8()), or to NF4
    with double quantization (QLoRA). Raises PackageMissing.

    without: modules to leave as they are: a new head, which has no weights to quantize.
    """
    if find_spec("bitsandbytes") is None:
        raise PackageMissing("bitsandbytes", "quantized")
    import torch
    from transformers import BitsAndBytesConfig

    options: dict[str, Any] = {"load_in_8bit": True}
    if name == "nf4":
        on_gpu = torch.accelerator.is_available()
        options = {
            "load_in_4bit": True,
            "bnb_4bit_quant_type": "nf4",
            "bnb_4bit_use_double_quant": True,
            "bnb_4bit_compute_dtype": torch.bfloat16 if on_gpu else torch.float32,
        }
    make: Any = BitsAndBytesConfig
    return make(**options, llm_int8_skip_modules=list(without) or None)


def find_quantization(adapter: Adapter, config: Any) -> str | None:
    """The one of `QUANTIZATIONS` that an adapter was trained on; None where it is none of them, or
    where the base's files, whose configuration this is, are quantized themselves."""
    if adapter.base is None or getattr(config, "quantization_config", None) is not None:
        return None
    said = adapter.base.quantization
    return next((name for name, told in QUANTIZATIONS.items() if told == said), None)
