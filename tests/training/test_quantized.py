"""A quantized base: adapters learn on it, and its bytes stay."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn
from torch.nn import functional as F
from transformers import AutoModelForCausalLM, Trainer, TrainingArguments
from transformers.quantizers import HfQuantizer, register_quantization_config, register_quantizer
from transformers.utils.quantization_config import QuantizationConfigMixin

import hub
from hub.errors import AttachError, PackageMissing, TrainError
from hub.training import options
from tests.quantized import hash_base, load_base, save_base
from tests.snapshots import hash_tensor, run
from tests.tiny import build_tiny, make_inputs
from tests.training.tasks import ROWS, TEMPLATE, make_tokenizer


@register_quantization_config("rounding")
class RoundingConfig(QuantizationConfigMixin):
    """Weights rounded to 8 bits."""

    def __init__(self, **_: Any) -> None:
        self.quant_method = "rounding"


class RoundedLinear(nn.Linear):
    """A linear layer whose weight is whole numbers and a scale for each row."""

    def __init__(self, linear: nn.Linear) -> None:
        super().__init__(linear.in_features, linear.out_features, bias=False, device="meta")
        scale = linear.weight.detach().abs().amax(1, keepdim=True) / 127
        rounded = (linear.weight.detach() / scale).round().to(torch.int8)
        self.weight = nn.Parameter(rounded, requires_grad=False)
        self.register_buffer("scale", scale)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return F.linear(x, self.weight.to(x.dtype) * self.scale.to(x.dtype))


@register_quantizer("rounding")
class RoundingQuantizer(HfQuantizer):
    """transformers' own way to bring a quantization from outside."""

    requires_calibration = False
    is_trainable = True

    def _process_model_after_weight_loading(self, model: Any, **_: Any) -> Any:
        for name, module in list(model.named_modules()):
            if isinstance(module, nn.Linear) and name != "lm_head":
                parent, _, child = name.rpartition(".")
                setattr(model.get_submodule(parent), child, RoundedLinear(module))
        return model

    def is_serializable(self, *_: Any, **__: Any) -> bool:
        return False


def train(model: Any, adapter: hub.Adapter, **changes: Any) -> Any:
    settings: dict[str, Any] = {"max_steps": 30, "learning_rate": 2e-2}
    return hub.train(
        model,
        adapter,
        ROWS,
        tokenizer=make_tokenizer(),
        template=TEMPLATE,
        **{**settings, **changes},
    )


@pytest.mark.parametrize("method", ["lora", "houlsby"])
def test_quantized_base_is_trained_on_and_keeps_its_bytes(tmp_path: Path, method: str) -> None:
    build_tiny("llama", initializer_range=0.3).save_pretrained(tmp_path)
    model = AutoModelForCausalLM.from_pretrained(tmp_path, quantization_config=RoundingConfig())
    before = {name: hash_tensor(tensor) for name, tensor in model.state_dict().items()}
    assert model.is_quantized
    assert model.model.layers[0].mlp.up_proj.weight.dtype == torch.int8
    adapter = hub.Adapter.create(method, model)
    result = train(model, adapter)
    assert result.loss < 0.7 * result.losses[0][1]
    assert {name: hash_tensor(tensor) for name, tensor in model.state_dict().items()} == before
    assert "_hf_peft_config_loaded" not in vars(model)


@pytest.mark.parametrize(
    ("method", "form"),
    [
        *[(method, "nf4") for method in ("lora", "houlsby", "ia3", "prefix")],
        *[("lora", "int8"), ("houlsby", "int8"), ("lora", "torchao-int8")],
    ],
)
def test_method_learns_on_a_base_of_real_quantizers(tmp_path: Path, method: str, form: str) -> None:
    save_base(tmp_path / "base", initializer_range=0.3)
    model = load_base(tmp_path / "base", form)
    before = hash_base(model)
    torch.manual_seed(0)
    adapter = hub.Adapter.create(method, model)
    # Measuring between the steps must not change the gradients of those that follow.
    result = train(
        model, adapter, max_steps=16, eval_dataset=ROWS[:2], save_steps=8, learning_rate=5e-2
    )
    assert result.losses[-1][1] < 0.9 * result.losses[0][1]
    assert hash_base(model) == before
    with hub.attach(model.eval(), adapter, trainable=False):
        expected = run(model)
    again = load_base(tmp_path / "base", form).eval()
    with hub.attach(again, hub.load(adapter.save(tmp_path / "adapter"))):
        assert torch.equal(run(again), expected)


