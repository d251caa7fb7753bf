"""Full training over several processes: parameters, gradients and moments in shards (FSDP2).

Each layer is a unit that is gathered when it runs, and what the inner model has beside its layers
is another, which stays gathered from the forward pass to the end of the backward pass: the head
that is tied to the embeddings, and the aggregator that steps in passes call for themselves, are
read in between. A head of its own, which no unit contains, stays whole in every process.
"""

from __future__ import annotations

import copy
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import fully_shard
from torch.distributed.tensor import DTensor, distribute_tensor
from transformers import PreTrainedModel

from parcontrol.training.processes import Processes


class ShardedModel:
    """A model whose parameters have become shards, and the way back to the whole one."""

    def __init__(self, model: PreTrainedModel, processes: Processes, device: torch.device) -> None:
        """Shards a model in place.

        Args:
            model: A ParScale model, equal in all processes, whose parameters all train.
            processes: Among which it is split.
            device: Where they live.
        """
        self.model = model
        # Sharding changes the modules' classes and hooks them; the model that is saved is this one.
        self._whole = copy.deepcopy(model, {id(parameter): parameter for parameter in model.parameters()})
        mesh = init_device_mesh(device.type, (processes.size,))
        self._inner: Any = model.model
        for unit in [*self._inner.layers, self._inner]:
            fully_shard(unit, mesh=mesh)
            # Losses are shares of the mean over the global batch: sums, no means of means.
            unit.set_gradient_divide_factor(1.0)
            unit.set_force_sum_reduction_for_comms(True)
        for parameter in self._whole.parameters():
            if not _is_held_by(model, parameter):
                parameter.data = parameter.data.new_empty(0)

    def reduce_gradients(self, now: bool) -> None:
        """Says whether the next backward pass ends the step, so that gradients are summed into shards."""
        self._inner.set_requires_gradient_sync(now)

    @torch.no_grad()
    def gathered(self, dtype: torch.dtype) -> PreTrainedModel:
        """Returns the whole model in a type, in every process; one parameter at a time travels."""
        shards = dict(self.model.named_parameters())
        for name, parameter in self._whole.named_parameters():
            parameter.data = whole(shards[name]).to(dtype)
        return self._whole


def whole(tensor: Tensor) -> Tensor:
    """Returns a tensor that may be in shards as a whole; all processes must ask."""
    return tensor.full_tensor() if isinstance(tensor, DTensor) else tensor


def split_like(tensor: Tensor, like: Tensor) -> Tensor:
    """Returns a whole tensor, which all processes have, in the shards of another of its shape."""
    if not isinstance(like, DTensor) or tensor.shape != like.shape:
        return tensor
    return distribute_tensor(tensor.to(like.device), like.device_mesh, like.placements, src_data_rank=None)


def unsharded(parameters: Sequence[nn.Parameter]) -> list[nn.Parameter]:
    """Returns the parameters that every process holds as a whole."""
    return [parameter for parameter in parameters if not isinstance(parameter, DTensor)]


def clip_gradients(parameters: Sequence[nn.Parameter], max_norm: float) -> Tensor:
    """Clips gradients, in shards or not, by their global norm, and returns the norm before."""
    plain = unsharded(parameters)
    if len(plain) == len(parameters):
        return nn.utils.clip_grad_norm_(parameters, max_norm)
    sharded = [parameter for parameter in parameters if isinstance(parameter, DTensor)]
    groups = [group for group in (sharded, plain) if group]
    norms = [
        whole(nn.utils.get_total_norm([parameter.grad for parameter in group if parameter.grad is not None]))
        for group in groups
    ]
    norm = torch.linalg.vector_norm(torch.stack(norms))
    for group in groups:
        nn.utils.clip_grads_with_norm_(group, max_norm, norm)
    return norm


def _is_held_by(model: nn.Module, parameter: nn.Parameter) -> bool:
    return any(parameter is held for held in model.parameters())
