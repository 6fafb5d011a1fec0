"""The training split as it is read: order, batches of one, parts, targets of mixed samples, batches without images."""

from collections.abc import Iterable

import numpy as np
import pytest
import torch
from torch import Tensor

from stillhouse.data.images import ImageData
from stillhouse.data.uploaded_order import UploadedOrder
from stillhouse.data.views import Views
from stillhouse.distill import batches as batches_module
from stillhouse.distill.batches import TrainingSplit, even_parts, smallest_part


def split_of(digits: ImageData, *policy: str, batch_size: int = 64) -> TrainingSplit:
    views = Views(policy, 2, digits.input_shape, len(digits.train))
    return TrainingSplit(digits, views, seed=3, batch_size=batch_size, device="cpu")


@pytest.mark.parametrize("batch_size", [64, 160, 1000])
def test_an_epoch_has_every_sample_once(digits: ImageData, batch_size: int) -> None:
    split = split_of(digits, batch_size=batch_size)
    batches = list(split.batches(0))
    assert np.sort(np.concatenate(batches)).tolist() == list(range(160))
    assert split.batches_per_epoch == len(batches) == -(-160 // batch_size)


def test_a_last_batch_of_one_is_left_out(digits: ImageData) -> None:
    assert [len(batch) for batch in split_of(digits, batch_size=53).batches(0)] == [53, 53, 53]


def test_epochs_have_orders_of_their_own(digits: ImageData) -> None:
    split = split_of(digits)
    assert next(split.batches(0)).tolist() == next(split.batches(0)).tolist() != next(split.batches(1)).tolist()


def test_a_batch_holds_the_samples_normalised_images_and_classes(digits: ImageData) -> None:
    batch = split_of(digits).read(np.array([5, 2]), 0)
    assert torch.equal(batch.images, digits.normalise(digits.train.images[[5, 2]]))
    assert batch.labels.tolist() == batch.targets.tolist() == digits.train.labels[[5, 2]].tolist()
    assert batch.indices.tolist() == [5, 2]


def test_a_view_that_mixes_gives_targets_of_both_samples(digits: ImageData) -> None:
    batch = split_of(digits, "mixup").read(np.arange(8), 1)
    assert batch.labels.tolist() == digits.train.labels[:8].tolist()
    assert batch.targets.shape == (8, 10)
    torch.testing.assert_close(batch.targets.sum(1), torch.ones(8))


def test_a_batch_that_is_not_read_says_only_how_large_it_is(digits: ImageData) -> None:
    batch = split_of(digits).unread(np.array([5, 2]))
    assert batch.images.shape == (0, 1, 8, 8)
    assert len(batch.labels) == len(batch.targets) == 0
    assert batch.indices.tolist() == [5, 2]


@pytest.mark.parametrize(
    ("first", "last", "largest", "parts"),
    [(0, 10, None, [(0, 10)]), (2, 12, 4, [(2, 5), (5, 8), (8, 12)]), (0, 4, 4, [(0, 4)])],
)
def test_parts_are_of_nearly_equal_length(first: int, last: int, largest: int | None, parts: list[tuple[int, int]]) -> None:
    assert even_parts(first, last, largest) == parts


@pytest.mark.parametrize("at_once", [1, 64, 100, 4096])
@pytest.mark.parametrize("policy", [(), ("crop", "flip"), ("crop", "mixup"), ("cutmix",)], ids=str)
@pytest.mark.parametrize("channels_last", [False, True])
def test_samples_that_are_augmented_at_once_have_the_bits_of_each_batch_alone(
    digits: ImageData, policy: tuple[str, ...], at_once: int, channels_last: bool
) -> None:
    """On a GPU a few large kernels replace thirty small ones per batch."""
    alone, together = split_of(digits, *policy, batch_size=30), split_of(digits, *policy, batch_size=30)
    for split in (alone, together):
        split._memory_format = torch.channels_last if channels_last else torch.contiguous_format
    together.samples_at_once = at_once
    parts = [part for batch in alone.batches(2) for part in (batch[:20], batch[20:]) if len(part)]
    made = []
    with together.read_ahead(parts, 1):
        for place, part in enumerate(parts):
            one, other = alone.read(part, 1), together.read(part, 1)
            for field in ("images", "labels", "targets", "indices"):
                assert torch.equal(getattr(one, field), getattr(other, field)), field
            assert one.images.stride() == other.images.stride()
            made.append(len(together._made) > 0)
            if place == 3:
                assert torch.equal(together.read(parts[0], 1).images, alone.read(parts[0], 1).images), "out of turn"
    assert any(made) == (at_once >= 64)
    assert not together._made


def test_the_order_of_an_epoch_is_copied_to_the_device_once(digits: ImageData, monkeypatch: pytest.MonkeyPatch) -> None:
    orders: list[int] = []

    class Counted(UploadedOrder):
        def __init__(self, parts: Iterable[Tensor], device: str) -> None:
            announced = list(parts)
            orders.append(sum(len(part) for part in announced))
            super().__init__(announced, device)

    monkeypatch.setattr(batches_module, "UploadedOrder", Counted)
    split = split_of(digits, batch_size=30)
    split.samples_at_once = 64
    parts = list(split.batches(0))
    with split.read_ahead(parts, 0):
        storages = {split.read(part, 0).indices.untyped_storage().data_ptr() for part in parts}
    assert orders == [160]
    assert len(storages) == 1, "all batches are slices of one copy"
    assert split._order is None


def test_a_cpu_augments_each_batch_alone(digits: ImageData) -> None:
    assert split_of(digits).samples_at_once == 0


@pytest.mark.parametrize(
    ("samples", "batch", "workers", "micro", "smallest"),
    [
        (100, 50, 1, None, 50),
        (101, 50, 1, None, 50),  # the last batch of one sample is left out
        (102, 50, 1, None, 2),
        (100, 1, 1, None, 1),
        (100, 4, 4, None, 1),
        (100, 8, 3, None, 1),  # the last batch of four samples: one, one and two
        (99, 33, 4, None, 8),
        (100, 50, 1, 1, 1),
        (100, 50, 1, 2, 2),
        (102, 51, 1, 2, 1),  # 51 samples in 26 parts
        (30, 50, 1, None, 30),
        (102, 50, 4, None, 0),  # two samples for four workers
    ],
)
def test_the_smallest_part_is_the_fewest_samples_that_a_network_sees_at_once(
    samples: int, batch: int, workers: int, micro: int | None, smallest: int
) -> None:
    assert smallest_part(samples, batch, workers, micro) == smallest
