"""Cells: every text architecture of the installed transformers in every task that it has a class
for, built small."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import Any

import torch
from transformers import (
    CONFIG_MAPPING,
    AutoModelForCausalLM,
    AutoModelForMaskedLM,
    AutoModelForSeq2SeqLM,
    AutoModelForSequenceClassification,
    set_seed,
)
from transformers.models.auto import modeling_auto as auto

from tests.architectures.shrinking import EXPERTS_KEPT, Scale, shrink_fields

TASKS: dict[str, tuple[Any, dict[str, str]]] = {
    "causal": (AutoModelForCausalLM, auto.MODEL_FOR_CAUSAL_LM_MAPPING_NAMES),
    "seq2seq": (AutoModelForSeq2SeqLM, auto.MODEL_FOR_SEQ_TO_SEQ_CAUSAL_LM_MAPPING_NAMES),
    "masked": (AutoModelForMaskedLM, auto.MODEL_FOR_MASKED_LM_MAPPING_NAMES),
    "classification": (
        AutoModelForSequenceClassification,
        auto.MODEL_FOR_SEQUENCE_CLASSIFICATION_MAPPING_NAMES,
    ),
}
LARGEST = 30_000_000  # parameters
SCALES = (
    Scale(),
    Scale(layers=4),
    Scale(head_size=16),
    Scale(head_size=32),
    Scale(heads=2, head_size=64),
    Scale(heads=8),
)
# The small values go through the constructor; or so do values for what the default leaves open; or
# they are set on the default, where the constructor holds them against something.
WAYS = ("made", "filled", "set")
# The buffer that says which expert a token goes to, which only a checkpoint fills.
EXPERT_TABLE = "tid2eid"
# What a default configuration leaves open and no name gives away, or says against itself.
HINTS: dict[str, dict[str, Any]] = {
    "bamba": {"attn_layer_indices": [1]},
    "cohere_compass_text": {
        "rope_parameters": {"full_attention": {"rope_type": "default", "rope_theta": 10000.0}}
    },
    "dbrx": {"attn_config": {"kv_n_heads": 2, "clip_qkv": 8, "rope_theta": 10000.0}},
    "esm": {
        "vocab_size": 33, "pad_token_id": 1, "mask_token_id": 32, "max_position_embeddings": 64,
    },
    "gpt_neo": {"attention_types": [[["global", "local"], 1]], "num_layers": 2},
    "granitemoehybrid": {"layer_types": ["linear_attention", "full_attention"]},
    "layoutlmv3": {"coordinate_size": 6, "shape_size": 4, "visual_embed": False},
    "led": {"attention_window": [8, 8]},
    "hunyuan_v1_moe": {"num_experts": 4, "moe_topk": 2},
    "lfm2_moe": {"layer_types": ["conv", "full_attention"]},
    "lilt": {"hidden_size": 96, "intermediate_size": 64, "num_attention_heads": 4},
    "longformer": {"attention_window": [8, 8]},
    "qwen4_exp_text": {
        "indexer_n_heads": 2, "indexer_kv_heads": 1, "indexer_head_dim": 8, "indexer_budget": 16,
        "indexer_compress_ratio": 4,
    },
    "recurrent_gemma": {"num_hidden_layers": 3},
    "reformer": {"axial_pos_embds": False, "num_buckets": 2},
    "zamba": {
        "layers_block_type": ["mamba", "hybrid", "mamba", "hybrid"], "num_hidden_layers": 4,
    },
    "xmod": {"default_language": "en_XX"},
}  # fmt: skip


@dataclass(frozen=True)
class Cell:
    """An architecture in one task, and how its small model is made: at which of the SCALES, and in
    which of the WAYS."""

    task: str
    kind: str
    scale: int = 0
    way: str = WAYS[0]

    @property
    def name(self) -> str:
        return f"{self.task}:{self.kind}"


def list_candidates() -> list[Cell]:
    """Every architecture and task that transformers has a class for."""
    return [Cell(task, kind) for task, (_, names) in TASKS.items() for kind in names]


def list_recipes(cell: Cell) -> Iterator[Cell]:
    """The ways to try, in order."""
    for scale in range(len(SCALES)):
        for way in WAYS:
            yield replace(cell, scale=scale, way=way)


def make_config(cell: Cell) -> Any:
    """The small configuration of a cell."""
    kind = CONFIG_MAPPING[cell.kind]
    scale = SCALES[cell.scale]
    if cell.way == "set":
        config = set_small(kind(**HINTS.get(cell.kind, {})), scale)
    else:
        config = shrink_config(kind(), scale, filled=cell.way == "filled")
    for part in walk_parts(config):
        complete_config(part, cell.task)
    return config


def shrink_config(config: Any, scale: Scale, *, filled: bool) -> Any:
    """A small configuration of the same class, through its constructor, its parts the same way."""
    fields = dict(vars(config))
    small = shrink_fields(fields, scale, filled=filled)
    for name, part in fields.items():
        if hasattr(part, "to_dict"):
            small[name] = shrink_config(part, scale, filled=filled)
    return type(config)(**{**small, **HINTS.get(config.model_type, {})})


def set_small(config: Any, scale: Scale) -> Any:
    """The default configuration with small values set on it."""
    fields = dict(vars(config))
    for name, value in shrink_fields(fields, scale).items():
        setattr(config, name, value)
    for part in fields.values():
        if hasattr(part, "to_dict"):
            set_small(part, scale)
    return config


def walk_parts(config: Any) -> Iterator[Any]:
    """A configuration and those inside it."""
    yield config
    for part in list(vars(config).values()):
        if hasattr(part, "to_dict"):
            yield from walk_parts(part)


def complete_config(config: Any, task: str) -> None:
    """Say what its tasks call for and the default leaves out."""
    if hasattr(config, "pad_token_id") and config.pad_token_id is None:
        config.pad_token_id = 0
    if getattr(config, "decoder_start_token_id", None) is None and config.is_encoder_decoder:
        config.decoder_start_token_id = 0
    if task == "causal" and hasattr(config, "is_decoder"):
        config.is_decoder = True
    decoder: Any = getattr(config, "decoder", None)
    if task == "seq2seq" and hasattr(decoder, "add_cross_attention"):
        decoder.is_decoder = decoder.add_cross_attention = True


def build_model(cell: Cell, seed: int = 0) -> Any:
    """The cell's model in eval mode, the same weights for the same seed."""
    set_seed(seed)
    model = TASKS[cell.task][0].from_config(make_config(cell)).eval()
    stir_constants(model)
    return model


def check_size(cell: Cell) -> None:
    """Raise ValueError where a cell's model would be large."""
    with torch.device("meta"):
        model = TASKS[cell.task][0].from_config(make_config(cell))
    size = sum(parameter.numel() for parameter in model.parameters())
    if size > LARGEST:
        raise ValueError(f"{size:,} parameters are too many")


def stir_constants(model: Any) -> None:
    """Give values to the parameters that start as one number, often zero: a gate that is shut, as
    in no trained model, would hide what lies behind it."""
    with torch.no_grad():
        for parameter in model.parameters():
            constant = bool((parameter == parameter.flatten()[0]).all())
            if parameter.is_floating_point() and parameter.numel() > 1 and constant:
                parameter.add_(torch.randn_like(parameter) * 0.05)
        for name, buffer in model.named_buffers():
            if name.endswith(EXPERT_TABLE):
                buffer.random_(0, EXPERTS_KEPT)
