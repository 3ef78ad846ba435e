"""Quantized weights, read as the numbers that they stand for.

    W[i, j] = level[i, j] * scale[block of i, j]

                       level                               scale
    bitsandbytes int8  a whole number from -127 to 127     one a row
    bitsandbytes 4 bit one of 16 numbers (NF4 or FP4)      one for each 64 weights of a row, itself
                                                           quantized with double quantization
    torchao            a whole number, less a zero point   one a row, or a group

Dettmers et al., 2022, LLM.int8(), section 3.1, https://arxiv.org/abs/2208.07339; Dettmers et al.,
2023, QLoRA, section 3, https://arxiv.org/abs/2305.14314.

Both libraries are recognised by what their weights carry, so neither need be installed.
"""

from __future__ import annotations

import copy
import math
from collections.abc import Iterable, Sequence
from typing import Any

import torch
from torch import nn
from torch.utils._python_dispatch import is_traceable_wrapper_subclass

from hub.errors import AttachError

# bitsandbytes rounds to float16 before it quantizes to int8.
_HALF_ROUNDING = 2.0**-10
# Kernels round the middle between two levels, each a little differently.
_SLACK = 1.001


def is_quantized(module: nn.Module) -> bool:
    """Whether the module's weight is one that `dequantize_weight` reads."""
    weight: Any = getattr(module, "weight", None)
    return _is_int8(module, weight) or _is_4bit(weight) or _is_torchao(weight)


def dequantize_weight(module: nn.Module) -> torch.Tensor:
    """The weight of a layer for which `is_quantized` holds, (out_features, in_features), a new
    tensor: in float32 for int8, else in the precision that was quantized."""
    weight: Any = module.weight
    dense: torch.Tensor
    if _is_4bit(weight):
        from bitsandbytes.functional import dequantize_4bit

        dense = dequantize_4bit(*read_4bit(weight))
    elif _is_int8(module, weight):
        dense = weight.data.float() * (_read_row_scales(module) / 127).unsqueeze(1)
    else:
        dense = weight.detach().dequantize()
    return dense


def dequantize_layers(module: nn.Module) -> nn.Module:
    """The same module with plain linear layers, in the precision that reading gives, in place of
    quantized ones; itself one where it is one."""
    for name, child in list(module.named_children()):
        setattr(module, name, dequantize_layers(child))
    if not is_quantized(module):
        return module
    weight, bias = dequantize_weight(module), getattr(module, "bias", None)
    rows, columns = weight.shape
    plain = nn.Linear(columns, rows, bias is not None, device="meta")
    plain.weight = nn.Parameter(weight)
    if isinstance(bias, nn.Parameter):
        plain.bias = nn.Parameter(bias.detach().to(weight.dtype))
    return plain.train(module.training)


def get_shape(module: nn.Module) -> tuple[int, int]:
    """(out_features, in_features) of a layer for which `is_quantized` holds."""
    weight: Any = module.weight
    rows, columns = weight.quant_state.shape if _is_4bit(weight) else weight.shape
    return int(rows), int(columns)


def count_weights(model: nn.Module, without: str = "") -> int:
    """How many weights a model has, where two of them share a byte too; those under the child
    `without` are left out."""
    named: Iterable[tuple[str, Any]] = model.named_parameters()
    return sum(
        math.prod(tensor.quant_state.shape) if _is_4bit(tensor) else tensor.numel()
        for name, tensor in named
        if name.split(".")[0] != without
    )


