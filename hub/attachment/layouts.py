"""Layouts: what stands in front of the tokens of each row, and where.

In front of a row stand its blanks first, then its virtual tokens; what is given to attention alone
has no place among them, and comes before all. Rows may have different things in front. There is
room for the most of each kind then, and what a row leaves empty comes before what it has, or behind
its tokens, hidden by the mask.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace

import torch
from torch import Tensor

from hub.attachment.chains import count_virtual
from hub.attachment.frames import Frame
from hub.attachment.mixing import count_each
from hub.attachment.nodes import Chain, run_extend
from hub.attachment.placing import arrange, find_order, line_up
from hub.sites.shifting import Shift

_numbers = itertools.count()


@dataclass(frozen=True)
class Ahead:
    """What one line of a composition puts in front of a row.

    blank: placeholders whose vectors don't matter, since their keys and values are replaced.
    prompts: the chain whose `extend` gives virtual tokens, (n, d_model).
    moved: positions that attention alone is given, by which the tokens' positions move on.
    """

    blank: int = 0
    prompts: Chain = ()
    moved: int = 0

    @property
    def sizes(self) -> tuple[int, int, int]:
        """How many of each kind."""
        return self.blank, count_virtual(self.prompts), self.moved


@dataclass(frozen=True, eq=False)
class Uneven:
    """Where the lines put differently much in front: what each of them has; `pick` makes it each
    row's.

    prompt, moved: how many virtual tokens, and positions that attention alone is given, (lines,).
    ahead: how many of all kinds, (lines,).
    empty: how many of the places in front it leaves empty, (lines,).
    real: which of these it fills, (lines, count), before they are brought in order.
    real_moved: which of the positions that attention alone is given are its own, (lines, moved).
    blanks: which of the first places are its blanks, once they are in order, (lines, count).
    free: how many of them come behind those, (lines,).
    """

    prompt: Tensor
    moved: Tensor
    ahead: Tensor
    empty: Tensor
    real: Tensor
    real_moved: Tensor
    blanks: Tensor
    free: Tensor

    @classmethod
    def build(cls, sizes: Sequence[tuple[int, int, int]], *, behind: bool) -> Uneven:
        """From each line's `Ahead.sizes`; `behind`: the empty places come behind a row."""
        table = torch.tensor(sizes)
        blank, prompt, moved = table.unbind(1)
        most = [max(size) for size in zip(*sizes, strict=True)]
        count = most[0] + most[1]
        free = count - blank if behind else prompt
        place = torch.arange(count) + free.unsqueeze(1)
        return cls(
            prompt=prompt,
            moved=moved,
            ahead=table.sum(1),
            empty=count - blank - prompt,
            real=mark_ends(blank + prompt, count),
            real_moved=mark_ends(moved, most[2]),
            blanks=(place < count) & (place >= (count - blank).unsqueeze(1)),
            free=free,
        )


