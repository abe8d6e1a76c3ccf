"""Training by several processes at once, data-parallel, and with FSDP2 if asked. For one process nothing happens here.

Of each micro-batch every process takes an equal part of the blocks. Losses are weighed by their share of the batch's
learned tokens, so that gradients and losses are those of one process when they are summed: N processes with
micro-batches of M blocks train as one with micro-batches of M / N.

compute.sharding: fsdp divides the weights, gradients and optimiser state of the decoder blocks, of teacher and
students, among the processes (`fully_shard`, arXiv 2304.11277). A block is whole while it is at work. Embeddings,
final norm, head and projectors are whole in every process, their gradients summed: the fused head needs its weight all
at once, and tied embeddings then need no care. That costs 16 bytes per such parameter and process where a student is
trained, 4 for the teacher. Each block is gathered when it is reached, not ahead of time. A process loads a model whole,
in the computer's memory, before it is divided.

On accelerators: nccl, and a device for each process. That was written, but not run.
"""

import os
from dataclasses import dataclass
from datetime import timedelta
from typing import Any

import numpy as np
import torch

from featkd.align.relations import blocks_of
from featkd.distill.launch import STORE
from featkd.errors import InputError, RunError
from featkd.training import Compute

BUCKET_BYTES = 32 << 20
TIMEOUT = timedelta(minutes=30)  # while one writes a large model, the others wait

Tensors = dict[str, torch.Tensor]


