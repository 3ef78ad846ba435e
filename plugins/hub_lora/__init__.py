"""LoRA: a low-rank update beside a frozen projection; and DoRA, which also learns its magnitude.

    h = W x + s B A x,    A: (r, in_features), B: (out_features, r), s = alpha / r

Hu et al., 2021, "LoRA: Low-Rank Adaptation of Large Language Models", section 4.1, equation 3,
https://arxiv.org/abs/2106.09685. B starts at zero, so a new adapter changes nothing.

What differs from the paper: A starts Kaiming-uniform as in the authors' released code, not
Gaussian; `rslora` takes s = alpha / sqrt(r) (Kalajdzievski, 2023, equation 3,
https://arxiv.org/abs/2312.03732); a rank or an alpha of their own for some modules, as in peft.
On an embedding A x is the column of A that the token names; A starts at zero there and B Gaussian.

With `dora`, Liu et al., 2024, "DoRA: Weight-Decomposed Low-Rank Adaptation", equation 5,
https://arxiv.org/abs/2402.09353:

    h = m (W + s B A) x / ||W + s B A||,    m: (out_features,), a norm for each output

m starts as ||W||, and the norm is taken as a constant by the gradient (section 4.3).

Parameters: r (in_features + out_features) for each projection; DoRA out_features more.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import nn

import hub
from hub_lora.config import LoRAConfig
from hub_lora.experts import unstack_experts
from hub_lora.files import digest_brought
from hub_lora.layers import LoRALayer
from hub_lora.method import LoRA
from hub_lora.rows import join_rows

__all__ = ["LoRA", "LoRAConfig", "LoRALayer"]


@hub.hookimpl
def hub_method() -> hub.Method[LoRAConfig]:
    """LoRA."""
    return LoRA()


@hub.hookimpl
def hub_load(
    config: Mapping[str, Any], tensors: Mapping[str, torch.Tensor]
) -> tuple[Mapping[str, Any], Mapping[str, torch.Tensor]] | None:
    """Take stacked experts apart, and the base's own weights out, by their digests."""
    if config.get("target_parameters"):
        places, tensors = unstack_experts(LoRA().read_config(config), tensors)
        config = {**config, "target_parameters": places}
    return digest_brought(config, tensors)


@hub.hookimpl
def hub_compose(
    site: hub.Site,
    chains: Sequence[Sequence[nn.Module]],
    rows: Sequence[int] | None,
    before: nn.Module | None,
) -> nn.Module | None:
    """Rows with different adapters are one product of batches."""
    return None if rows is None else join_rows(chains, rows, before)
