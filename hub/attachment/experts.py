"""How adapters act on stacked experts, where no module of one expert runs and so no hook fires."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from typing import Any

import torch
from torch import nn
from torch.nn import functional as F
from torch.utils.hooks import RemovableHandle

from hub.attachment.effects import Switch
from hub.attachment.nodes import Slice, run_after, run_before
from hub.attachment.places import Place
from hub.interfaces import Function, FunctionHook, watch_functions

Effects = Mapping[tuple[str, int], Place]


class ExpertsEffect(FunctionHook):
    """What adapters do in one stack of experts.

    effects: where adapters act, by an expert's parameter and its place there.
    """

    def __init__(self, effects: Effects, switch: Switch) -> None:
        self.effects = effects
        self.switch = switch
        # How many rows an expert gets is known only when it runs, so nothing of it is compiled.
        self.compute = torch.compiler.disable(run_experts)  # type: ignore[no-untyped-call]

    def __reduce__(self) -> Any:
        return ExpertsEffect, (self.effects, self.switch)

    def run(
        self, function: Function, name: str, module: nn.Module, *given: Any, **more: Any
    ) -> Any:
        """Compute the experts with what acts on them."""
        if not self.switch.on:
            return function(module, *given, **more)
        return self.compute(self.effects, module, *given, **more)


def hang_experts(
    model: nn.Module, places: Iterable[Place], switch: Switch
) -> Iterator[RemovableHandle]:
    """Let adapters act at the stacked experts among their places."""
    held: dict[str, dict[tuple[str, int], Place]] = {}
    for place in places:
        if place.site.part is not None:
            held.setdefault(place.site.owner, {})[place.site.part] = place
    for path, at in held.items():
        watch_functions()
        yield model.get_submodule(path).register_forward_hook(ExpertsEffect(at, switch))


def run_experts(
    effects: Effects,
    module: Any,
    hidden_states: torch.Tensor,
    top_k_index: torch.Tensor,
    top_k_weights: torch.Tensor,
) -> torch.Tensor:
    """What the experts give for each token, with the effects in it: (tokens, d_model).

    The names are transformers': hidden_states (tokens, d_model), top_k_index (tokens, k) the
    experts of each token, top_k_weights (tokens, k) the share of each. An index beyond the last
    expert means one that another device computes, and gives zero.
    """
    tokens, k = top_k_index.shape
    chosen = top_k_index.reshape(-1)
    order = chosen.argsort(stable=True)
    rows = hidden_states[order // k]
    count = module.num_experts
    sizes: list[int] = torch.bincount(chosen.clamp(max=count), minlength=count + 1).tolist()
    owners = torch.split(order // k, sizes)
    parts = [
        run_expert(effects, module, expert, part, Slice(tokens=owners[expert], total=tokens))
        if expert < count
        else torch.zeros_like(part)
        for expert, part in enumerate(torch.split(rows, sizes))
        if sizes[expert]
    ]
    out = torch.cat(parts) * top_k_weights.reshape(-1)[order].unsqueeze(-1)
    return out[order.argsort()].view(tokens, k, -1).sum(1).to(hidden_states.dtype)


def run_expert(
    effects: Effects, module: Any, expert: int, x: torch.Tensor, given: Slice
) -> torch.Tensor:
    """One expert on its tokens, (tokens, d_model); `given` says which of the batch they are."""
    name = "gate_up_proj" if module.has_gate else "up_proj"
    h = project_rows(effects, module, name, expert, x, given)
    h = module._apply_gate(h) if module.has_gate else module.act_fn(h)
    y = project_rows(effects, module, "down_proj", expert, h, given)
    return module.post_expert_norm(y) if module.has_post_expert_norm else y


def project_rows(
    effects: Effects, module: Any, name: str, expert: int, x: torch.Tensor, given: Slice
) -> torch.Tensor:
    """One projection of one expert, (tokens, out_features)."""
    place = effects.get((name, expert))
    x = x if place is None else run_before(place.acting.chains[0], x, given)
    weight = getattr(module, name)[expert]
    bias = getattr(module, f"{name}_bias")[expert] if module.has_bias else None
    y = F.linear(x, weight.T if module.is_transposed else weight, bias)
    return y if place is None else run_after(place.acting.chains[1], x, y, given)
