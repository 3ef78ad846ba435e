"""Adapters on bases that bitsandbytes and torchao quantized."""

from __future__ import annotations

import copy
import logging
from dataclasses import replace
from pathlib import Path
from typing import Any

import bitsandbytes
import pytest
import torch

import hub
from hub.bases import read_weight
from hub.errors import AttachError
from hub.sites import find_sites
from tests.quantized import FORMATS, SIZES, hash_base, load_base, make_quantization, save_base
from tests.snapshots import run, shake_adapter, take_snapshot
from tests.tiny import build_tiny, make_inputs

METHODS = (
    *("bitfit", "diff", "full", "houlsby", "ia3", "llama_adapter", "lora", "parallel", "pfeiffer"),
    *("prefix", "prompt", "ptuning"),
)
UP = "model.layers.1.mlp.up_proj"


@pytest.mark.parametrize(
    ("kind", "form"),
    [
        *[("llama", form) for form in FORMATS],
        *[
            ("gpt2", "nf4"),
            ("gpt2", "int8"),
            ("bert", "int8"),
            ("t5", "nf4"),
            ("t5", "torchao-int8"),
        ],
    ],
)
def test_sites_of_a_quantized_base_are_the_bases_own(tmp_path: Path, kind: str, form: str) -> None:
    base = save_base(tmp_path, kind)
    quantized = load_base(tmp_path, form, kind)
    before = hash_base(quantized)
    # bitsandbytes makes its linear layers of GPT-2's turned ones.
    found = [replace(site, transposed=False) for site in find_sites(quantized)]
    assert found == [replace(site, transposed=False) for site in find_sites(base)]
    assert hash_base(quantized) == before


@pytest.mark.parametrize("form", FORMATS)
@pytest.mark.parametrize("ran", [False, True], ids=["fresh", "ran"])
def test_weight_is_read_as_the_library_itself_does(tmp_path: Path, form: str, ran: bool) -> None:
    save_base(tmp_path)
    model = load_base(tmp_path, form)
    weight: Any = model.get_submodule(UP).weight
    if form == "nf4":
        expected = bitsandbytes.functional.dequantize_4bit(weight.data, weight.quant_state)
    elif form == "int8":
        expected = bitsandbytes.functional.int8_vectorwise_dequant(weight.data, weight.SCB)
    else:
        expected = weight.dequantize()
    if ran:
        run(model)  # bitsandbytes moves scales then, and repacks 4 bit weights on some processors
    read = read_weight(model, UP)
    assert read.shape == (128, 64)
    assert read.is_floating_point()
    tolerance = 2.0**-6 if ran and form == "nf4" else 1e-6
    torch.testing.assert_close(read, expected, rtol=tolerance, atol=1e-6)


@pytest.mark.parametrize(
    ("method", "form"),
    [
        *[(method, "nf4") for method in METHODS],
        *[(method, form) for method in ("lora", "houlsby") for form in ("int8", "torchao-int8")],
    ],
)
def test_method_serves_on_a_quantized_base_and_leaves_it(
    tmp_path: Path, method: str, form: str
) -> None:
    kind = "bert" if method == "bitfit" else "llama"  # which has no biases
    save_base(tmp_path / "base", kind)
    model = load_base(tmp_path / "base", form, kind).eval()
    run(model)
    before, snapshot = hash_base(model), take_snapshot_of(model)
    adapter = shake_adapter(hub.Adapter.create(method, model), scale=0.1)
    with hub.attach(model, adapter, trainable=False):
        expected = run(model)
    assert not torch.allclose(expected, run(model))
    adapter.save(tmp_path / "adapter")
    with hub.attach(model, tmp_path / "adapter"):
        assert torch.equal(run(model), expected)
    assert hash_base(model) == before
    assert take_snapshot_of(model) == snapshot


