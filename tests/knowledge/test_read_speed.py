"""The measurement of reading: its files, and how the time grows with the size."""

import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from stillhouse.knowledge import read_speed
from stillhouse.knowledge.read_speed import seconds_per_row


def test_the_measurement_removes_its_files(tmp_path: Path) -> None:
    assert seconds_per_row(tmp_path, 40) > 0
    assert list(tmp_path.iterdir()) == []


def test_a_row_of_a_mebibyte_takes_longer_than_one_of_forty_bytes(tmp_path: Path) -> None:
    """A factor of 26,000 in bytes: no noise turns that around."""
    assert seconds_per_row(tmp_path, 1 << 20) > seconds_per_row(tmp_path, 40)


def test_the_measurement_uses_a_part_of_the_free_space(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A quarter of 100,000 bytes are 625 rows of 40."""
    usage = shutil.disk_usage(tmp_path)._replace(free=100_000)
    monkeypatch.setattr(shutil, "disk_usage", lambda _folder: usage)
    shapes: list[tuple[int, ...]] = []
    memmap: Any = np.memmap

    def watching(*arguments: Any, shape: tuple[int, ...]) -> Any:
        shapes.append(shape)
        return memmap(*arguments, shape=shape)

    monkeypatch.setattr(np, "memmap", watching)
    assert 0 < seconds_per_row(tmp_path, 40) < float("inf")
    assert shapes == [(625, 10)]


def test_a_store_that_cannot_be_written_is_read_infinitely_slowly(tmp_path: Path) -> None:
    assert seconds_per_row(tmp_path / "nowhere", 40) == float("inf")


def test_on_a_device_a_row_costs_the_copy_to_it_too(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Large maps that are read quickly may still travel slowly, which decides between reading and computing them."""
    waited: list[str] = []
    copied: list[int] = []
    to = torch.Tensor.to

    def copy(self: torch.Tensor, *arguments: Any, **options: Any) -> torch.Tensor:
        copied.append(len(self))
        return to(self, *arguments, **options)

    monkeypatch.setattr(read_speed, "synchronise", waited.append)
    monkeypatch.setattr(torch.Tensor, "to", copy)
    assert seconds_per_row(tmp_path, 40, "meta") > 0
    assert waited == ["meta"] * 3
    assert copied == [256] * 24
    copied.clear()
    seconds_per_row(tmp_path, 40)
    assert copied == []
