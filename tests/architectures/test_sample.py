"""A sample of what `python -m tests.architectures run` does: unlike architectures, every method."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

import hub
from tests.architectures.cells import Cell, list_candidates
from tests.architectures.methods import find_variant, list_variants
from tests.architectures.page import format_page
from tests.architectures.proofs import Bare, prepare_cell
from tests.architectures.running import make_result, prove_cell, run_cells

pytestmark = pytest.mark.filterwarnings("ignore")
PAGE = Path(__file__).parents[2] / "docs" / "architectures.md"

LLAMA_ADAPTER = ("llama_adapter", *find_variant("llama_adapter"))
SAMPLE = {
    # one projection for query, key and value, heads inside
    Cell("causal", "gpt_neox"): ("lora", "houlsby"),
    # keys and values made from one latent vector; stacked experts
    Cell("causal", "deepseek_v3"): ("lora", "prefix"),
    # state spaces and attention, layer by layer
    Cell("causal", "bamba"): ("houlsby", "prefix"),
    # no attention at all
    Cell("causal", "rwkv"): ("lora", "prompt"),
    # one layer run by all, state spaces between
    Cell("causal", "zamba2"): ("houlsby", "ia3"),
    # attention written out, biased by distance
    Cell("causal", "bloom"): ("prefix", "bitfit"),
    # experts in stacks, their gates in linear layers that return tuples
    Cell("causal", "llama4_text"): ("lora", "ptuning"),
    # attention that chooses its keys
    Cell("causal", "deepseek_v32"): ("lora", "ia3"),
    Cell("causal", "qwen3"): ("llama_adapter", "dora"),
    # positions by distance, between values of weights alone
    Cell("masked", "deberta-v2"): ("houlsby", "prefix"),
    # sequence first
    Cell("seq2seq", "fsmt"): ("lora", "prompt"),
    Cell("seq2seq", "t5"): ("prefix", "parallel"),
    # experts in a list of modules
    Cell("seq2seq", "switch_transformers"): ("ia3", "diff"),
    # characters, and layers that not every output needs
    Cell("classification", "canine"): ("lora", "pfeiffer"),
    Cell("classification", "gpt2"): ("prompt", "full"),
}


@pytest.fixture(scope="module")
def bare() -> Any:
    return prepare_cell(Cell("causal", "llama"))


@pytest.mark.parametrize("cell", SAMPLE, ids=lambda cell: cell.name)
def test_methods_hold_on(cell: Cell) -> None:
    bare = prepare_cell(cell)
    results = [prove_cell(bare, method, *find_variant(method)) for method in SAMPLE[cell]]
    assert [(r["method"], r["verdict"], r["reason"]) for r in results] == [
        (method, "passed", "") for method in SAMPLE[cell]
    ]


def test_sample_has_every_method() -> None:
    assert {method for methods in SAMPLE.values() for method in methods} == set(list_variants())


class Idle(nn.Module):
    """A module with a tensor that does nothing, beside one that does."""

    def __init__(self, d: int, *, acts: bool) -> None:
        super().__init__()
        self.acts = acts
        self.shift = nn.Parameter(torch.zeros(d))

    def forward(self, x: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
        return y + self.shift * (1.0 if self.acts else 0.0)


@pytest.mark.parametrize("idle", [True, False])
def test_site_without_an_effect_is_found(
    bare: Bare, idle: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    method = hub.discovery.installed_methods().get("bitfit")

    def build(site: hub.Site, *_: Any) -> nn.Module:
        return Idle(site.out_features, acts=not (idle and site.role == "key"))

    def choose(sites: Any, config: Any) -> list[hub.Site]:
        return [s for s in sites if s.role in ("key", "value")]

    monkeypatch.setattr(method, "choose_sites", choose)
    monkeypatch.setattr(method, "build", build)
    monkeypatch.setattr(hub.blueprints, "_kept", [])  # what the method built before
    result = prove_cell(bare, "bitfit", "bitfit", {})
    assert result["verdict"] == ("failed" if idle else "passed")
    assert (
        "2 sites without effect: projection model.layers.0.self_attn.k_proj" in result["reason"]
    ) == idle


def test_refusal_is_told_from_failure() -> None:
    bare = prepare_cell(Cell("causal", "mamba"))
    refused = prove_cell(bare, "prefix", "prefix", {})
    failed = prove_cell(bare, "lora", "lora", {"r": "eight"})
    assert (refused["verdict"], failed["verdict"]) == ("refused", "refused")
    assert "no attention" in refused["reason"]


def test_prompt_beside_keys_of_several_projections_is_refused() -> None:
    result = prove_cell(prepare_cell(Cell("causal", "deepseek_v3")), *LLAMA_ADAPTER)
    assert result["verdict"] == "refused"
    assert "kv_a_proj_with_mqa" in result["reason"]


def test_process_that_dies_is_one_result(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("tests.architectures.running.prepare_cell", lambda cell: exit(9))
    work = [(Cell("causal", "llama"), ["lora", "ia3"])]
    results = list(run_cells(work, workers=1))
    assert [(r["method"], r["reason"]) for r in results] == [
        ("lora", "the process ended with 9"),
        ("ia3", "the process ended with 9"),
    ]


def test_page_counts_what_has_a_meaning_and_takes_the_last_result() -> None:
    cells = [
        {"task": "causal", "kind": kind, "reason": None if kind != "gone" else "ImportError: no"}
        for kind in ("one", "two", "three", "gone")
    ]
    one, two, three = (Cell("causal", kind) for kind in ("one", "two", "three"))
    results = [
        make_result(one, "lora", "failed", "model.layers.0 has 3 faults", 1),
        make_result(one, "lora", "passed", "", 1),
        make_result(two, "lora", "refused", "lora: nothing here", 1),
        make_result(three, "lora", "failed", "model.layers.0.q has 3 faults", 1),
    ]
    page = format_page(cells, results)
    assert "| lora | 1 | 2 | 50.0% | 1 |" in page
    assert "- nothing here (1): two (causal)" in page
    assert "- … has n faults (1): three (causal)" in page
    assert "themselves" not in page
    assert "| three | ✗ |" in page
    assert "- causal:gone: ImportError: no" in page


def test_published_page_has_every_architecture() -> None:
    page = PAGE.read_text()
    left_out = {line.split(": ")[0][2:] for line in page.splitlines() if line.startswith("- ")}
    rows = {line.split(" | ")[0][2:] for line in page.splitlines() if line.startswith("| ")}
    missing = [c.name for c in list_candidates() if c.kind not in rows and c.name not in left_out]
    assert missing == []
