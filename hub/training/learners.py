"""Learners: which adapters a run trains, among what they are attached, and what is told of them."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import nn

from hub.adapter import Adapter
from hub.attachment import Attachment, Composition, attach
from hub.attachment.admission import Trainable, choose_learners, resolve_composition
from hub.attachment.routing import flatten, list_adapters, list_answering, show
from hub.composition import BatchSplit, Leaf, Operator, Parallel, Part, replace_leaves, walk
from hub.errors import TrainError
from hub.lineage import add_parents, forget_parents

NEW = "new"  # how an adapter's lineage calls itself, as `hub train --within` does


@dataclass(frozen=True)
class Learners:
    """What a run trains.

    adapters: those that learn, in the order in which they stand.
    tree: the composition in which they do, references loaded; the adapter where it is alone.
    """

    adapters: tuple[Adapter, ...]
    tree: Part

    @property
    def others(self) -> list[Adapter]:
        """The parts that stay as they are."""
        return [part for part in list_adapters([self.tree]) if part not in self.adapters]

    @property
    def labels(self) -> Sequence[str]:
        """The names of classes, by number, that what answers was trained on before."""
        answering = sorted(list_answering(self.tree), key=lambda adapter: not adapter.heads)
        return next((a.lineage["labels"] for a in answering if "labels" in a.lineage), ())

    def describe(self) -> dict[str, Any]:
        """What must be the same for a run to be resumed; JSON."""
        said = [describe_learner(adapter) for adapter in self.adapters]
        if not isinstance(self.tree, Operator):
            return said[0]
        parts = [f"{part.label} {hash_adapter(part)[:12]}" for part in self.others]
        among = {"composition": str(self.tree), "parts": parts}
        if len(said) == 1:
            return {**said[0], **among}
        return {"learners": dict(zip(self.name_folders(), said, strict=True)), **among}

    def name_folders(self) -> list[str]:
        """Where a checkpoint has each: its own folder for one that learns alone."""
        if len(self.adapters) == 1:
            return [""]
        return [f"{number}-{a.method}" for number, a in enumerate(self.adapters, 1)]

    def begin_lineage(self, names: Sequence[str], tokenizer: str) -> None:
        """Say that what was true of each before is so no more, and what it came from.

        names: those of the classes. tokenizer: the digest of the run's.
        """
        for adapter in self.adapters:
            # One that is a version comes from that, which has parents of its own.
            own = adapter.lineage if adapter.reference is None else forget_parents(adapter.lineage)
            lineage = add_parents(own, [adapter, *self.others])
            if names:
                lineage["labels"] = list(names)
            adapter.lineage, adapter.metrics = lineage, {}
            adapter.reference = adapter.digest = adapter.folder = None
            if adapter.base is not None and adapter.base.tokenizer is None:
                adapter.base = replace(adapter.base, tokenizer=tokenizer)

    def tell(self, training: Mapping[str, Any]) -> None:
        """Let each say in its lineage where and how it was trained."""
        for adapter in self.adapters:
            adapter.lineage["training"] = {**self._describe_place(adapter), **training}

    def _describe_place(self, learner: Adapter) -> dict[str, Any]:
        """What a learner tells of the composition that it learned in: itself is `new` there, the
        others that learned are their numbers."""
        if not isinstance(self.tree, Operator):
            return {}
        names = dict(zip(self.adapters, self.name_folders(), strict=True)) | {learner: NEW}
        names |= {part: name_part(part) for part in self.others}
        within = replace_leaves(
            self.tree, lambda leaf: names[leaf] if isinstance(leaf, Adapter) else leaf
        )
        return {"within": str(within), "learners": [names[a] for a in self.adapters]}


def find_learners(model: nn.Module, composition: Composition, trainable: Trainable) -> Learners:
    """What a run is to train: an adapter alone, of a composition those made new, or those that
    `trainable` says; on a model that carries adapters, among these.

    Raises TrainError where that is nothing, or has no meaning here, and what `load` raises.
    """
    present = Attachment.of(model)
    active = present.active if present is not None else ()
    given = list_adapters([composition]) if isinstance(composition, Adapter | Operator) else []
    tree = find_tree(composition, given, active)
    for node in walk(tree):
        if isinstance(node, BatchSplit | Parallel):
            raise TrainError(
                f"a {node.name} gives rows adapters of their own, and a dataset does not say which "
                "row has which; train its parts one by one, or together in a stack, average, split "
                "or fuse"
            )
    there = list_adapters([tree])
    if present is not None:
        check_present(present, tree)
        tree = present.lines[0]
    if trainable is not None:
        adapters = choose_learners(there, trainable)
    elif not isinstance(composition, Operator):
        adapters = there
    elif present is not None:
        adapters = [adapter for adapter in list_learning(present) if adapter in there]
    else:
        adapters = choose_learners(there, None)
    if not adapters:
        raise TrainError(
            f"nothing of {show(tree)} would learn; say what with trainable=[adapter]: without it "
            "only those learn that were made new"
        )
    for adapter in adapters:
        if adapter not in (*given, *active):
            raise TrainError(
                f"what {adapter.label} learned would be lost with it, since it is given by its "
                f"name; load it first, adapter = hub.load({adapter.label!r}), and give that"
            )
    return Learners(tuple(adapters), tree)


def find_tree(
    composition: Composition, given: Sequence[Adapter], active: Sequence[Adapter]
) -> Part:
    """A composition with its references loaded, in the plain form that is attached; a reference of
    an `active` adapter means that one. Raises what `load` raises."""
    named = {adapter.reference: adapter for adapter in active if adapter.reference is not None}

    def find(leaf: Leaf) -> Leaf:
        if not isinstance(leaf, Adapter) or leaf in given:
            return leaf
        return named.get(leaf.reference or "", leaf)

    return flatten(replace_leaves(resolve_composition(composition), find))


def check_present(present: Attachment, tree: Part) -> None:
    """Raise TrainError unless a model's attachment is what a run is to train, or has the one
    adapter among it."""
    if present.merged:
        raise TrainError("the model's adapters are merged; call unmerge() first, or detach")
    lines = present.lines
    if len(lines) > 1:
        raise TrainError(
            "the rows of this model have adapters of their own; route all of them to one, or detach"
        )
    if tree in lines or (isinstance(tree, Adapter) and tree in present.active):
        return
    if isinstance(tree, Adapter):
        names = ", ".join(adapter.label for adapter in present.active) or "nothing that acts"
        raise TrainError(
            f"the model carries {names}, not this adapter; detach first, or attach it with them"
        )
    raise TrainError(
        f"the model carries {', '.join(map(show, lines))}, not {show(tree)}; detach first, or "
        "train what it carries"
    )


def list_learning(attachment: Attachment) -> list[Adapter]:
    """The active adapters of which something learns."""
    learning = {id(parameter) for parameter in attachment.parameters()}
    return [a for a in attachment.active if learning & {id(p) for p in a.tensors.values()}]


@contextmanager
def put_on(model: nn.Module, learners: Learners, allow_other_base: bool) -> Iterator[Attachment]:
    """The composition, attached, with these learning. Raises TrainError where others would too,
    and what `attach` raises."""
    present = Attachment.of(model)
    if present is None:
        assert isinstance(learners.tree, Adapter | Operator)
        with attach(
            model, learners.tree, trainable=learners.adapters, allow_other_base=allow_other_base
        ) as attachment:
            yield attachment
        return
    own = {id(p) for adapter in learners.adapters for p in adapter.tensors.values()}
    learning = list_learning(present)
    for adapter in learners.adapters:
        if adapter not in learning:
            raise TrainError(
                f"adapter {adapter.label} is attached but does not learn; attach it with "
                "trainable=[adapter]"
            )
    if any(id(parameter) not in own for parameter in present.parameters()):
        raise TrainError(
            "another adapter on this model learns too, and a run trains what it is given; attach "
            "them with trainable=[adapter]"
        )
    yield present


# Where the base was loaded from may differ from one machine to the next; its identity counts.
PLACES = ("base_model_name_or_path", "revision")


def describe_learner(adapter: Adapter) -> dict[str, Any]:
    """A learner's method and configuration."""
    config = adapter.describe_config()
    return {
        "method": adapter.method,
        "config": {k: v for k, v in config.items() if k not in PLACES},
    }


def name_part(adapter: Adapter) -> str:
    """A part in the lineage of what learned beside it: its reference, else the folder that it came
    from, else its method and the beginning of `hash_adapter`."""
    return adapter.reference or adapter.folder or f"{adapter.method}:{hash_adapter(adapter)[:12]}"


def hash_adapter(adapter: Adapter) -> str:
    """sha256 of what an adapter computes: its configuration and its tensors."""
    digest = hashlib.sha256(json.dumps(describe_learner(adapter), sort_keys=True).encode())
    for name, tensor in sorted(adapter.tensors.items()):
        digest.update(name.encode())
        digest.update(tensor.detach().cpu().flatten().view(torch.uint8).numpy().tobytes())
    return digest.hexdigest()
