"""Speed of the parts of a training step: gathering knowledge, deriving a view, and the loop around the student.

    python benchmarks/bench_loop.py [--gpu]

Gather: rows of 200 bytes in random order from a sealed view, one thread, by batch size.
View: the parameters of a view of 50,000 samples, and the pixels of a batch.
Trainer: an epoch of the trainer against a hand-written loop that does the same work with torchvision's transforms of
batches.
The variants alternate, and the results are medians. All times are processor time, which other work on the machine disturbs
least: one thread does the work and never waits. With `--gpu` both loops and the gathered rows are on the GPU, and times are
wall clock until it is done. Prints one table and one JSON line.
"""

import argparse
import json
import os
import statistics
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path

os.environ.setdefault("OMP_NUM_THREADS", "1")

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from stillhouse.data.datasets import ImageData, load_dataset
from stillhouse.data.views import Views
from stillhouse.device import synchronise
from stillhouse.distill.trainer import Trainer
from stillhouse.knowledge.store import KnowledgeStore
from stillhouse.knowledge.view import View
from stillhouse.methods import find
from stillhouse.models.registry import build_model
from stillhouse.spec.training import Training

REPEATS = 5
SAMPLES = 50_000
BATCHES = (64, 512)


def timed(work: Callable[[], object], device: str) -> float:
    """Processor time on a CPU, wall clock until the device is done on a GPU."""
    clock = time.process_time if device == "cpu" else time.perf_counter
    synchronise(device)
    started = clock()
    work()
    synchronise(device)
    return clock() - started


def gather_rates(folder: Path, device: str) -> dict[str, float]:
    """Rows of 200 bytes per second, by batch size; and for a view of a million rows, which is 20 times as large.

    On a GPU the copy of each batch is included.
    """
    rates = {}
    store = KnowledgeStore(folder)
    for rows in (SAMPLES, 1_000_000):
        with store.writer({"benchmark": rows}, rows=rows, shape=(50,), dtype="float32") as writer:
            writer.put(np.arange(rows), np.random.default_rng(0).random((rows, 50), dtype=np.float32))
            writer.commit()
            writer.seal()
        view = store.open({"benchmark": rows})
        order = torch.randperm(rows, generator=torch.Generator().manual_seed(0))[: 50 * SAMPLES]
        for size in (*BATCHES, 4096):
            batches = order[: min(rows, 200_000)].split(size)

            def read(view: View = view, batches: tuple[Tensor, ...] = batches) -> None:
                for batch in batches:
                    gathered = view.gather(batch)
                    if device != "cpu":
                        gathered.to(device)

            read()
            seconds = statistics.median(timed(read, device) for _ in range(REPEATS))
            rates[f"{rows:,} rows, batches of {size}"] = sum(len(batch) for batch in batches) / seconds
    return rates


def view_costs(data: ImageData, device: str) -> dict[str, float]:
    """Microseconds per sample: the parameters of whole views, and the pixels of batches of 64 without them."""
    count, samples = REPEATS + 1, len(data.train.labels)
    parameters = []
    for number in range(count):
        views = Views(("crop", "flip"), count, data.input_shape, samples, seed=number)
        # The first batch of a view derives the parameters of all of its samples.
        place = torch.arange(1, device=device)
        first = timed(lambda views=views: views.mixing(place, 0) or views._table(0, torch.device(device)), device)  # noqa: B023
        parameters.append(1e6 * first / samples)
    images, batches = data.train.images.to(device), torch.randperm(samples)[:6400].to(device).split(64)

    def pixels() -> None:
        for batch in batches:
            views.augment(images, batch, 0)

    pixels()
    return {
        "parameters": statistics.median(parameters[1:]),
        "pixels": 1e6 * statistics.median(timed(pixels, device) for _ in range(REPEATS)) / 6400,
    }


def loop_speeds(data: ImageData, model: str, options: dict[str, float], size: int, device: str) -> tuple[float, float, float]:
    """Seconds of an epoch with the trainer and with the hand-written loop, alternating, and the median of the pairs' ratios."""
    samples = len(data.train.labels)

    def student() -> nn.Module:
        return build_model(model, num_classes=data.num_classes, input_shape=data.input_shape, **options)

    trainer = Trainer(
        new_student=student,
        method=find("scratch")(),
        data=data,
        views=Views(("crop", "flip"), REPEATS + 1, data.input_shape, samples),
        training=Training(batch_size=size, schedule="cosine"),
        epochs=REPEATS + 1,
        seed=0,
        device=device,
    )
    hand = by_hand(data, student().to(device), size, REPEATS + 1, device)
    trainer.run_epoch()
    next(hand)
    ours: list[float] = []
    theirs: list[float] = []
    turns: list[tuple[Callable[[], object], list[float]]] = [(trainer.run_epoch, ours), (hand.__next__, theirs)]
    for _ in range(REPEATS):
        for work, times in turns:
            times.append(timed(work, device))
        turns.reverse()
    pairs = (hand / own for own, hand in zip(ours, theirs, strict=True))
    return statistics.median(ours), statistics.median(theirs), statistics.median(pairs)


