"""Evaluating a model on a split by its task's metric, in whole or by several processes, or keeping what it returned."""

from collections.abc import Callable, Mapping

import torch
from torch import Tensor, nn

from stillhouse.data.degradations import noise
from stillhouse.data.images import ImageData, Split, read_ahead
from stillhouse.device import laid_out
from stillhouse.distill.ddp import ALONE, Workers
from stillhouse.errors import StillhouseError
from stillhouse.models.batch_parts import BatchParts
from stillhouse.tasks import Evaluator, SplitOutputs, Task, of

_BATCH = 512


class NoNumbersError(StillhouseError):
    """A model returns NaN for images, so that its metric would mean nothing."""


def evaluate(
    model: nn.Module,
    data: ImageData,
    split: Split,
    device: str,
    memory_format: torch.memory_format = torch.contiguous_format,
    *,
    workers: Workers = ALONE,
) -> float:
    """The value of the task's metric for `model` on the split's images as they are, in evaluation mode; its mode is restored.

    Args:
        model: takes normalised images [B, channels, H, W] and returns what the task names the outputs of.
        workers: each evaluates its share of the batches; all of them must call, and all get the value for the whole split.

    Raises:
        NoNumbersError: the model returns NaN, from which a metric may still make a number; raised on every worker.
    """
    task = of(data)
    evaluator = task.evaluator_for(data)
    spoiled = _forward(model, task, data, split, device, memory_format, (workers.rank, workers.size), evaluator.update)
    counts = workers.gather(spoiled) if workers.size > 1 else [spoiled]
    _refuse_nan(sum(int(each) for each in counts), split)
    if workers.size > 1:
        evaluator = _merged(evaluator, task.evaluator_for(data), workers, device)
    return evaluator.result()


def split_outputs(
    model: nn.Module,
    data: ImageData,
    split: Split,
    device: str,
    memory_format: torch.memory_format = torch.contiguous_format,
) -> SplitOutputs:
    """What `model` returns for the split's images as they are, in evaluation mode; its mode is restored.

    Args:
        model: as for `evaluate`.

    Raises:
        NoNumbersError: the model returns NaN.
    """
    batches: list[Mapping[str, Tensor]] = []

    def keep(outputs: Mapping[str, Tensor], _targets: Tensor) -> None:
        batches.append({name: value.float() for name, value in outputs.items()})

    _refuse_nan(int(_forward(model, of(data), data, split, device, memory_format, (0, 1), keep)), split)
    whole = {name: torch.cat([each[name] for each in batches]).cpu() for name in batches[0]} if batches else {}
    return SplitOutputs(outputs=whole, targets=split.labels.cpu())


def can_degrade(data: ImageData) -> bool:
    """Whether there are images, uint8 [N, C, H, W], from which the task's models read what `degraded` changes."""
    images = data.for_checks.images[:2]
    if images.dtype != torch.uint8 or images.ndim != 4 or not len(images):
        return False
    task, places = of(data), torch.arange(len(images))
    inputs = [task.evaluation_inputs(data, each, places) for each in (images, noise(images, 0))]
    return not torch.equal(*inputs)


def value_of(outputs: SplitOutputs, data: ImageData) -> float:
    """The value of the task's metric for outputs that `split_outputs` kept."""
    evaluator = of(data).evaluator_for(data)
    evaluator.update(outputs.outputs, outputs.targets)
    return evaluator.result()


def _refuse_nan(count: int, split: Split) -> None:
    if count:
        raise NoNumbersError(f"the model returns NaN for {count} of {len(split)} images")


def _forward(
    model: nn.Module,
    task: Task,
    data: ImageData,
    split: Split,
    device: str,
    memory_format: torch.memory_format,
    part: tuple[int, int],
    take: Callable[[Mapping[str, Tensor], Tensor], None],
) -> Tensor:
    """Gives judged outputs and targets of every n-th batch of the split from batch k on, for `part` (k, n), to `take`.

    Returns:
        int64 [1] on the device: how many images gave NaN.
    """
    was_training = model.training
    model.eval()
    # On the outputs' device: reading a number off a GPU would wait for it after every batch.
    spoiled = torch.zeros(1, dtype=torch.int64, device=device)
    starts = range(part[0] * _BATCH, len(split.labels), part[1] * _BATCH)
    places = (torch.arange(start, min(start + _BATCH, len(split.labels))) for start in starts)
    parts = BatchParts()
    with torch.inference_mode(), read_ahead(split.images, places):
        for start in starts:
            images = split.images[start : start + _BATCH].to(device)
            labels = split.labels[start : start + _BATCH].to(device)
            indices = torch.arange(start, start + len(labels), device=device)

            def run(rows: slice, images: Tensor = images, indices: Tensor = indices) -> tuple[slice, dict[str, Tensor]]:
                inputs = task.split_inputs(data, split, images[rows], indices[rows])
                raw = model(laid_out(inputs, memory_format))
                return rows, task.outputs(raw)

            for rows, outputs in parts.apply(images, run):
                take(task.judged(data, outputs, start + (rows.start or 0)), labels[rows])
                spoiled += torch.stack([each.isnan().flatten(1).any(1) for each in outputs.values()]).any(0).sum()
    model.train(was_training)
    return spoiled


def _merged(own: Evaluator, whole: Evaluator, workers: Workers, device: str) -> Evaluator:
    """The evaluator `whole`, which saw nothing, with what those of all workers have seen; the same on each of them."""
    gathered = {name: workers.gather(value.to(device)) for name, value in sorted(own.state().items())}
    for rank in range(workers.size):
        whole.merge({name: values[rank] for name, values in gathered.items()})
    return whole


def has_finite_weights(model: nn.Module) -> bool:
    """Whether no weight is infinite or NaN."""
    finite = [weight.detach().isfinite().all() for weight in model.parameters()]
    return not finite or bool(torch.stack(finite).all())
