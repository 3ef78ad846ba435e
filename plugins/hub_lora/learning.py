"""The update and its gradients, laid out for the processor."""

from __future__ import annotations

import inspect
from typing import Any

import torch


class Update(torch.autograd.Function):
    """y + s B A x, and h = A x with a row for each rank, (r, vectors), which is kept for B.

    x: (..., in_features), y: (..., out_features), A: (r, in_features), B: (out_features, r).

    All products are laid out so that what is long is innermost. torch's own gradients would put the
    few ranks there, which takes a processor's library up to four times as long
    (benchmarks/training.py). x is kept for the way back in its own precision, in which every
    projection of it shares one tensor, and not in A's; y is not kept.
    """

    generate_vmap_rule = True

    @staticmethod
    def forward(
        x: torch.Tensor, y: torch.Tensor, A: torch.Tensor, B: torch.Tensor, s: float
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """The sum, (vectors, out_features) in y's precision, and h. Sum and product are one where
        they can be, which spares a tensor of y's size."""
        h = torch.mm(A, x.reshape(-1, x.shape[-1]).to(A.dtype).t())
        rows = y.reshape(-1, y.shape[-1])
        if y.dtype == h.dtype:
            changed = torch.addmm(rows, h.t(), B.t(), alpha=s)
        elif h.dtype == B.dtype == torch.promote_types(y.dtype, B.dtype):
            changed = rows.to(B.dtype).addmm_(h.t(), B.t(), alpha=s).to(y.dtype)
        else:  # autocast chose that of h, or y's is the wider one
            changed = rows + torch.mm((h * s).t(), B.t()).to(y.dtype)
        return changed, h

    @staticmethod
    def setup_context(
        ctx: Any, inputs: tuple[Any, ...], output: tuple[torch.Tensor, torch.Tensor]
    ) -> None:
        """Keep what the gradients that are asked for are made of."""
        x, y, A, B, ctx.s = inputs
        by_x, _, by_A, by_B, _ = ctx.needs_input_grad
        ctx.set_materialize_grads(False)
        ctx.x_shape, ctx.y_shape, ctx.x_dtype, ctx.dtype = x.shape, y.shape, x.dtype, A.dtype
        ctx.save_for_backward(
            x if by_A else None,
            A if by_x else None,
            B if by_x or by_A else None,
            output[1] if by_B else None,
        )

    @staticmethod
    def backward(
        ctx: Any, dy: torch.Tensor | None, of_h: torch.Tensor | None
    ) -> tuple[torch.Tensor | None, ...]:
        """The gradients of those that are asked for one. h has one only where gradients of
        gradients are taken."""
        x, A, B, h = ctx.saved_tensors
        by_x, _, by_A, by_B, _ = ctx.needs_input_grad
        dx = dA = dB = None
        dh = None if of_h is None else of_h.to(ctx.dtype)
        rows = None if dy is None else dy.to(ctx.dtype)
        if rows is not None and (by_x or by_A):
            change = torch.mm(B.t(), rows.t()).mul_(ctx.s)
            dh = change if dh is None else dh + change
        if by_x and dh is not None:
            # In the shape of x at once: to a view autograd can't add what else comes to x in place.
            shaped = dh.t().view(*ctx.x_shape[:-1], len(A))
            dx = torch.matmul(shaped, A).to(ctx.x_dtype)
        if by_A and dh is not None:
            dA = torch.mm(dh, x.reshape(-1, x.shape[-1]).to(ctx.dtype))
        if by_B and rows is not None:
            dB = torch.mm(h.to(ctx.dtype), rows).mul_(ctx.s).t()
        return dx, None if dy is None else dy.view(ctx.y_shape), dA, dB, None


# torch asks for it at every call, and finding it anew takes as long as one of the products.
Update.forward.__signature__ = inspect.signature(Update.forward)  # type: ignore[attr-defined]
