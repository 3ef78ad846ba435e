"""Makes {houlsby,pfeiffer,parallel}.safetensors: what the `adapters` library computes.

adapters 1.3.0 needs transformers 4, so this script is run by hand in a venv of its own, and the
tests read its result::

    python3 -m venv reference-venv
    reference-venv/bin/pip install adapters==1.3.0 transformers==4.57.6 torch==2.13.0
    reference-venv/bin/python tests/references/make_bottlenecks.py

Where `adapters` puts a bottleneck, read in its source and held by the numbers in the files. With
``y`` of shape (batch, seq, d_model), what a sub-layer gives after its last projection and dropout,
and ``x`` the skip connection, ``y + x`` becomes ``a(y) + x``, and the base's norm, where one comes
after, still comes after (`original_ln_after=True`).

houlsby, `double_seq_bn` (Houlsby et al. 2019, figure 2), behind attention and feed-forward::

    a(y) = y + W_up f(W_down y + b_down) + b_up               f = swish (SiLU)

pfeiffer, `seq_bn` (Pfeiffer et al. 2021), behind the feed-forward alone, with LayerNorm where one
comes after the sum and the plain sum where not (`original_ln_before=True`)::

    a(y) = y + W_up f(W_down LayerNorm(y + x) + b_down) + b_up          f = relu

parallel, `par_bn` (He et al. 2022), beside the feed-forward alone, on the skip connection itself,
before the norm where one comes first::

    a(y) = y + 4 (W_up f(W_down x + b_down) + b_up)            f = relu

None has a norm of its own.

=====  ==================================================  =======================================
model  attention                                           feed-forward
=====  ==================================================  =======================================
bert   LayerNorm(a(dropout(dense(.))) + x), SelfOutput     the same in BertOutput
gpt2   x + a(attn(ln_1(x))), attn ends in resid_dropout    x + a(mlp(ln_2(x))), mlp too
llama  x + a(self_attn(input_layernorm(x)))                x + a(mlp(post_attention_layernorm(x)))
t5     x + a(dropout(SelfAttention(layer_norm(x))))        x + a(dropout(DenseReluDense(norm(x))))
=====  ==================================================  =======================================

In T5 the blocks of the encoder and of the decoder have both; the decoder's cross-attention has
one only with `cross_adapter=True`, which is off in `double_seq_bn` (case `t5`) and on in the case
`t5_cross`. A stack of two is one after the other, b(a(y)), each with its own skip; of two
parallel ones `adapters` computes the last alone, so there is no stack in that file.

A file: a case is one model. Its entry under "cases" in the metadata ("reference", JSON) and
`drawn.build_model` rebuild the same base in any version of transformers. Its tensors, float32:

    {case}/input_ids, {case}/decoder_input_ids (T5)     (batch, seq)
    {case}/logits/bare                                  (batch, seq, vocab), no adapter
    {case}/logits/a                                     adapter a alone
    {case}/logits/stack                                 Stack(a, b): a first
    {case}/{a|b}/{encoder|decoder}.{layer}.{attention|cross|feedforward}.{down|up}.{weight|bias}
"""

import json
import re
from pathlib import Path
from typing import Any

import adapters
import adapters.composition
import torch
import transformers
from drawn import build_model, draw_values
from safetensors.torch import save_file

VOCAB = 99
REDUCTION = 4  # bottleneck of 32 / 4 = 8

SMALL_BERT = {
    "vocab_size": VOCAB,
    "hidden_size": 32,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "intermediate_size": 48,
    "max_position_embeddings": 32,
}
SMALL_GPT2 = {
    "vocab_size": VOCAB,
    "n_embd": 32,
    "n_layer": 2,
    "n_head": 4,
    "n_positions": 32,
    "bos_token_id": 1,
    "eos_token_id": 1,
}
SMALL_LLAMA = {**SMALL_BERT, "num_key_value_heads": 2}
SMALL_T5 = {
    "vocab_size": VOCAB,
    "d_model": 32,
    "d_kv": 8,
    "d_ff": 48,
    "num_layers": 2,
    "num_decoder_layers": 2,
    "num_heads": 4,
    "feed_forward_proj": "gated-gelu",
}
CASES: dict[str, dict[str, Any]] = {
    "bert": {"model": "BertForMaskedLM", "config_class": "BertConfig", "config": SMALL_BERT},
    "gpt2": {"model": "GPT2LMHeadModel", "config_class": "GPT2Config", "config": SMALL_GPT2},
    "llama": {"model": "LlamaForCausalLM", "config_class": "LlamaConfig", "config": SMALL_LLAMA},
    "t5": {
        "model": "T5ForConditionalGeneration",
        "config_class": "T5Config",
        "config": SMALL_T5,
    },
    "t5_cross": {
        "model": "T5ForConditionalGeneration",
        "config_class": "T5Config",
        "config": SMALL_T5,
    },
}
CONFIGS: dict[str, Any] = {
    "houlsby": adapters.DoubleSeqBnConfig,
    "pfeiffer": adapters.SeqBnConfig,
    "parallel": adapters.ParBnConfig,
}

