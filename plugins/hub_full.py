"""Full fine-tuning: the adapter is the difference of every weight.

    h = (W + D) x + b + db

for every projection, embedding and norm that the base has, its head too. D and db start at zero, so
a new adapter changes nothing, and a step of plain gradient descent on them is that step on the
base's own weights: D has the gradient of W.

The baseline that every other method is compared with; there is no paper to name for it.

What differs from training the base itself: the base stays as it is, so the difference can be taken
off, published and stacked; weight decay draws the weights to the base's and not to zero; parameters
of other kinds of module (a convolution, a state space's own) stay as they are, and a line is logged
that counts them.

Parameters: as many as the weights that are reached; those that several modules share count once.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import nn

import hub


@dataclass(frozen=True)
class FullConfig(hub.DifferenceConfig):
    """What a full fine-tuning leaves out."""


class Dense(nn.Module):
    """A difference, all of it free."""

    def __init__(self, shape: tuple[int, ...]) -> None:
        super().__init__()
        self.values = nn.Parameter(torch.zeros(shape))

    def forward(self) -> torch.Tensor:
        """The difference."""
        return self.values


class Full(hub.DifferenceMethod[FullConfig]):
    """The method as the hub knows it."""

    name = "full"
    paper = "none; every weight of the base, the baseline of the other methods"
    config = FullConfig
    peft_type = "FULL"

    def make_values(self, shape: tuple[int, ...], config: FullConfig) -> nn.Module:
        """No difference yet."""
        return Dense(shape)


@hub.hookimpl
def hub_method() -> hub.Method[FullConfig]:
    """Full fine-tuning."""
    return Full()
