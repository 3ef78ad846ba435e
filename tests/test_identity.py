"""Who a loaded base is."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from torch import nn
from transformers.pytorch_utils import Conv1D

import hub
from hub.errors import BaseMismatch
from hub.identity import identify_base
from hub_registry.identity import BaseIdentity, compare
from tests.quantized import FORMATS, load_base, save_base
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


@pytest.mark.parametrize("kind", ["llama", "gpt2"])
@pytest.mark.parametrize("form", FORMATS)
def test_quantized_base_is_told_from_its_own_fine_tune(
    tmp_path: Path, kind: str, form: str
) -> None:
    plain = save_base(tmp_path / "base", kind)
    tuned = type(plain)(plain.config)
    tuned.load_state_dict(plain.state_dict())
    for path, module in tuned.named_modules():
        if isinstance(module, nn.Linear | Conv1D) and path != "lm_head":
            weight = module.weight.data
            weight += torch.randn_like(weight) * weight.std() * 0.05
    tuned.save_pretrained(tmp_path / "tuned")
    whole, other = identify_base(plain), identify_base(tuned)
    held = {
        name: identify_base(load_base(tmp_path / name, form, kind)) for name in ("base", "tuned")
    }
    assert compare(whole, held["base"]).verdict == "precision"
    assert compare(held["base"], whole).verdict == "precision"
    again = identify_base(load_base(tmp_path / "base", form, kind))
    assert compare(held["base"], again).verdict == "same"
    if kind == "gpt2" and form.startswith("torchao"):
        return  # which leaves GPT-2's layers as they are
    assert compare(whole, held["tuned"]).verdict == "different"
    assert compare(other, held["base"]).verdict == "different"
    assert compare(held["base"], held["tuned"]).verdict == "different"
    assert BaseIdentity.from_json(held["base"].to_json()) == held["base"]


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize("form", FORMATS)
def test_base_cast_before_it_was_quantized_is_the_same(
    tmp_path: Path, form: str, dtype: torch.dtype
) -> None:
    plain = save_base(tmp_path)
    cast = identify_base(load_base(tmp_path, form, dtype=dtype))
    assert compare(identify_base(plain), cast).verdict == "precision"
    assert compare(identify_base(load_base(tmp_path, form)), cast).verdict == "precision"


def test_running_a_quantized_base_does_not_make_it_another(tmp_path: Path) -> None:
    save_base(tmp_path)
    model = load_base(tmp_path, "nf4").eval()
    before = identify_base(model)
    with torch.no_grad():
        model(torch.tensor([[5, 6, 7]]))
    assert compare(before, identify_base(model)).verdict == "same"


def test_adapter_goes_from_a_base_to_the_same_one_quantized_with_a_note(tmp_path: Path) -> None:
    adapter = hub.Adapter.create("lora", save_base(tmp_path / "base"))
    save_base(tmp_path / "other", seed=1)
    with hub.attach(load_base(tmp_path / "base", "nf4"), adapter) as attachment:
        assert "the quantization is bitsandbytes-nf4-double, not none" in attachment.notes[0]
    with pytest.raises(BaseMismatch):
        hub.attach(load_base(tmp_path / "other", "nf4"), adapter)
