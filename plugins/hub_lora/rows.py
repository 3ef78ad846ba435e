"""LoRA at one projection for a batch whose rows have different adapters, as one product."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import nn
from torch.nn import functional as F

import hub
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
    with zeros. What serves is gathered once, and kept; what learns is read at each call.
    """

    def __init__(self, chains: Sequence[Sequence[LoRALayer]], rows: Sequence[int]) -> None:
        super().__init__()
        # In tuples, or torch would take the layers for children.
        self.chains = tuple(tuple(chain) for chain in chains)
        self.rows = tuple(rows)
        layers = [layer for chain in chains for layer in chain]
        self.like = (layers[0],)
        self.kept: hub.Kept[tuple[torch.Tensor, torch.Tensor]] = hub.Kept(layers)
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
        self.kept.keep(self.gather)
        self.marks = self.mark(self.like[0].lora_A.weight)

    def forward(self, x: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
        """x: (rows, n, in_features), y: (rows, n, out_features) -> (rows, n, out_features)."""
        A, B = self.kept.read(self.gather, decoding=x.shape[1] == 1)
        owner, own = self.marks
        if own.dtype != A.dtype or own.device != A.device:
            owner, own = self.marks = self.mark(A)
        if x.dtype != A.dtype:
            x = x.to(A.dtype)
        if x.shape[1] * A.shape[0] * A.shape[1] > FEW:
            return add_product(y, torch.bmm(x, A[owner].transpose(1, 2)), B[owner])
        h = F.linear(x, A.flatten(0, 1)) * own
        B = B.flatten(0, 1)
        if y.dtype != B.dtype:
            return y + (h @ B).to(y.dtype)
        flat = torch.addmm(y.reshape(-1, y.shape[-1]), h.flatten(0, 1), B)
        return flat.view(y.shape)

    @torch.inference_mode(mode=False)
    def mark(self, like: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """Each row's chain, (rows,), and which of all ranks are its own, (rows, 1, chains * r)."""
        owner = torch.tensor(self.rows, device=like.device)
        own = owner.unsqueeze(1) == torch.arange(len(self.chains), device=like.device)
        return owner, own.repeat_interleave(self.r, dim=1).unsqueeze(1).to(like.dtype)


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
        self.lent = False
        self.kept.keep(lambda: self.copy(before))

    def forward(self, x: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
        """x: (rows, n, in_features), y: (rows, n, out_features) -> (rows, n, out_features)."""
        if torch.is_grad_enabled():
            self.lent = True  # to a backward that is still to come
        A, B = self.kept.read(self.pick, decoding=x.shape[1] == 1)
        if x.dtype != A.dtype:
            x = x.to(A.dtype)
        return add_product(y, torch.bmm(x, A.transpose(1, 2)), B)

    def pick(self) -> tuple[torch.Tensor, torch.Tensor]:
        """What `copy` gives, with gradients where they are asked for."""
        if not torch.is_grad_enabled() and not torch.compiler.is_compiling():
            return self.copy()
        A, B = self.gather()
        return A[list(self.rows)], B[list(self.rows)]

    def copy(self, before: LoRAMany | None = None) -> tuple[torch.Tensor, torch.Tensor]:
        """A, (rows, r, in_features), and s B transposed, (rows, r, out_features), of each row; in
        the copies of `before` where they are as large."""
        like = self.like[0].lora_A.weight
        sizes = [
            (len(self.rows), self.r, width)
            for width in (like.shape[1], len(self.like[0].lora_B.weight))
        ]
        known: list[Any] = [None] * len(self.rows)
        copies = None if before is None or before.lent else before.kept.take()
        if before is not None and copies is not None:
            if [(c.shape, c.dtype, c.device) for c in copies] == [
                (size, like.dtype, like.device) for size in sizes
            ]:
                known = [before.chains[number] for number in before.rows]
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
