"""What is done to changes of a weight that are kept as two factors, D = B A.

    A: (r, in), B: (out, r)

All in float32; no result shares memory with what was given.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch

Factors = tuple[torch.Tensor, torch.Tensor]  # B and A

# Of the random projections that find where a dense matrix has most of itself.
SPARE, ROUNDS = 16, 4


def put_side_by_side(pairs: Sequence[Factors], weights: Sequence[float]) -> Factors:
    """B = [B_1 ... B_k], A = [w_1 A_1; ... w_k A_k], so that B A = sum_t w_t B_t A_t."""
    A = torch.cat([A * weight for (_, A), weight in zip(pairs, weights, strict=True)])
    return torch.cat([B for B, _ in pairs], dim=1), A


def compress_factors(B: torch.Tensor, A: torch.Tensor, rank: int) -> Factors:
    """The nearest to B A of at most this rank, with the singular values in B.

    B = Q_B R_B, A^T = Q_A R_A, and the singular vectors of R_B R_A^T, which is r x r, turned by
    Q_B and Q_A are those of B A, which is never made.
    """
    Q_B, R_B = torch.linalg.qr(B)
    Q_A, R_A = torch.linalg.qr(A.T)
    U, S, V = torch.linalg.svd(R_B @ R_A.T, full_matrices=False)
    return Q_B @ (U[:, :rank] * S[:rank]), V[:rank] @ Q_A.T


def compress_matrix(D: torch.Tensor, rank: int) -> Factors:
    """Nearly the nearest to D, (out, in), of at most this rank, with the singular values in B.

    By random projection, always the same: Halko, Martinsson and Tropp, 2011, "Finding Structure
    with Randomness", algorithms 4.4 and 5.1, https://arxiv.org/abs/0909.4061. Exact where D has
    this rank.
    """
    generator = torch.Generator().manual_seed(0)
    width = min(rank + SPARE, *D.shape)
    start = torch.randn(D.shape[1], width, generator=generator).to(D)
    Q = torch.linalg.qr(D @ start).Q
    for _ in range(ROUNDS):
        Q = torch.linalg.qr(D.T @ Q).Q
        Q = torch.linalg.qr(D @ Q).Q
    U, S, V = torch.linalg.svd(Q.T @ D, full_matrices=False)
    return Q @ (U[:, :rank] * S[:rank]), V[:rank].contiguous()
