"""Where the branches of real architectures are, held to what their modeling files add to streams.

Each entry is what one layer adds: role, path from the layer, element of the returned tuple. A layer
of another kind has an entry of its own.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest

from hub.sites import Site, find_sites

Add = tuple[str, str, int | None]

BERT: list[Add] = [
    ("attention", "attention.output.dropout", None),
    ("feedforward", "output.dropout", None),
]
LLAMA: list[Add] = [("attention", "self_attn", 0), ("feedforward", "mlp", None)]
T5_ENCODER: list[Add] = [
    ("attention", "layer.0.dropout", None),
    ("feedforward", "layer.1.dropout", None),
]
T5_DECODER: list[Add] = [
    ("attention", "layer.0.dropout", None),
    ("cross-attention", "layer.1.dropout", None),
    ("feedforward", "layer.2.dropout", None),
]
BART_ENCODER: list[Add] = [("attention", "self_attn", 0), ("feedforward", "fc2", None)]
BART_DECODER: list[Add] = [
    ("attention", "self_attn", 0),
    ("cross-attention", "encoder_attn", 0),
    ("feedforward", "fc2", None),
]
MIXER: list[Add] = [("mixer", "mixer", None)]
FUNNEL: list[Add] = [
    ("attention", "attention.hidden_dropout", None),
    ("feedforward", "ffn.dropout", None),
]

# Every layer of a model in the order in which they run: its path, its index, what it adds.
EXPECTED: dict[str, list[tuple[str, int, list[Add]]]] = {
    # pre-norm
    "llama": [("model.layers.0", 0, LLAMA), ("model.layers.1", 1, LLAMA)],
    "gpt2": [
        (f"transformer.h.{i}", i, [("attention", "attn", 0), ("feedforward", "mlp", None)])
        for i in range(2)
    ],
    "opt": [(f"model.decoder.layers.{i}", i, BART_ENCODER) for i in range(2)],
    # post-norm, the add inside a module of its own
    "bert": [(f"bert.encoder.layer.{i}", i, BERT) for i in range(2)],
    # the add inside the attention and inside the feed-forward
    "bloom": [
        (
            f"transformer.h.{i}",
            i,
            [
                ("attention", "self_attention.dense", None),
                ("feedforward", "mlp.dense_4h_to_h", None),
            ],
        )
        for i in range(2)
    ],
    # norms after the branch
    "gemma2": [
        (
            f"model.layers.{i}",
            i,
            [
                ("attention", "post_attention_layernorm", None),
                ("feedforward", "post_feedforward_layernorm", None),
            ],
        )
        for i in range(2)
    ],
    # scaled branches
    "granite": [(f"model.layers.{i}", i, LLAMA) for i in range(2)],
    # parallel residuals
    "gpt_neox": [
        (
            f"gpt_neox.layers.{i}",
            i,
            [
                ("attention", "post_attention_dropout", None),
                ("feedforward", "post_mlp_dropout", None),
            ],
        )
        for i in range(2)
    ],
    "gptj": [
        (f"transformer.h.{i}", i, [("attention", "attn", 0), ("feedforward", "mlp", None)])
        for i in range(2)
    ],
    "falcon": [
        (
            f"transformer.h.{i}",
            i,
            [("attention", "self_attention", 0), ("feedforward", "mlp", None)],
        )
        for i in range(2)
    ],
    # experts, with a shared one, and with projections of low rank in the attention
    "mixtral": [(f"model.layers.{i}", i, LLAMA) for i in range(2)],
    "qwen2_moe": [(f"model.layers.{i}", i, LLAMA) for i in range(2)],
    "deepseek_v3": [(f"model.layers.{i}", i, LLAMA) for i in range(2)],
    # no attention
    "mamba": [(f"backbone.layers.{i}", i, MIXER) for i in range(2)],
    "fnet": [
        (
            f"fnet.encoder.layer.{i}",
            i,
            [("mixer", "fourier.self", 0), ("feedforward", "output.dropout", None)],
        )
        for i in range(2)
    ],
    # layers of two kinds
    "jamba": [
        ("model.layers.0", 0, [("mixer", "mamba", None), ("feedforward", "feed_forward", None)]),
        (
            "model.layers.1",
            1,
            [("attention", "self_attn", 0), ("feedforward", "feed_forward", None)],
        ),
    ],
    # a transformer whose result joins the input of a mamba, which adds to the stream
    "zamba2": [
        ("model.layers.0", 0, [("mixer", "mamba", None)]),
        (
            "model.layers.1",
            1,
            [("attention", "linear", None), ("mixer", "mamba_decoder.mamba", None)],
        ),
        ("model.layers.2", 2, [("mixer", "mamba", None)]),
    ],
    # one layer run three times
    "albert": [
        (
            "albert.encoder.albert_layer_groups.0",
            0,
            [
                ("attention", "albert_layers.0.attention.output_dropout", None),
                ("feedforward", "albert_layers.0.ffn_output", None),
            ],
        )
    ],
    # an encoder and a decoder
    "t5": [
        *((f"encoder.block.{i}", i, T5_ENCODER) for i in range(2)),
        *((f"decoder.block.{i}", i, T5_DECODER) for i in range(2)),
    ],
    "bart": [
        *((f"model.encoder.layers.{i}", i, BART_ENCODER) for i in range(2)),
        *((f"model.decoder.layers.{i}", i, BART_DECODER) for i in range(2)),
    ],
    # layers in stages, then more layers
    "funnel": [
        *((f"funnel.encoder.blocks.{i // 2}.{i % 2}", i, FUNNEL) for i in range(4)),
        *((f"funnel.decoder.layers.{i}", i, FUNNEL) for i in range(2)),
    ],
}


@pytest.mark.parametrize("kind", EXPECTED)
def test_branches_are_what_the_modeling_file_adds(kind: str, build: Callable[..., Any]) -> None:
    expected = [
        ("branch", f"{layer}.{path}", role, index, element)
        for layer, index, adds in EXPECTED[kind]
        for role, path, element in adds
    ]
    found = [s for s in find_sites(build(kind)) if s.kind == "branch"]
    assert sorted((s.kind, s.path, s.role, s.block, s.output_index) for s in found) == sorted(
        expected
    )
    assert {(s.in_features, s.out_features) for s in found} == {(32, 32)}


@pytest.mark.parametrize("kind", ["bert", "gpt2", "llama", "t5", "bart", "mamba"])
def test_sites_come_in_the_order_in_which_they_run(kind: str, build: Callable[..., Any]) -> None:
    model = build(kind)
    ran: list[str] = []
    sites = find_sites(model)
    for site in {site.path: site for site in sites}.values():
        model.get_submodule(site.path).register_forward_hook(
            lambda *_, path=site.path: ran.append(path)
        )
    model(**model.dummy_inputs)
    assert list(dict.fromkeys(site.path for site in sites)) == list(dict.fromkeys(ran))


def test_a_branch_of_a_classifier_is_its_base_models(build: Callable[..., Any]) -> None:
    for kind, task in [("bert", "classification"), ("bart", "classification")]:
        branches = [s for s in find_sites(build(kind, task)) if s.kind == "branch"]
        plain = [s for s in find_sites(build(kind)) if s.kind == "branch"]
        assert branches == plain


def test_keyword_only_input_is_named(build: Callable[..., Any]) -> None:
    sites = {site.path: site for site in find_sites(build("llama")) if site.kind != "attention"}
    assert sites["model.layers.0.self_attn"].input_name == "hidden_states"
    assert sites["model.layers.0.mlp"].input_name is None
    assert sites["model.layers.0.mlp.up_proj"].input_name is None


def test_branch_hook_sees_what_is_added(build: Callable[..., Any]) -> None:
    """Taking a layer's branches away leaves its input: nothing else is added to the stream."""
    model = build("llama")

    def silence(site: Site) -> Callable[..., Any]:
        def hook(module: Any, args: Any, output: Any) -> Any:
            if site.output_index is None:
                return output * 0
            return (output[0] * 0, *output[1:])

        return hook

    for site in find_sites(model):
        if site.kind == "branch":
            model.get_submodule(site.path).register_forward_hook(silence(site))
    states = model(**model.dummy_inputs, output_hidden_states=True).hidden_states
    assert states[0].equal(states[1])