# The module that holds the bottleneck, in each model's own names: which branch it adapts.
BRANCHES = {
    "attention.output": "attention",  # bert
    "output": "feedforward",
    "attention_adapters": "attention",  # gpt2, llama
    "output_adapters": "feedforward",
    "layer.0": "attention",  # t5; its encoder has no cross-attention, see name_tensor
    "layer.1": "cross",
    "layer.2": "feedforward",
}
PARAMETER = re.compile(
    r"(?P<stem>.*?)\.(layer|h|layers|block)\.(?P<layer>\d+)\.(?P<place>.+)\.adapters\.\w\."
    r"adapter_(?P<half>down|up)(\.0)?\.(?P<kind>weight|bias)"
)


def name_tensor(parameter: str) -> str:
    """`{stack}.{layer}.{branch}.{down|up}.{weight|bias}` from the name `adapters` gives."""
    found = PARAMETER.fullmatch(parameter)
    if found is None:
        raise SystemExit(f"cannot place {parameter}")
    stack = "encoder" if "encoder" in found["stem"] else "decoder"
    branch = BRANCHES[found["place"]]
    if stack == "encoder" and branch == "cross":
        branch = "feedforward"
    return f"{stack}.{found['layer']}.{branch}.{found['half']}.{found['kind']}"


def make_inputs(case: str) -> dict[str, torch.Tensor]:
    inputs = {"input_ids": torch.arange(2 * 7).reshape(2, 7) * 13 % (VOCAB - 3) + 3}
    if case.startswith("t5"):
        inputs["decoder_input_ids"] = torch.arange(2 * 5).reshape(2, 5) * 29 % (VOCAB - 3) + 3
    return inputs


def make_case(method: str, case: str) -> dict[str, torch.Tensor]:
    inputs = make_inputs(case)
    tensors = dict(inputs)
    model: Any = build_model(CASES[case])
    tensors["logits/bare"] = model(**inputs).logits
    adapters.init(model)
    names = ("a",) if method == "parallel" else ("a", "b")
    for adapter in names:
        config = CONFIGS[method](reduction_factor=REDUCTION, cross_adapter=case == "t5_cross")
        model.add_adapter(adapter, config=config)
        for name, parameter in model.named_parameters():
            if f".adapters.{adapter}." in name:
                name = f"{adapter}/{name_tensor(name)}"
                parameter.copy_(draw_values(name, parameter.shape))
                tensors[name] = parameter.clone()
    model.eval()
    model.set_active_adapters("a")
    tensors["logits/a"] = model(**inputs).logits
    if method != "parallel":
        model.set_active_adapters(adapters.composition.Stack("a", "b"))
        tensors["logits/stack"] = model(**inputs).logits
    return {f"{case}/{name}": tensor.contiguous() for name, tensor in tensors.items()}


def make_file(method: str) -> None:
    cases = {
        name: case for name, case in CASES.items() if method == "houlsby" or name != "t5_cross"
    }
    tensors: dict[str, torch.Tensor] = {}
    with torch.no_grad():
        for case in cases:
            tensors |= make_case(method, case)
    made_with = {
        "adapters": adapters.__version__,
        "transformers": transformers.__version__,
        "torch": torch.__version__.partition("+")[0],
    }
    # One metadata key: safetensors keeps no order between several, and the bytes would vary.
    metadata = {"reference": json.dumps({"made_with": made_with, "cases": cases})}
    target = Path(__file__).with_name(f"{method}.safetensors")
    save_file(tensors, target, metadata=metadata)
    target.chmod(0o644)


def main() -> None:
    for method in CONFIGS:
        make_file(method)


if __name__ == "__main__":
    main()
