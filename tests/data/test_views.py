import json
import pickle
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from stillhouse.data.hashing import derive_key
from stillhouse.data.views import POLICY_VERSION, PolicyEntry, Views, policy_problems
from stillhouse.errors import UsageError

GEOMETRY: tuple[PolicyEntry, ...] = ({"crop": {"padding": 2}}, "flip")
EVERYTHING: tuple[PolicyEntry, ...] = (
    "random_resized_crop",
    {"crop": {"padding": 2, "mode": "reflect"}},
    "flip",
    "colour_jitter",
    {"cutout": {"size": 3}},
)
POLICIES: list[tuple[PolicyEntry, ...]] = [(), GEOMETRY, EVERYTHING, (*GEOMETRY, "mixup"), (*EVERYTHING, "cutmix")]
SHAPES = [(1, 8, 8), (3, 10, 7), (2, 9, 9)]


def images_of(shape: tuple[int, int, int], num_samples: int = 40) -> Tensor:
    generator = torch.Generator().manual_seed(1)
    return torch.randint(0, 256, (num_samples, *shape), generator=generator, dtype=torch.uint8)


def splitmix64(key: int, counter: int) -> int:
    """One hash in Python's own integers."""
    word = (counter * 0x9E3779B97F4A7C15 + key) % 2**64
    word = (word ^ (word >> 30)) * 0xBF58476D1CE4E5B9 % 2**64
    word = (word ^ (word >> 27)) * 0x94D049BB133111EB % 2**64
    return word ^ (word >> 31)


@pytest.mark.parametrize("policy", POLICIES, ids=str)
@pytest.mark.parametrize("shape", SHAPES, ids=str)
@settings(max_examples=8, deadline=None)
@given(indices=st.lists(st.integers(0, 39), min_size=1, max_size=9), view=st.integers(0, 2))
def test_a_sample_looks_the_same_in_every_batch(
    policy: tuple[PolicyEntry, ...], shape: tuple[int, int, int], indices: list[int], view: int
) -> None:
    views = Views(policy, 3, shape, 40)
    view %= views.count
    together = views.augment(images_of(shape), torch.arange(40), view)
    assert together.dtype == torch.uint8
    assert torch.equal(views.augment(images_of(shape), torch.tensor(indices), view), together[indices])


@pytest.mark.parametrize("policy", POLICIES, ids=str)
def test_another_process_makes_the_same_pixels(policy: tuple[PolicyEntry, ...]) -> None:
    views, images = Views(policy, 2, (3, 8, 8), 40, seed=5), images_of((3, 8, 8))
    first = views.augment(images, torch.arange(40), 0)
    travelled = pickle.loads(pickle.dumps(views))
    assert travelled == views
    assert torch.equal(travelled.augment(images, torch.arange(40), 0), first)


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
@pytest.mark.parametrize("policy", POLICIES, ids=str)
@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_a_gpu_makes_the_same_pixels(policy: tuple[PolicyEntry, ...], shape: tuple[int, int, int]) -> None:
    views, indices = Views(policy, 1, shape, 40), torch.arange(40)
    assert torch.equal(views.augment(images_of(shape).cuda(), indices, 0).cpu(), views.augment(images_of(shape), indices, 0))


def test_crop_offsets_and_flips_are_those_of_the_counter_hash() -> None:
    views, images = Views(GEOMETRY, 4, (1, 5, 5), 40, seed=7), images_of((1, 5, 5))
    padded = np.pad(images[:, 0].numpy(), ((0, 0), (2, 2), (2, 2)))
    augmented = views.augment(images, torch.arange(40), 3)
    for sample in range(40):

        def draw(position: int, operation: str, name: str, sample: int = sample) -> float:
            key = derive_key("view", POLICY_VERSION, 7, position, operation, 3, name)
            return (splitmix64(key, sample) >> 11) / 2**53

        top, left = int(5 * draw(0, "crop", "top")), int(5 * draw(0, "crop", "left"))
        expected = padded[sample, top : top + 5, left : left + 5]
        expected = expected[:, ::-1] if draw(1, "flip", "flipped") < 0.5 else expected
        assert np.array_equal(augmented[sample, 0].numpy(), expected)


