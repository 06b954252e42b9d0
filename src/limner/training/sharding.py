"""Trained weights shared out among the processes (FSDP2), with a whole copy of the model beside them.

With DDP every process holds all weights, gradients and moments, 16 bytes a trained parameter. Sharded (Zhao et al.,
"PyTorch FSDP", 2023) each holds its share of them, and a block's weights are gathered only while it computes.

A forward pass of a sharded model is a conversation between all processes; decoding on rank 0 alone would wait for
answers that never come. So evaluation, decoding, checkpoints and saving take a plain copy (4 bytes a trained
parameter; frozen ones are not copied) into which the weights of the moment are gathered.

The sharding itself is torch's `fully_shard`: Accelerate's would take the optimizer along, which is made afterwards
here, and does nothing on CPUs, where the tests run.
"""

from __future__ import annotations

import copy

import torch
from torch import Tensor, nn

# torch's sharding takes most of a second to import, so only runs that shard import it.


def shard(model: nn.Module, num_processes: int, device: torch.device) -> nn.Module:
    """Shards a model's trained parameters in place, block by block; returns the plain copy for `gather`."""
    from torch.distributed.device_mesh import init_device_mesh
    from torch.distributed.fsdp import fully_shard

    frozen = {parameter for parameter in model.parameters() if not parameter.requires_grad}
    plain = copy.deepcopy(model, {id(parameter): parameter for parameter in frozen})
    mesh = init_device_mesh(device.type, (num_processes,))
    for module in reversed(list(model.modules())):  # the inner ones first
        for block in module if isinstance(module, nn.ModuleList) else ():
            runs = not isinstance(block, (nn.ModuleList, nn.ModuleDict))  # these are never called
            if runs and any(parameter.requires_grad for parameter in block.parameters()):
                fully_shard(block, mesh=mesh, ignored_params=frozen)
    fully_shard(model, mesh=mesh, ignored_params=frozen)
    return plain


@torch.no_grad()
def gather(model: nn.Module, plain: nn.Module) -> None:
    """Copies the weights and buffers of a sharded model into its plain copy; all processes take part."""
    weights = dict(model.named_parameters())
    for name, target in plain.named_parameters():
        if target.requires_grad:
            target.copy_(whole(weights[name]))
    for own, buffer in zip(plain.buffers(), model.buffers(), strict=True):
        own.copy_(buffer)


def whole(tensor: Tensor) -> Tensor:
    """A sharded tensor gathered (all processes take part); any other as it is."""
    return tensor.detach().full_tensor() if _is_shard(tensor) else tensor  # type: ignore[attr-defined]


def shared_out_like(target: Tensor, value: Tensor) -> Tensor:
    """This process's part of a value that all have, where ``target`` is sharded; otherwise the value."""
    if not _is_shard(target):
        return value
    from torch.distributed.tensor import DTensor, distribute_tensor

    assert isinstance(target, DTensor)
    return distribute_tensor(value.to(target.device), target.device_mesh, target.placements, src_data_rank=None)


def _is_shard(tensor: Tensor) -> bool:
    """Whether it is a DTensor."""
    return hasattr(tensor, "full_tensor")
