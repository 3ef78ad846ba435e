"""Tiny models of real architectures, made from a configuration, with random weights."""

from __future__ import annotations

import inspect
from typing import Any

import torch
from transformers import (
    AutoConfig,
    AutoModelForCausalLM,
    AutoModelForMaskedLM,
    AutoModelForSeq2SeqLM,
    AutoModelForSequenceClassification,
    set_seed,
)

SMALL: dict[str, dict[str, Any]] = {
    "llama": dict(
        hidden_size=32, intermediate_size=48, num_hidden_layers=2, num_attention_heads=4,
        num_key_value_heads=2, vocab_size=99, max_position_embeddings=64,
    ),
    "gpt2": dict(n_embd=32, n_layer=2, n_head=4, vocab_size=99, n_positions=64),
    "bert": dict(
        hidden_size=32, intermediate_size=48, num_hidden_layers=2, num_attention_heads=4,
        vocab_size=99, max_position_embeddings=64,
    ),
    "t5": dict(
        d_model=32, d_ff=48, d_kv=8, num_layers=2, num_decoder_layers=2, num_heads=4, vocab_size=99,
        decoder_start_token_id=0,
    ),
    "gpt_neox": dict(
        hidden_size=32, intermediate_size=48, num_hidden_layers=2, num_attention_heads=4,
        vocab_size=99, max_position_embeddings=64,
    ),
    "gptj": dict(n_embd=32, n_layer=2, n_head=4, rotary_dim=4, vocab_size=99, n_positions=64),
    "mixtral": dict(
        hidden_size=32, intermediate_size=48, num_hidden_layers=2, num_attention_heads=4,
        num_key_value_heads=2, vocab_size=99, num_local_experts=4, max_position_embeddings=64,
    ),
    "mamba": dict(hidden_size=32, num_hidden_layers=2, state_size=8, vocab_size=99),
    "albert": dict(
        hidden_size=32, embedding_size=16, intermediate_size=48, num_hidden_layers=3,
        num_attention_heads=4, vocab_size=99, max_position_embeddings=64,
    ),
    "bart": dict(
        d_model=32, encoder_layers=2, decoder_layers=2, encoder_ffn_dim=48, decoder_ffn_dim=48,
        encoder_attention_heads=4, decoder_attention_heads=4, vocab_size=99,
        max_position_embeddings=64,
    ),
    "gemma2": dict(
        hidden_size=32, intermediate_size=48, num_hidden_layers=2, num_attention_heads=4,
        num_key_value_heads=2, head_dim=8, vocab_size=99, max_position_embeddings=64,
    ),
    "bloom": dict(hidden_size=32, n_layer=2, n_head=4, vocab_size=99),
    "opt": dict(
        hidden_size=32, ffn_dim=48, num_hidden_layers=2, num_attention_heads=4, vocab_size=99,
        max_position_embeddings=64, word_embed_proj_dim=32,
    ),
}  # fmt: skip

CLASSES: dict[str, Any] = {
    "causal": AutoModelForCausalLM,
    "seq2seq": AutoModelForSeq2SeqLM,
    "masked": AutoModelForMaskedLM,
    "classification": AutoModelForSequenceClassification,
}
SPECIAL = dict(pad_token_id=0, bos_token_id=1, eos_token_id=2)
DEFAULT = {"t5": "seq2seq", "bart": "seq2seq", "bert": "masked", "albert": "masked"}


def build_tiny(kind: str, task: str | None = None, seed: int = 0, **changes: Any) -> Any:
    """A model of this type in eval mode, the same weights for the same seed.

    kind: a name in `SMALL`. task: a name in `CLASSES`; the usual one of that type when left out.
    changes: other values in its configuration.
    """
    set_seed(seed)
    config = AutoConfig.for_model(kind, **{**SPECIAL, **SMALL[kind], **changes})
    return CLASSES[task or DEFAULT.get(kind, "causal")].from_config(config).eval()


def make_inputs(model: Any, rows: int = 2, length: int = 7, seed: int = 1) -> dict[str, Any]:
    """Token ids without padding, (rows, length), for whatever the model is."""
    generator = torch.Generator().manual_seed(seed)
    ids = torch.randint(3, 99, (rows, length), generator=generator)
    inputs = {"input_ids": ids, "attention_mask": torch.ones_like(ids)}
    if model.config.is_encoder_decoder and not is_classifier(model):
        inputs["decoder_input_ids"] = torch.randint(3, 99, (rows, 5), generator=generator)
    return inputs


def make_labels(model: Any, inputs: dict[str, Any]) -> torch.Tensor:
    """What the model could learn to answer: the tokens it reads, or a class for each row."""
    ids: torch.Tensor = inputs.get("decoder_input_ids", inputs["input_ids"])
    return torch.arange(len(ids)) % model.config.num_labels if is_classifier(model) else ids


def pad_rows(
    model: Any, inputs: dict[str, Any], lengths: list[int], side: str
) -> dict[str, torch.Tensor]:
    """The same rows, cut to these lengths and padded on one side to the longest.

    Positions are counted from each row's first real token, where the model takes positions.
    """
    width = max(lengths)
    ids = torch.full((len(lengths), width), model.config.pad_token_id)
    mask = torch.zeros_like(ids)
    for row, length in enumerate(lengths):
        real = slice(0, length) if side == "right" else slice(width - length, width)
        ids[row, real] = inputs["input_ids"][row, :length]
        mask[row, real] = 1
    padded = {**inputs, "input_ids": ids, "attention_mask": mask}
    if "position_ids" in inspect.signature(model.forward).parameters:
        padded["position_ids"] = (mask.cumsum(-1) - 1).clamp(min=0)
    return padded


def pick_rows(inputs: dict[str, Any], *rows: int) -> dict[str, Any]:
    """Some rows of a batch."""
    return {name: tensor[list(rows)] for name, tensor in inputs.items()}


def compute_logits(model: Any, **inputs: Any) -> torch.Tensor:
    """The logits in eval mode, without gradients; the model's mode is put back."""
    was_training = {module: module.training for module in model.modules()}
    model.eval()
    with torch.no_grad():
        logits: torch.Tensor = model(**(inputs or make_inputs(model))).logits
    for module, training in was_training.items():
        module.training = training
    return logits


def is_classifier(model: Any) -> bool:
    """Whether the model answers with a class for each row."""
    return "SequenceClassification" in type(model).__name__