def test_views_and_seeds_differ_and_samples_within_a_view_do() -> None:
    same = images_of((1, 8, 8), 1).expand(40, -1, -1, -1)
    views, all_samples = Views(GEOMETRY, 2, (1, 8, 8), 40), torch.arange(40)
    first = views.augment(same, all_samples, 0)
    assert len({sample.numpy().tobytes() for sample in first}) > 10
    assert not torch.equal(first, views.augment(same, all_samples, 1))
    assert not torch.equal(first, Views(GEOMETRY, 2, (1, 8, 8), 40, seed=1).augment(same, all_samples, 0))


def test_more_views_than_are_remembered_still_give_the_same_pixels() -> None:
    views, images, some = Views(GEOMETRY, 9, (1, 8, 8), 40), images_of((1, 8, 8)), torch.tensor([3, 1, 4])
    first = [views.augment(images, some, view) for view in range(9)]
    assert all(torch.equal(views.augment(images, some, view), first[view]) for view in range(9))


def test_threads_may_share_views() -> None:
    views, images, some = Views(GEOMETRY, 30, (1, 8, 8), 40), images_of((1, 8, 8)), torch.tensor([3, 1, 4])
    alone = Views(GEOMETRY, 30, (1, 8, 8), 40)
    with ThreadPoolExecutor(4) as pool:
        together = list(pool.map(lambda view: views.augment(images, some, view % 30), range(120)))
    assert all(torch.equal(pixels, alone.augment(images, some, view % 30)) for view, pixels in enumerate(together))


def test_an_empty_policy_has_one_view_of_the_unchanged_images() -> None:
    views, images = Views((), 8, (1, 8, 8), 40), images_of((1, 8, 8))
    assert views.count == 1
    assert torch.equal(views.augment(images, torch.tensor([5, 2]), 0), images[[5, 2]])
    assert views.mixing(torch.tensor([5, 2]), 0) is None
    assert not views.changes_labels


@pytest.mark.parametrize("count", [1, 5, 16])
def test_every_seed_has_its_own_order_of_the_same_views(count: int) -> None:
    views = Views(GEOMETRY, count, (1, 8, 8), 40)
    orders = [views.order(seed) for seed in range(6)]
    assert all(sorted(order) == list(range(count)) for order in orders)
    assert len({tuple(order) for order in orders}) > (1 if count > 1 else 0)
    assert np.array_equal(views.order(3), orders[3])


@pytest.mark.parametrize("name", ["mixup", "cutmix"])
def test_mixing_returns_the_partner_and_the_own_share_of_the_pixels(name: str) -> None:
    levels = torch.arange(40, dtype=torch.uint8) * 6
    flat = levels.view(-1, 1, 1, 1).expand(40, 1, 16, 16).contiguous()
    views, indices = Views(("flip", name), 2, (1, 16, 16), 40), torch.tensor([7, 0, 39, 12])
    assert views.changes_labels
    mixing = views.mixing(indices, 1)
    assert mixing is not None
    partner, weight = mixing
    assert (partner.dtype, weight.dtype) == (torch.int64, torch.float32)
    assert ((weight >= 0) & (weight <= 1)).all()
    expected = weight * levels[indices] + (1 - weight) * levels[partner]
    assert torch.allclose(views.augment(flat, indices, 1).float().mean((1, 2, 3)), expected, atol=0.51)


def test_a_partner_is_augmented_as_it_would_be_alone() -> None:
    images = images_of((3, 8, 8))
    mixed = Views((*GEOMETRY, "cutmix"), 1, (3, 8, 8), 40)
    plain = Views(GEOMETRY, 1, (3, 8, 8), 40).augment(images, torch.arange(40), 0)
    mixing = mixed.mixing(torch.arange(40), 0)
    assert mixing is not None
    augmented = mixed.augment(images, torch.arange(40), 0)
    assert ((augmented == plain) | (augmented == plain[mixing[0]])).all()


@pytest.mark.parametrize(
    ("one", "other"),
    [
        (("crop",), ({"crop": {"padding": 1, "mode": "zero"}},)),
        (("mixup",), ({"mixup": {"alpha": 1}},)),
        (("flip",), ({"flip": None},)),
        (("random_resized_crop",), ({"random_resized_crop": {"scale": [0.08, 1]}},)),
    ],
    ids=["defaults", "number", "null", "list"],
)
def test_different_spellings_of_a_policy_have_one_identity(
    one: tuple[PolicyEntry, ...], other: tuple[PolicyEntry, ...]
) -> None:
    written = [json.dumps(Views(policy, 2, (3, 8, 8), 40).identity()) for policy in (one, other)]
    assert written[0] == written[1]


