"""Houlsby's adapters against `adapters` 1.3.0 on frozen logits, and against the paper's numbers."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

import hub
from hub.errors import ConfigError
from hub_houlsby import Houlsby, HoulsbyConfig
from tests.references.frozen import Frozen
from tests.snapshots import run, shake_adapter
from tests.tiny import build_tiny

FROZEN = Frozen("houlsby")


@pytest.mark.parametrize("case", sorted(FROZEN.cases))
def test_logits_equal_adapters_double_seq_bn(case: str) -> None:
    model, expected = FROZEN.build(case), FROZEN.read(case)
    options = {"activation": "swish", "cross_attention": case.endswith("cross")}
    torch.testing.assert_close(
        FROZEN.compute(model, case), expected["logits/bare"], rtol=0, atol=1e-5
    )
    one, two = (FROZEN.make_adapter(model, case, which, **options) for which in "ab")
    with hub.attach(model, one):
        torch.testing.assert_close(
            FROZEN.compute(model, case), expected["logits/a"], rtol=0, atol=1e-5
        )
    with hub.attach(model, hub.Stack(one, two)):
        torch.testing.assert_close(
            FROZEN.compute(model, case), expected["logits/stack"], rtol=0, atol=1e-5
        )


@pytest.mark.parametrize(("d", "m"), [(1024, 64), (768, 48), (32, 8)])
def test_parameters_equal_the_papers(d: int, m: int) -> None:
    site = hub.Site("branch", "mlp", "feedforward", 0, d, d)
    module = Houlsby().build(site, HoulsbyConfig(size=m))
    assert sum(parameter.numel() for parameter in module.parameters()) == 2 * m * d + d + m


def test_new_adapter_is_nearly_the_identity() -> None:
    model = build_tiny("llama")
    bare = run(model)
    torch.manual_seed(0)
    with hub.attach(model, hub.Adapter.create("houlsby", model)):
        started = run(model)
    assert not torch.equal(started, bare)
    assert (started - bare).abs().max() < 0.01 * bare.abs().max()


def test_two_branches_a_layer() -> None:
    adapter = hub.Adapter.create("houlsby", build_tiny("llama"), size=4)
    paths = {name.rsplit(".", 2)[0] for name in adapter.tensors}
    assert paths == {
        f"model.layers.{layer}.{branch}" for layer in range(2) for branch in ("self_attn", "mlp")
    }


@pytest.mark.parametrize("layers", ["1:", (1,), [1], "-1:"])
def test_lower_layers_can_be_left_out(layers: Any) -> None:
    adapter = hub.Adapter.create("houlsby", build_tiny("llama"), layers=layers)
    assert {name.split(".")[2] for name in adapter.tensors} == {"1"}
    assert adapter.config.layers == (1,)


def test_layer_norms_are_trained_where_asked() -> None:
    model = build_tiny("bert")
    plain = hub.Adapter.create("houlsby", model, size=4)
    normed = hub.Adapter.create("houlsby", model, size=4, layer_norms=True)
    extra = normed.tensors.keys() - plain.tensors.keys()
    assert {name.rsplit(".", 1)[0] for name in extra} == {
        f"bert.encoder.layer.{layer}.{norm}.LayerNorm"
        for layer in range(2)
        for norm in ("attention.output", "output")
    }
    assert sum(normed.tensors[name].numel() for name in extra) == 4 * 2 * 32
    shake_adapter(normed)
    with hub.attach(model, normed):
        assert not torch.equal(run(model), run(build_tiny("bert")))


@pytest.mark.parametrize(
    ("options", "text"),
    [
        ({"size": 0}, "size is 0; it is a whole number from 1"),
        ({"reduction_factor": float("inf")}, "reduction_factor is inf; it must be above 0 and"),
        ({"reduction_factor": 0}, "reduction_factor is 0; it must be above 0"),
        ({"activation": "mish"}, "activation is 'mish'; choose from gelu"),
        ({"layers": "2:"}, "layers is '2:', this base has layers 0 to 1"),
        ({"layers": "a:b"}, "layers is 'a:b'; give numbers, or a slice"),
        ({"layers": (5,)}, r"layers is \(5,\), this base has layers 0 to 1"),
        ({"bottleneck": 3}, "houlsby has no option 'bottleneck'"),
    ],
)
def test_wrong_options_are_named(options: dict[str, Any], text: str) -> None:
    with pytest.raises(ConfigError, match=text):
        hub.Adapter.create("houlsby", build_tiny("llama"), **options)


def test_peft_refuses_what_it_lacks(tmp_path: Path) -> None:
    import peft

    model = build_tiny("llama")
    hub.Adapter.create("houlsby", model).save(tmp_path / "adapter")
    with pytest.raises((KeyError, ValueError), match="HOULSBY"):
        peft.PeftModel.from_pretrained(model, str(tmp_path / "adapter"))
