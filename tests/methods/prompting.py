"""peft's side of the methods that it calls prompt learning: models, inputs and outputs to compare.

Each of peft's task types that there is a class for, on GPT-2, Llama with grouped-query attention,
T5 and BERT. peft has no way to a masked language model. What it can't do on T5 is in the tests of
each method.
"""

from __future__ import annotations

import warnings
from pathlib import Path
from typing import Any

import peft
import torch
import transformers
from transformers import AutoConfig, set_seed

import hub
from tests.tiny import SMALL, SPECIAL, make_inputs

CLASSES = {
    "CAUSAL_LM": "AutoModelForCausalLM",
    "SEQ_2_SEQ_LM": "AutoModelForSeq2SeqLM",
    "SEQ_CLS": "AutoModelForSequenceClassification",
    "TOKEN_CLS": "AutoModelForTokenClassification",
    "QUESTION_ANS": "AutoModelForQuestionAnswering",
    "FEATURE_EXTRACTION": "AutoModel",
}
CELLS = [
    (kind, task_type)
    for kind in ("gpt2", "llama", "bert")
    for task_type in CLASSES
    if task_type != "SEQ_2_SEQ_LM"
]
CELLS.append(("t5", "SEQ_2_SEQ_LM"))
OUTPUTS = ("logits", "start_logits", "end_logits", "last_hidden_state", "pooler_output")
BY_TOKEN = {"logits": 3, "start_logits": 2, "end_logits": 2, "last_hidden_state": 3}  # dimensions
N = 3


def build(kind: str, task_type: str, **changes: Any) -> Any:
    """A tiny model for one of peft's task types, the same weights every time."""
    set_seed(0)
    if (kind, task_type) == ("bert", "CAUSAL_LM"):
        changes["is_decoder"] = True
    config = AutoConfig.for_model(kind, **{**SPECIAL, **SMALL[kind], **changes})
    return getattr(transformers, CLASSES[task_type]).from_config(config).eval()


def compute(model: Any, **inputs: Any) -> dict[str, torch.Tensor]:
    """What a model gives, by name, in eval mode; without the virtual tokens that peft leaves in."""
    inputs = inputs or make_inputs(model)
    key = "decoder_input_ids" if "decoder_input_ids" in inputs else "input_ids"
    length = inputs[key].shape[1]
    with torch.no_grad():
        outputs = model.eval()(**inputs)
    found = {name: outputs[name] for name in OUTPUTS if outputs.get(name) is not None}
    return {
        name: value[:, -length:] if value.dim() == BY_TOKEN.get(name) else value
        for name, value in found.items()
    }


def shake(model: Any, scale: float = 0.3) -> Any:
    """Give what learns in a peft model values that change every output."""
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.requires_grad:
                parameter.copy_(torch.randn(parameter.shape, generator=generator) * scale)
    return model.eval()


def make_peft(config: Any, kind: str, scale: float = 0.3) -> Any:
    """A tiny model with an adapter of peft's, which has values as if it had been trained."""
    return shake(peft.get_peft_model(build(kind, config.task_type), config), scale)


def load_peft(kind: str, task_type: str, folder: Path, **more: Any) -> Any:
    """peft's model with the adapter in a folder."""
    return peft.PeftModel.from_pretrained(build(kind, task_type), str(folder), **more)


def assert_same(found: dict[str, torch.Tensor], expected: dict[str, torch.Tensor]) -> None:
    """Every output is there, within 1e-5."""
    assert found.keys() == expected.keys()
    for name, value in expected.items():
        torch.testing.assert_close(found[name], value, rtol=0, atol=1e-5)


def check_both_ways(config: Any, kind: str, tmp_path: Path) -> None:
    """We read peft's file to its outputs, and peft reads what we then write to the same."""
    theirs = make_peft(config, kind)
    theirs.save_pretrained(tmp_path / "peft")
    model = build(kind, config.task_type)
    inputs = make_inputs(model)
    expected = compute(theirs, **inputs)
    for name, value in compute(model).items():
        assert not torch.allclose(value, expected[name], rtol=0, atol=1e-3)
    adapter = hub.load(tmp_path / "peft")
    with hub.attach(model, adapter):
        assert_same(compute(model), expected)
    adapter.save(tmp_path / "ours")
    assert_same(compute(load_peft(kind, config.task_type, tmp_path / "ours"), **inputs), expected)


def check_generation(config: Any, kind: str, tmp_path: Path) -> None:
    """We write peft's greedy tokens, from its logits, with a cache and without."""
    theirs = make_peft(config, kind, scale=1.0)
    theirs.save_pretrained(tmp_path)
    model = build(kind, config.task_type)
    with warnings.catch_warnings():  # that peft takes no position ids
        warnings.simplefilter("ignore")
        expected = generate(theirs, model)
    assert not torch.allclose(generate(model, model)[1], expected[1], atol=1e-3)
    with hub.attach(model, hub.load(tmp_path)):
        for cached in (True, False):
            tokens, logits = generate(model, model, use_cache=cached)
            assert torch.equal(tokens, expected[0])
            torch.testing.assert_close(logits, expected[1], rtol=0, atol=1e-5)


def generate(model: Any, base: Any, **more: Any) -> tuple[torch.Tensor, torch.Tensor]:
    """Six tokens after the inputs of `base`, greedily, and their logits."""
    ids = make_inputs(base)["input_ids"]
    options: dict[str, Any] = dict(max_new_tokens=6, min_new_tokens=6, do_sample=False)
    how = {"output_logits": True, "return_dict_in_generate": True}
    done = model.generate(input_ids=ids, **options, **how, **more)
    return done.sequences, torch.stack(done.logits)


def check_left_padding(method: str, kind: str, **options: Any) -> None:
    """A row that is padded on the left is continued as it is alone."""
    model = build(kind, "CAUSAL_LM")
    torch.manual_seed(0)
    adapter = hub.Adapter.create(method, model, tokens=N, **options)
    for tensor in adapter.tensors.values():
        tensor.data.normal_(0, 0.5)
    ids = make_inputs(model)["input_ids"]
    mask = torch.ones_like(ids)
    ids[1, :3], mask[1, :3] = 0, 0
    how: dict[str, Any] = dict(max_new_tokens=6, min_new_tokens=6, do_sample=False)
    with hub.attach(model, adapter):
        together = model.generate(input_ids=ids, attention_mask=mask, **how)
        for row, start in enumerate((0, 3)):
            alone = model.generate(input_ids=ids[row : row + 1, start:], **how)
            assert torch.equal(together[row : row + 1, start:], alone)


def train_on(model: Any, adapter: hub.Adapter) -> set[str]:
    """The names of the tensors that two steps change in an adapter that was loaded."""
    before = {name: tensor.detach().clone() for name, tensor in adapter.tensors.items()}
    inputs = make_inputs(model)
    labels = inputs.get("decoder_input_ids", inputs["input_ids"])
    with hub.attach(model, adapter, trainable=True) as attachment:
        optimizer = torch.optim.SGD(attachment.parameters(), lr=0.5)
        for _ in range(2):
            optimizer.zero_grad()
            model.train()(**inputs, labels=labels).loss.backward()
            optimizer.step()
    return {name for name, old in before.items() if not torch.equal(adapter.tensors[name], old)}
