"""A quantized base: the Trainer takes it, and its bytes stay."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn
from torch.nn import functional as F
from transformers import AutoModelForCausalLM
from transformers.quantizers import HfQuantizer, register_quantization_config, register_quantizer
from transformers.utils.quantization_config import QuantizationConfigMixin

import hub
from tests.snapshots import hash_tensor
from tests.tiny import build_tiny
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


@pytest.mark.parametrize("method", ["lora", "houlsby"])
def test_quantized_base_is_trained_on_and_keeps_its_bytes(tmp_path: Path, method: str) -> None:
    build_tiny("llama", initializer_range=0.3).save_pretrained(tmp_path)
    model = AutoModelForCausalLM.from_pretrained(tmp_path, quantization_config=RoundingConfig())
    before = {name: hash_tensor(tensor) for name, tensor in model.state_dict().items()}
    assert model.is_quantized
    assert model.model.layers[0].mlp.up_proj.weight.dtype == torch.int8
    adapter = hub.Adapter.create(method, model)
    result = hub.train(
        model,
        adapter,
        ROWS,
        tokenizer=make_tokenizer(),
        template=TEMPLATE,
        max_steps=30,
        learning_rate=2e-2,
    )
    assert result.loss < 0.7 * result.losses[0][1]
    assert {name: hash_tensor(tensor) for name, tensor in model.state_dict().items()} == before
    assert "_hf_peft_config_loaded" not in vars(model)
