"""Makes fusion.safetensors: what the `adapters` library computes for AdapterFusion.

Run by hand in the venv of make_bottlenecks.py, which also says where a `double_seq_bn` acts::

    reference-venv/bin/python tests/references/make_fusion.py

Read in the library's source and held by the numbers in the file. Behind each sub-layer of two
Houlsby bottlenecks a and b, with ``y`` of shape (batch, seq, d_model) what the sub-layer gives and
``u_n`` what bottleneck n adds to it, ``y`` becomes::

    y + sum over n of s_n V u_n        s = softmax over n of (Q y + b_q) . (K u_n + b_k)

"dynamic", the library's default, has V and the penalty 0.01 |V - I|^2 for each; "static" has
neither. The library drops scores in training with the base's own dropout for attention.

The file is like those of make_bottlenecks.py, and holds of each of the cases bert, gpt2, llama:

    {case}/input_ids                          (batch, seq)
    {case}/logits/{bare|dynamic|static}       (batch, seq, vocab): no adapter, Fuse(a, b)
    {case}/penalty                            of "dynamic", a scalar
    {case}/{a|b}/{stack}.{layer}.{branch}.{down|up}.{weight|bias}
    {case}/fusion/{stack}.{layer}.{branch}.{query|key|value}.{weight|bias}

"static" has the same queries and keys.
"""

import json
import re
from pathlib import Path
from typing import Any

import adapters
import torch
import transformers
from adapters.composition import Fuse
from drawn import build_model, draw_values
from make_bottlenecks import BRANCHES, CASES, REDUCTION, make_inputs, name_tensor
from safetensors.torch import save_file

KINDS = ("dynamic", "static")
PARAMETER = re.compile(
    r"(?P<stem>.*?)\.(layer|h|layers)\.(?P<layer>\d+)\.(?P<place>.+)\.adapter_fusion_layer\.a,b\."
    r"(?P<tensor>(query|key|value)\.(weight|bias))"
)


def name_attention(parameter: str) -> str:
    """`{stack}.{layer}.{branch}.{query|key|value}.{weight|bias}` from the library's name."""
    found = PARAMETER.fullmatch(parameter)
    if found is None:
        raise SystemExit(f"cannot place {parameter}")
    stack = "encoder" if "encoder" in found["stem"] else "decoder"
    return f"{stack}.{found['layer']}.{BRANCHES[found['place']]}.{found['tensor']}"


def make_case(case: str) -> dict[str, torch.Tensor]:
    inputs = make_inputs(case)
    tensors = dict(inputs)
    for kind in KINDS:
        model: Any = build_model(CASES[case])
        tensors["logits/bare"] = model(**inputs).logits
        adapters.init(model)
        for adapter in "ab":
            config = adapters.DoubleSeqBnConfig(reduction_factor=REDUCTION)
            model.add_adapter(adapter, config=config)
        model.add_adapter_fusion(["a", "b"], kind)
        model.train_adapter_fusion(Fuse("a", "b"))
        model.eval()
        for name, parameter in model.named_parameters():
            for adapter in "ab":
                if f".adapters.{adapter}." in name:
                    name = f"{adapter}/{name_tensor(name)}"
                    parameter.copy_(draw_values(name, parameter.shape))
                    tensors[name] = parameter.detach().clone()
            if ".adapter_fusion_layer." in name:
                name = f"fusion/{name_attention(name)}"
                drawn = draw_values(name, parameter.shape)
                parameter.copy_(drawn + torch.eye(len(drawn)) if ".value." in name else drawn)
                tensors[name] = parameter.detach().clone()
        tensors[f"logits/{kind}"] = model(**inputs).logits
        if kind == "dynamic":
            tensors["penalty"] = model.base_model.get_fusion_regularization_loss()
    return {f"{case}/{name}": tensor.contiguous() for name, tensor in tensors.items()}


def main() -> None:
    cases = {name: CASES[name] for name in ("bert", "gpt2", "llama")}
    tensors: dict[str, torch.Tensor] = {}
    with torch.no_grad():
        for case in cases:
            tensors |= make_case(case)
    made_with = {
        "adapters": adapters.__version__,
        "transformers": transformers.__version__,
        "torch": torch.__version__.partition("+")[0],
    }
    metadata = {"reference": json.dumps({"made_with": made_with, "cases": cases})}
    target = Path(__file__).with_name("fusion.safetensors")
    save_file(tensors, target, metadata=metadata)
    target.chmod(0o644)


if __name__ == "__main__":
    main()