def take_snapshot_of(model: Any) -> Any:
    """A snapshot without the bytes, which reading them would repack."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(type(model), "state_dict", lambda model: {})
        return take_snapshot(model)


@pytest.mark.parametrize("form", FORMATS)
def test_gradients_do_not_depend_on_whether_the_base_ran_before(tmp_path: Path, form: str) -> None:
    save_base(tmp_path)
    gradients = []
    for ran in (False, True):
        model = load_base(tmp_path, form)
        if ran:
            run(model)
        before = hash_base(model)
        torch.manual_seed(0)
        adapter = hub.Adapter.create("lora", model)
        with hub.attach(model, adapter):
            run(model)  # as an evaluation between two steps does
            model.train()
            inputs = make_inputs(model)
            model(**inputs, labels=inputs["input_ids"]).loss.backward()
        assert hash_base(model) == before
        first = next(name for name in adapter.tensors if "layers.0" in name and "lora_B" in name)
        gradients.append(adapter.tensors[first].grad)
    fresh, later = gradients
    assert fresh is not None and later is not None
    assert fresh.norm() > 0
    assert (fresh - later).norm() < 0.05 * fresh.norm()


@pytest.mark.parametrize(("form", "dora"), [*[(form, False) for form in FORMATS], ("nf4", True)])
def test_merged_equals_attached_and_every_byte_comes_back(
    tmp_path: Path, form: str, dora: bool, caplog: pytest.LogCaptureFixture
) -> None:
    save_base(tmp_path)
    model = load_base(tmp_path, form).eval()
    bare = run(model)
    before, snapshot = hash_base(model), take_snapshot_of(model)
    adapter = shake_adapter(hub.Adapter.create("lora", model, dora=dora), scale=0.03)
    attachment = hub.attach(model, adapter, trainable=False)
    expected = run(model)
    with caplog.at_level(logging.WARNING, "hub"):
        attachment.merge()
    # 2 layers of 2 x 64 x 64 + 2 x 32 x 64 + 3 x 64 x 128 weights, 4 bytes each.
    assert "merged into 14 quantized layers" in caplog.text
    assert "float32 too, 294,912 bytes" in caplog.text
    assert hash_base(model) == before
    # While attached int8 rounds what goes into a layer too, and a repacked 4 bit weight computes in
    # bfloat16; a merged layer does neither.
    slack = {"int8": 0.2, "nf4": 0.1}.get(form, 1e-4)
    assert (run(model) - expected).abs().max() < slack
    assert (expected - bare).abs().max() > 0.2
    with pytest.raises(AttachError, match="q_proj: an adapter is merged beside its quantized"):
        model.save_pretrained(tmp_path / "merged")
    attachment.unmerge()
    assert torch.equal(run(model), expected)
    attachment.merge()
    attachment.detach()
    assert torch.equal(run(model), bare)
    assert hash_base(model) == before
    assert take_snapshot_of(model) == snapshot
    model.save_pretrained(tmp_path / "again")


@pytest.mark.parametrize("form", FORMATS)
@pytest.mark.parametrize(
    "operator",
    [
        lambda a, b: hub.Average(a, b),
        lambda a, b: hub.Average(a, None, weights=[3, -1]),
        lambda a, b: hub.Stack(b, hub.Average(a, hub.Stack(a, b), None)),
    ],
    ids=["other-sites", "bare", "nested"],
)
def test_merged_average_is_that_of_the_weights_and_not_of_their_codes(
    tmp_path: Path, form: str, operator: Any
) -> None:
    save_base(tmp_path)
    model = load_base(tmp_path, form).eval()
    bare, before = run(model), hash_base(model)
    a, b = (
        shake_adapter(hub.Adapter.create("lora", model, targets=[name]), seed=seed, scale=0.1)
        for seed, name in enumerate(("q_proj", "up_proj"))
    )
    attachment = hub.attach(model, operator(a, b), trainable=False)
    expected = run(model)
    attachment.merge()
    slack = {"int8": 0.2, "nf4": 0.1}.get(form, 1e-4)
    assert (run(model) - expected).abs().max() < slack
    assert (expected - bare).abs().max() > 2 * slack
    attachment.detach()
    assert torch.equal(run(model), bare)
    assert hash_base(model) == before


@pytest.mark.parametrize("dora", [False, True])
@pytest.mark.parametrize("form", ["nf4", "int8"])
def test_lora_and_dora_are_those_of_the_dequantized_weights(
    tmp_path: Path, form: str, dora: bool
) -> None:
    plain = save_base(tmp_path)
    model = load_base(tmp_path, form).train()
    for path, module in plain.named_modules():
        if path.endswith("_proj"):
            module.weight.data = read_weight(model, path)
    adapter = shake_adapter(hub.Adapter.create("lora", model, dora=dora), scale=0.1)
    # In training mode int8 does not round what goes into a layer, on a CPU.
    inputs = make_inputs(model)
    with hub.attach(model, adapter, trainable=True):
        found = model(**inputs).logits
    with hub.attach(plain, adapter, trainable=True, allow_other_base=True):
        torch.testing.assert_close(found, plain(**inputs).logits, rtol=1e-3, atol=2e-3)


def test_copy_of_a_merged_model_is_its_own(tmp_path: Path) -> None:
    save_base(tmp_path)
    model = load_base(tmp_path, "nf4").eval()
    bare = run(model)
    attachment = hub.attach(model, shake_adapter(hub.Adapter.create("lora", model), scale=0.03))
    attachment.merge()
    expected = run(model)
    twin = copy.deepcopy(model)
    attachment.detach()
    assert torch.equal(run(twin), expected)
    inner = hub.Attachment.of(twin)
    assert inner is not None
    inner.detach()
    assert torch.equal(run(twin), bare)


@pytest.mark.parametrize("form", FORMATS)
def test_trained_head_of_a_quantized_base_is_not_quantized(tmp_path: Path, form: str) -> None:
    classifier = build_tiny("bert", "classification", num_labels=32, **SIZES["bert"])
    classifier.save_pretrained(tmp_path)
    model = type(classifier).from_pretrained(tmp_path, quantization_config=make_quantization(form))
    model.eval()
    adapter = hub.Adapter.create("lora", model)
    assert adapter.tensors["classifier.weight"].shape == (32, 64)
    with torch.no_grad():
        adapter.tensors["classifier.bias"].add_(5)
    bare = run(model)
    with hub.attach(model, adapter, trainable=False) as attachment:
        torch.testing.assert_close(run(model), bare + 5, rtol=1e-2, atol=1e-1)
        attachment.merge()
        torch.testing.assert_close(run(model), bare + 5, rtol=1e-2, atol=1e-1)
    assert torch.equal(run(model), bare)


def test_summary_counts_weights_and_not_bytes(tmp_path: Path) -> None:
    plain = save_base(tmp_path)
    model = load_base(tmp_path, "nf4")
    with hub.attach(model, hub.Adapter.create("lora", model)) as attachment:
        assert attachment.summary().base == plain.num_parameters()


def test_method_that_is_no_change_of_weights_is_not_merged(tmp_path: Path) -> None:
    save_base(tmp_path)
    model = load_base(tmp_path, "nf4")
    with (
        hub.attach(model, hub.Adapter.create("houlsby", model)) as attachment,
        pytest.raises(AttachError, match="houlsby is no change of weights"),
    ):
        attachment.merge()
