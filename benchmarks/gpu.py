"""What adapters cost on a GPU: ours beside the bare model, and peft's beside both.

    python benchmarks/gpu.py [--device cuda] [--hidden 2048] [--layers 16] [--dtype bfloat16]

Needs torch, transformers and peft, and no install of this project: the plugins of the tree that the
script lies in are used. Everything runs in turn in one process, and the medians' ratios to the bare
model's are printed. First what must hold: that ours gives what peft gives, that rows of a batch
give what they give alone, and that detaching leaves every weight as it was. A small model on a CPU
(``--device cpu --hidden 64 --layers 2 --rounds 2``) shows that the script works.
"""

from __future__ import annotations

import argparse
import sys
import tempfile
import tomllib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import peft
import torch
from measuring import measure
from transformers import DynamicCache, LlamaConfig, LlamaForCausalLM, set_seed

ROOT = Path(__file__).parents[1]
TARGETS = ["q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"]
ROWS = 32
Step = Callable[[], None]


def find_plugins(folder: str) -> None:
    """Let Python find the project and its plugins in the tree, as if it were installed."""
    sys.path[:0] = [str(ROOT), str(ROOT / "plugins"), str(ROOT / "registry"), folder]
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    info = Path(folder, "pefthub-0.dist-info")
    info.mkdir()
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: pefthub\nVersion: 0\n")
    lines = [f"{name} = {module}\n" for name, module in project["entry-points"]["hub"].items()]
    (info / "entry_points.txt").write_text("[hub]\n" + "".join(lines))


