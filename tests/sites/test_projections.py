"""Which linear layers are sites, what they do and of which size they are."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
from torch import nn

import hub.sites
from hub.sites import Site, find_sites

# Of one layer, by its path: the role of every projection in it.
ROLES: dict[str, dict[str, dict[str, str]]] = {
    "llama": {
        "model.layers.1": {
            "self_attn.q_proj": "query",
            "self_attn.k_proj": "key",
            "self_attn.v_proj": "value",
            "self_attn.o_proj": "output",
            "mlp.gate_proj": "gate",
            "mlp.up_proj": "in",
            "mlp.down_proj": "out",
        }
    },
    "bert": {
        "bert.encoder.layer.1": {
            "attention.self.query": "query",
            "attention.self.key": "key",
            "attention.self.value": "value",
            "attention.output.dense": "output",
            "intermediate.dense": "in",
            "output.dense": "out",
        }
    },
    "gpt2": {
        "transformer.h.1": {
            "attn.c_attn": "qkv",
            "attn.c_proj": "output",
            "mlp.c_fc": "in",
            "mlp.c_proj": "out",
        }
    },
    "gpt_neox": {
        "gpt_neox.layers.1": {
            "attention.query_key_value": "qkv",
            "attention.dense": "output",
            "mlp.dense_h_to_4h": "in",
            "mlp.dense_4h_to_h": "out",
        }
    },
    "t5": {
        "decoder.block.1": {
            "layer.0.SelfAttention.q": "query",
            "layer.0.SelfAttention.k": "key",
            "layer.0.SelfAttention.v": "value",
            "layer.0.SelfAttention.o": "output",
            "layer.1.EncDecAttention.q": "query",
            "layer.1.EncDecAttention.k": "key",
            "layer.1.EncDecAttention.v": "value",
            "layer.1.EncDecAttention.o": "output",
            "layer.2.DenseReluDense.wi": "in",
            "layer.2.DenseReluDense.wo": "out",
        }
    },
    # all experts are in one parameter, which is named here without their number
    "mixtral": {
        "model.layers.1": {
            "self_attn.q_proj": "query",
            "self_attn.k_proj": "key",
            "self_attn.v_proj": "value",
            "self_attn.o_proj": "output",
            "mlp.experts.gate_up_proj": "in",
            "mlp.experts.down_proj": "out",
        }
    },
    "qwen2_moe": {
        "model.layers.1": {
            "self_attn.q_proj": "query",
            "self_attn.k_proj": "key",
            "self_attn.v_proj": "value",
            "self_attn.o_proj": "output",
            "mlp.experts.gate_up_proj": "in",
            "mlp.experts.down_proj": "out",
            "mlp.shared_expert.gate_proj": "gate",
            "mlp.shared_expert.up_proj": "in",
            "mlp.shared_expert.down_proj": "out",
            "mlp.shared_expert_gate": "other",
        }
    },
    # kv_b_proj makes keys and values, kv_a_proj_with_mqa the rotary part of the keys
    "deepseek_v3": {
        "model.layers.0": {
            "self_attn.q_a_proj": "other",
            "self_attn.q_b_proj": "query",
            "self_attn.kv_a_proj_with_mqa": "key",
            "self_attn.kv_b_proj": "qkv",
            "self_attn.o_proj": "output",
            "mlp.gate_proj": "gate",
            "mlp.up_proj": "in",
            "mlp.down_proj": "out",
        }
    },
    # the weight of dt_proj is read without calling it
    "mamba": {
        "backbone.layers.1": {
            "mixer.in_proj": "in",
            "mixer.x_proj": "other",
            "mixer.out_proj": "out",
        }
    },
}


@pytest.mark.parametrize("kind", ROLES)
def test_roles_are_those_of_the_modeling_file(kind: str, build: Callable[..., Any]) -> None:
    sites = find_sites(build(kind))
    for layer, roles in ROLES[kind].items():
        found = {
            name_place(site).removeprefix(f"{layer}."): site.role
            for site in sites
            if site.kind == "projection" and site.path.startswith(f"{layer}.")
        }
        assert found == roles


def name_place(site: Site) -> str:
    return site.path if site.expert is None else site.path.rpartition(".")[0]


# Of each type: the embeddings that give the rows that their input names, and those that don't.
EMBEDDINGS = {
    "llama": ({"model.embed_tokens": (99, 32)}, set()),
    "gpt2": ({"transformer.wte": (99, 32), "transformer.wpe": (64, 32)}, set()),
    "bert": (
        {
            "bert.embeddings.word_embeddings": (99, 32),
            "bert.embeddings.token_type_embeddings": (2, 32),
            "bert.embeddings.position_embeddings": (64, 32),
        },
        set(),
    ),
    # scaled
    "gemma2": ({"model.embed_tokens": (99, 32)}, set()),
    # these count positions by themselves
    "bart": (
        {"model.encoder.embed_tokens": (99, 32), "model.decoder.embed_tokens": (99, 32)},
        {"model.encoder.embed_positions", "model.decoder.embed_positions"},
    ),
    "opt": (
        {"model.decoder.embed_tokens": (99, 32)},
        {"model.decoder.embed_positions"},
    ),
}


@pytest.mark.parametrize("kind", EMBEDDINGS)
def test_embeddings_that_look_up_their_input_are_projections(
    kind: str, build: Callable[..., Any]
) -> None:
    model = build(kind)
    sites = [s for s in find_sites(model) if s.kind == "projection" and s.role == "embedding"]
    taken, left = EMBEDDINGS[kind]
    assert {site.path: (site.in_features, site.out_features) for site in sites} == taken
    assert all(site.transposed and site.block is None and not site.bias for site in sites)
    assert all(isinstance(model.get_submodule(path), nn.Embedding) for path in left)


def test_stacked_experts_are_sites_by_their_parameter_and_number(
    build: Callable[..., Any],
) -> None:
    model = build("mixtral")
    sites = [site for site in find_sites(model) if site.expert is not None]
    assert len(sites) == 2 * 2 * 4
    one = next(s for s in sites if s.path == "model.layers.1.mlp.experts.gate_up_proj.3")
    assert (one.owner, one.part) == ("model.layers.1.mlp.experts", ("gate_up_proj", 3))
    assert (one.in_features, one.out_features, one.block) == (32, 96, 1)
    assert not one.transposed


@pytest.mark.parametrize("attention", ["eager", "sdpa"])
@pytest.mark.parametrize("kind", ["llama", "gpt2", "bart", "bert"])
def test_roles_do_not_depend_on_how_attention_is_computed(
    kind: str, attention: str, build: Callable[..., Any]
) -> None:
    assert find_sites(build(kind, attn_implementation=attention)) == find_sites(build(kind))


def test_gated_feed_forward_tells_the_gate(build: Callable[..., Any]) -> None:
    sites = {s.path: s for s in find_sites(build("t5", feed_forward_proj="gated-gelu"))}
    gated = "encoder.block.0.layer.1.DenseReluDense"
    roles = [sites[f"{gated}.{name}"].role for name in ("wi_0", "wi_1", "wo")]
    assert roles == ["gate", "in", "out"]


def test_sizes_and_orientation_are_the_modules(build: Callable[..., Any]) -> None:
    for kind in ("gpt2", "llama", "falcon"):
        model = build(kind)
        for site in find_sites(model):
            if site.kind == "projection":
                weight = model.get_submodule(site.path).weight
                shape = tuple(weight.T.shape if site.transposed else weight.shape)
                assert shape == (site.out_features, site.in_features)
                assert site.transposed == (
                    not isinstance(model.get_submodule(site.path), nn.Linear)
                )


@pytest.mark.parametrize(
    ("kind", "task", "head"),
    [
        ("llama", "causal", ["lm_head"]),
        ("llama", "classification", ["score"]),
        ("bert", "masked", ["cls.predictions.transform.dense", "cls.predictions.decoder"]),
        ("bert", "classification", ["bert.pooler.dense", "classifier"]),
        ("t5", "seq2seq", ["lm_head"]),
        ("mamba", "causal", ["lm_head"]),
    ],
)
def test_head_is_what_comes_after_the_last_layer(
    kind: str, task: str, head: list[str], build: Callable[..., Any]
) -> None:
    sites = find_sites(build(kind, task))
    assert [site.path for site in sites if site.role == "head"] == head
    assert {site.block for site in sites if site.role == "head"} == {None}


def test_projection_before_the_layers_is_no_head(build: Callable[..., Any]) -> None:
    sites = {site.path: site for site in find_sites(build("albert"))}
    before = sites["albert.encoder.embedding_hidden_mapping_in"]
    assert (before.role, before.block) == ("other", None)


def test_experts_that_no_token_takes_are_sites(build: Callable[..., Any]) -> None:
    """Eight tokens reach some of the experts, and which depends on the weights: the sites don't."""
    model = build("switch_transformers", seed=0)
    sites = find_sites(model)
    experts = [
        name
        for name, module in model.named_modules()
        if ".experts." in name and isinstance(module, nn.Linear)
    ]
    assert len(experts) == 2 * 8 * 2
    assert [site.path for site in sites if ".experts." in site.path] == experts
    assert {site.role for site in sites if site.path.endswith(".wi")} == {"in"}
    assert {site.role for site in sites if site.path.endswith(".wo")} == {"out"}
    assert {site.role for site in sites if "router" in site.path} == {"other"}
    other = build("switch_transformers", seed=5)
    hub.sites.search._found.clear()
    assert find_sites(other) == sites


def test_a_module_whose_weight_is_read_without_a_call_is_no_site(
    build: Callable[..., Any], stack: Callable[..., nn.Module]
) -> None:
    paths = {site.path for site in find_sites(build("mamba"))}
    assert "backbone.layers.0.mixer.dt_proj" not in paths
    encoder = nn.TransformerEncoderLayer(16, 2, 32, batch_first=True)
    sites = {site.path: site for site in find_sites(stack(encoder, encoder))}
    assert "layers.0.self_attn.out_proj" not in sites
    assert sites["layers.0.linear1"].role == "in"
    assert sites["layers.0.dropout1"].role == "attention"
    assert sites["layers.0.dropout2"].role == "feedforward"
