"""Data sets larger than memory are refused before memory is taken, with what they need and what to do."""

import resource
import sys
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from stillhouse.data import memory
from stillhouse.data.datasets import dataset_problems, load_dataset
from stillhouse.data.memory import check_memory, memory_bytes
from stillhouse.data.packing import pack_folder
from stillhouse.errors import UsageError

GIB = 1 << 30


@pytest.fixture
def machine(monkeypatch: pytest.MonkeyPatch) -> None:
    """A machine with 8 GiB."""
    monkeypatch.setattr(memory, "memory_bytes", lambda: 8 * GIB)


def peak_bytes() -> int:
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (1 if sys.platform == "darwin" else 1024)


@pytest.mark.usefixtures("machine")
def test_digits_at_4096_pixels_are_refused_without_taking_memory() -> None:
    before = peak_bytes()
    # 1,437 training images of 1 x 4096 x 4096 bytes are 22.5 GiB, and the splits are a second copy.
    with pytest.raises(UsageError, match=r"1,437 images of 1x4096x4096 need 44\.9 GiB of memory .* there are 8\.0 GiB; lower"):
        load_dataset("digits", size=4096)
    assert peak_bytes() - before < GIB


def test_the_test_split_is_held_against_memory_too(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(memory, "memory_bytes", lambda: 60 << 20)
    data = load_dataset("digits", size=512, options={"limit": 40})
    with pytest.raises(UsageError, match=r"360 images of 1x512x512 need 0\.2 GiB of memory"):
        _ = data.test


@pytest.fixture
def root(tmp_path: Path) -> Path:
    for name in ("a", "b"):
        (tmp_path / "images" / name).mkdir(parents=True)
        for number in range(6):
            Image.fromarray(np.full((8, 8, 3), number, np.uint8)).save(tmp_path / "images" / name / f"{number}.png")
    return tmp_path / "images"


@pytest.mark.usefixtures("machine")
def test_folders_and_packs_are_refused_likewise(root: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pack_folder(root, tmp_path / "pack")
    with pytest.raises(UsageError, match=r"256 images of 3x6000x6000 need .* lower dataset\.size"):
        load_dataset("pack", root=tmp_path / "pack", size=6000, validation=2)
    load_dataset("image_folder", root=root, validation=2, cache=tmp_path / "cache")
    # 10 images of 192 bytes and their copies are 3,840 bytes.
    monkeypatch.setattr(memory, "memory_bytes", lambda: 3_839)
    for cache in (None, tmp_path / "cache"):
        with pytest.raises(UsageError, match=r"10 images of 3x8x8 need .*stillhouse data pack"):
            load_dataset("image_folder", root=root, validation=2, cache=cache)


@pytest.mark.parametrize("size", [0, -1, True, 1.5, 65_501, 10**400])
def test_a_size_that_no_image_has_is_refused_in_one_short_line(size: int) -> None:
    (problem,) = dataset_problems("digits", size=size)
    assert str(problem).startswith("dataset.size must be a whole number of pixels in 1..65500, got ")
    assert len(str(problem)) < 120


def test_the_memory_is_that_of_the_machine_or_of_its_container(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    machine = memory_bytes()
    assert machine > 100 << 20
    monkeypatch.setattr(memory, "_CGROUP", tmp_path)
    for text, limit in (("max\n", machine), (f"{64 << 20}\n", 64 << 20), (f"{10**20}\n", None)):
        (tmp_path / "memory.max").write_text(text)
        assert memory_bytes() == limit or (limit is None and memory_bytes() >= machine)
    (tmp_path / "memory.max").unlink()
    (tmp_path / "memory").mkdir()
    (tmp_path / "memory" / "memory.limit_in_bytes").write_text(f"{32 << 20}\n")
    assert memory_bytes() == 32 << 20


def test_what_fits_is_accepted(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(memory, "memory_bytes", lambda: 2 * 10 * 3 * 4 * 5)
    check_memory((10, 3, 4, 5), what="x", copies=2)
    with pytest.raises(UsageError):
        check_memory((11, 3, 4, 5), what="x", copies=2)
