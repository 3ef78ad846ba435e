"""Containing: the live modules of an attachment as a part of its model."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from torch import nn

if TYPE_CHECKING:
    from hub.attachment.attaching import Attachment


class Container(nn.Module):
    """The model's child that holds the adapters' live modules while they are attached, and nothing
    while they are merged: then it only tells that they are.

    A tensor that several of them share has one name in a state dict: safetensors writes no two.
    """

    def __init__(self, attachment: Attachment) -> None:
        super().__init__()
        self.attachment = attachment
        self.register_state_dict_post_hook(drop_shared)  # type: ignore[no-untyped-call]
        self.register_load_state_dict_pre_hook(add_shared)  # type: ignore[no-untyped-call]

    def list_shared(self) -> dict[str, str]:
        """The further names of tensors that several modules hold, and the first of each."""
        first: dict[nn.Parameter, str] = {}
        names = self.named_parameters(remove_duplicate=False)
        owners = {name: first.setdefault(parameter, name) for name, parameter in names}
        return {name: owner for name, owner in owners.items() if name != owner}


def drop_shared(module: Any, state: dict[str, Any], prefix: str, metadata: Any) -> None:
    """A hook of the container's state dict."""
    for name in module.list_shared():
        state.pop(f"{prefix}{name}", None)


def add_shared(module: Any, state: dict[str, Any], prefix: str, *_: Any) -> None:
    """A hook before a state dict is loaded: the way back."""
    for name, owner in module.list_shared().items():
        if f"{prefix}{owner}" in state:
            state[f"{prefix}{name}"] = state[f"{prefix}{owner}"]
