"""The cost model by hand: a gigabyte per second to read back."""

from typing import Any

import pytest

from stillhouse.errors import UsageError
from stillhouse.teachers.delivery_choice import Cost, DeliveryChoice, choose_calling_mode, choose_delivery, readable_bytes

FACTS: dict[str, Any] = {"num_samples": 50_000, "room_bytes": 10**11}


def cost(num_bytes: int, asked: str = "auto", name: str = "logits", compute_seconds: float = 1e-4, num_views: int = 8) -> Cost:
    return Cost(
        name=name,
        requested=asked,
        bytes_per_sample=num_bytes,
        read_seconds=num_bytes / 1e9,
        compute_seconds=compute_seconds,
        num_views=num_views,
    )


def choose(one: Cost, **changes: Any) -> DeliveryChoice:
    return choose_delivery({"it": one}, **FACTS | changes)["it"]


def test_logits_are_cached() -> None:
    said = "400 B per sample: 0.40 µs to read back, 100.00 µs to compute; 8 views take 160.00 MB"
    assert choose(cost(400)) == DeliveryChoice("cached", said)


def test_a_map_that_is_read_slower_than_recomputed_is_inline() -> None:
    """100 kB take 100 us to read: the break-even."""
    assert choose(cost(100_000)).mode == "cached"
    assert choose(cost(100_001)).mode == "inline"
    assert "recomputing is faster" in choose(cost(100_001)).reason


def test_what_takes_the_teacher_more_than_a_forward_pass_is_worth_more_bytes() -> None:
    """A pass forward and back of 200 us: reading 200 kB takes as long."""
    assert choose(cost(199_000, compute_seconds=2e-4)).mode == "cached"
    assert choose(cost(201_000, compute_seconds=2e-4)).mode == "inline"
    assert "200.00 µs to compute" in choose(cost(199_000, compute_seconds=2e-4)).reason


def test_a_store_in_which_nothing_could_be_timed_is_not_called_slow() -> None:
    choice = choose(Cost(**vars(cost(400)) | {"read_seconds": float("inf")}))
    assert choice.mode == "inline"
    assert choice.reason == (
        "400 B per sample: an unknown time to read back, 100.00 µs to compute, because no file could be written to "
        "measure reading; check the free disk space"
    )


def test_only_the_views_that_are_read_take_room() -> None:
    """2 views of 50,000 samples of 400 B are 40 MB."""
    assert choose(cost(400, num_views=2), room_bytes=40_000_000).reason.endswith("2 views take 40.00 MB")
    assert choose(cost(400, num_views=2), room_bytes=39_999_999).mode == "inline"
    assert choose(cost(400, num_views=0), room_bytes=0).mode == "cached"


def test_views_that_take_more_than_the_room_are_inline() -> None:
    """8 views of 50,000 samples of 400 B are 160 MB."""
    assert choose(cost(400), room_bytes=160_000_000).mode == "cached"
    assert choose(cost(400), room_bytes=159_999_999).mode == "inline"
    assert "160.00 MB, more than the 160.00 MB free" in choose(cost(400), room_bytes=159_999_999).reason


def test_kinds_share_the_room_and_the_small_ones_take_it_first() -> None:
    """40 B are 16 MB, 400 B 160 MB, 4000 B 1600 MB: the first two fit 200 MB."""
    costs = {"large": cost(4000), "small": cost(40), "middle": cost(400)}
    choices = choose_delivery(costs, **FACTS | {"room_bytes": 200_000_000})
    assert {kind: choice.mode for kind, choice in choices.items()} == {"large": "inline", "small": "cached", "middle": "cached"}
    assert list(choices) == list(costs)


def test_what_is_forced_takes_its_room_before_what_is_not() -> None:
    costs = {"small": cost(40), "forced": cost(400, "cached")}
    choices = choose_delivery(costs, **FACTS | {"room_bytes": 160_000_000})
    assert {kind: choice.mode for kind, choice in choices.items()} == {"small": "inline", "forced": "cached"}


@pytest.mark.parametrize("way", ["cached", "served", "inline"])
def test_a_delivery_mode_that_the_spec_sets_is_taken(way: str) -> None:
    choice = choose(cost(10**9, way), room_bytes=10**15)
    assert choice.mode == way
    assert choice.reason.startswith("specified in the spec; 1,000,000,000 B per sample")


def test_knowledge_that_is_forced_to_be_cached_and_does_not_fit_is_one_sentence() -> None:
    said = "views of maps take 160.00 GB and 100.00 GB are free; raise knowledge.max_bytes"
    with pytest.raises(UsageError, match=said) as caught:
        choose(cost(400_000, "cached", "maps"))
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("teacher_on_gpu", "trials_on_gpu", "way"),
    [(True, False, "served"), (True, True, "inline"), (False, False, "inline"), (False, True, "inline")],
)
def test_inputs_of_a_methods_own_making_are_served_only_by_a_teacher_that_alone_has_a_gpu(
    teacher_on_gpu: bool, trials_on_gpu: bool, way: str
) -> None:
    choice = choose_calling_mode(requested="auto", teacher_on_gpu=teacher_on_gpu, trials_on_gpu=trials_on_gpu)
    assert choice.mode == way
    for forced in ("served", "inline"):
        assert choose_calling_mode(requested=forced, teacher_on_gpu=teacher_on_gpu, trials_on_gpu=trials_on_gpu).mode == forced


def test_sizes_are_shown_in_the_unit_that_leaves_them_at_least_one() -> None:
    told = {0: "0 B", 999: "999 B", 1000: "1.00 kB", 1_500_000: "1.50 MB", 20 * 10**9: "20.00 GB"}
    assert {size: readable_bytes(size) for size in told} == told
