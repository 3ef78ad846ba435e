"""Trained heads: a classifier that belongs to the adapter and stands in front of the base's own."""

from __future__ import annotations

import copy
from typing import Any

from torch import nn

from hub.errors import AttachError
from hub.quantization import dequantize_layers
from hub.sites import ATTACHED


def find_heads(model: nn.Module) -> tuple[str, ...]:
    """The paths of a model's task head: what has parameters beside the pretrained part.

    A language model's output embeddings are pretrained too, so such a model has none.
    """
    backbone = getattr(model, "base_model", None)
    if backbone is None or model.get_output_embeddings() is not None:  # type: ignore[operator]
        return ()
    pretrained: tuple[type[nn.Module], ...] = ()
    if backbone is model:
        # Some models for a task hold their encoder and decoder themselves, as T5's for questions.
        if not is_for_a_task(model):
            return ()
        from transformers import PreTrainedModel

        pretrained = (PreTrainedModel, nn.Embedding)
    return tuple(
        name
        for name, child in model.named_children()
        if child is not backbone
        and name != ATTACHED
        and not isinstance(child, pretrained)
        and any(True for _ in child.parameters())
    )


def is_for_a_task(model: nn.Module) -> bool:
    """Whether transformers has the model's class among those that end in a task's head."""
    from transformers.models.auto import modeling_auto as auto

    return any(
        type(model).__name__ in names.values()
        for names in (
            auto.MODEL_FOR_SEQUENCE_CLASSIFICATION_MAPPING_NAMES,
            auto.MODEL_FOR_TOKEN_CLASSIFICATION_MAPPING_NAMES,
            auto.MODEL_FOR_QUESTION_ANSWERING_MAPPING_NAMES,
        )
    )


def copy_head(model: nn.Module, path: str) -> nn.Module:
    """A copy of the head at `path`, of its own storage, not quantized where the base's is.

    Raises AttachError where there is none.
    """
    try:
        head = model.get_submodule(path)
    except AttributeError:
        there = ", ".join(find_heads(model)) or "none"
        raise AttachError(
            f"the adapter carries a trained head {path!r}, and {type(model).__name__} has no such "
            f"module (its heads: {there}); load the base with the class for the adapter's task"
        ) from None
    # What hangs on the base's head, such as the answers of other adapters, is none of the copy's.
    hooks: dict[int, Any] = {
        id(table): type(table)()
        for module in head.modules()
        for name, table in vars(module).items()
        if name.endswith(("_hooks", "_hooks_with_kwargs", "_hooks_always_called"))
    }
    return dequantize_layers(copy.deepcopy(head, hooks))