@pytest.mark.parametrize(
    "changed",
    [{"seed": 1}, {"policy": ("flip", "crop", "mixup")}, {"policy": ("crop", "flip", "cutmix")}, {"num_samples": 41}],
    ids=lambda changed: next(iter(changed)),
)
def test_every_change_of_pixels_changes_the_identity(changed: dict[str, Any]) -> None:
    plain: dict[str, Any] = {"policy": ("crop", "flip", "mixup"), "count": 2, "input_shape": (3, 8, 8), "num_samples": 40}
    assert Views(**plain).identity() != Views(**(plain | changed)).identity()


def test_the_number_of_views_does_not_change_what_one_view_is() -> None:
    assert Views(GEOMETRY, 2, (1, 8, 8), 40).identity() == Views(GEOMETRY, 8, (1, 8, 8), 40).identity()


def test_the_identity_of_unchanged_images_does_not_depend_on_the_seed() -> None:
    assert Views((), 1, (1, 8, 8), 40, seed=1).identity() == Views((), 8, (1, 8, 8), 40, seed=2).identity()


@pytest.mark.parametrize(
    ("policy", "sentence"),
    [
        (["crp"], "no operation 'crp'; did you mean 'crop'?"),
        ([{"crop": {"pading": 2}}], "policy[0] cannot be used: crop has no option 'pading'; did you mean 'padding'?"),
        ([{"crop": 4}], "crop must be given options as {crop: {option: value}}, got 4"),
        ([{"crop": {}, "flip": {}}], "each entry of a policy must be a name or"),
        ([7], "each entry of a policy must be a name or"),
        ("crop", "policy must be a list such as [crop, flip], got 'crop'"),
        (["mixup", "flip"], "policy[0] must be the last entry if it is mixup"),
        (["mixup", "cutmix"], "policy[0] must be the last entry if it is mixup"),
        ([{"crop": {"padding": 8}}], "policy[0].crop.padding must be smaller than the image's 8 pixels, got 8"),
        ([{"cutout": {"size": 8}}], "cutout.size must be smaller than the image's 8 pixels, got 8"),
        ([{"crop": {"padding": True}}], "crop.padding must be a whole number >= 1, got True"),
        ([{"random_resized_crop": {"ratio": [0, 1]}}], "ratio must be [low, high] with 0 < low <= high, got (0.0, 1.0)"),
    ],
    ids=str,
)
def test_a_wrong_policy_is_one_problem(policy: Any, sentence: str) -> None:
    problems = policy_problems(policy, (1, 8, 8))
    assert len(problems) == 1
    assert sentence in str(problems[0])


def test_all_problems_of_a_policy_are_reported_at_once() -> None:
    assert len(policy_problems(["crp", {"flip": {"probability": 2}}, "mixup", {"cutout": {"size": 8}}], (1, 8, 8))) == 4


def test_a_valid_policy_has_no_problems() -> None:
    assert policy_problems(["crop", "flip", "colour_jitter", {"cutmix": {"alpha": 0.5}}], (1, 8, 8)) == []


def test_views_refuse_a_wrong_policy_with_all_its_problems() -> None:
    with pytest.raises(UsageError, match=r"(?s)no operation 'crp'.*\n.*no operation 'flp'"):
        Views(("crp", "flp"), 2, (1, 8, 8), 40)


def test_views_refuse_other_images_than_the_split() -> None:
    with pytest.raises(ValueError, match=r"uint8 \[40, 1, 8, 8\], got torch.uint8 \[39, 1, 8, 8\]"):
        Views(GEOMETRY, 2, (1, 8, 8), 40).augment(images_of((1, 8, 8), 39), torch.arange(3), 0)


def test_views_refuse_a_view_that_they_do_not_have() -> None:
    with pytest.raises(ValueError, match=r"view must be in 0..1, got 2"):
        Views(GEOMETRY, 2, (1, 8, 8), 40).augment(images_of((1, 8, 8)), torch.arange(3), 2)
