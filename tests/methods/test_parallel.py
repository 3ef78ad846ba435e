"""Parallel adapters against `adapters` 1.3.0 on frozen logits, and against the paper."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

import hub
from hub.errors import AttachError, ConfigError
from hub_parallel import ParallelAdapter, ParallelConfig
from tests.references.frozen import Frozen
from tests.snapshots import run, shake_adapter, take_snapshot
from tests.tiny import build_tiny, make_inputs

FROZEN = Frozen("parallel")


@pytest.mark.parametrize("case", sorted(FROZEN.cases))
def test_logits_equal_adapters_par_bn(case: str) -> None:
    model, expected = FROZEN.build(case), FROZEN.read(case)
    adapter = FROZEN.make_adapter(model, case, "a")
    with hub.attach(model, adapter):
        torch.testing.assert_close(
            FROZEN.compute(model, case), expected["logits/a"], rtol=0, atol=1e-5
        )
    torch.testing.assert_close(
        FROZEN.compute(model, case), expected["logits/bare"], rtol=0, atol=1e-5
    )


@pytest.mark.parametrize(("d", "m"), [(768, 48), (1024, 64), (32, 8)])
def test_parameters_equal_the_papers(d: int, m: int) -> None:
    site = hub.Site("branch", "mlp", "feedforward", 0, d, d, stream="norm")
    module = ParallelAdapter().build(site, ParallelConfig(size=m))
    assert sum(parameter.numel() for parameter in module.parameters()) == 2 * m * d + d + m


def test_half_and_four_are_the_defaults() -> None:
    # The paper takes s = 4, and 512 of 1024 at the feed-forward.
    config = ParallelConfig()
    assert (config.width(1024), config.scale) == (512, 4.0)


def test_two_in_a_stack_add_up() -> None:
    model = build_tiny("llama")
    one, two = (shake_adapter(hub.Adapter.create("parallel", model, size=3), n) for n in (1, 2))
    both = hub.Adapter.create("parallel", model, size=6)
    with torch.no_grad():
        for name, tensor in both.tensors.items():
            first, second = one.tensors[name], two.tensors[name]
            if name.endswith("up.bias"):
                tensor.copy_(first + second)
            else:
                tensor.copy_(torch.cat([first, second], -1 if "up" in name else 0))
    with hub.attach(model, both):
        expected = run(model)
    with hub.attach(model, hub.Stack(one, two)):
        torch.testing.assert_close(run(model), expected, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("kind", ["bert", "gpt2", "llama", "t5", "gptj", "bart", "gemma2", "opt"])
def test_one_branch_a_layer(kind: str) -> None:
    model = build_tiny(kind)
    adapter = hub.Adapter.create("parallel", model, size=4)
    stacks = 2 if model.config.is_encoder_decoder else 1
    assert len(adapter.tensors) == 4 * 2 * stacks
    before = take_snapshot(model)
    shake_adapter(adapter)
    with hub.attach(model, adapter):
        assert not torch.allclose(run(model), run(build_tiny(kind)), atol=1e-3)
    assert take_snapshot(model) == before


def test_new_adapter_changes_nothing() -> None:
    model = build_tiny("bert")
    bare = run(model)
    with hub.attach(model, hub.Adapter.create("parallel", model)):
        assert torch.equal(run(model), bare)


def test_training_changes_the_adapter_alone() -> None:
    model = build_tiny("bert").train()
    adapter = shake_adapter(hub.Adapter.create("parallel", model))
    with hub.attach(model, adapter) as attachment:
        assert len(list(attachment.parameters())) == len(adapter.tensors)
        model(**make_inputs(model)).logits.square().mean().backward()
        assert all(t.grad is not None and t.grad.abs().max() > 0 for t in adapter.tensors.values())
    assert all(parameter.grad is None for parameter in model.parameters())


@pytest.mark.parametrize(
    ("options", "text"),
    [
        ({"size": 0}, "parallel: size is 0; it is a whole number from 1"),
        ({"reduction_factor": 0}, "parallel: reduction_factor is 0; it must be above 0"),
        ({"activation": "mish"}, "parallel: activation is 'mish'; choose from gelu"),
        ({"layers": "2:"}, "parallel: layers is '2:', this base has layers 0 to 1"),
        ({"layers": "a:b"}, "parallel: layers is 'a:b'; give numbers, or a slice"),
        ({"bottleneck": 3}, "parallel has no option 'bottleneck'"),
        ({"scale": 0.0}, "parallel: scale is 0.0; it must be a finite number other than 0"),
        ({"scale": float("nan")}, "parallel: scale is nan; it must be a finite number"),
        ({"scale": "learned"}, "scale is 'learned'; it must be"),
        ({"size": "8"}, "size is '8'; it must be"),
    ],
)
def test_wrong_options_are_named(options: dict[str, Any], text: str) -> None:
    with pytest.raises(ConfigError, match=text):
        hub.Adapter.create("parallel", build_tiny("llama"), **options)


def test_a_base_without_feed_forward_is_refused() -> None:
    with pytest.raises(ConfigError, match="parallel: this base has no feed-forward branch"):
        hub.Adapter.create("parallel", build_tiny("mamba"))


def test_a_stream_out_of_reach_is_refused() -> None:
    site = hub.Site("branch", "mlp", "feedforward", 0, 4, 4)
    with pytest.raises(ConfigError, match="parallel: the residual stream that mlp is added to"):
        ParallelAdapter().choose_sites([site], ParallelConfig())


def test_merging_is_refused() -> None:
    model = build_tiny("llama")
    with (
        hub.attach(model, hub.Adapter.create("parallel", model)) as attachment,
        pytest.raises(AttachError, match="parallel is no change of weights"),
    ):
        attachment.merge()


def test_files_come_back(tmp_path: Path) -> None:
    model = build_tiny("bert")
    adapter = shake_adapter(hub.Adapter.create("parallel", model, size=3))
    with hub.attach(model, adapter):
        expected = run(model)
    with hub.attach(model, hub.load(adapter.save(tmp_path / "adapter"))):
        assert torch.equal(run(model), expected)