@dataclass(frozen=True, eq=False)
class Layout:
    """What stands in front of the rows of a batch: of every row the same, or each row's own.

    lines: what there is; rows: of each row the number of its line, None where there is one.
    blank, prompt, moved: the room for each kind, see `Ahead`.
    count: the places in front, those of blanks and virtual tokens.
    shift: how rows with differently much in front of them are told apart.
    uneven: what each line has, where that is not the same for all; there are `rows` then.
    number: tells the caches that were filled under it from all others; a copy of a model keeps it.
    """

    lines: tuple[Ahead, ...]
    rows: tuple[int, ...] | None
    blank: int
    prompt: int
    moved: int
    count: int
    shift: Shift
    uneven: Uneven | None
    number: int = field(default_factory=lambda: next(_numbers))

    @classmethod
    def build(
        cls, lines: Sequence[Ahead], rows: Sequence[int] | None, find_shift: Callable[[], Shift]
    ) -> Layout:
        """Of every row the first line, or each row's own; `find_shift` is asked only where lines
        have differently many places. Raises what it does, where a base can't tell such rows
        apart."""
        sizes = [line.sizes for line in lines]
        blank, prompt, moved = (max(size) for size in zip(*sizes, strict=True))
        shift = find_shift() if len({size[:2] for size in sizes}) > 1 else Shift()
        if len({size[2] for size in sizes}) > 1:  # what attention alone is given is in no mask
            shift = replace(shift, by="positions")
        return cls(
            tuple(lines),
            None if rows is None or len(lines) == 1 else tuple(rows),
            blank,
            prompt,
            moved,
            blank + prompt,
            shift,
            Uneven.build(sizes, behind=shift.behind) if len(set(sizes)) > 1 else None,
        )

    def find_owner(self, rows: int, device: torch.device) -> Tensor | None:
        """Which line each of `rows` rows has, (rows,); None where there is one. Raises AttachError
        where they are another number than those that were laid."""
        if self.rows is None:
            return None
        each = count_each(rows, len(self.rows))
        return torch.tensor(self.rows, device=device).repeat_interleave(each)

    def spread_mask(self, mask: Tensor, owner: Tensor | None) -> Tensor:
        """A mask of the tokens, (rows, seq), with ones for the places in front, (rows, count +
        seq); zeros for the room that a row leaves empty."""
        if self.uneven is None:
            front = mask.new_ones(len(mask), self.count)
        else:
            front = pick(self.uneven.real, owner).to(mask.dtype)
        order = self.find_order(mask, owner, spread=False)
        spread: Tensor = arrange(torch.cat([front, mask], dim=1), order)
        return spread

    def find_order(self, mask: Tensor, owner: Tensor | None, *, spread: bool) -> Tensor | None:
        """What comes at each place where rows are padded on the left, see `placing.find_order`.

        mask: of the tokens alone, or, `spread`, what `spread_mask` made of that.
        """
        behind, uneven = self.shift.behind, self.uneven
        # Blanks stay in front: a layer that checkpointing runs again knows of no padding.
        if not self.prompt and not behind:
            return None
        empty = None if uneven is None else pick(uneven.empty, owner).unsqueeze(1)
        if spread:
            padding = (mask.cumsum(1) == 0).sum(1, keepdim=True)
            if empty is not None and not behind:
                padding = padding - empty
            mask = torch.arange(mask.shape[1] - self.count, device=mask.device) >= padding
        moving = self.prompt if uneven is None else pick(uneven.prompt, owner).unsqueeze(1)
        return find_order(mask, self.count, moving, empty if behind else None)

    def put_prompts(self, vectors: Tensor, frame: Frame, offset: int = 0) -> Tensor:
        """Vectors of all positions, (rows, offset + count + seq, d_model), with the virtual tokens
        in the place of their placeholders; `offset`: what comes before all places."""
        if not self.prompt:
            return vectors
        order, like = frame.order, vectors.new_zeros(0, vectors.shape[-1])
        tables = [
            run_extend(line.prompts).to(like) if line.prompts else like for line in self.lines
        ]
        tokens = line_up(tables, self.prompt, frame.owner)  # (rows or 1, prompt, d_model)
        tokens = tokens.expand(len(vectors), -1, -1)
        if order is None and self.uneven is None:
            start, end = offset + self.blank, offset + self.count
            return torch.cat([vectors[:, :start], tokens, vectors[:, end:]], dim=1)
        body = vectors[:, offset:]
        place = torch.arange(body.shape[1], device=body.device) if order is None else order
        place = place.expand(len(body), -1) - self.blank  # among the virtual tokens
        first: int | Tensor = 0
        if self.uneven is not None:  # a row that has fewer has its blanks before them, or nothing
            first = self.prompt - pick(self.uneven.prompt, frame.owner).unsqueeze(1)
        found = arrange(tokens, place.clamp(min=0, max=self.prompt - 1))
        virtual = ((place >= first) & (place < self.prompt)).unsqueeze(-1)
        return torch.cat([vectors[:, :offset], torch.where(virtual, found, body)], dim=1)


def pick(table: Tensor, owner: Tensor | None) -> Tensor:
    """Of a table with something for each line, (lines, ...), what each row has, (rows, ...)."""
    assert owner is not None, "lines that differ belong to rows"
    return table.to(owner.device)[owner]


def mark_ends(counts: Tensor, most: int) -> Tensor:
    """For each count that many ones at the end of `most` places, (counts, most), bool."""
    return torch.arange(most) >= most - counts.unsqueeze(-1)