def sample_weight(
    module: nn.Module, positions: Sequence[int]
) -> tuple[list[float], list[float]] | None:
    """Some values of a quantized weight, and how far each may be from what was quantized.

    positions: places in the flattened (out_features, in_features). None for a layout of torchao's
    that holds no whole number for each weight.
    """
    weight: Any = module.weight
    places = torch.tensor(positions, device=weight.device)
    columns = get_shape(module)[1]
    if _is_4bit(weight):
        data, state = read_4bit(weight)
        nibbles = _split_nibbles(data.reshape(-1)[places // 2].view(-1, 1)).view(-1, 2)
        code = state.code.float()
        picked = nibbles.gather(1, (places % 2).view(-1, 1)).view(-1)
        blocks = places // state.blocksize
        scales, slack = _read_scales(state)[blocks], _read_scale_errors(state)[blocks]
        levels = code[picked]
        errors = (scales.abs() + slack) * _find_half_gaps(code)[picked] + slack * levels.abs()
    elif _is_int8(module, weight):
        scales = _read_row_scales(module)[places // columns] / 127
        levels = weight.data.reshape(-1)[places].float()
        errors = scales * 0.5 + (scales * levels).abs() * _HALF_ROUNDING
    else:
        found = _read_levels(weight, places // columns, places % columns)
        if found is None:
            return None
        levels, scales = found
        errors = scales * 0.5 + (scales * levels).abs() * torch.finfo(weight.dtype).eps
    return (levels * scales).tolist(), (errors * _SLACK).tolist()


def read_4bit(weight: Any) -> tuple[torch.Tensor, Any]:
    """The bytes of a 4 bit weight of bitsandbytes, two weights in each, and their state.

    On processors with AVX512-BF16 bitsandbytes repacks a weight for its own kernel, in place, when
    it first computes without gradients; then these are copies in the plain layout.
    """
    state = weight.quant_state
    if not getattr(state, "packing_format_for_cpu", False):
        return weight.data.view(torch.uint8), state
    rows, columns = state.shape
    # 64 weights, two columns of 32 rows, are in 32 bytes: the first 32 of them in the low halves.
    packed = weight.data.view(rows // 32, columns // 2, 32)
    pairs = torch.cat([packed & 15, packed >> 4], -1).view(rows // 32, columns // 2, 32, 2)
    pairs = pairs.permute(0, 2, 1, 3)
    plain = copy.copy(state)
    plain.packing_format_for_cpu = False
    plain.absmax = state.absmax.T.reshape(-1).float()
    plain.dtype = getattr(state, "original_dtype", state.dtype)
    return (pairs[..., 0] << 4 | pairs[..., 1]).reshape(-1, 1), plain


# An object, an attribute of it, and the value to put back; ... where there was none.
Undo = list[tuple[Any, str, Any]]


def keep_layouts(model: nn.Module) -> Undo:
    """Keep bitsandbytes from repacking 4 bit weights, and turn back those that are; for
    `put_back`.

    See `read_4bit`: no gradient passes through a repacked weight, and nothing says so. The weights
    that are turned back stand for the same numbers.
    """
    undo: Undo = []
    for module in model.modules():
        if getattr(module, "support_avx512bf16_for_cpu", False):
            replace_attribute(undo, module, "support_avx512bf16_for_cpu", False)
        weight: Any = module._parameters.get("weight")
        if _is_4bit(weight) and getattr(weight.quant_state, "packing_format_for_cpu", False):
            data, state = read_4bit(weight)
            replace_attribute(undo, weight, "data", data)
            replace_attribute(undo, weight, "quant_state", state)
    return undo


def prepare_training(model: nn.Module) -> Undo:
    """Let adapters on a quantized base learn, also in transformers' Trainer, which takes such a
    model only when it says that it carries adapters; for `put_back`."""
    undo = keep_layouts(model)
    if getattr(model, "is_quantized", False):
        replace_attribute(undo, model, "_hf_peft_config_loaded", True)
        replace_attribute(undo, model, "active_adapters", refuse_saving)
    return undo


def refuse_saving() -> None:
    """What transformers asks next, to save the model as peft would. Raises AttachError."""
    raise AttachError(
        "transformers can't save a quantized model with the adapters on it; save the adapter with "
        "adapter.save(folder), and give a Trainer of your own save_strategy='no'"
    )


def replace_attribute(undo: Undo, owner: Any, name: str, value: Any) -> None:
    """Set an attribute, and say in `undo` what it was."""
    here = name == "data" or name in vars(owner)
    undo.append((owner, name, getattr(owner, name) if here else ...))
    setattr(owner, name, value)


def put_back(undo: Undo) -> None:
    """Give every attribute the value that it had."""
    while undo:
        owner, name, value = undo.pop()
        if value is ...:
            delattr(owner, name)
        else:
            setattr(owner, name, value)


def _is_4bit(weight: Any) -> bool:
    return isinstance(weight, torch.Tensor) and getattr(weight, "quant_state", None) is not None


def _is_int8(module: nn.Module, weight: Any) -> bool:
    if not isinstance(weight, torch.Tensor) or weight.dtype != torch.int8:
        return False
    return hasattr(weight, "SCB") and hasattr(module, "state")


def _is_torchao(weight: Any) -> bool:
    if not isinstance(weight, torch.Tensor) or not is_traceable_wrapper_subclass(weight):
        return False
    return type(weight).dequantize is not torch.Tensor.dequantize


def _read_row_scales(module: Any) -> torch.Tensor:
    """The largest weight of each row, which 127 stands for; it moves at the first forward."""
    scales: torch.Tensor = module.weight.SCB if module.state.SCB is None else module.state.SCB
    return scales.float()


def _split_nibbles(data: torch.Tensor) -> torch.Tensor:
    """The numbers from 0 to 15 in some bytes, the high half of each first."""
    data = data.reshape(-1)
    return torch.stack([data >> 4, data & 15], 1).view(-1).int()


def _read_scales(state: Any) -> torch.Tensor:
    """The scale of each block in float32."""
    scales: torch.Tensor = state.absmax
    if state.nested:
        inner = state.state2
        outer = inner.absmax.float().repeat_interleave(inner.blocksize)[: scales.numel()]
        scales = inner.code.float()[scales.int()] * outer + state.offset
    return scales.float()


def _read_scale_errors(state: Any) -> torch.Tensor:
    """How far each block's scale may be from the largest weight of the block."""
    error = _read_scales(state).abs() * 0.0
    if hasattr(state, "original_nested"):  # Repacked: rounded to bfloat16, twice if it was nested.
        error = _read_scales(state).abs() * (2.0**-6 if state.original_nested else 2.0**-8)
    if state.nested:
        inner = state.state2
        outer = inner.absmax.float().repeat_interleave(inner.blocksize)[: state.absmax.numel()]
        error = error + _find_half_gaps(inner.code.float())[state.absmax.int()] * outer
    return error


def _find_half_gaps(code: torch.Tensor) -> torch.Tensor:
    """Half the distance of each number to its farther neighbour among the others."""
    ordered, places = code.sort()
    gaps = ordered.diff()
    farther = torch.maximum(torch.cat([gaps[:1] * 0, gaps]), torch.cat([gaps, gaps[-1:] * 0]))
    halves = torch.empty_like(farther)
    halves[places] = farther / 2
    return halves


def _read_levels(
    weight: Any, rows: torch.Tensor, columns: torch.Tensor
) -> tuple[torch.Tensor, torch.Tensor] | None:
    """torchao's whole numbers less their zero points, and their scales; None for other layouts."""
    levels, scales = getattr(weight, "qdata", None), getattr(weight, "scale", None)
    block = getattr(weight, "block_size", None)
    if levels is None or scales is None or not block or levels.shape != weight.shape:
        return None
    if levels.is_floating_point() or scales.dim() != 2:
        return None
    at = rows // block[0], columns // block[1]
    picked = levels[rows, columns].float()
    zeros = getattr(weight, "zero_point", None)
    if zeros is not None:
        picked = picked - zeros.expand_as(scales)[at].float()
    return picked, scales[at].float()
