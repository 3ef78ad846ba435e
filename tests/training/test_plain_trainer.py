"""Whoever brings a loop of their own gets the same promises."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from transformers import Trainer, TrainingArguments

import hub
from tests.snapshots import hash_tensor
from tests.tiny import build_tiny, make_inputs


@pytest.mark.parametrize("method", ["lora", "houlsby"])
def test_trainer_on_an_attached_model_changes_the_adapter_alone(
    tmp_path: Path, method: str
) -> None:
    model = build_tiny("llama", initializer_range=0.3)
    before = {name: hash_tensor(p) for name, p in model.named_parameters()}
    adapter = hub.Adapter.create(method, model)
    start = {name: tensor.detach().clone() for name, tensor in adapter.tensors.items()}
    inputs = make_inputs(model, rows=8)
    rows = [
        {"input_ids": ids, "attention_mask": torch.ones_like(ids), "labels": ids}
        for ids in inputs["input_ids"]
    ]
    arguments = TrainingArguments(
        output_dir=str(tmp_path),
        max_steps=30,
        learning_rate=2e-2,
        logging_steps=1,
        save_strategy="no",
        report_to="none",
        use_cpu=True,
        dataloader_pin_memory=False,
    )
    with hub.attach(model, adapter):
        trainer = Trainer(model, arguments, train_dataset=rows)
        trainer.train()
        losses = [entry["loss"] for entry in trainer.state.log_history if "loss" in entry]
    assert losses[-1] < 0.7 * losses[0]
    assert {name: hash_tensor(p) for name, p in model.named_parameters()} == before
    assert all(not torch.equal(adapter.tensors[name], start[name]) for name in start)
