"""What several steps use (random images, a trainer, clocks, counters), and the first two steps: the machine, and the pixels."""

import functools
import itertools
import platform
import time
import warnings
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import numpy as np
import torch
from gpu_steps.plan import Settings, Skip, finish
from torch import nn


def machine(settings: Settings) -> dict[str, Any]:
    """Versions, the GPU, its memory, and the switches of PyTorch that change numbers."""
    figures: dict[str, Any] = {"python": platform.python_version(), "torch": torch.__version__, "numpy": np.__version__}
    figures |= {"cpus": torch.get_num_threads(), "machine": platform.machine()}
    figures |= {"tf32_matmul": torch.backends.cuda.matmul.allow_tf32, "tf32_cudnn": torch.backends.cudnn.allow_tf32}
    figures["cudnn_benchmark"] = torch.backends.cudnn.benchmark
    if settings.device == "cpu":
        return figures
    if not torch.cuda.is_available():
        raise AssertionError("PyTorch finds no GPU; use --device cpu to check the script itself")
    properties = torch.cuda.get_device_properties(0)
    free, total = torch.cuda.mem_get_info()
    figures |= {"gpu": properties.name, "gpus": torch.cuda.device_count(), "cuda": torch.version.cuda}
    figures |= {"cudnn": torch.backends.cudnn.version(), "processors": properties.multi_processor_count}
    return figures | {"memory_gib": total / 2**30, "free_gib": free / 2**30}


POLICIES: tuple[tuple[Any, ...], ...] = (
    (),
    ("crop", "flip"),
    ({"crop": {"mode": "reflect"}}, "cutout"),
    ("colour_jitter",),
    ("random_resized_crop", "flip"),
    ("crop", "mixup"),
    ("flip", "cutmix"),
)


def pixels(settings: Settings) -> dict[str, Any]:
    """Augmented and normalised images have the same bits on the device and on the CPU."""
    from stillhouse.data.views import Views

    problems, compared, skipped = [], 0, {}
    for side in settings.size((32, 224), (16,)):
        data = random_data(settings.size(512, 64), side)
        images = data.train.images.to(settings.device)
        for policy, batch in itertools.product(POLICIES, settings.size((1, 128, 512), (1, 64))):
            views = Views(policy, 2, data.input_shape, len(data.train.labels))
            try:
                views.mixing(torch.arange(1), 0)
            except ModuleNotFoundError as error:
                skipped[str(list(policy))] = f"needs {error.name}, which is not installed"
                continue
            places = torch.randperm(len(images), generator=torch.Generator().manual_seed(0))[:batch]
            here = data.normalise(views.augment(data.train.images, places, 1))
            there = data.normalise(views.augment(images, places.to(settings.device), 1))
            compared += batch
            if not torch.equal(there.cpu(), here):
                problems.append(f"{list(policy)} on {batch} images of {side}x{side} differs between the devices")
            if (mixing := views.mixing(places, 1)) is not None:
                other = views.mixing(places.to(settings.device), 1)
                assert other is not None
                if not all(torch.equal(one, two.cpu()) for one, two in zip(mixing, other, strict=True)):
                    problems.append(f"the partners or shares of {list(policy)} differ between the devices")
    figures: dict[str, Any] = {"images_compared": compared, "policies": len(POLICIES) - len(skipped)}
    return finish(problems, {**figures, "skipped": skipped} if skipped else figures)


def random_data(count: int, side: int = 32, validation: int = 64) -> Any:
    """Random images [3, side, side] of ten classes."""
    from stillhouse.data.images import ImageData, split_of

    draw = np.random.default_rng(0)

    def split(number: int) -> tuple[Any, Any]:
        return draw.integers(0, 256, (number, 3, side, side), dtype=np.uint8), np.arange(number, dtype=np.int64) % 10

    return ImageData(
        name="random",
        num_classes=10,
        input_shape=(3, side, side),
        class_names=tuple("abcdefghij"),
        fingerprint=f"random-{count}-{side}",
        mean=(0.5,) * 3,
        std=(0.3,) * 3,
        train=split_of(split(count)),
        validation=split_of(split(validation)),
        read_test=functools.partial(split, validation),
    )


def new_model(name: str, data: Any) -> nn.Module:
    from stillhouse.models.registry import build_model

    return build_model(name, num_classes=data.num_classes, input_shape=data.input_shape)


def new_trainer(
    model: str,
    data: Any,
    settings: Settings,
    *,
    method: Any = None,
    policy: Sequence[Any] = ("crop", "flip"),
    epochs: int,
    training: dict[str, Any] | None = None,
    seed: int = 0,
    views: int = 1,
    **given: Any,
) -> Any:
    """A trainer of the shipped model on the device, supervised without a method."""
    from stillhouse.data.views import Views
    from stillhouse.distill.method import Method
    from stillhouse.distill.trainer import Trainer
    from stillhouse.spec.training import Training

    return Trainer(
        new_student=functools.partial(new_model, model, data),
        method=method or Method(),
        data=data,
        views=Views(tuple(policy), views, data.input_shape, len(data.train.labels)),
        training=Training(**{"batch_size": 64, "learning_rate": 0.01, **(training or {})}),
        epochs=epochs,
        seed=seed,
        device=settings.device,
        **given,
    )


def synchronise(settings: Settings) -> None:
    if settings.device != "cpu":
        torch.cuda.synchronize()


def seconds(work: Callable[[], Any], settings: Settings) -> float:
    synchronise(settings)
    started = time.perf_counter()
    work()
    synchronise(settings)
    return time.perf_counter() - started


@contextmanager
def counted_syncs(settings: Settings) -> Iterator[list[int]]:
    """While it is open, counts the calls in which the host waits for the GPU; the list has the count at the end."""
    count: list[int] = []
    if settings.device == "cpu":
        yield count
        count.append(0)
        return
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        torch.cuda.set_sync_debug_mode("warn")
        try:
            yield count
        finally:
            torch.cuda.set_sync_debug_mode("default")
    count.append(sum("synchroniz" in str(warning.message) for warning in caught))


def need_gpu(settings: Settings) -> None:
    if settings.device == "cpu":
        raise Skip("needs a GPU")
