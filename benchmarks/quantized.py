"""What a quantized base holds and costs: bytes a weight, LoRA and DoRA on it, merging.

    python benchmarks/quantized.py [--rounds 12] [--threads 2]

A llama of hidden 512 and 4 layers, written to a folder and loaded from there in each form. Bytes
are those of the linear layers that are quantized, with their scales; the error is the distance of
the quantized weights from the weights, as a share of the weights' own size. Lost is what would be
of a LoRA change of rank 8 and 1% of the weight's size, were the sum quantized again. A step is a
forward, backward and AdamW step on 8 x 64 tokens with adapters on all linear layers, a token one
forward of a token by itself; medians, the forms in turn.
"""

from __future__ import annotations

import argparse
import gc
import statistics
import tempfile
import time
import warnings
from collections.abc import Callable
from typing import Any

import torch
from bitsandbytes import functional
from torch.utils._python_dispatch import is_traceable_wrapper_subclass
from torchao.quantization import Int8WeightOnlyConfig
from transformers import BitsAndBytesConfig, LlamaConfig, LlamaForCausalLM, TorchAoConfig, set_seed
from transformers.utils import logging

import hub
from hub.bases import read_weight

FORMS: dict[str, Callable[[], Any]] = {
    "float32": lambda: None,
    "int8": lambda: BitsAndBytesConfig(load_in_8bit=True),
    "nf4": lambda: BitsAndBytesConfig(load_in_4bit=True, bnb_4bit_quant_type="nf4"),
    "nf4, double": lambda: BitsAndBytesConfig(
        load_in_4bit=True, bnb_4bit_quant_type="nf4", bnb_4bit_use_double_quant=True
    ),
    "torchao int8": lambda: TorchAoConfig(Int8WeightOnlyConfig()),
}


def save_base(folder: str) -> LlamaForCausalLM:
    """The base, in float32."""
    set_seed(0)
    config = LlamaConfig(
        hidden_size=512,
        intermediate_size=1408,
        num_hidden_layers=4,
        num_attention_heads=8,
        num_key_value_heads=4,
        vocab_size=2048,
        max_position_embeddings=512,
    )
    model = LlamaForCausalLM(config)
    model.save_pretrained(folder)
    return model


def count_bytes(model: Any, plain: Any) -> tuple[float, float]:
    """Bytes for each weight of the quantized layers, and the error of those."""
    size, weights, squares, total = 0, 0, 0.0, 0.0
    for path, module in model.named_modules():
        if not path.endswith("_proj"):
            continue
        weight: Any = module.weight
        parts = [weight.data]
        if is_traceable_wrapper_subclass(weight):
            parts = [getattr(weight, name) for name in weight.__tensor_flatten__()[0]]
        elif getattr(weight, "quant_state", None) is not None:
            state = weight.quant_state
            parts.append(state.absmax)
            parts += [state.state2.absmax] if state.nested else []
        elif getattr(weight, "SCB", None) is not None:
            parts.append(weight.SCB)
        size += sum(part.nbytes for part in parts)
        before = read_weight(plain, path)
        weights += before.numel()
        squares += float((read_weight(model, path).float() - before).pow(2).sum())
        total += float(before.pow(2).sum())
    return size / weights, (squares / total) ** 0.5


def measure_loss(form: str) -> float:
    """How far a change of a weight is from what is left of it, quantized again: its share."""
    set_seed(0)
    linear = torch.nn.Linear(512, 512, bias=False)
    torch.nn.init.normal_(linear.weight, std=0.02)
    before = requantize(linear.weight.detach(), form)
    change = torch.randn(512, 8) @ torch.randn(8, 512)
    change *= 0.01 * before.norm() / change.norm()
    return float((requantize(before + change, form) - before - change).norm() / change.norm())


def requantize(weight: torch.Tensor, form: str) -> torch.Tensor:
    """A weight, quantized by bitsandbytes and read back."""
    if form == "int8":
        levels, scales, _ = functional.int8_vectorwise_quant(weight.half())
        return functional.int8_vectorwise_dequant(levels, scales)
    double = form == "nf4, double"
    return functional.dequantize_4bit(
        *functional.quantize_4bit(weight, quant_type="nf4", compress_statistics=double)
    )


def step(model: Any, optimizer: torch.optim.Optimizer) -> None:
    """One training step on 8 x 64."""
    ids = torch.randint(3, 2048, (8, 64))
    model.train()
    model(input_ids=ids, labels=ids, use_cache=False).loss.backward()
    optimizer.step()
    optimizer.zero_grad()


def take_turns(work: dict[str, Callable[[], Any]], rounds: int) -> dict[str, float]:
    """Median seconds of each, run in turn."""
    times: dict[str, list[float]] = {name: [] for name in work}
    for turn in range(rounds + 2):
        for name, act in work.items():
            start = time.perf_counter()
            act()
            if turn >= 2:
                times[name].append(time.perf_counter() - start)
    return {name: statistics.median(values) for name, values in times.items()}


def main() -> None:
    """Print the tables."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=12)
    parser.add_argument("--threads", type=int, default=2)
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    warnings.simplefilter("ignore")
    logging.set_verbosity_error()
    logging.disable_progress_bar()
    with tempfile.TemporaryDirectory() as folder:
        plain = save_base(folder)

        def load(form: str) -> Any:
            return LlamaForCausalLM.from_pretrained(folder, quantization_config=FORMS[form]())

        print(f"{'form':<14}{'bytes a weight':>16}{'error':>9}{'lost':>9}")
        for form in FORMS:
            size, error = count_bytes(load(form), plain)
            lost = f"{measure_loss(form):.0%}" if form.startswith(("int8", "nf4")) else ""
            print(f"{form:<14}{size:>16.3f}{error:>9.2%}{lost:>9}")

        steps: dict[str, Callable[[], Any]] = {}
        for form in FORMS:
            for dora in (False, True):
                model = load(form)
                attachment = hub.attach(model, hub.Adapter.create("lora", model, dora=dora))
                optimizer = torch.optim.AdamW(list(attachment.parameters()), lr=1e-4)
                name = f"{form}, {'dora' if dora else 'lora'}"
                steps[name] = lambda m=model, o=optimizer: step(m, o)  # type: ignore[misc]
        print(f"\n{'a step':<24}{'s':>8}")
        for name, seconds in take_turns(steps, options.rounds).items():
            print(f"{name:<24}{seconds:>8.3f}")
        steps.clear()
        gc.collect()

        token = torch.tensor([[40]])
        tokens: dict[str, Callable[[], Any]] = {}
        for form in FORMS:
            for merged in (False, True):
                model = load(form).eval()
                adapter = hub.Adapter.create("lora", model)
                attachment = hub.attach(model, adapter, trainable=False)
                if merged:
                    attachment.merge()
                name = f"{form}, {'merged' if merged else 'attached'}"
                tokens[name] = torch.no_grad()(lambda m=model: m(token, use_cache=False))
        print(f"\n{'a token':<24}{'ms':>8}")
        for name, seconds in take_turns(tokens, 10 * options.rounds).items():
            print(f"{name:<24}{1000 * seconds:>8.2f}")


if __name__ == "__main__":
    main()
