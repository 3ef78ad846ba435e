"""Data flow: which tensor of a forward was computed from which.

Every value that an operation makes is a node, and knows the nodes it was made from. No family of
models is known here, only torch's own operations.
"""

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves
from torch.utils.weak import WeakIdKeyDictionary

# Operations that give the values of their first operand in another shape, type or place.
VIEWS = frozenset(
    [
        *("alias", "clone", "contiguous", "detach", "expand", "flatten", "lift_fresh", "permute"),
        *("reshape", "squeeze", "t", "_to_copy", "transpose", "_unsafe_view", "unsqueeze", "view"),
    ]
)
_AFFINE = frozenset(["add", "add_", "div", "div_", "mul", "mul_", "sub", "sub_"])
# Of an operand only shape, type and device matter; and nothing is in the memory yet.
_FROM_SHAPE = ("empty", "full", "new_", "ones", "rand", "zeros")
_RAW = ("empty", "new_empty")
# What says which or whether: no gradient comes back through a choice.
_CHOICES = frozenset(
    [
        *("argmax", "argmin", "argsort", "bucketize", "eq", "ge", "gt", "isin", "le", "lt", "max"),
        *("min", "multinomial", "ne", "nonzero", "searchsorted", "sort", "topk"),
    ]
)
# Part of the first operand, chosen by the others.
_FROM_TABLE = frozenset(["index", "index_select", "gather", "select", "slice", "take"])


@dataclass(frozen=True, slots=True)
class Node:
    """A value: the operation that made it ("" for what was there before) and its parents, the nodes
    of the tensors that the operation took, in order. `varies` where it depends on the model's
    input."""

    operation: str
    parents: tuple[int, ...]
    shape: tuple[int, ...]
    floating: bool
    varies: bool

    @property
    def size(self) -> int:
        size = 1
        for length in self.shape:
            size *= length
        return size


