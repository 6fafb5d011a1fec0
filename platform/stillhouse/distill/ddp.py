"""One student trained by several processes: each takes its slice of every batch, PyTorch's DDP averages the gradients.

A batch holds the same samples for any number of workers, statistics of BatchNorm are those of the whole batch, and the loss of
a slice is weighted by its size. The result is therefore that of one worker, except for rounding and for random numbers that the
student draws itself (dropout): each worker draws those of its slice.
"""

from collections.abc import Callable, Iterable, Mapping
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
import torch.distributed as dist
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

from stillhouse.compress.chain import Chain
from stillhouse.distill.method import Method
from stillhouse.tasks import Task

Terms = dict[str, Tensor]


@dataclass(frozen=True)
class Workers:
    """The processes that train one student together, for the one of `rank`; all have joined torch's default process group."""

    rank: int = 0
    size: int = 1

    def slice_of(self, batch: NDArray[np.int64]) -> tuple[int, int]:
        """The (first, last + 1) places of the batch that are this worker's; sizes differ by one at most."""
        return len(batch) * self.rank // self.size, len(batch) * (self.rank + 1) // self.size

    def sum(self, values: Tensor) -> Tensor:
        """The sum over all workers, on each of them."""
        if self.size > 1:
            values = values.clone()
            dist.all_reduce(values)
        return values

    def gather(self, values: Tensor) -> list[Tensor]:
        """The values of every worker in the order of ranks, on each worker; only the first dimension may differ in length."""
        if self.size == 1:
            return [values]
        lengths = torch.zeros(self.size, dtype=torch.int64, device=values.device)
        lengths[self.rank] = len(values)
        longest = int(self.sum(lengths).max())
        padded = values.new_zeros(longest, *values.shape[1:])
        padded[: len(values)] = values
        gathered = [torch.empty_like(padded) for _ in range(self.size)]
        dist.all_gather(gathered, padded)
        return [each[: int(length)] for each, length in zip(gathered, self.sum(lengths), strict=True)]

    def agree_on(self, number: int, device: str) -> bool:
        """Whether all workers hold the same number."""
        if self.size == 1:
            return True
        ends = torch.tensor([number, -number], device=device)
        dist.all_reduce(ends, dist.ReduceOp.MAX)
        return int(ends.sum()) == 0


ALONE = Workers()
_NO_OPERATORS = Chain()


def split_problem(method: Method, task: Task, operators: Chain = _NO_OPERATORS) -> str | None:
    """Why the method cannot train a student with these operators on a part of each batch; None when it can."""
    if not task.separable and method.uses_supervised_loss:
        return f"has the loss of task {task.name}, which must see each batch whole"
    if type(method).step is not Method.step:
        return "has its own training step, which must see each batch whole"
    if method.needs_whole_batch:
        return "relates the samples of a batch to each other, so that it must see each batch whole"
    if (name := operators.whole_batch_operator) is not None:
        return f"trains a student with {name}, which must see each batch whole"
    return None


def sync_batchnorm_problem(method: Method) -> str | None:
    """Why the method cannot train with PyTorch's SyncBatchNorm; None when it can."""
    if method.differentiates_images:
        return "differentiates the student's gradient again, which PyTorch's SyncBatchNorm does not support"
    return None


class JointLoss:
    """The loss of a part of a batch, wrapped in DDP where there are several workers.

    Args:
        modules: the student and the helpers that are trained.
    """

    def __init__(self, modules: Iterable[nn.Module], workers: Workers) -> None:
        self._module = _Loss(modules)
        self._parallel: DistributedDataParallel | None = None
        trained = any(parameter.requires_grad for parameter in self._module.parameters())
        if workers.size > 1 and trained:
            # A stage may train only the lower layers, and a loss need not read every helper.
            self._parallel = DistributedDataParallel(
                self._module, find_unused_parameters=True, broadcast_buffers=_has_own_buffers(self._module)
            )

    def __call__(self, compute: Callable[[], Terms]) -> Terms:
        """The terms that `compute` returns; it calls the modules."""
        terms: Terms = self._module(compute) if self._parallel is None else self._parallel(compute)
        return terms

    def accumulating(self, *, more: bool) -> AbstractContextManager[Any]:
        """A context for each part of the worker's slice; gradients are averaged over the workers after the last part only.

        Args:
            more: whether another part follows.
        """
        return nullcontext() if self._parallel is None or not more else self._parallel.no_sync()


class _Loss(nn.Module):
    def __init__(self, modules: Iterable[nn.Module]) -> None:
        super().__init__()
        self.parts = nn.ModuleList(modules)

    def forward(self, compute: Callable[[], Terms]) -> Terms:
        return compute()


class _AllReduce(torch.autograd.Function):
    """The sum over all workers; its gradient is the sum of theirs, to any order."""

    @staticmethod
    def forward(ctx: Any, values: Tensor) -> Tensor:
        total = values.clone()
        dist.all_reduce(total)
        return total

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> Tensor:
        (gradient,) = gradients
        summed: Tensor = _AllReduce.apply(gradient.contiguous())
        return summed


class _SharedStatistics(nn.Module):
    """BatchNorm over the batch of all workers, on any device and differentiable twice. Mixed into torch's classes."""

    def forward(self, input: Tensor) -> Tensor:
        norm: Any = self
        if not self.training:
            output: Tensor = super().forward(input)
            return output
        dims = [0, *range(2, input.ndim)]
        shape = [1, -1, *(1 for _ in dims[1:])]
        values = input.float()
        count = values.new_full((1,), values.numel() / values.shape[1])
        sums = _reduced(torch.cat((values.sum(dims), count)))
        total = sums[-1].detach()
        mean = sums[:-1] / total
        centred = values - mean.view(shape)
        variance = _reduced(centred.square().sum(dims)) / total
        if norm.track_running_stats and norm.running_mean is not None:
            with torch.no_grad():
                norm.num_batches_tracked.add_(1)
                share = 1 / float(norm.num_batches_tracked) if norm.momentum is None else norm.momentum
                norm.running_mean.lerp_(mean.detach(), share)
                norm.running_var.lerp_(variance.detach() * total / (total - 1), share)
        output = centred * torch.rsqrt(variance + norm.eps).view(shape)
        if norm.affine:
            output = output * norm.weight.view(shape) + norm.bias.view(shape)
        return output.to(input.dtype)


def _has_own_buffers(module: nn.Module) -> bool:
    """Whether workers may have different buffers: those of shared statistics are equal, so that nobody need send them."""
    shared = _SharedStatistics, nn.SyncBatchNorm
    return any(part._buffers for part in module.modules() if not isinstance(part, shared))


def _reduced(values: Tensor) -> Tensor:
    reduced: Tensor = _AllReduce.apply(values)
    return reduced


_SHARED: Mapping[type[nn.Module], type[nn.Module]] = {
    kind: type(f"Shared{kind.__name__}", (_SharedStatistics, kind), {})
    for kind in (nn.BatchNorm1d, nn.BatchNorm2d, nn.BatchNorm3d)
}


def share_statistics(module: nn.Module, workers: Workers, *, by_torch: bool = False) -> None:
    """Makes every BatchNorm in `module` normalise by the batch of all workers; names, weights and hooks stay.

    Args:
        by_torch: by `torch.nn.SyncBatchNorm`, which exchanges statistics in one call each way. It needs a GPU and cannot be
            differentiated twice.
    """
    if workers.size > 1:
        for norm in module.modules():
            if type(norm) in _SHARED:
                norm.__class__ = nn.SyncBatchNorm if by_torch else _SHARED[type(norm)]
                if by_torch:
                    vars(norm)["process_group"] = None
