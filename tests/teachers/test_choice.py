"""The cost model by hand: 1 GB/s to read back, at most half of the free disk."""

from typing import Any

import pytest

from stillhouse.teachers.choice import Choice, choose_way

FACTS: dict[str, Any] = {
    "asked": "auto",
    "seconds_per_sample": 1e-4,
    "bytes_per_sample": 400,
    "num_samples": 50_000,
    "num_views": 8,
    "free_bytes": 10**12,
}


def choose(**changes: Any) -> Choice:
    return choose_way(**FACTS | changes)


def test_logits_are_cached() -> None:
    assert choose() == Choice("cached", "400 B per sample: 0.40 µs to read back, 100.00 µs to compute; 8 views take 160.0 MB")


def test_a_map_that_is_read_slower_than_recomputed_is_inline() -> None:
    """100 kB take 100 us to read: the break-even."""
    assert choose(bytes_per_sample=100_000).way == "cached"
    assert choose(bytes_per_sample=100_001).way == "inline"
    assert "recomputing is quicker" in choose(bytes_per_sample=100_001).reason


def test_views_that_take_more_than_half_of_the_free_disk_are_inline() -> None:
    """8 views of 50,000 samples of 400 B are 160 MB."""
    assert choose(free_bytes=320_000_000).way == "cached"
    assert choose(free_bytes=319_999_999).way == "inline"
    assert "0.16 GB, more than half of the 0.32 GB free" in choose(free_bytes=319_999_999).reason


@pytest.mark.parametrize("way", ["cached", "served", "inline"])
def test_a_way_that_is_asked_for_is_taken(way: str) -> None:
    assert choose(asked=way, free_bytes=0, bytes_per_sample=10**9) == Choice(way, "asked for in the spec")
