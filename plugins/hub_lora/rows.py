"""LoRA at one projection for a batch whose rows have different adapters, as one product."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import nn
from torch.nn import functional as F

from hub_lora.layers import LoRALayer

# Up to so many values for each row between all factors, all rows times all of them is the least to
# compute (benchmarks/mixed.py); beyond, each row with its own.
FEW = 64


def join_rows(
    chains: Sequence[Sequence[nn.Module]], rows: Sequence[int], before: nn.Module | None
) -> LoRARows | None:
    """One module for all rows, of what `hub_compose` is given; None where magnitudes, embeddings
    or a dropout that learns ask for the slow way."""
    own = [[layer for layer in chain if type(layer) is LoRALayer] for chain in chains]
    if own != [list(chain) for chain in chains]:
        return None
    if any(layer.dropout and layer.lora_A.weight.requires_grad for chain in own for layer in chain):
        return None
    if len(own) * max(map(count_ranks, own)) <= FEW:
        return LoRAFew(own, rows)
    return LoRAMany(own, rows, before if isinstance(before, LoRAMany) else None)


class LoRARows(nn.Module):
    """LoRA at one projection for rows that have different ones, or stacks of them, or none.

    A stack is one pair of factors, those of its layers side by side; shorter pairs are filled up
    with zeros. What serves is gathered once; what learns is read at each call.
    """

    def __init__(self, chains: Sequence[Sequence[LoRALayer]], rows: Sequence[int]) -> None:
        super().__init__()
        # In tuples, or torch would take the layers for children.
        self.chains = tuple(tuple(chain) for chain in chains)
        self.rows = tuple(rows)
        layers = [layer for chain in chains for layer in chain]
        self.like = (layers[0],)
        self.learns = any(p.requires_grad for layer in layers for p in layer.parameters())
        self.r = max(count_ranks(chain) for chain in chains)

    def gather(self) -> tuple[torch.Tensor, torch.Tensor]:
        """A, (chains, r, in_features), and s B transposed, (chains, r, out_features), of each."""
        like, pairs = self.like[0], []
        for chain in self.chains:
            A = torch.cat([like.lora_A.weight[:0], *(layer.lora_A.weight for layer in chain)])
            scaled = (layer.lora_B.weight.T * layer.scaling for layer in chain)
            B = torch.cat([like.lora_B.weight.T[:0], *scaled])
            pairs.append([F.pad(factor, (0, 0, 0, self.r - len(A))) for factor in (A, B)])
        first, second = (torch.stack(factors) for factors in zip(*pairs, strict=True))
        return first, second


class LoRAFew(LoRARows):
    """The same for few different ones: all rows times all factors, of which a mask keeps each
    row's own. A long row goes with a copy of its own factors, which is less to compute then."""

    def __init__(self, chains: Sequence[Sequence[LoRALayer]], rows: Sequence[int]) -> None:
        super().__init__(chains, rows)
        self.kept = None if self.learns else keep(self.gather)
        device = self.like[0].lora_A.weight.device
        self.owner = torch.tensor(self.rows, device=device)
        own = self.owner.unsqueeze(1) == torch.arange(len(chains), device=device)
        own = own.repeat_interleave(self.r, dim=1).unsqueeze(1)  # (rows, 1, chains * r)
        self.own = own.to(self.like[0].lora_A.weight.dtype)

    def forward(self, x: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
        """x: (rows, n, in_features), y: (rows, n, out_features) -> (rows, n, out_features)."""
        A, B = self.kept or self.gather()
        if x.dtype != A.dtype:
            x = x.to(A.dtype)
        if x.shape[1] * A.shape[0] * A.shape[1] > FEW:
            return add_product(y, torch.bmm(x, A[self.owner].transpose(1, 2)), B[self.owner])
        h = F.linear(x, A.flatten(0, 1)) * self.own
        B = B.flatten(0, 1)
        if y.dtype != B.dtype:
            return y + (h @ B).to(y.dtype)
        flat = torch.addmm(y.reshape(-1, y.shape[-1]), h.flatten(0, 1), B)
        return flat.view(y.shape)


class LoRAMany(LoRARows):
    """The same for many different ones: each row times a copy of its own factors.

    before: the same for the rows before, whose copies are taken over where rows stay as they were.
    """

    def __init__(
        self,
        chains: Sequence[Sequence[LoRALayer]],
        rows: Sequence[int],
        before: LoRAMany | None = None,
    ) -> None:
        super().__init__(chains, rows)
        self.kept = None if self.learns else keep(lambda: self.copy(before))

    def forward(self, x: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
        """x: (rows, n, in_features), y: (rows, n, out_features) -> (rows, n, out_features)."""
        if self.kept is None and not self.learns:  # another took the copies over
            self.kept = keep(lambda: self.copy(None))
        A, B = self.kept or [factor[list(self.rows)] for factor in self.gather()]
        if x.dtype != A.dtype:
            x = x.to(A.dtype)
        return add_product(y, torch.bmm(x, A.transpose(1, 2)), B)

    def copy(self, before: LoRAMany | None) -> tuple[torch.Tensor, torch.Tensor]:
        """A, (rows, r, in_features), and s B transposed, (rows, r, out_features), of each row; in
        the copies of `before` where they are as large."""
        like = self.like[0].lora_A.weight
        sizes = [
            (len(self.rows), self.r, width)
            for width in (like.shape[1], len(self.like[0].lora_B.weight))
        ]
        known: list[Any] = [None] * len(self.rows)
        copies = None if before is None else before.kept
        if before is not None and copies is not None:
            if [c.shape for c in copies] == sizes and copies[0].dtype == like.dtype:
                known = [before.chains[number] for number in before.rows]
                before.kept = None
            else:
                copies = None
        A, B = copies or [like.new_empty(size) for size in sizes]
        for row, number in enumerate(self.rows):
            chain, start = self.chains[number], 0
            if chain == known[row]:
                continue
            for layer in chain:
                end = start + count_ranks([layer])
                A[row, start:end].copy_(layer.lora_A.weight)
                torch.mul(layer.lora_B.weight.T, layer.scaling, out=B[row, start:end])
                start = end
            A[row, start:].zero_()
            B[row, start:].zero_()
        return A, B


def count_ranks(chain: Sequence[LoRALayer]) -> int:
    """r of a stack."""
    return sum(len(layer.lora_A.weight) for layer in chain)


def add_product(y: torch.Tensor, h: torch.Tensor, B: torch.Tensor) -> torch.Tensor:
    """y + h B, row by row: (rows, n, out_features)."""
    return torch.baddbmm(y, h, B) if y.dtype == B.dtype else y + torch.bmm(h, B).to(y.dtype)


@torch.inference_mode(mode=False)
@torch.no_grad()
def keep(make: Callable[[], tuple[torch.Tensor, ...]]) -> tuple[torch.Tensor, ...]:
    """What `make` gives, to be used with gradients and without."""
    return make()
