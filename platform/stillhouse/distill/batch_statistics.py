"""Recomputes the statistics by which BatchNorm normalises in evaluation mode, after an epoch of training.

In training, BatchNorm averages the statistics of past batches with a momentum of 0.1: after 20 steps an eighth of the average
is still the initial value, and the rest comes from weights that have changed since. Trained networks with so few steps can
judge images at chance in evaluation mode. The statistics of the present weights come from forward passes over training images
as they are (PreciseBN, arXiv 2105.07576, section 3), and do not change the training.
"""

from collections.abc import Iterator, Mapping
from contextlib import contextmanager

import torch
from torch import nn
from torch.nn.modules.batchnorm import _BatchNorm

from stillhouse.data.hashing import derive_key, permutation
from stillhouse.data.images import ImageData, Images, read_ahead
from stillhouse.device import laid_out
from stillhouse.distill.batches import even_parts
from stillhouse.distill.ddp import ALONE, Workers
from stillhouse.models.modes import evaluating
from stillhouse.tasks import of

NUM_SAMPLES = 1024
"""Training images whose statistics are taken; arXiv 2105.07576 found 1,000 to 10,000 enough."""


def recompute_statistics(
    models: Mapping[str, nn.Module],
    data: ImageData,
    images: Images,
    *,
    seed: int,
    batch_size: int,
    device: str,
    memory_format: torch.memory_format = torch.contiguous_format,
    workers: Workers = ALONE,
) -> None:
    """Sets the statistics of every BatchNorm that is in training mode to their means over batches of training images.

    A BatchNorm that is in evaluation mode while its network is trained is frozen, and keeps its statistics. Equal networks and
    arguments give equal statistics; weights, modes and random numbers stay as they are.

    Args:
        models: in training mode, on `device`.
        images: of the training split, uint8 [N, C, H, W].
        seed: chooses the images.
        batch_size: the largest number of images of a forward pass, over all workers.
        workers: all of them must call; each computes its share of every batch.
    """
    places = permutation(derive_key("statistics", seed), len(images))[:NUM_SAMPLES]
    batches = [places[first:end] for first, end in even_parts(0, len(places), batch_size)]
    done: set[nn.Module] = set()
    task = of(data)
    for model in models.values():
        norms = [each for each in model.modules() if each not in done and _is_trained(each)]
        done.update(norms)
        if not norms or len(batches[0]) < 2:
            continue
        shares = [torch.from_numpy(batch[slice(*workers.slice_of(batch))]) for batch in batches]
        with torch.no_grad(), _averaging(model, norms), read_ahead(images, iter(shares)):
            for share in shares:
                read = images.index_select(0, share.to(images.device) if isinstance(images, torch.Tensor) else share)
                inputs = task.evaluation_inputs(data, read.to(device), share.to(device))
                model(laid_out(inputs, memory_format))


def _is_trained(module: nn.Module) -> bool:
    return isinstance(module, _BatchNorm) and module.training and module.running_mean is not None


@contextmanager
def _averaging(model: nn.Module, norms: list[nn.Module]) -> Iterator[None]:
    """A context in which `norms` alone are in training mode, and average the statistics of all batches equally."""
    momenta = [norm.momentum for norm in norms]
    with evaluating(model):
        for norm in norms:
            assert isinstance(norm, _BatchNorm)
            norm.reset_running_stats()
            norm.momentum = None
            norm.training = True
        try:
            yield
        finally:
            for norm, momentum in zip(norms, momenta, strict=True):
                norm.momentum = momentum
