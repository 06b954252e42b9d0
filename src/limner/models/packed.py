"""A frozen encoder's linear maps in oneDNN's own layout, with their GELU computed on the way out.

torch reorders a bf16 weight for the matrix unit at every call, and runs GELU as a pass of its own, which costs more
than the product before it: together about half of a SigLIP's time (docs/LOG.md). oneDNN can keep the weight
reordered and apply the activation while the product's tile is in cache; inductor uses the same two operators.
"""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import Any

import torch
from torch import nn

from limner.device import multiplies_bf16

# What transformers calls an activation -> oneDNN's name and algorithm.
_FUSED = {
    "gelu": ("gelu", "none"),
    "gelu_pytorch_tanh": ("gelu", "tanh"),
    "relu": ("relu", ""),
    "silu": ("swish", ""),
}


class PackedLinear(nn.Module):
    """A linear map and an activation, for inference on CPUs: (..., in) -> (..., out)."""

    def __init__(self, linear: nn.Linear, activation: tuple[str, str] = ("none", "")):
        super().__init__()
        self.bias = None if linear.bias is None else linear.bias.detach()
        self.activation, self.algorithm = activation
        # Not a parameter: an opaque tensor that nothing but the operator below can read.
        self.__dict__["weight"] = torch.ops.mkldnn._reorder_linear_weight(linear.weight.detach(), None)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return torch.ops.mkldnn._linear_pointwise(
            x, self.__dict__["weight"], self.bias, self.activation, [], self.algorithm
        )


def can_pack(module: nn.Module) -> bool:
    """Whether this machine has the operators for a module's precision, and the module lies on the CPU."""
    weight = next(module.parameters())
    if weight.device.type != "cpu" or not torch.backends.mkldnn.is_available():
        return False
    if weight.dtype == torch.bfloat16:
        return multiplies_bf16()
    return weight.dtype == torch.float32


def packed(module: nn.Module, release: bool = False) -> nn.Module:
    """The same computation with packed copies of the linear maps; ``module`` is left as it is, and what is not
    linear is shared with it. Weights that change later are not seen.

    Args:
        release: ``module`` gives up each matrix as soon as it is packed here, and can compute no more.
    """
    if type(module) is nn.Linear:
        return _packed_linear(module, ("none", ""), release)
    fused = _FUSED.get(_activation_name(module))
    children: dict[str, nn.Module | None] = {}
    for name, child in module._modules.items():
        if fused and name == "fc1":
            children[name] = _packed_linear(child, fused, release)  # type: ignore[arg-type]
        elif fused and name == "activation_fn":
            children[name] = nn.Identity()
        else:
            children[name] = child if child is None else packed(child, release)
    twin = copy.copy(module)
    twin.__dict__["_modules"] = children
    return twin


def in_pieces(run: Callable[[torch.Tensor], torch.Tensor], pixels: torch.Tensor) -> torch.Tensor:
    """``run`` of a packed encoder over (B, 3, H, W); in bf16 a picture at a time.

    A CPU's matrix units outrun its memory: what one picture's layer leaves behind stays in the cache, what sixteen
    pictures' does, not (docs/LOG.md: 40 against 51 ms a picture).
    """
    if pixels.dtype != torch.bfloat16:
        return run(pixels)
    return torch.cat([run(picture) for picture in pixels.split(1)])


def given_up(weight: torch.Tensor) -> nn.Parameter:
    """What stands in the place of a weight that is held elsewhere, packed: its shape, on the meta device."""
    return nn.Parameter(weight.to("meta"), requires_grad=False)


def _packed_linear(linear: nn.Linear, activation: tuple[str, str], release: bool) -> PackedLinear:
    twin = PackedLinear(linear, activation)
    if release:
        linear.weight = given_up(linear.weight)
    return twin


def _activation_name(module: Any) -> str:
    """The activation of a two-layer feed-forward; "" for every other module."""
    names = dict(module.named_children())
    if not {"fc1", "fc2", "activation_fn"} <= set(names) or not hasattr(module, "config"):
        return ""
    activation = module.config.hidden_act
    return activation if isinstance(activation, str) and type(module.fc1) is nn.Linear else ""
