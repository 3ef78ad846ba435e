"""Small configurations: the default of any architecture with every size brought down.

Sizes are scaled, not set, so that what must fit together still does: numbers of heads are divided
by one number, sizes of one head by another, and widths by both. What a field is, its name tells.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import Any

VOCABULARY = 128
POSITIONS = 128
LAYERS = 2
STATE = 8
EXPERTS_KEPT = 4

Field = re.Pattern[str]


def field(*names: str) -> Field:
    """A pattern for whole names, and for names that end so after an underscore."""
    return re.compile(rf"(?:.*_)?(?:{'|'.join(names)})")


TOKEN = field(
    "token_id", "token_index", "tag_pad_id", "(?:bos|eos|pad|unk|mask|eoi|boi)_(?:id|index)"
)
VOCABULARIES = field("vocab_size", "vocab")
DEPTH = field("layers", "n_layer", "depth", "num_blocks", "attends_per_block")
# Layers of the whole that are of another kind.
DENSE = field("dense_layers", "dense_replace", "kv_shared_layers", "nextn_predict_layers")
PERIOD = field(
    "period", "interval", "every_n_layers", "sparse_step", "layer_step", "sliding_window_pattern",
    "group_size", "layers_per_attn_res_block",
)  # fmt: skip
OFFSET = field("layer_offset")
EXPERTS = field("experts?", "expert_num")
CHOSEN = field("experts_per_tok(?:en)?", "moe_top_?k", "moe_k")
GROUPS = field("n_group", "num_expert_group")
HEADS = field("heads", "n_head", "heads?_num")
KEY_HEADS = field("key_value_heads", "kv_heads", "kv_n_heads")
HEAD_SIZE = field(
    "head_dim", "head_size", "d_kv", "d_head", "dim_head", "kv_channels", "rotary_dim",
    "query_pre_attn_scalar",
)  # fmt: skip
STATES = field("state_size", "d_state", "d_rel")
POSITION = field(
    "position_embeddings", "max_seq_len", "n_positions", "n_ctx", "source_positions",
    "target_positions", "max_length", "max_relative_positions", "num_latents",
)  # fmt: skip
# How many positions a state space is computed for at once; it fills them up.
CHUNK = re.compile("(?:mamba_)?chunk_size")
CHUNK_KEPT = 8
# Sizes of something else than vectors.
PLAIN = field(
    "chunk_size.*", "block_size", "patch_size", "image_size", "kernel_size", "window_size",
    "codebook_size", "batch_size", "group_byte_size", "ngram_size", "context_size", "input_size",
    "fifo_length", "input_dim",
)  # fmt: skip
WIDTH = field(
    "(?:size|dim|rank|hidden|width|channels|d_model|d_latents|n_embd|d_ff|dff|d_inner|n_inner|d_ssm).*"
)


@dataclass(frozen=True)
class Scale:
    """How far to go down: heads and the size of each that a small model shall have."""

    heads: int = 4
    head_size: int = 8
    layers: int = LAYERS


def shrink_fields(fields: dict[str, Any], scale: Scale, *, filled: bool = False) -> dict[str, Any]:
    """Those of a configuration's `fields` that must change, and what they become; `filled`, those
    too that are left open and that other defaults give."""
    by_heads, by_size = find_divisors(fields, scale)
    changed: dict[str, Any] = fill_open(fields, scale) if filled else {}
    chosen = choose_layers(fields, scale.layers)
    for name, value in fields.items():
        if name.startswith("_") or isinstance(value, bool) or value is None:
            continue
        if isinstance(value, float) and "drop" in name:
            small: Any = 0.0
        elif isinstance(value, int):
            small = shrink_number(name, value, by_heads, by_size, scale, len(chosen))
        elif isinstance(value, (list, tuple)) and len(value) == count_layers(fields) and chosen:
            small = type(value)(value[place] for place in chosen if place < len(value))
        elif isinstance(value, dict) and "rope" in name:
            small = shrink_rope(value, by_size)
        else:
            continue
        if small != value:
            changed[name] = small
    return changed


def fill_open(fields: dict[str, Any], scale: Scale) -> dict[str, Any]:
    """Values for what is None: a head's size, heads of keys, experts."""
    given: dict[str, Any] = {}
    for name in (name for name, value in fields.items() if value is None):
        if name == "head_dim":
            given[name] = scale.head_size
        elif KEY_HEADS.fullmatch(name):
            given[name] = scale.heads // 2
        elif EXPERTS.fullmatch(name):
            given[name] = EXPERTS_KEPT
        elif CHOSEN.fullmatch(name):
            given[name] = 2
    return given