def build_base(options: argparse.Namespace) -> Any:
    """The same weights each time."""
    set_seed(0)
    config = LlamaConfig(
        hidden_size=options.hidden,
        intermediate_size=options.hidden * 4,
        num_hidden_layers=options.layers,
        num_attention_heads=max(options.hidden // 128, 1),
        num_key_value_heads=max(options.hidden // 128, 1),
        vocab_size=4096,
    )
    model = LlamaForCausalLM(config).to(options.device, getattr(torch, options.dtype))
    return model.eval()


def decode(model: Any, rows: int, options: argparse.Namespace, **more: Any) -> Step:
    """A token for each of `rows` after 128 in the cache, which is cut back each time."""
    cache = DynamicCache(config=model.config)
    ids = torch.arange(3, 131, device=options.device).repeat(rows, 1)
    token = ids[:, :1]
    with torch.inference_mode():
        model(input_ids=ids, past_key_values=cache, use_cache=True, **more)

    def step() -> None:
        with torch.inference_mode():
            model(input_ids=token, past_key_values=cache, use_cache=True, **more)
        cache.crop(-1)
        wait(options)

    return step


def train(model: Any, options: argparse.Namespace) -> Step:
    """A forward and backward of 8 x 256 tokens."""
    ids = torch.randint(3, 4096, (8, 256), device=options.device)
    model.train()
    if not any(p.requires_grad for p in model.parameters()):  # the floor: activations alone
        embeddings = model.get_input_embeddings()
        embeddings.register_forward_hook(lambda *given: given[2].requires_grad_())

    def step() -> None:
        model(input_ids=ids, labels=ids, use_cache=False).loss.backward()
        wait(options)

    return step


def wait(options: argparse.Namespace) -> None:
    """Until the device is done."""
    if options.device != "cpu":
        torch.cuda.synchronize()


def draw(model: Any, seed: int) -> Any:
    """An adapter with values that matter."""
    import hub

    adapter = hub.Adapter.create("lora", model, r=8, alpha=16, targets=TARGETS)
    generator = torch.Generator().manual_seed(seed)
    for tensor in adapter.tensors.values():
        tensor.data = torch.randn(tensor.shape, generator=generator) * 0.02
    return adapter


def wrap(model: Any, adapters: list[Any]) -> Any:
    """peft's model with the same adapters."""
    config = peft.LoraConfig(r=8, lora_alpha=16, target_modules=TARGETS, task_type="CAUSAL_LM")
    wrapped = peft.get_peft_model(model, config, adapter_name="0")
    for number, adapter in enumerate(adapters):
        if number:
            wrapped.add_adapter(str(number), config)
        tensors = {f"base_model.model.{name}": tensor for name, tensor in adapter.tensors.items()}
        peft.set_peft_model_state_dict(wrapped, tensors, adapter_name=str(number))
    return wrapped.eval()


def check(options: argparse.Namespace) -> None:
    """What must hold on any device, in float32."""
    import hub

    options = argparse.Namespace(**{**vars(options), "dtype": "float32"})
    model = build_base(options)
    kept = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    adapters = [draw(model, seed) for seed in range(3)]
    ids = torch.randint(3, 4096, (3, 16), device=options.device)
    with torch.no_grad():
        theirs = wrap(build_base(options), adapters[:1])(input_ids=ids).logits
        alone = []
        for adapter in adapters:
            with hub.attach(model, adapter, trainable=False):
                alone.append(model(input_ids=ids).logits)
        rows = [0, 1, 2]
        with hub.attach(model, hub.BatchSplit(*adapters), rows=rows, trainable=False):
            mixed = model(input_ids=ids).logits
    torch.testing.assert_close(alone[0], theirs, rtol=1e-3, atol=1e-3)
    expected = torch.stack([alone[row][row] for row in rows])
    torch.testing.assert_close(mixed, expected, rtol=1e-3, atol=1e-3)
    assert all(torch.equal(tensor, kept[name]) for name, tensor in model.state_dict().items())
    print("ours gives what peft gives, rows what they give alone, and detaching leaves no trace")


def main() -> None:
    """Check, measure, print."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--device", default="cuda")
    parser.add_argument("--dtype", default="bfloat16")
    parser.add_argument("--hidden", type=int, default=2048)
    parser.add_argument("--layers", type=int, default=16)
    parser.add_argument("--rounds", type=int, default=20)
    options = parser.parse_args()
    import hub

    name = "a CPU" if options.device == "cpu" else torch.cuda.get_device_name()
    print(f"{name}, torch {torch.__version__}, hidden {options.hidden}, {options.layers} layers")
    check(options)

    bare, ours, theirs = (build_base(options) for _ in range(3))
    adapters = [draw(ours, seed) for seed in range(ROWS)]
    theirs = wrap(theirs, adapters)

    def show(label: str, steps: dict[str, Step], floor: str) -> None:
        found = measure(steps, options.rounds)
        ratios = (f"{n} {t / found[floor]:.3f}" for n, t in found.items() if n != floor)
        print(f"{label:34} over {floor}: {', '.join(ratios)}", flush=True)

    with hub.attach(ours, adapters[0], trainable=False):
        steps = {
            "bare": decode(bare, 1, options),
            "ours": decode(ours, 1, options),
            "peft": decode(theirs, 1, options),
        }
        show("decoding one row", steps, "bare")
    rows = list(range(ROWS))
    with hub.attach(ours, hub.BatchSplit(*adapters), rows=rows, trainable=False) as attachment:
        names = [str(row) for row in rows]
        steps = {
            "bare": decode(bare, ROWS, options),
            "ours": decode(ours, ROWS, options),
            "peft": decode(theirs, ROWS, options, adapter_names=names),
        }
        show(f"decoding {ROWS} rows with {ROWS} LoRA", steps, "bare")
        turn = iter(range(1 << 30))
        steps = {
            "bare forward": decode(bare, 1, options),
            "route": lambda: attachment.route(next(turn) % ROWS),
        }
        show("switching among them", steps, "bare forward")
    for parameter in bare.parameters():
        parameter.requires_grad_(False)
    learning = peft.get_peft_model(build_base(options), theirs.peft_config["0"])
    with hub.attach(ours, adapters[0], trainable=True):
        steps = {
            "floor": train(bare, options),
            "ours": train(ours, options),
            "peft": train(learning, options),
        }
        show("a training step", steps, "floor")
    if options.device != "cpu":
        print(f"most memory: {torch.cuda.max_memory_allocated() / 2**30:.1f} GiB")


if __name__ == "__main__":
    with tempfile.TemporaryDirectory() as scratch:
        find_plugins(scratch)
        main()
