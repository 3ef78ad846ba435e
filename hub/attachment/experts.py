"""How adapters act on stacked experts, where no module of one expert runs and so no hook fires."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any

import torch
from torch import nn
from torch.nn import functional as F
from torch.utils.hooks import RemovableHandle

from hub.attachment.effects import Switch, changes_input, changes_output
from hub.interfaces import Function, FunctionHook, watch_functions
from hub.sites import Site

Effects = Mapping[tuple[str, int], Sequence[nn.Module]]


class ExpertsEffect(FunctionHook):
    """What adapters do in one stack of experts.

    effects: the modules that act at an expert, in order, by its parameter and its place there.
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
    model: nn.Module, effects: Iterable[tuple[Site, Sequence[nn.Module]]], switch: Switch
) -> Iterator[RemovableHandle]:
    """Let modules act at the stacked experts among their sites."""
    held: dict[str, dict[tuple[str, int], Sequence[nn.Module]]] = {}
    for site, modules in effects:
        if site.part is not None:
            held.setdefault(site.owner, {})[site.part] = modules
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
    parts = [
        run_expert(effects, module, expert, part) if expert < count else torch.zeros_like(part)
        for expert, part in enumerate(torch.split(rows, sizes))
        if sizes[expert]
    ]
    out = torch.cat(parts) * top_k_weights.reshape(-1)[order].unsqueeze(-1)
    return out[order.argsort()].view(tokens, k, -1).sum(1).to(hidden_states.dtype)


def run_expert(effects: Effects, module: Any, expert: int, x: torch.Tensor) -> torch.Tensor:
    """One expert on its rows, (rows, d_model)."""
    name = "gate_up_proj" if module.has_gate else "up_proj"
    h = project_rows(effects, module, name, expert, x)
    h = module._apply_gate(h) if module.has_gate else module.act_fn(h)
    y = project_rows(effects, module, "down_proj", expert, h)
    return module.post_expert_norm(y) if module.has_post_expert_norm else y


def project_rows(
    effects: Effects, module: Any, name: str, expert: int, x: torch.Tensor
) -> torch.Tensor:
    """One projection of one expert, (rows, out_features)."""
    acting = effects.get((name, expert), ())
    for effect in acting:
        if changes_input(effect):
            x = effect.before(x)  # type: ignore[operator]
    weight = getattr(module, name)[expert]
    bias = getattr(module, f"{name}_bias")[expert] if module.has_bias else None
    y = F.linear(x, weight.T if module.is_transposed else weight, bias)
    for effect in acting:
        if changes_output(effect):
            y = effect.forward(x, y)
    return y