def by_hand(data: ImageData, model: nn.Module, size: int, epochs: int, device: str) -> Iterator[tuple[float, int]]:
    """Plain PyTorch, an epoch at a time: shuffled batches in memory, cropped and flipped at random, SGD, validation.

    Images, labels and all draws are on the device.
    """
    images, labels = data.train.images.to(device), data.train.labels.to(device)
    valid = [(part.to(device), truth.to(device)) for part, truth in _parts(data)]
    mean = 255 * torch.tensor(data.mean, device=device).view(1, -1, 1, 1)
    std = 255 * torch.tensor(data.std, device=device).view(1, -1, 1, 1)
    side, pad = images.shape[-1], images.shape[-1] // 8
    optimiser = torch.optim.SGD(model.parameters(), lr=0.05, momentum=0.9, weight_decay=5e-4)
    steps = -(-len(labels) // size)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimiser, epochs * steps)
    for _ in range(epochs):
        model.train()
        total = torch.zeros((), device=device)
        for batch in torch.randperm(len(labels), device=device).split(size):
            pixels = F.pad(images[batch], (pad, pad, pad, pad))
            left = torch.randint(0, 2 * pad + 1, (len(batch), 2), device=device)
            rows = (left[:, :1] + torch.arange(side, device=device))[:, None, :, None]
            columns = (left[:, 1:] + torch.arange(side, device=device))[:, None, None, :]
            pixels = pixels[
                torch.arange(len(batch), device=device)[:, None, None, None],
                torch.arange(pixels.shape[1], device=device)[:, None, None],
                rows,
                columns,
            ]
            pixels = torch.where((torch.rand(len(batch), device=device) < 0.5)[:, None, None, None], pixels.flip(-1), pixels)
            loss = F.cross_entropy(model((pixels.float() - mean) / std), labels[batch])
            optimiser.zero_grad(set_to_none=True)
            loss.backward()
            optimiser.step()
            schedule.step()
            total += loss.detach()
        model.eval()
        with torch.no_grad():
            correct = sum(int((model((part.float() - mean) / std).argmax(1) == truth).sum()) for part, truth in valid)
        yield float(total), correct


def _parts(data: ImageData) -> Iterator[tuple[Tensor, Tensor]]:
    """Images and labels of the validation split, in batches of 512."""
    return zip(data.validation.images.split(512), data.validation.labels.split(512), strict=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--gpu", action="store_true", help="on the GPU instead of the CPU")
    device = "cuda" if parser.parse_args().gpu else "cpu"
    torch.set_num_threads(1)
    data = load_dataset("random_images:load", validation=500, options={"count": 3500, "limit_test": 100})
    large = load_dataset("random_images:load", validation=500, options={"count": SAMPLES + 500, "limit_test": 100})
    with tempfile.TemporaryDirectory() as folder:
        rates = gather_rates(Path(folder), device)
    costs = view_costs(large, device)
    print("| what | measured | must | aim |\n|---|---|---|---|")
    for name, rate in rates.items():
        print(f"| gather, {name} | {rate / 1e6:.1f} M rows/s | 3 | 10 |")
    print(f"| parameters of a view | {costs['parameters']:.2f} µs per sample | 2 | 0.5 |")
    print(f"| pixels, crop and flip, batches of 64 | {costs['pixels']:.2f} µs per sample | | |")
    loops = {}
    for model, options, size in (("mlp", {}, 64), ("resnet8", {"width": 0.5}, 64), ("resnet8", {"width": 0.5}, 512)):
        ours, theirs, ratio = loop_speeds(data, model, options, size, device)
        loops[f"{model} {options}, {size}"] = ratio
        seconds = f"{theirs:.2f} s by hand, {ours:.2f} s ours"
        print(f"| trainer, {model}, batch {size}: {seconds} | {ratio:.2f} of its speed | 0.95 | 1 |")
    print(
        json.dumps(
            {
                "benchmark": "loop",
                "device": device,
                "gather_rows_per_s": rates,
                "view_us_per_sample": costs,
                "loop_speed": loops,
            }
        )
    )


if __name__ == "__main__":
    main()
