"""Pfeiffer's adapters against `adapters` 1.3.0 on frozen logits, and against the paper."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

import hub
from hub.errors import AttachError, ConfigError
from hub_pfeiffer import Pfeiffer, PfeifferConfig
from tests.references.frozen import Frozen
from tests.snapshots import run, shake_adapter, take_snapshot
from tests.tiny import build_tiny, make_inputs

FROZEN = Frozen("pfeiffer")


@pytest.mark.parametrize("case", sorted(FROZEN.cases))
def test_logits_equal_adapters_seq_bn(case: str) -> None:
    model, expected = FROZEN.build(case), FROZEN.read(case)
    one, two = (FROZEN.make_adapter(model, case, which) for which in "ab")
    with hub.attach(model, one):
        torch.testing.assert_close(
            FROZEN.compute(model, case), expected["logits/a"], rtol=0, atol=1e-5
        )
    with hub.attach(model, hub.Stack(one, two)):
        torch.testing.assert_close(
            FROZEN.compute(model, case), expected["logits/stack"], rtol=0, atol=1e-5
        )
    torch.testing.assert_close(
        FROZEN.compute(model, case), expected["logits/bare"], rtol=0, atol=1e-5
    )


@pytest.mark.parametrize(("d", "m"), [(768, 48), (1024, 64), (32, 8)])
def test_parameters_equal_the_papers(d: int, m: int) -> None:
    site = hub.Site("branch", "mlp", "feedforward", 0, d, d, stream="norm")
    module = Pfeiffer().build(site, PfeifferConfig(size=m))
    assert sum(parameter.numel() for parameter in module.parameters()) == 2 * m * d + d + m


def test_a_sixteenth_is_the_default() -> None:
    assert PfeifferConfig().width(768) == 48


@pytest.mark.parametrize("kind", ["bert", "gpt2", "llama", "t5", "gptj", "bart", "gemma2", "opt"])
def test_one_branch_a_layer(kind: str) -> None:
    model = build_tiny(kind)
    adapter = hub.Adapter.create("pfeiffer", model, size=4)
    stacks = 2 if model.config.is_encoder_decoder else 1
    assert len(adapter.tensors) == 4 * 2 * stacks
    before = take_snapshot(model)
    shake_adapter(adapter)
    with hub.attach(model, adapter):
        assert not torch.allclose(run(model), run(build_tiny(kind)), atol=1e-3)
    assert take_snapshot(model) == before


def test_new_adapter_is_nearly_the_identity() -> None:
    model = build_tiny("bert")
    bare = run(model)
    torch.manual_seed(0)
    with hub.attach(model, hub.Adapter.create("pfeiffer", model)):
        started = run(model)
    assert not torch.equal(started, bare)
    assert (started - bare).abs().max() < 0.01 * bare.abs().max()


def test_training_changes_the_adapter_alone() -> None:
    model = build_tiny("bert").train()
    adapter = hub.Adapter.create("pfeiffer", model)
    with hub.attach(model, adapter) as attachment:
        assert len(list(attachment.parameters())) == len(adapter.tensors)
        model(**make_inputs(model)).logits.square().mean().backward()
        assert all(t.grad is not None and t.grad.abs().max() > 0 for t in adapter.tensors.values())
    assert all(parameter.grad is None for parameter in model.parameters())


@pytest.mark.parametrize("layers", ["1:", (1,), [1], "-1:"])
def test_layers_can_be_left_out(layers: Any) -> None:
    adapter = hub.Adapter.create("pfeiffer", build_tiny("llama"), layers=layers)
    assert {name.split(".")[2] for name in adapter.tensors} == {"1"}
    assert adapter.config.layers == (1,)


@pytest.mark.parametrize(
    ("options", "text"),
    [
        ({"size": 0}, "pfeiffer: size is 0; it is a whole number from 1"),
        ({"reduction_factor": 0}, "pfeiffer: reduction_factor is 0; it must be above 0"),
        ({"activation": "mish"}, "pfeiffer: activation is 'mish'; choose from gelu"),
        ({"layers": "2:"}, "pfeiffer: layers is '2:', this base has layers 0 to 1"),
        ({"layers": "a:b"}, "pfeiffer: layers is 'a:b'; give numbers, or a slice"),
        ({"bottleneck": 3}, "pfeiffer has no option 'bottleneck'"),
        ({"size": "8"}, "size is '8'; it must be"),
    ],
)
def test_wrong_options_are_named(options: dict[str, Any], text: str) -> None:
    with pytest.raises(ConfigError, match=text):
        hub.Adapter.create("pfeiffer", build_tiny("llama"), **options)


def test_a_base_without_feed_forward_is_refused() -> None:
    with pytest.raises(ConfigError, match="pfeiffer: this base has no feed-forward branch"):
        hub.Adapter.create("pfeiffer", build_tiny("mamba"))


def test_a_stream_out_of_reach_is_refused() -> None:
    site = hub.Site("branch", "mlp", "feedforward", 0, 4, 4)
    with pytest.raises(ConfigError, match="pfeiffer: the residual stream that mlp is added to"):
        Pfeiffer().choose_sites([site], PfeifferConfig())


def test_merging_is_refused() -> None:
    model = build_tiny("llama")
    with (
        hub.attach(model, hub.Adapter.create("pfeiffer", model)) as attachment,
        pytest.raises(AttachError, match="pfeiffer is no change of weights"),
    ):
        attachment.merge()


def test_files_come_back(tmp_path: Path) -> None:
    model = build_tiny("bert")
    adapter = shake_adapter(hub.Adapter.create("pfeiffer", model, size=3))
    with hub.attach(model, adapter):
        expected = run(model)
    with hub.attach(model, hub.load(adapter.save(tmp_path / "adapter"))):
        assert torch.equal(run(model), expected)
