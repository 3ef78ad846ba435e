"""How many parameters learn and how many there are, per adapter."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from torch import nn

from hub.attachment.fitting import Fit
from hub.quantization import count_weights


@dataclass(frozen=True)
class Share:
    """One adapter's parameters, in numbers of values."""

    name: str
    method: str
    trainable: int
    total: int


@dataclass(frozen=True)
class Summary:
    """A model's parameters: the base's, and each adapter's."""

    base: int
    adapters: tuple[Share, ...]

    @property
    def trainable(self) -> int:
        """How many values learn."""
        return sum(share.trainable for share in self.adapters)

    def __str__(self) -> str:
        rows = [("adapter", "method", "trainable", "total", "of base")]
        rows += [
            (s.name, s.method, f"{s.trainable:,}", f"{s.total:,}", f"{s.total / self.base:.2%}")
            for s in self.adapters
        ]
        rows.append(("base", "", "0", f"{self.base:,}", ""))
        widths = [max(len(row[i]) for row in rows) for i in range(len(rows[0]))]
        lines = (
            "  ".join(
                cell.ljust(width) if i < 2 else cell.rjust(width)
                for i, (cell, width) in enumerate(zip(row, widths, strict=True))
            ).rstrip()
            for row in rows
        )
        return "\n".join(lines)


def summarize(model: nn.Module, fits: Sequence[Fit], child: str) -> Summary:
    """Count what `model` holds; `child` names the container of the adapters in it."""
    base = count_weights(model, without=child)
    return Summary(
        base,
        tuple(
            Share(
                fit.adapter.label,
                fit.adapter.method,
                sum(p.numel() for p in fit.parameters() if p.requires_grad),
                sum(p.numel() for p in fit.parameters()),
            )
            for fit in fits
        ),
    )