@pytest.mark.parametrize("form", ["nf4", "int8"])
def test_plain_trainer_takes_a_quantized_base_with_an_adapter(tmp_path: Path, form: str) -> None:
    save_base(tmp_path / "base", initializer_range=0.3)
    model = load_base(tmp_path / "base", form)
    before, said = hash_base(model), set(vars(model))
    ids = make_inputs(model, rows=8)["input_ids"]
    arguments = TrainingArguments(
        output_dir=str(tmp_path / "run"),
        max_steps=20,
        learning_rate=2e-2,
        logging_steps=1,
        save_strategy="no",
        report_to="none",
        use_cpu=True,
        dataloader_pin_memory=False,
    )
    rows = [{"input_ids": row, "labels": row} for row in ids]
    with hub.attach(model, hub.Adapter.create("lora", model)):
        trainer = Trainer(model, arguments, train_dataset=rows)
        trainer.train()
        losses = [entry["loss"] for entry in trainer.state.log_history if "loss" in entry]
        with pytest.raises(AttachError, match="give a Trainer of your own save_strategy='no'"):
            trainer.save_model()
    assert losses[-1] < 0.7 * losses[0]
    assert hash_base(model) == before
    assert set(vars(model)) - said == {"_is_accelerate_prepared"}  # the Trainer's own mark


@pytest.mark.parametrize("form", ["nf4", "int8"])
@pytest.mark.parametrize("reentrant", [False, True])
def test_checkpointed_gradients_are_the_same_on_a_quantized_base(
    tmp_path: Path, form: str, reentrant: bool
) -> None:
    save_base(tmp_path)
    model = load_base(tmp_path, form).train()
    adapter = hub.Adapter.create("lora", model)
    inputs = make_inputs(model)
    gradients = []
    with hub.attach(model, adapter) as attachment:
        for checkpointed in (False, True):
            if checkpointed:
                model.activation_checkpointing_enable({"use_reentrant": reentrant})
            model.zero_grad()
            model(**inputs, labels=inputs["input_ids"], use_cache=False).loss.backward()
            gradients.append(
                [p.grad.clone() for p in attachment.parameters() if p.grad is not None]
            )
    plain, checkpointed_ones = gradients
    assert len(plain) == len(adapter.tensors)
    for expected, found in zip(plain, checkpointed_ones, strict=True):
        torch.testing.assert_close(found, expected)
    assert any(gradient.abs().max() > 0 for gradient in plain)


def test_optimizer_of_bitsandbytes_learns(tmp_path: Path) -> None:
    model = save_base(tmp_path, initializer_range=0.3)
    # Smaller tensors than 4096 values it keeps in 32 bits.
    adapter = hub.Adapter.create("lora", model, r=64, targets="feedforward")
    result = train(model, adapter, optimizer="adamw_8bit")
    assert result.loss < 0.7 * result.losses[0][1]
    assert adapter.lineage["training"]["options"]["optimizer"] == "adamw_8bit"


def test_optimizer_that_cannot_be_is_refused_before_anything_runs(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    model = build_tiny("llama")
    adapter = hub.Adapter.create("lora", model)
    with pytest.raises(TrainError, match="the model is on the cpu; take adamw_8bit"):
        train(model, adapter, optimizer="paged_adamw_8bit")
    with pytest.raises(TrainError, match="'adamw'; it is one of adamw_torch,"):
        train(model, adapter, optimizer="adamw")
    monkeypatch.setattr(options, "find_spec", lambda name: None)
    with pytest.raises(PackageMissing, match=r"pip install 'pefthub\[quantized\]'"):
        train(model, adapter, optimizer="adamw_8bit")
