"""The optimizers of a task's parameter groups, their state by parameter name, and gradient norms."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import torch
from torch import nn

from limner.device import fuses_clipping
from limner.training.muon import Muon
from limner.training.sharding import shared_out_like, whole
from limner.training.task import ParameterGroup


class Optimizers:
    """Several optimizers over disjoint parameters, as one."""

    def __init__(self, parts: list[torch.optim.Optimizer]) -> None:
        self.parts = parts

    @property
    def param_groups(self) -> list[dict[str, Any]]:
        return [group for part in self.parts for group in part.param_groups]

    def step(self, factor: float = 1.0) -> None:
        """A step with every gradient times ``factor`` (of clipping)."""
        for part in self.parts:
            parameters = [p for group in part.param_groups for p in group["params"] if p.grad is not None]
            if not parameters:
                continue
            if isinstance(part, torch.optim.AdamW) and fuses_clipping(parameters[0].device):
                # The fused kernel divides gradients by this as it reads them: no pass over memory of its own.
                scale = torch.tensor(1.0 / factor, device=parameters[0].device) if factor != 1.0 else None
                part.grad_scale = scale  # type: ignore[attr-defined]
                part.found_inf = None if scale is None else torch.zeros_like(scale)  # type: ignore[attr-defined]
            elif factor != 1.0:
                torch._foreach_mul_([p.grad for p in parameters], factor)
            part.step()

    def zero_grad(self, set_to_none: bool = True) -> None:
        for part in self.parts:
            part.zero_grad(set_to_none)


def build_optimizer(groups: list[ParameterGroup], betas: tuple[float, float] = (0.9, 0.95)) -> Optimizers:
    """AdamW (Loshchilov & Hutter 2017, arXiv:1711.05101), and Muon for the groups that ask for it.

    Norms and biases (anything with fewer than two dimensions) are not decayed: decay pulls toward zero, which for
    a norm's gain is not the neutral value. They always go to AdamW.

    Raises:
        ValueError: a parameter stands in two groups, or none is trained.
    """
    seen: set[int] = set()
    adamw: list[dict[str, Any]] = []
    muon: list[dict[str, Any]] = []
    for group in groups:
        trained = [(name, p) for name, p in group.parameters if p.requires_grad]
        for name, parameter in trained:
            if id(parameter) in seen:
                raise ValueError(f"Parameter '{name}' stands in two groups.")
            seen.add(id(parameter))
        for decay in (True, False):
            members = [(name, p) for name, p in trained if (p.dim() >= 2) == decay]
            if members:
                made = {
                    "params": [p for _, p in members],
                    "names": [name for name, _ in members],
                    "name": group.name,
                    "lr": group.lr,
                    "peak_lr": group.lr,
                    "weight_decay": group.weight_decay if decay else 0.0,
                }
                (muon if decay and group.optimizer == "muon" else adamw).append(made)
    parts: list[torch.optim.Optimizer] = []
    if muon:
        parts.append(Muon(muon))
    if adamw:
        parts.append(torch.optim.AdamW(adamw, betas=betas, fused=True))
    if not parts:
        raise ValueError("No parameter is trained; unfreeze a part of the model.")
    return Optimizers(parts)


def named_trained(optimizers: Optimizers) -> Iterable[tuple[str, nn.Parameter, dict[torch.Tensor, Any]]]:
    """Every trained parameter with the name that its group gave it, and the state of its optimizer."""
    for part in optimizers.parts:
        for group in part.param_groups:
            for name, parameter in zip(group["names"], group["params"], strict=True):
                yield name, parameter, part.state


def optimizer_tensors(optimizers: Optimizers) -> dict[str, torch.Tensor]:
    """The optimizers' state as flat tensors, ``<parameter>#<slot>``: what a checkpoint stores."""
    return {
        f"{name}#{slot}": whole(value) if isinstance(value, torch.Tensor) else torch.tensor(value)
        for name, parameter, state in named_trained(optimizers)
        for slot, value in state.get(parameter, {}).items()
    }


def load_optimizer_tensors(optimizers: Optimizers, tensors: dict[str, torch.Tensor]) -> None:
    """Takes back what `optimizer_tensors` gave."""
    slots: dict[str, dict[str, torch.Tensor]] = {}
    for key, tensor in tensors.items():
        name, slot = key.rsplit("#", 1)
        slots.setdefault(name, {})[slot] = tensor
    for name, parameter, state in named_trained(optimizers):
        if name in slots:
            state[parameter] = {slot: _beside(parameter, value) for slot, value in slots[name].items()}


def _beside(parameter: nn.Parameter, value: torch.Tensor) -> torch.Tensor:
    """A copy of a stored tensor where its parameter is: on its device, and a moment shared out where that is."""
    value = value.to(parameter.device, copy=True)
    return shared_out_like(parameter, value) if value.dim() else value


def gradient_norm(parameters: Iterable[nn.Parameter]) -> torch.Tensor:
    """The global 2-norm of all gradients, a scalar tensor (0 where there are none)."""
    norms = torch._foreach_norm([p.grad for p in parameters if p.grad is not None])
    if not norms:
        return torch.tensor(0.0)
    return whole(torch.linalg.vector_norm(torch.stack([norm.float() for norm in norms])))


def layer_norms(optimizers: Optimizers) -> dict[str, float]:
    """Each parameter's gradient norm: what an event about a non-finite step holds."""
    return {
        name: float(whole(parameter.grad.float().norm()))
        for name, parameter, _ in named_trained(optimizers)
        if parameter.grad is not None
    }
