"""Full fine-tuning against plain training of the base's own weights."""

from __future__ import annotations

import copy
import logging
from pathlib import Path
from typing import Any

import pytest
import torch

import hub
from hub.errors import ConfigError
from tests.snapshots import run, shake_adapter, take_snapshot
from tests.tiny import build_tiny, make_inputs

KINDS = ["llama", "gpt2", "bert", "t5", "gemma2", "mixtral"]


def train(model: Any, parameters: list[Any]) -> None:
    """Three steps of plain gradient descent."""
    optimizer = torch.optim.SGD(parameters, lr=0.1)
    for seed in range(3):
        loss = model(**make_inputs(model, seed=seed)).logits.square().mean()
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()


def list_left(caplog: Any) -> list[str]:
    return [r.message for r in caplog.records if "reached by no site" in r.message]


@pytest.mark.parametrize("tied", [True, False])
@pytest.mark.parametrize("kind", KINDS)
def test_training_equals_training_the_base_itself(kind: str, tied: bool) -> None:
    plain = build_tiny(kind, tie_word_embeddings=tied)
    for name, parameter in plain.named_parameters():
        parameter.requires_grad_(not name.endswith("mlp.gate.weight"))  # Mixtral's router
    train(plain, [p for p in plain.parameters() if p.requires_grad])
    model = build_tiny(kind, tie_word_embeddings=tied)
    bare = run(model)
    with hub.attach(model, hub.Adapter.create("full", model)) as attachment:
        assert torch.equal(run(model), bare)
        train(model, list(attachment.parameters()))
        assert not torch.allclose(run(model), bare, atol=1e-3)
        torch.testing.assert_close(run(model), run(plain), rtol=1e-4, atol=1e-5)
        attachment.merge()
        torch.testing.assert_close(run(model), run(plain), rtol=1e-4, atol=1e-5)
        merged, trained = model.state_dict(), plain.state_dict()
        for name in trained:
            torch.testing.assert_close(merged[name], trained[name], rtol=1e-4, atol=1e-5)
    assert torch.equal(run(model), bare)


@pytest.mark.parametrize("kind", ["llama", "gpt2", "bert", "t5", "gemma2"])
def test_parameters_are_the_bases(kind: str) -> None:
    model = build_tiny(kind)
    adapter = hub.Adapter.create("full", model)
    count = sum(tensor.numel() for tensor in adapter.tensors.values())
    assert count == sum(parameter.numel() for parameter in model.parameters())


def test_a_shared_weight_has_one_difference() -> None:
    model = build_tiny("gpt2")
    adapter = hub.Adapter.create("full", model)
    assert adapter.tensors["tied_0.values"].shape == model.lm_head.weight.shape
    assert not any(name.startswith(("lm_head", "transformer.wte")) for name in adapter.tensors)


@pytest.mark.parametrize("kind", ["gpt2", "gemma2", "t5"])
def test_merged_equals_attached(kind: str) -> None:
    model = build_tiny(kind)
    before = take_snapshot(model)
    adapter = shake_adapter(hub.Adapter.create("full", model), scale=0.1)
    with hub.attach(model, adapter) as attachment:
        expected = run(model)
        attachment.merge()
        torch.testing.assert_close(run(model), expected, rtol=1e-4, atol=1e-4)
    assert take_snapshot(model) == before


def test_what_is_not_reached_is_said_once(caplog: Any) -> None:
    with caplog.at_level(logging.WARNING, "hub"):
        hub.Adapter.create("full", build_tiny("mamba"))
    (line,) = list_left(caplog)
    assert "full: 12 parameters of the base" in line
    assert "backbone.layers.0.mixer.A_log, backbone.layers.0.mixer.D" in line
    assert line.endswith("and 9 more")


@pytest.mark.parametrize("kind", ["llama", "bert"])
def test_nothing_is_said_where_all_is_reached(kind: str, caplog: Any) -> None:
    with caplog.at_level(logging.WARNING, "hub"):
        hub.Adapter.create("full", build_tiny(kind))
        hub.Adapter.create("full", build_tiny(kind, "classification"))
    assert list_left(caplog) == []


def test_excluded_modules_stay(caplog: Any) -> None:
    with caplog.at_level(logging.WARNING, "hub"):
        adapter = hub.Adapter.create("full", build_tiny("llama"), exclude=["embed_tokens", "norm"])
    assert not any("embed_tokens" in name for name in adapter.tensors)
    assert any("embed_tokens" in line for line in list_left(caplog))
    by_pattern = hub.Adapter.create("full", build_tiny("llama"), exclude=r"model\.layers.*")
    assert {name.rsplit(".", 2)[0] for name in by_pattern.tensors} == {
        "model.embed_tokens",
        "model.norm",
        "lm_head",
    }


def test_one_side_of_a_shared_weight_can_be_left_out() -> None:
    model = build_tiny("gpt2")
    adapter = shake_adapter(hub.Adapter.create("full", model, exclude=["wte"]), scale=0.1)
    assert adapter.tensors["tied_0.values"].shape == model.lm_head.weight.shape
    with (
        hub.attach(model, adapter) as attachment,
        pytest.raises(hub.HubError, match="shared with another module, which must not change"),
    ):
        attachment.merge()


def test_half_precision_learns_in_full() -> None:
    model = build_tiny("gemma2").to(torch.bfloat16)
    adapter = hub.Adapter.create("full", model)
    with hub.attach(model, adapter):
        logits = model(**make_inputs(model)).logits
        assert logits.dtype == torch.bfloat16
        logits.float().square().mean().backward()
        assert {tensor.dtype for tensor in adapter.tensors.values()} == {torch.float32}
        assert all(tensor.grad is not None for tensor in adapter.tensors.values())


def test_a_copy_of_an_attached_model_stands_alone() -> None:
    model = build_tiny("gemma2")
    adapter = shake_adapter(hub.Adapter.create("full", model), scale=0.1)
    attachment = hub.attach(model, adapter)
    expected = run(model)
    other = copy.deepcopy(model)
    with torch.no_grad():
        for tensor in adapter.tensors.values():
            tensor.zero_()
    attachment.detach()
    torch.testing.assert_close(run(other), expected)


def test_compiled_model_gives_the_same() -> None:
    model = build_tiny("gemma2")
    adapter = shake_adapter(hub.Adapter.create("full", model), scale=0.1)
    compiled: Any = torch.compile(model, backend="eager")
    with hub.attach(model, adapter):
        expected = run(model)
        torch.testing.assert_close(run(compiled, **make_inputs(model)), expected)


def test_files_come_back(tmp_path: Path) -> None:
    model = build_tiny("gpt2")
    adapter = shake_adapter(hub.Adapter.create("full", model), scale=0.1)
    with hub.attach(model, adapter):
        expected = run(model)
    with hub.attach(model, hub.load(adapter.save(tmp_path / "adapter"))):
        assert torch.equal(run(model), expected)


@pytest.mark.parametrize(
    ("options", "text"),
    [
        ({"exclude": ["nosuch"]}, r"exclude=\('nosuch',\) matches none of the 21 modules, such"),
        ({"exclude": ".*"}, r"exclude='\.\*' leaves none of the 21 modules"),
        ({"exclude": "("}, r"'\(' is no regular expression"),
        ({"exclude": 5}, "exclude is 5; it must be"),
        ({"targets": "all"}, "full has no option 'targets'"),
    ],
)
def test_wrong_options_are_named(options: dict[str, Any], text: str) -> None:
    with pytest.raises(ConfigError, match=text):
        hub.Adapter.create("full", build_tiny("llama"), **options)
