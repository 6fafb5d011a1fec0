"""The published file formats, with generated files: torchvision's checksums are switched off."""

import pickle
from pathlib import Path

import numpy as np
import pytest
import torch
import torchvision
from numpy.typing import NDArray
from scipy.io import savemat

from stillhouse.data.datasets import load_dataset

BATCHES = [f"data_batch_{number}" for number in range(1, 6)]


@pytest.fixture(autouse=True)
def no_checksums(monkeypatch: pytest.MonkeyPatch) -> None:
    for module in ("cifar", "svhn", "stl10"):
        monkeypatch.setattr(getattr(torchvision.datasets, module), "check_integrity", lambda *_: True)


def coloured(num_samples: int, side: int) -> NDArray[np.uint8]:
    """[N, 3, side, side] whose pixel at (n, c, y, x) encodes its position."""
    sample, channel, row, column = np.ogrid[:num_samples, :3, :side, :side]
    pixels: NDArray[np.uint8] = ((sample * 7 + channel * 50 + row * 3 + column) % 256).astype(np.uint8)
    return pixels


@pytest.mark.parametrize(
    ("name", "folder", "files", "key", "num_classes", "meta"),
    [
        (
            "cifar10",
            "cifar-10-batches-py",
            [f"data_batch_{n}" for n in range(1, 6)],
            "labels",
            10,
            ("batches.meta", "label_names"),
        ),
        ("cifar100", "cifar-100-python", ["train"], "fine_labels", 100, ("meta", "fine_label_names")),
    ],
)
def test_cifar_files_are_read_unchanged(
    tmp_path: Path, name: str, folder: str, files: list[str], key: str, num_classes: int, meta: tuple[str, str]
) -> None:
    (tmp_path / folder).mkdir()
    per_file = 2 * num_classes
    names = [f"class {place}" for place in range(num_classes)]
    (tmp_path / folder / meta[0]).write_bytes(pickle.dumps({meta[1]: names}))
    images = coloured(per_file, 32)
    entry = {"data": images.reshape(per_file, -1), key: [place % num_classes for place in range(per_file)]}
    for file in [*files, "test_batch" if name == "cifar10" else "test"]:
        (tmp_path / folder / file).write_bytes(pickle.dumps(entry))
    data = load_dataset(name, root=tmp_path, validation=num_classes)
    assert data.class_names == tuple(names)
    assert np.array_equal(data.test.images.numpy(), images)
    assert data.test.labels.tolist() == entry[key]
    assert len(data.train) + len(data.validation) == len(files) * per_file


def test_svhn_files_are_read_with_zero_as_class_zero(tmp_path: Path) -> None:
    images, digits = coloured(40, 32), np.arange(40) % 10 + 1
    for split in ("train", "test"):
        savemat(tmp_path / f"{split}_32x32.mat", {"X": images.transpose(2, 3, 1, 0), "y": digits[:, None].astype(np.uint8)})
    data = load_dataset("svhn", root=tmp_path, validation=10)
    assert np.array_equal(data.test.images.numpy(), images)
    assert data.test.labels.tolist() == (digits % 10).tolist()


def test_stl10_files_are_read_with_their_columns_as_columns(tmp_path: Path) -> None:
    folder = tmp_path / "stl10_binary"
    folder.mkdir()
    images, classes = coloured(20, 96), np.arange(20) % 10 + 1
    for split in ("train", "test"):
        (folder / f"{split}_X.bin").write_bytes(images.transpose(0, 1, 3, 2).tobytes())
        (folder / f"{split}_y.bin").write_bytes(classes.astype(np.uint8).tobytes())
    (folder / "class_names.txt").write_text("\n".join(f"thing {place}" for place in range(10)))
    data = load_dataset("stl10", root=tmp_path, validation=10)
    assert np.array_equal(data.test.images.numpy(), images)
    assert torch.equal(data.test.labels, torch.arange(20) % 10)
    assert data.class_names[3] == "thing 3"
