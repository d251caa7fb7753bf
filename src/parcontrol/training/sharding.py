"""Full training over several processes: parameters, gradients and moments in shards (FSDP2).

Each layer is a unit that is gathered when it runs, and what the inner model has beside its layers
is another, which stays gathered from the forward pass to the end of the backward pass: the head
that is tied to the embeddings, and the aggregator that steps in passes call for themselves, are
read in between. A head of its own, which no unit contains, stays whole in every process.
"""

from __future__ import annotations

import copy
import warnings
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import fully_shard
from torch.distributed.tensor import DTensor, Partial, distribute_tensor
from transformers import PreTrainedModel

from parcontrol.training.processes import Processes

# On a CPU torch adds up the squares of a tensor in one float32: the norm of 28 M numbers comes out 0.16 % too small.
_NORM_PIECE = 2**16


class ShardedModel:
    """A model whose parameters have become shards, and the way back to the whole one."""

    def __init__(self, model: PreTrainedModel, processes: Processes, device: torch.device) -> None:
        """Shards a model in place.

        Args:
            model: A ParScale model, equal in all processes, whose parameters all train.
            processes: Among which it is split.
            device: Where they live.
        """
        # Sharding changes the modules' classes and hooks them; the model that is saved is this one.
        self._whole = copy.deepcopy(model, {id(parameter): parameter for parameter in model.parameters()})
        is_tied = _weight(model.get_output_embeddings()) is _weight(model.get_input_embeddings())
        # The inner model returns views of its states, and nothing here writes to them in place.
        warnings.filterwarnings("ignore", "FSDP2-wrapped module .* returned a view tensor", UserWarning)
        mesh = init_device_mesh(device.type, (processes.size,))
        self._inner: Any = model.model
        for unit in [*self._inner.layers, self._inner]:
            fully_shard(unit, mesh=mesh)
            # Losses are shares of the mean over the global batch: sums, no means of means.
            unit.set_gradient_divide_factor(1.0)
            unit.set_force_sum_reduction_for_comms(True)
        if is_tied:
            # A unit swaps its shards for whole parameters in the modules that it holds, and in no others.
            model.set_output_embeddings(model.get_input_embeddings())
        self._shards = dict(model.named_parameters())
        for parameter in self._whole.parameters():
            if not _is_held_by(model, parameter):
                parameter.data = parameter.data.new_empty(0)

    def reduce_gradients(self, now: bool) -> None:
        """Says whether the next backward pass ends the step, so that gradients are summed into shards."""
        self._inner.set_requires_gradient_sync(now)

    @torch.no_grad()
    def gathered(self, dtype: torch.dtype) -> PreTrainedModel:
        """Returns the whole model in a type, in every process; one parameter at a time travels."""
        for name, parameter in self._whole.named_parameters():
            parameter.data = whole(self._shards[name]).to(dtype)
        return self._whole


def whole(tensor: Tensor) -> Tensor:
    """Returns a tensor that may be in shards as a whole; all processes must ask."""
    return tensor.full_tensor() if isinstance(tensor, DTensor) else tensor


def split_like(tensor: Tensor, like: Tensor) -> Tensor:
    """Returns a whole tensor, which all processes have, in the shards of another of its shape."""
    if not isinstance(like, DTensor) or tensor.shape != like.shape:
        return tensor
    return distribute_tensor(tensor.to(like.device), like.device_mesh, like.placements, src_data_rank=None)


def split_by_sharding(parameters: Sequence[nn.Parameter]) -> tuple[list[nn.Parameter], list[nn.Parameter]]:
    """Returns the parameters that are in shards, and those that every process holds as a whole."""
    sharded: list[nn.Parameter] = [parameter for parameter in parameters if isinstance(parameter, DTensor)]
    return sharded, [parameter for parameter in parameters if not isinstance(parameter, DTensor)]


def clip_gradients(parameters: Sequence[nn.Parameter], max_norm: float) -> Tensor:
    """Clips gradients, in shards or not, by their global norm, and returns the norm before."""
    groups = [group for group in split_by_sharding(parameters) if group]
    norms = [_norm([parameter.grad for parameter in group if parameter.grad is not None]) for group in groups]
    norm = norms[0] if len(norms) == 1 else torch.linalg.vector_norm(torch.stack(norms))
    for group in groups:
        nn.utils.clip_grads_with_norm_(group, max_norm, norm)
    return norm


def _norm(gradients: Sequence[Tensor]) -> Tensor:
    """The norm of all gradients together; all are in shards, or none is."""
    local = [gradient.to_local() if isinstance(gradient, DTensor) else gradient for gradient in gradients]
    norm = nn.utils.get_total_norm([piece for tensor in local for piece in tensor.reshape(-1).split(_NORM_PIECE)])
    if gradients and isinstance(gradients[0], DTensor):
        return whole(DTensor.from_local(norm.square(), gradients[0].device_mesh, [Partial()])).sqrt()
    return norm


def _weight(module: Any) -> nn.Parameter:
    weight: nn.Parameter = module.weight
    return weight


def _is_held_by(model: nn.Module, parameter: nn.Parameter) -> bool:
    return any(parameter is held for held in model.parameters())
