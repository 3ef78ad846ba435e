"""Who a loaded base is."""

from __future__ import annotations

from pathlib import Path

import torch

from hub.identity import identify_base
from hub_registry.identity import BaseIdentity, compare
from tests.tiny import build_tiny


def test_same_weights_are_the_same_base_under_every_head() -> None:
    causal = identify_base(build_tiny("llama", "causal"))
    twin = build_tiny("llama", "causal")
    classifier = build_tiny("llama", "classification", seed=4)
    classifier.model.load_state_dict(twin.model.state_dict())
    assert compare(causal, identify_base(twin)).verdict == "same"
    assert compare(causal, identify_base(classifier)).verdict == "same"


def test_saving_and_loading_keeps_the_identity(tmp_path: Path) -> None:
    model = build_tiny("gpt2")
    model.save_pretrained(tmp_path / "base")
    again = type(model).from_pretrained(tmp_path / "base")
    assert compare(identify_base(model), identify_base(again)).verdict == "same"


def test_every_single_changed_tensor_is_another_base() -> None:
    before = identify_base(build_tiny("llama"))
    model = build_tiny("llama")
    for name, parameter in model.named_parameters():
        kept = parameter.detach().clone()
        with torch.no_grad():
            parameter.add_(torch.randn_like(parameter) * 1e-3)
        assert compare(before, identify_base(model)).verdict == "different", name
        with torch.no_grad():
            parameter.copy_(kept)
    assert compare(before, identify_base(model)).verdict == "same"


def test_casts_are_the_same_base_in_another_precision() -> None:
    whole = identify_base(build_tiny("llama"))
    for dtype in (torch.bfloat16, torch.float16):
        cast = build_tiny("llama").to(dtype)
        assert compare(whole, identify_base(cast)).verdict == "precision"
        assert compare(identify_base(cast), whole).verdict == "precision"
        assert compare(whole, identify_base(cast.float())).verdict == "precision"


def test_identity_survives_its_file() -> None:
    identity = identify_base(build_tiny("t5"))
    assert BaseIdentity.from_json(identity.to_json()) == identity


def test_another_size_of_vocabulary_is_another_base() -> None:
    model = build_tiny("llama")
    before = identify_base(model)
    model.resize_token_embeddings(103)
    comparison = compare(before, identify_base(model))
    assert comparison.verdict == "different"
    assert "embed_tokens.weight has shape [103, 32], not [99, 32]" in comparison.reasons[0]
