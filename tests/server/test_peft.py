"""peft against the server, in a process of its own since it reads HF_ENDPOINT when imported."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

from hub.server import HubServer

SCRIPT = """
import torch
from peft import LoraConfig, PeftModel, get_peft_model
from transformers import LlamaConfig, LlamaForCausalLM

def make_base():
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=32, hidden_size=16, intermediate_size=32, num_hidden_layers=1,
        num_attention_heads=2, num_key_value_heads=1,
    )
    return LlamaForCausalLM(config).eval()

tokens = torch.arange(8).reshape(1, 8)
adapted = get_peft_model(make_base(), LoraConfig(r=2, init_lora_weights=False)).eval()
with torch.no_grad():
    expected = adapted(tokens).logits
    bare = make_base()(tokens).logits
adapted.push_to_hub("ana/peft")
loaded = PeftModel.from_pretrained(make_base(), "ana/peft").eval()
with torch.no_grad():
    assert torch.equal(loaded(tokens).logits, expected)
    assert not torch.equal(bare, expected)
print("equal")
"""


def test_peft_pushes_and_loads_its_adapter(served: Path, tmp_path: Path) -> None:
    with HubServer(served) as server:
        done = subprocess.run(
            [sys.executable, "-c", SCRIPT],
            env={
                **os.environ,
                "HF_ENDPOINT": server.url,
                "HF_HOME": str(tmp_path / "home"),
                "HF_TOKEN": "any",
                "HF_HUB_OFFLINE": "0",
            },
            capture_output=True,
            text=True,
            timeout=120,
        )
    assert done.stdout.split() == ["equal"], done.stderr
