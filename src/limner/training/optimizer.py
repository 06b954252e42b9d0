"""AdamW over a task's parameter groups, its state by parameter name, and gradient norms."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import torch
from torch import nn

from limner.training.task import ParameterGroup


def build_optimizer(groups: list[ParameterGroup], betas: tuple[float, float] = (0.9, 0.95)) -> torch.optim.AdamW:
    """AdamW (Loshchilov & Hutter 2017, arXiv:1711.05101) with two param groups for each of the task's.

    Norms and biases (anything with fewer than two dimensions) are not decayed: decay pulls toward zero, which for
    a norm's gain is not the neutral value.

    Raises:
        ValueError: a parameter stands in two groups, or none is trained.
    """
    seen: set[int] = set()
    param_groups: list[dict[str, Any]] = []
    for group in groups:
        trained = [(name, p) for name, p in group.parameters if p.requires_grad]
        for name, parameter in trained:
            if id(parameter) in seen:
                raise ValueError(f"Parameter '{name}' stands in two groups.")
            seen.add(id(parameter))
        for decay in (True, False):
            members = [(name, p) for name, p in trained if (p.dim() >= 2) == decay]
            if members:
                param_groups.append(
                    {
                        "params": [p for _, p in members],
                        "names": [name for name, _ in members],
                        "name": group.name,
                        "lr": group.lr,
                        "peak_lr": group.lr,
                        "weight_decay": group.weight_decay if decay else 0.0,
                    }
                )
    if not param_groups:
        raise ValueError("No parameter is trained; unfreeze a part of the model.")
    return torch.optim.AdamW(param_groups, betas=betas, fused=True)


def named_trained(optimizer: torch.optim.Optimizer) -> Iterable[tuple[str, nn.Parameter]]:
    """Every trained parameter with the name that its group gave it."""
    for group in optimizer.param_groups:
        yield from zip(group["names"], group["params"], strict=True)


def optimizer_tensors(optimizer: torch.optim.Optimizer) -> dict[str, torch.Tensor]:
    """The optimizer's state as flat tensors, ``<parameter>#<slot>``: what a checkpoint stores."""
    return {
        f"{name}#{slot}": value if isinstance(value, torch.Tensor) else torch.tensor(value)
        for name, parameter in named_trained(optimizer)
        for slot, value in optimizer.state.get(parameter, {}).items()
    }


def load_optimizer_tensors(optimizer: torch.optim.Optimizer, tensors: dict[str, torch.Tensor]) -> None:
    """Takes back what `optimizer_tensors` gave."""
    slots: dict[str, dict[str, torch.Tensor]] = {}
    for key, tensor in tensors.items():
        name, slot = key.rsplit("#", 1)
        slots.setdefault(name, {})[slot] = tensor
    for name, parameter in named_trained(optimizer):
        if name in slots:
            optimizer.state[parameter] = {
                # `step` stays where the optimizer keeps it; the moments live beside their parameter.
                slot: value.clone() if value.dim() == 0 else value.to(parameter.device, copy=True)
                for slot, value in slots[name].items()
            }


def gradient_norm(parameters: Iterable[nn.Parameter]) -> torch.Tensor:
    """The global 2-norm of all gradients, a scalar tensor (0 where there are none)."""
    norms = torch._foreach_norm([p.grad for p in parameters if p.grad is not None])
    return torch.linalg.vector_norm(torch.stack([norm.float() for norm in norms])) if norms else torch.tensor(0.0)


def scale_gradients(parameters: Iterable[nn.Parameter], factor: torch.Tensor | float) -> None:
    """Multiplies every gradient in place."""
    torch._foreach_mul_([p.grad for p in parameters if p.grad is not None], factor)


def layer_norms(optimizer: torch.optim.Optimizer) -> dict[str, float]:
    """Each parameter's gradient norm: what an event about a non-finite step holds."""
    return {
        name: float(parameter.grad.float().norm())
        for name, parameter in named_trained(optimizer)
        if parameter.grad is not None
    }
