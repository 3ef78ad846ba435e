"""The frozen results of the `adapters` library, and our adapters with the same values.

make_bottlenecks.py and make_fusion.py make the files and say what is in them.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import torch
from safetensors import safe_open

import hub
from hub.sites import find_sites
from tests.references.drawn import build_model
from tests.snapshots import run

ROLES = {"attention": "attention", "cross-attention": "cross", "feedforward": "feedforward"}


class Frozen:
    """The file of one method; its adapters a and b are of that method, where no other is named."""

    def __init__(self, name: str, method: str | None = None) -> None:
        self.method = method or name
        with safe_open(Path(__file__).with_name(f"{name}.safetensors"), "pt") as file:
            self.cases: dict[str, Any] = json.loads(file.metadata()["reference"])["cases"]
            self.tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118

    def read(self, case: str) -> dict[str, torch.Tensor]:
        """The tensors of one case."""
        start = f"{case}/"
        return {n.removeprefix(start): t for n, t in self.tensors.items() if n.startswith(start)}

    def build(self, case: str) -> Any:
        """The base of one case."""
        return build_model(self.cases[case])

    def make_adapter(self, model: Any, case: str, which: str, **options: Any) -> Any:
        """Our adapter with the values of the reference's; all of them are used."""
        tensors = self.read(case)
        down = next(t for n, t in tensors.items() if n.startswith(which) and "down.weight" in n)
        adapter = hub.Adapter.create(self.method, model, size=down.shape[0], **options)
        # The reference calls a model's only stack the encoder or the decoder.
        decoders = any(name.startswith("a/decoder") for name in tensors)
        filled = set()
        for site in find_sites(model):
            if site.kind != "branch" or f"{site.path}.down.weight" not in adapter.tensors:
                continue
            decodes = "decoder" in site.path or (not case.startswith("t5") and decoders)
            stack = "decoder" if decodes else "encoder"
            source = f"{which}/{stack}.{site.block}.{ROLES[site.role]}"
            for name in ("down.weight", "down.bias", "up.weight", "up.bias"):
                with torch.no_grad():
                    adapter.tensors[f"{site.path}.{name}"].copy_(tensors[f"{source}.{name}"])
                filled.add(f"{source}.{name}")
        assert filled == {name for name in tensors if name.startswith(f"{which}/")}
        assert len(adapter.tensors) == len(filled)
        return adapter

    def compute(self, model: Any, case: str) -> torch.Tensor:
        """The model's logits on the inputs of one case."""
        tensors = self.read(case)
        names = [name for name in ("input_ids", "decoder_input_ids") if name in tensors]
        return run(model, **{name: tensors[name] for name in names})
