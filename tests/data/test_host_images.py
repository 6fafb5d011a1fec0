"""Images outside of a GPU's memory give the same batches as a tensor of them, whatever was announced."""

from types import SimpleNamespace

import pytest
import torch
from torch import Tensor

from stillhouse import device as device_module
from stillhouse.data import images as images_module
from stillhouse.data.datasets import ImageData, load_dataset
from stillhouse.data.host_images import HostImages
from stillhouse.data.images import Split, images_for, read_ahead, split_for
from stillhouse.data.views import Views

IMAGES = torch.randint(0, 256, (50, 3, 8, 8), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))


def on_the_host() -> HostImages:
    return HostImages(IMAGES, "cpu")


def test_batches_and_slices_are_those_of_the_tensor() -> None:
    images, places = on_the_host(), torch.tensor([7, 0, 49, 7])
    assert (len(images), images.shape, images.dtype) == (50, IMAGES.shape, IMAGES.dtype)
    assert torch.equal(images.index_select(0, places), IMAGES.index_select(0, places))
    assert torch.equal(images[3:9], IMAGES[3:9])
    assert images[:0].shape == (0, 3, 8, 8)
    assert images.to("cpu") is images


@pytest.mark.parametrize("policy", [(), ("crop", "flip"), ("crop", "mixup"), ("cutmix",)], ids=str)
def test_views_of_them_have_the_same_pixels_also_when_announced(policy: tuple[str, ...]) -> None:
    views = Views(policy, 2, (3, 8, 8), len(IMAGES))
    batches = list(torch.randperm(50, generator=torch.Generator().manual_seed(1)).split(16))
    images = on_the_host()
    with read_ahead(images, (views.reads(batch, 1) for batch in batches)):
        for batch in batches:
            assert torch.equal(views.augment(images, batch, 1), views.augment(IMAGES, batch, 1))


@pytest.mark.parametrize(("limit", "kind"), [(None, Tensor), (6 * IMAGES.nbytes, Tensor), (4 * IMAGES.nbytes, HostImages)])
def test_images_that_would_take_a_large_part_of_a_share_stay_outside(
    monkeypatch: pytest.MonkeyPatch, limit: int | None, kind: type
) -> None:
    monkeypatch.setattr(images_module, "memory_limit", lambda _device: limit)
    assert isinstance(images_for(IMAGES, "cpu"), kind)
    split = split_for(Split(IMAGES, torch.arange(50)), "cpu")
    assert isinstance(split.images, kind)
    assert torch.equal(split.labels, torch.arange(50))


class _Unplaceable(Tensor):
    """Images for which a GPU has no memory left, although they are few."""

    tried = 0

    def to(self, *_arguments: object, **_options: object) -> "_Unplaceable":
        _Unplaceable.tried += 1
        raise torch.OutOfMemoryError("CUDA out of memory.")


@pytest.mark.parametrize(("resident", "tried"), [(True, 1), (False, 0)])
def test_images_stay_outside_where_memory_runs_out_or_the_caller_wants_it(
    monkeypatch: pytest.MonkeyPatch, resident: bool, tried: int
) -> None:
    monkeypatch.setattr(images_module, "memory_limit", lambda _device: 100 * IMAGES.nbytes)
    _Unplaceable.tried = 0
    few = IMAGES.as_subclass(_Unplaceable)
    assert isinstance(images_for(few, "cpu", resident=resident), HostImages)
    assert _Unplaceable.tried == tried


def test_the_limit_is_that_of_the_processs_share(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "get_device_properties", lambda _device: SimpleNamespace(total_memory=1000))
    monkeypatch.setattr(torch.cuda, "get_per_process_memory_fraction", lambda _device: 0.25)
    assert device_module.memory_limit("cuda") == 250


@pytest.fixture(scope="module")
def digits() -> ImageData:
    return load_dataset("digits", validation=40, options={"limit": 200})


def test_an_evaluation_reads_them_batch_by_batch(digits: ImageData) -> None:
    from torch import nn

    from stillhouse.distill.evaluation import evaluate

    torch.manual_seed(0)
    model = nn.Sequential(nn.Flatten(), nn.Linear(64, 10))
    held = Split(HostImages(digits.train.images, "cpu"), digits.train.labels)  # type: ignore[arg-type]
    assert evaluate(model, digits, held, "cpu") == evaluate(model, digits, digits.train, "cpu")