def find_divisors(fields: dict[str, Any], scale: Scale) -> tuple[float, float]:
    """What numbers of heads, and sizes of one head, are divided by."""
    heads = first_number(fields, HEADS, 1)
    width = first_number(
        fields, re.compile("hidden_size|d_model|n_embd|emb_dim|dim|embed_dim"), heads * 8
    )
    size = first_number(
        fields, re.compile("head_dim|d_kv|d_head|dim_head|kv_channels"), max(1, width // heads)
    )
    return max(1.0, heads / scale.heads), max(1.0, size / scale.head_size)


def first_number(fields: dict[str, Any], pattern: Field, default: int) -> int:
    """The value of the first field of this name that is a number above zero."""
    return next(
        (
            value
            for name, value in fields.items()
            if type(value) is int and value > 0 and pattern.fullmatch(name)
        ),
        default,
    )


def count_layers(fields: dict[str, Any]) -> int:
    """How many layers the default has."""
    return first_number(fields, re.compile("num_hidden_layers|n_layers?|num_layers"), 0)


def choose_layers(fields: dict[str, Any], least: int) -> list[int]:
    """The layers to keep: one of each kind, where lists say what kind each is."""
    count = count_layers(fields)
    kinds = [
        value
        for value in fields.values()
        if isinstance(value, (list, tuple)) and len(value) == count and count > least
    ]
    firsts = {repr([kind[place] for kind in kinds]): place for place in reversed(range(count))}
    chosen = sorted(firsts.values())
    if len(chosen) > 8:  # every layer is of its own kind
        chosen = chosen[:least]
    rest = [place for place in range(count) if place not in chosen]
    return sorted(chosen + rest[: max(0, least - len(chosen))])


def shrink_number(
    name: str, value: int, by_heads: float, by_size: float, scale: Scale, layers: int
) -> int:
    """What one number becomes."""
    if TOKEN.fullmatch(name):
        return value if value < VOCABULARY else VOCABULARY - 1 - sum(map(ord, name)) % 24
    if VOCABULARIES.fullmatch(name):
        return min(value, VOCABULARY)
    if DENSE.fullmatch(name):
        return min(value, 1)
    if PERIOD.fullmatch(name):
        return min(value, 2)
    if OFFSET.fullmatch(name):
        return min(value, 1)
    if CHOSEN.fullmatch(name):
        return min(value, 2)
    if GROUPS.fullmatch(name):
        return min(value, 2)
    if name == "topk_group":
        return 1
    if KEY_HEADS.fullmatch(name):
        return value if value == 1 else max(2, round(value / by_heads))
    if HEADS.fullmatch(name):
        return max(1, round(value / by_heads))
    if EXPERTS.fullmatch(name):
        return min(value, EXPERTS_KEPT)
    if HEAD_SIZE.fullmatch(name):
        return max(2, round(value / by_size))
    if STATES.fullmatch(name):
        return min(value, STATE)
    if POSITION.fullmatch(name):
        return min(value, POSITIONS)
    if CHUNK.fullmatch(name):
        return min(value, CHUNK_KEPT)
    if DEPTH.fullmatch(name):
        return min(value, layers or scale.layers)
    if PLAIN.fullmatch(name) or value < 32:
        return value
    if WIDTH.fullmatch(name):
        return max(8, 8 * round(value / by_heads / by_size / 8))
    return value


def shrink_rope(rope: dict[str, Any], by_size: float) -> dict[str, Any]:
    """Rotary settings, whose lists have an entry, or a share, for each pair of a head's values."""
    small: dict[str, Any] = {}
    for name, value in rope.items():
        if isinstance(value, dict):
            small[name] = shrink_rope(value, by_size)
        elif isinstance(value, list) and "section" in name:
            total = round(sum(value) / by_size)
            parts = [max(1, int(part / by_size)) for part in value]
            parts[0] += total - sum(parts)
            small[name] = parts
        elif isinstance(value, list) and "factor" in name:
            small[name] = value[: max(1, round(len(value) / by_size))]
        else:
            small[name] = value
    return small
