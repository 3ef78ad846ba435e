"""Muon: momentum made orthogonal, for the matrices inside a network.

    B = μ B + (1 - μ) G,    W = W - η (0.2 √n O(B') + λ W),    B' = μ B + (1 - μ) G

O(X) = U Vᵀ of the singular value decomposition X = U S Vᵀ, n the longer side of X. A few steps of a
Newton-Schulz iteration come near enough to O without the decomposition.

Jordan et al., 2024, "Muon: An optimizer for hidden layers in neural networks",
https://kellerjordan.github.io/posts/muon/; 0.2 √n as in Liu et al., 2025, "Muon is Scalable for LLM
Training", section 2.2, https://arxiv.org/abs/2502.16982, so that Adam's rates fit.

It gives the demo a better base than Adam does from the same text. What differs from torch's own
(torch 2.9): matrices of one shape are one batch, which is faster where they are small.
"""

from __future__ import annotations

from collections.abc import Iterable

import torch
from torch import nn

# The coefficients of the iteration, by Jordan.
A, B, C = 3.4445, -4.7750, 2.0315
ITERATIONS = 5


class Muon(torch.optim.Optimizer):
    """The optimizer, for parameters of two dimensions.

    lr: η. momentum: μ. weight_decay: λ.
    """

    def __init__(
        self,
        parameters: Iterable[nn.Parameter],
        lr: float,
        momentum: float = 0.95,
        weight_decay: float = 0.1,
    ) -> None:
        shapes: dict[tuple[int, ...], list[nn.Parameter]] = {}
        for parameter in parameters:
            shapes.setdefault(tuple(sorted(parameter.shape)), []).append(parameter)
        groups = [{"params": group} for group in shapes.values()]
        super().__init__(groups, dict(lr=lr, momentum=momentum, weight_decay=weight_decay))

    @torch.no_grad()
    def step(self, closure: None = None) -> None:  # type: ignore[override]
        """One step for every parameter; each needs its gradient."""
        for group in self.param_groups:
            parameters, lr, mu = group["params"], group["lr"], group["momentum"]
            gradient = torch.stack([lay_down(p.grad) for p in parameters])
            state = self.state[parameters[0]]
            if "momentum" not in state:
                state["momentum"] = torch.zeros_like(gradient)
            momentum = state["momentum"].lerp_(gradient, 1 - mu)
            change = orthogonalize(gradient.lerp(momentum, mu))
            scale = 0.2 * change.shape[-1] ** 0.5
            for parameter, one in zip(parameters, change, strict=True):
                parameter.mul_(1 - lr * group["weight_decay"])
                lay_down(parameter).add_(one, alpha=-lr * scale)


def lay_down(matrix: torch.Tensor) -> torch.Tensor:
    """A view of a matrix with its longer side across."""
    return matrix if matrix.shape[0] <= matrix.shape[1] else matrix.T


def orthogonalize(X: torch.Tensor) -> torch.Tensor:
    """O(X), nearly: singular values from 0.7 to 1.2. X: (batch, m, n), m <= n."""
    X = X / (X.norm(dim=(1, 2), keepdim=True) + 1e-7)
    for _ in range(ITERATIONS):
        S = X @ X.mT
        X = torch.baddbmm(X, torch.baddbmm(S, S, S, beta=B, alpha=C), X, beta=A)
    return X
