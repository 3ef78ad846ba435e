"""DoRA: the factors with a magnitude for each output.

    gain = m / ||W + s B A||,    (out_features,)

Computed at each call while something learns; kept while the layer only serves.
"""

from __future__ import annotations

from functools import partial

import torch
from torch import nn
from torch.nn import functional as F

import hub
from hub_lora.config import LoRAConfig
from hub_lora.layers import LoRAEmbedding, LoRALayer


class DoRALayer(LoRALayer):
    """The factors beside one projection, and the magnitude of each of its outputs."""

    def __init__(self, site: hub.Site, config: LoRAConfig) -> None:
        super().__init__(site, config)
        self.lora_magnitude_vector = nn.Parameter(torch.ones(site.out_features))
        self.kept: hub.Kept[torch.Tensor] | None = None
        self.base: hub.Base | None = None

    def forward(self, x: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
        """x: (..., in_features), y: (..., out_features) -> (..., out_features)."""
        assert self.base is not None
        gain = find_gain(self)
        if self.dropout and self.training:
            # The base's own part keeps the whole input; what the gain adds to it does not.
            x = F.dropout(x.to(gain.dtype), self.dropout)
            weight = self.base.read_weight().to(gain.dtype)
            change = F.linear(F.linear(x, self.lora_A.weight), self.lora_B.weight) * self.scaling
            return (y + (gain - 1) * F.linear(x, weight) + gain * change).to(y.dtype)
        bias = self.base.read_bias()
        if bias is None:
            return (gain * super().forward(x, y)).to(y.dtype)
        return (gain * super().forward(x, y - bias) + bias).to(y.dtype)


class DoRAEmbedding(LoRAEmbedding):
    """The factors beside one embedding, and the magnitude of each of its outputs."""

    def __init__(self, site: hub.Site, config: LoRAConfig) -> None:
        super().__init__(site, config)
        self.lora_magnitude_vector = nn.Parameter(torch.ones(site.out_features))
        self.kept: hub.Kept[torch.Tensor] | None = None

    def forward(self, x: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
        """x: (...) token ids, y: (..., width) -> (..., width)."""
        return (find_gain(self) * super().forward(x, y)).to(y.dtype)


WithMagnitude = DoRALayer | DoRAEmbedding


def start_magnitude(layer: WithMagnitude) -> None:
    """m is ||W|| at first."""
    layer.lora_magnitude_vector.copy_(read_rows(layer).float().norm(dim=1))


def keep_gain(layer: WithMagnitude) -> None:
    """Keep the gain of a layer that only serves, for as long as it and the base don't change."""
    assert layer.base is not None
    layer.kept = hub.Kept([layer, layer.base.module])
    layer.kept.keep(partial(measure_own, layer))


def find_gain(layer: WithMagnitude) -> torch.Tensor:
    """The gain that was kept, where nothing has changed since; else what it is now."""
    measure = partial(measure_own, layer)
    return measure() if layer.kept is None else layer.kept.read(measure)


def measure_own(layer: WithMagnitude) -> torch.Tensor:
    """The gain over the base's weight."""
    return measure_gain(layer, read_rows(layer))


def measure_gain(layer: WithMagnitude, weight: torch.Tensor) -> torch.Tensor:
    """The gain over W, (out_features, in_features). Its gradient is m's alone."""
    with torch.no_grad():
        norm = (weight.float() + layer.multiply()).norm(dim=1)
        norm.clamp_(min=torch.finfo(norm.dtype).tiny)  # an output whose weights are all zero
    gain: torch.Tensor = layer.lora_magnitude_vector / norm
    return gain


def read_rows(layer: WithMagnitude) -> torch.Tensor:
    """The base's weight, (out_features, in_features), of an embedding too."""
    assert layer.base is not None
    weight = layer.base.read_weight()
    return weight.T if isinstance(layer, LoRAEmbedding) else weight
