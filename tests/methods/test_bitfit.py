"""BitFit against plain training of the biases, and against the paper's numbers."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

import hub
from hub.errors import ConfigError
from hub_bitfit import BitFit, BitFitConfig
from tests.snapshots import run, shake_adapter, take_snapshot
from tests.tiny import build_tiny, make_inputs


def list_biases(model: Any) -> dict[str, torch.nn.Parameter]:
    parameters = model.named_parameters(remove_duplicate=False)
    return {name: p for name, p in parameters if name.rsplit(".", 1)[-1] == "bias"}


@pytest.mark.parametrize("kind", ["bert", "gpt2", "opt", "bloom", "gptj", "albert"])
def test_every_bias_of_the_base_is_there(kind: str) -> None:
    model = build_tiny(kind)
    adapter = hub.Adapter.create("bitfit", model)
    biases = list_biases(model)
    # BERT's prediction head holds its decoder's bias too.
    assert adapter.tensors.keys() == {n for n in biases if not n.endswith("predictions.bias")}
    assert all(adapter.tensors[name].shape == biases[name].shape for name in adapter.tensors)


def test_parameters_equal_the_papers() -> None:
    # The paper: 0.09% of BERT-base's parameters, 0.08% of BERT-large's.
    adapter = hub.Adapter.create("bitfit", build_tiny("bert", "classification"))
    heads = sum(t.numel() for n, t in adapter.tensors.items() if n.startswith("classifier"))
    count = sum(tensor.numel() for tensor in adapter.tensors.values()) - heads
    assert count == 2 * count_biases(32, 48) + 32 + 32
    large = 24 * count_biases(1024, 4096) + 1024 + 1024  # the embeddings' norm and the pooler
    assert round(100 * large / 335_141_888, 2) == 0.08
    base = 12 * count_biases(768, 3072) + 768 + 768
    assert round(100 * base / 109_482_240, 2) == 0.09


def count_biases(d: int, d_ff: int) -> int:
    """Query, key, value, output, both projections of the feed-forward, two norms."""
    return 4 * d + d_ff + d + 2 * d


def test_few_are_the_queries_and_the_feed_forwards_first() -> None:
    adapter = hub.Adapter.create("bitfit", build_tiny("bert"), biases="few")
    assert {name.split(".", 4)[-1] for name in adapter.tensors} == {
        "attention.self.query.bias",
        "intermediate.dense.bias",
    }


@pytest.mark.parametrize("kind", ["bert", "gpt2"])
def test_training_equals_training_the_biases_themselves(kind: str) -> None:
    def train(model: Any, parameters: list[Any]) -> None:
        optimizer = torch.optim.SGD(parameters, lr=0.1)
        for seed in range(3):
            model(**make_inputs(model, seed=seed)).logits.square().mean().backward()
            optimizer.step()
            optimizer.zero_grad()

    plain = build_tiny(kind)
    biases = list({id(bias): bias for bias in list_biases(plain).values()}.values())
    for parameter in plain.parameters():
        parameter.requires_grad_(False)
    for bias in biases:
        bias.requires_grad_(True)
    train(plain, biases)
    model = build_tiny(kind)
    bare = run(model)
    with hub.attach(model, hub.Adapter.create("bitfit", model)) as attachment:
        train(model, list(attachment.parameters()))
        assert not torch.allclose(run(model), bare, atol=1e-3)
        torch.testing.assert_close(run(model), run(plain), rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("kind", ["bert", "gpt2"])
def test_merged_equals_attached(kind: str) -> None:
    model = build_tiny(kind)
    before = take_snapshot(model)
    adapter = shake_adapter(hub.Adapter.create("bitfit", model))
    with hub.attach(model, adapter) as attachment:
        expected = run(model)
        attachment.merge()
        torch.testing.assert_close(run(model), expected, rtol=1e-5, atol=1e-5)
    assert take_snapshot(model) == before


def test_new_adapter_changes_nothing() -> None:
    model = build_tiny("bert")
    bare = run(model)
    with hub.attach(model, hub.Adapter.create("bitfit", model)):
        assert torch.equal(run(model), bare)


@pytest.mark.parametrize("kind", ["llama", "t5", "mixtral"])
def test_a_base_without_biases_is_refused(kind: str) -> None:
    with pytest.raises(ConfigError, match="bitfit: this base has no biases to train"):
        hub.Adapter.create("bitfit", build_tiny(kind))


@pytest.mark.parametrize(
    ("options", "text"),
    [
        ({"biases": "some"}, "biases is 'some'; choose from all, few"),
        ({"layers": (7,)}, r"layers is \(7,\), this base has biases in layers 0, 1; choose"),
        ({"layers": ()}, r"layers is \(\)"),
        ({"layers": "1:"}, "layers is '1:'; it must be"),
        ({"bias": "all"}, "bitfit has no option 'bias'"),
    ],
)
def test_wrong_options_are_named(options: dict[str, Any], text: str) -> None:
    with pytest.raises(ConfigError, match=text):
        hub.Adapter.create("bitfit", build_tiny("bert"), **options)


def test_layers_narrow_the_biases() -> None:
    adapter = hub.Adapter.create("bitfit", build_tiny("bert"), layers=[1])
    assert all(".layer.1." in name for name in adapter.tensors)


def test_few_of_a_base_that_has_none_there_is_refused() -> None:
    norm = hub.Site("norm", "ln", "norm", 0, 4, 4, bias=True)
    with pytest.raises(ConfigError, match="no bias at a query or at the start of a feed-forward"):
        BitFit().choose_sites([norm], BitFitConfig(biases="few"))


def test_files_come_back(tmp_path: Path) -> None:
    model = build_tiny("bert")
    adapter = shake_adapter(hub.Adapter.create("bitfit", model, layers=(0,)))
    with hub.attach(model, adapter):
        expected = run(model)
    with hub.attach(model, hub.load(adapter.save(tmp_path / "adapter"))):
        assert torch.equal(run(model), expected)