class Flow(TorchDispatchMode):  # type: ignore[no-untyped-call]
    """Watches every operation that runs inside it.

    It holds nodes and no tensor, so the memory in use is the forward's own.
    """

    # Flex attention and other operations that take functions refuse to run without it.
    supports_higher_order_operators = True

    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.nodes: list[Node] = []
        self._current: Any = WeakIdKeyDictionary()
        self._writes: dict[int, int] = {}
        self._raw: set[int] = set()  # memory that no operation has written yet
        self._latest: int | None = None

    def __torch_dispatch__(
        self,
        func: Callable[..., Any],
        types: Iterable[type],
        args: tuple[Any, ...] = (),
        kwargs: dict[str, Any] | None = None,
    ) -> Any:
        kwargs = kwargs or {}
        schema = getattr(func, "_schema", None)
        operation = (schema.name if schema is not None else str(func)).removeprefix("aten::")
        given = [leaf for leaf in tree_leaves((args, kwargs)) if isinstance(leaf, Tensor)]
        moves = operation in VIEWS or operation in _FROM_TABLE
        find = self._look_up if moves or (schema and schema.is_mutable) else self.find_node
        parents = tuple(find(tensor) for tensor in given)
        if operation == "_local_scalar_dense" and given[0].is_meta:
            # There is no value to decide by: say that every check holds.
            return given[0].dtype == torch.bool or 1
        result = func(*args, **kwargs)
        made = [leaf for leaf in tree_leaves(result) if isinstance(leaf, Tensor)]
        if operation.startswith(_FROM_SHAPE):
            parents = ()
        written: list[Tensor] = []
        if schema is not None and schema.is_mutable:
            written = _find_written(schema.arguments, args, kwargs)
        for tensor in written:
            node = self._add_node(operation, parents, tensor)
            self._writes[_get_storage(tensor)] = node
        for tensor in made:
            if any(tensor is other for other in written):
                continue
            storage = _get_storage(tensor)
            if all(storage != _get_storage(other) for other in given):
                self._writes.pop(storage, None)  # of a freed storage at the same address
            node = self._add_node(operation, parents, tensor)
            if operation.startswith(_RAW) or (moves and parents[0] in self._raw):
                self._raw.add(node)
        return result

    def find_node(self, tensor: Tensor) -> int:
        """The node of the value that `tensor` holds now, after every write to its memory so far.

        Memory that no operation filled was filled by a kernel of another library: what is in it is
        taken to come from the value made last.
        """
        node = self._look_up(tensor)
        if node in self._raw and self._latest is not None:
            return self._add_node("kernel", (self._latest,), tensor)
        return node

    def _look_up(self, tensor: Tensor) -> int:
        node: int | None = self._current.get(tensor)
        if node is None:
            node = self._add_node("", (), tensor)
        write = self._writes.get(_get_storage(tensor), -1)
        if write > node:
            node = self._add_node("write", (node, write), tensor)
        return node

    def mark_input(self, tensor: Tensor) -> None:
        """Say that `tensor` is what the model is given."""
        self._add_node("", (), tensor, varies=True)

    def find_ancestors(self, marked: Iterable[int]) -> tuple[list[int], dict[int, int]]:
        """For every node those `marked` nodes that it was computed from, as the bits of an integer,
        and the bit of every marked node."""
        bits = {node: 1 << place for place, node in enumerate(sorted(set(marked)))}
        ancestors: list[int] = []
        for node in self.nodes:
            mask = 0
            for parent in node.parents:
                mask |= ancestors[parent] | bits.get(parent, 0)
            ancestors.append(mask)
        return ancestors, bits

    def find_contributors(self, nodes: Iterable[int]) -> set[int]:
        """These nodes and every one that has a part in their values; one that only decides which
        values are taken, such as the score of a key that is looked at or not, has none."""
        found = set(nodes)
        pending = list(found)
        while pending:
            here = self.nodes[pending.pop()]
            if not here.floating and here.operation in _CHOICES:
                continue
            fresh = [parent for parent in here.parents if parent not in found]
            found.update(fresh)
            pending += fresh
        return found

    def find_source(self, node: int, gated: bool = False) -> int | None:
        """The node that `node` is a view, a cast or a copy of, scaled and shifted by what doesn't
        depend on the model's input; None where it is something else.

        Gated, the scale may depend on the input, and streams may be mixed and made of one another.
        """
        here = self.nodes[node]
        if here.operation in VIEWS:
            sources = here.parents[:1]
        elif here.operation in _AFFINE:
            sources = tuple(parent for parent in here.parents if self.nodes[parent].varies)
        else:
            sources = ()
        if gated and len(sources) != 1 and here.operation in ("mul", "mul_", "bmm"):
            sources = tuple(
                parent
                for parent in here.parents
                if len(here.shape) > 1 and self.nodes[parent].shape[-1:] == here.shape[-1:]
            )
        if len(sources) != 1 or not self.nodes[sources[0]].floating:
            return None
        same = self.nodes[sources[0]].size == here.size
        return sources[0] if same or gated else None

    def is_computed(self, node: int) -> bool:
        """Whether activations have a say in what `node` is, be it by a choice."""
        seen = {node}
        pending = [node]
        while pending:
            here = self.nodes[pending.pop()]
            if here.floating and here.varies:
                return True
            pending += (new := [parent for parent in here.parents if parent not in seen])
            seen.update(new)
        return False

    def is_product(self, node: int) -> bool:
        """Whether `node` is a matrix product of two values that depend on the model's input."""
        left_right = self.get_factors(node)
        return bool(left_right) and all(self.nodes[factor].varies for factor in left_right)

    def get_factors(self, node: int) -> tuple[int, ...]:
        """The two factors of a matrix product, or nothing."""
        here = self.nodes[node]
        if here.operation in ("bmm", "mm", "matmul"):
            return here.parents[:2]
        if here.operation in ("baddbmm", "addmm"):
            return here.parents[1:3]
        return ()

    def _add_node(
        self, operation: str, parents: tuple[int, ...], tensor: Tensor, varies: bool = False
    ) -> int:
        floating = tensor.is_floating_point() or tensor.is_complex()
        varies = varies or self._does_vary(operation, parents, floating)
        node = len(self.nodes)
        self.nodes.append(Node(operation, parents, tuple(tensor.shape), floating, varies))
        self._current[tensor] = node
        if varies and floating:
            self._latest = node
        return node

    def _does_vary(self, operation: str, parents: tuple[int, ...], floating: bool) -> bool:
        # Rows picked from a table of weights are weights still, and a mask is no data: the chosen
        # expert's matrix would look like an activation otherwise.
        if operation in _FROM_TABLE:
            parents = parents[:1]
        elif floating and operation != "embedding":
            parents = tuple(parent for parent in parents if self.nodes[parent].floating)
        return any(self.nodes[parent].varies for parent in parents)


def _find_written(
    arguments: Sequence[Any], args: Sequence[Any], kwargs: dict[str, Any]
) -> list[Tensor]:
    written: list[Tensor] = []
    for place, argument in enumerate(arguments):
        if argument.alias_info is None or not argument.alias_info.is_write:
            continue
        value = args[place] if place < len(args) else kwargs.get(argument.name)
        written += [leaf for leaf in tree_leaves(value) if isinstance(leaf, Tensor)]
    return written


def _get_storage(tensor: Tensor) -> int:
    if tensor.layout is not torch.strided:
        return -id(tensor)
    try:
        return int(tensor.untyped_storage()._cdata)
    except (NotImplementedError, RuntimeError):  # a tensor subclass without memory of its own
        return -id(tensor)
