"""The batch of a `Parallel`: repeated for every kind of input, or refused."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor
from transformers import AutoConfig, AutoModelForImageClassification, AutoModelForSpeechSeq2Seq

import hub
from hub.attachment.repeating import repeat
from hub.errors import AttachError
from hub.sites import find_sites
from tests.composition.batches import CLOSE, measure
from tests.snapshots import shake_adapter
from tests.tiny import build_tiny

IDS = torch.randint(5, 90, (2, 5), generator=torch.Generator().manual_seed(3))


def make(model: Any, seed: int, method: str = "lora", **options: Any) -> hub.Adapter:
    adapter = hub.Adapter.create(method, model, head=False, **options)
    shaken: hub.Adapter = shake_adapter(adapter, seed=seed, scale=0.2)
    return shaken


def run(model: Any, **inputs: Any) -> Tensor:
    with torch.no_grad():
        logits: Tensor = model(**inputs).logits
    return logits


def require_each(model: Any, parts: list[hub.Adapter], **inputs: Any) -> None:
    """All rows with one part, then all with the next."""
    expected = []
    for part in parts:
        with hub.attach(model, part, trainable=False):
            expected.append(run(model, **inputs))
    with hub.attach(model, hub.Parallel(*parts), trainable=False):
        assert measure(run(model, **inputs), torch.cat(expected)) < CLOSE


def test_pictures_are_repeated() -> None:
    config = AutoConfig.for_model(
        "vit", hidden_size=32, num_hidden_layers=2, num_attention_heads=4, intermediate_size=64,
        image_size=16, patch_size=4, num_labels=3,
    )  # fmt: skip
    torch.manual_seed(0)
    model = AutoModelForImageClassification.from_config(config).eval()
    pictures = torch.randn(4, 3, 16, 16)
    find_sites(model, example={"pixel_values": pictures[:1]})
    require_each(model, [make(model, seed) for seed in (1, 2)], pixel_values=pictures)


def test_speech_is_repeated() -> None:
    config = AutoConfig.for_model(
        "whisper", d_model=32, encoder_layers=2, decoder_layers=2, encoder_attention_heads=4,
        decoder_attention_heads=4, encoder_ffn_dim=64, decoder_ffn_dim=64, vocab_size=99,
        max_source_positions=20, max_target_positions=20, num_mel_bins=8, pad_token_id=0,
        bos_token_id=1, eos_token_id=2, decoder_start_token_id=1,
    )  # fmt: skip
    torch.manual_seed(0)
    model = AutoModelForSpeechSeq2Seq.from_config(config).eval()
    sound, words = torch.randn(2, 8, 40), torch.randint(3, 99, (2, 5))
    find_sites(model, example={"input_features": sound[:1], "decoder_input_ids": words[:1]})
    parts = [make(model, seed, targets="attention") for seed in (1, 2)]
    require_each(model, parts, input_features=sound, decoder_input_ids=words)
    require_each(model, parts, input_features=sound, labels=words)
    options = dict(min_new_tokens=3, max_new_tokens=3, do_sample=False)
    alone = []
    for part in parts:
        with hub.attach(model, part, trainable=False):
            alone.append(model.generate(input_features=sound, **options))
    with hub.attach(model, hub.Parallel(*parts), trainable=False):
        assert torch.equal(model.generate(input_features=sound, **options), torch.cat(alone))
        assert torch.equal(model.generate(sound, **options), torch.cat(alone))


def test_what_an_encoder_made_is_repeated_too() -> None:
    model = build_tiny("t5")
    with torch.no_grad():
        made = model.get_encoder()(input_ids=IDS)
    parts = [make(model, seed, targets=r"decoder\..*SelfAttention\.[qv]") for seed in (1, 2)]
    for encoded in (made, (made[0],)):
        require_each(model, parts, encoder_outputs=encoded, decoder_input_ids=IDS)


@pytest.mark.parametrize("method", ["lora", "ia3", "bitfit"])
def test_a_part_of_the_model_by_itself_is_refused(method: str) -> None:
    model = build_tiny("t5" if method != "bitfit" else "gpt2")
    parts = [make(model, 1, method), make(model, 2, "lora")]
    with hub.attach(model, hub.Parallel(*parts), trainable=False):
        part = model.get_encoder() if method != "bitfit" else model.transformer
        with pytest.raises(AttachError, match="outside of a forward of the whole model"):
            part(input_ids=IDS)
        inputs = {"decoder_input_ids": IDS} if method != "bitfit" else {}
        assert len(run(model, input_ids=IDS, **inputs)) == 4
        with pytest.raises(AttachError, match="outside of a forward of the whole model"):
            part(input_ids=IDS)


def test_a_forward_that_fails_is_over() -> None:
    model = build_tiny("gpt2")
    with hub.attach(model, hub.Parallel(make(model, 1), make(model, 2)), trainable=False):
        with pytest.raises(IndexError):
            model(input_ids=IDS + 10**6)
        with pytest.raises(AttachError, match="outside of a forward of the whole model"):
            model.transformer(input_ids=IDS)


def test_nothing_to_repeat_is_an_error() -> None:
    model = build_tiny("gpt2")
    with hub.attach(model, hub.Parallel(make(model, 1), make(model, 2)), trainable=False):
        with pytest.raises(AttachError, match="no prompts"):
            model.generate(max_new_tokens=2)
        with pytest.raises(AttachError, match="given nothing with a row"):
            model()


def test_only_rows_are_repeated() -> None:
    model = build_tiny("llama")
    parts = [make(model, seed) for seed in (1, 2)]
    kept = torch.tensor([0, 4])  # as many as there are rows
    require_each(model, parts, input_ids=IDS, logits_to_keep=kept)
    positions = torch.arange(5).expand(2, -1)
    require_each(model, parts, input_ids=IDS, position_ids=positions)
    three = torch.arange(30).view(3, 2, 5)
    assert torch.equal(repeat({"position_ids": three}, 2, 2)["position_ids"], three.repeat(1, 2, 1))