@dataclass(frozen=True)
class Processes:
    """rank: which of `count` this is. mesh: of those among which models are divided, None if they are not."""

    count: int = 1
    rank: int = 0
    device: str = "cpu"
    mesh: Any = None

    def part(self, blocks: np.ndarray) -> np.ndarray:
        """This process's of the blocks of a micro-batch [blocks]; `count` divides them (spec.py)."""
        each = len(blocks) // self.count
        return blocks[self.rank * each : (self.rank + 1) * each]

    def total(self, value: float) -> float:
        """The sum over all processes."""
        if self.count == 1:
            return value
        found = torch.tensor(value, dtype=torch.float64, device=self.device)
        torch.distributed.all_reduce(found)
        return float(found)

    def as_the_first(self, value: bool) -> bool:
        """What the first process says."""
        return self.total(value and self.rank == 0) > 0

    def in_turns(self, rows: int) -> np.ndarray:
        """Which of so many rows are this process's: as many for each, by the last of all where they do not go up."""
        return np.minimum(np.arange(self.rank, -(-rows // self.count) * self.count, self.count), rows - 1)

    def together(self, found: np.ndarray, rows: int) -> np.ndarray:
        """All rows [rows, ...], of what every process found for its rows `in_turns`."""
        if self.count == 1:
            return found
        own = torch.from_numpy(found).to(self.device)
        parts = [torch.empty_like(own) for _ in range(self.count)]
        torch.distributed.all_gather(parts, own)
        return torch.stack(parts, 1).flatten(0, 1)[:rows].cpu().numpy()

    def shard(self, model: Any) -> None:
        """Divide the weights of the decoder blocks, in place. Raises InputError where there are none to be found."""
        if self.mesh is None:
            return
        from torch.distributed.fsdp import fully_shard

        blocks = blocks_of(model)
        if not blocks:
            raise InputError(
                f"compute.sharding: cannot find the decoder blocks of {model.config.model_type}; write none"
            )
        for block in blocks:
            # the embeddings are outside, so that no module encloses all: each block is a root of its own, and a root
            # would stay whole after its forward pass by default
            fully_shard(block, mesh=self.mesh, reshard_after_forward=True)
            block.set_gradient_divide_factor(1.0)  # a sum; by default a mean over processes, each with a whole loss
            block.set_force_sum_reduction_for_comms(True)
            block.set_reduce_scatter_unused_params(True)

    def apart(self, tensors: list[torch.Tensor]) -> list[list[torch.Tensor]]:
        """Whole ones and divided ones: no fused operation takes both."""
        if self.mesh is None:
            return [tensors]
        return [[t for t in tensors if not _divided(t)], [t for t in tensors if _divided(t)]]

    def sum_gradients(self, parameters: list[torch.nn.Parameter]) -> None:
        """Of what is whole in every process; those of blocks that are divided are summed as they come."""
        if self.count == 1:
            return
        whole = self.apart(parameters)[0]
        used = torch.tensor([p.grad is not None for p in whole], dtype=torch.int32, device=self.device)
        torch.distributed.all_reduce(used, torch.distributed.ReduceOp.MAX)
        gradients = []
        for parameter, anywhere in zip(whole, used.tolist(), strict=True):
            if anywhere:  # a process may have had no token for it, as for an expert
                parameter.grad = torch.zeros_like(parameter) if parameter.grad is None else parameter.grad
                gradients.append(parameter.grad)
        for some in torch._utils._take_tensors(gradients, BUCKET_BYTES):
            flat = torch._utils._flatten_dense_tensors(some)
            torch.distributed.all_reduce(flat)
            torch._foreach_copy_(some, torch._utils._unflatten_dense_tensors(flat, some))

    def clip(self, parameters: list[torch.nn.Parameter], largest: float) -> None:
        """Gradients, summed, to a norm of `largest` over all of them together."""
        if self.mesh is None:
            torch.nn.utils.clip_grad_norm_(parameters, largest)
            return
        whole, divided = self.apart([p.grad for p in parameters if p.grad is not None])
        own = [gradient.to_local() for gradient in divided]
        square = torch.nn.utils.get_total_norm(own).to(self.device) ** 2
        torch.distributed.all_reduce(square)
        norm = (square + torch.nn.utils.get_total_norm(whole).to(self.device) ** 2).sqrt()
        torch._foreach_mul_([*own, *whole], (largest / (norm + 1e-6)).clamp(max=1.0))

    def gathered(self, tensors: Tensors) -> Tensors:
        """The same, whole, in the first process; nothing in the others, which must ask all the same."""
        if self.mesh is None:
            return tensors if self.rank == 0 else {}
        found = {}
        for name, tensor in tensors.items():
            whole = tensor.full_tensor().cpu() if _divided(tensor) else tensor
            if self.rank == 0:
                found[name] = whole
        return found

    def like(self, value: torch.Tensor, parameter: torch.Tensor) -> torch.Tensor:
        """A whole tensor, which every process has, divided as the parameter is. One number stays as it is."""
        if self.mesh is None or not _divided(parameter) or not value.ndim:
            return value
        from torch.distributed.tensor import distribute_tensor

        return distribute_tensor(value, self.mesh, parameter.placements, src_data_rank=None)

    def local_bytes(self, tensor: torch.Tensor) -> int:
        return tensor.to_local().nbytes if self.mesh is not None and _divided(tensor) else tensor.nbytes

    def leave(self) -> None:
        if self.count > 1:
            torch.distributed.destroy_process_group()


ALONE = Processes()


def _divided(tensor: torch.Tensor) -> bool:
    from torch.distributed.tensor import DTensor

    return isinstance(tensor, DTensor)


def join(compute: Compute, device: str) -> Processes:
    """Meet the other processes that launch.py, or torchrun, has started. device: cpu or cuda.

    Raises RunError when they are not as many as the spec says, InputError for more of them than accelerators.
    """
    count = int(os.environ.get("WORLD_SIZE", 1))
    if count != compute.processes:
        raise RunError(f"compute.processes: {compute.processes}, but the launcher started {count}")
    rank = int(os.environ["RANK"])
    if device == "cuda":
        local, there = int(os.environ["LOCAL_RANK"]), torch.cuda.device_count()
        if local >= there:
            raise InputError(f"compute.processes: {count}, but there are {there} accelerators here; lower it")
        torch.cuda.set_device(local)
    store = torch.distributed.FileStore(os.environ[STORE], count) if STORE in os.environ else None
    torch.distributed.init_process_group(
        "nccl" if device == "cuda" else "gloo", store=store, rank=rank, world_size=count, timeout=TIMEOUT
    )
    mesh = None
    if compute.sharding == "fsdp":
        mesh = torch.distributed.device_mesh.init_device_mesh(device, (count,))
    return Processes(count, rank, device, mesh)


def parameter_types(model: Any) -> dict[str, int]:
    """How many numbers are held in which type: Parameter is whole, DTensor divided. What is, not what was asked for."""
    found: dict[str, int] = {}
    for parameter in model.parameters():
        name = type(parameter).__name__
        found[name] = found.get(name, 0) + parameter.numel()
    return found


def world_size() -> int:
    """Of the processes that really train together."""
    there = torch.distributed.is_available() and torch.distributed.is_initialized()
    return torch.distributed.get_world_size() if there else 1
