"""The stream beside a branch, the norm after it, and shared weights, held against what is known."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from hub.sites import Site, find_sites
from tests.tiny import build_tiny

STREAMS = {
    "llama": ("post_attention_layernorm", None),
    "gpt2": ("ln_2", None),
    "bert": ("intermediate.dense", "output.LayerNorm"),
    "bart": ("fc1", "final_layer_norm"),
    "albert": ("ffn", "full_layer_layer_norm"),
    "gemma2": ("pre_feedforward_layernorm", None),
    "gptj": ("ln_1", None),  # attention and feed-forward side by side
    "gpt_neox": ("post_attention_layernorm", None),
    "opt": ("final_layer_norm", None),
    "mixtral": ("post_attention_layernorm", None),
}


def find_feedforwards(kind: str) -> list[Site]:
    sites = find_sites(build_tiny(kind))
    return [site for site in sites if site.kind == "branch" and site.role == "feedforward"]


@pytest.mark.parametrize("kind", STREAMS)
def test_stream_and_norm_of_a_feed_forward(kind: str) -> None:
    for site in find_feedforwards(kind):
        stream, norm = STREAMS[kind]
        assert site.stream is not None
        assert site.stream.endswith(f".{stream}")
        assert (site.norm or "").endswith(norm or "")
        assert (site.norm is None) == (norm is None)


def test_every_branch_of_t5_knows_its_stream() -> None:
    sites = [site for site in find_sites(build_tiny("t5")) if site.kind == "branch"]
    assert len(sites) == 10
    for site in sites:
        assert site.stream == site.path.replace("dropout", "layer_norm")
        assert site.norm is None


@pytest.mark.parametrize(
    ("kind", "first", "others"),
    [
        ("gpt2", "transformer.wte", {"lm_head"}),
        ("bert", "bert.embeddings.word_embeddings", {"cls.predictions.decoder"}),
        ("t5", "shared", {"encoder.embed_tokens", "decoder.embed_tokens", "lm_head"}),
    ],
)
def test_tied_weights_name_the_first_that_holds_them(
    kind: str, first: str, others: set[str]
) -> None:
    sites = find_sites(build_tiny(kind, tie_word_embeddings=True))
    tied = {site.path for site in sites if site.tied == first}
    assert tied
    assert tied <= {first, *others}
    assert all(site.tied is None for site in sites if site.path not in tied)
    if kind != "t5":
        untied = find_sites(build_tiny(kind, tie_word_embeddings=False))
        assert all(site.tied is None for site in untied)


class GatedNorm(nn.LayerNorm):
    """A norm whose output a gate scales."""

    def forward(self, x: torch.Tensor, gate: torch.Tensor) -> torch.Tensor:  # type: ignore[override]
        return super().forward(x) * gate


class Gated(nn.Module):
    """A projection, a norm with a gate, and one without."""

    def __init__(self) -> None:
        super().__init__()
        self.embed = nn.Embedding(9, 4)
        self.linear = nn.Linear(4, 4)
        self.gated = GatedNorm(4)
        self.plain = nn.LayerNorm(4)

    def forward(self, input_ids: torch.Tensor) -> torch.Tensor:
        x: torch.Tensor = self.linear(self.embed(input_ids))
        result: torch.Tensor = self.plain(self.gated(x, x.sigmoid()))
        return result


def test_a_norm_that_takes_a_gate_is_no_norm() -> None:
    assert [site.path for site in find_sites(Gated()) if site.kind == "norm"] == ["plain"]
