from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from stillhouse.data import folders
from stillhouse.data.datasets import load_dataset
from stillhouse.errors import UsageError

CLASSES = ("cat", "dog", "owl")


def save(path: Path, colour: tuple[int, int, int], size: tuple[int, int] = (6, 6)) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.new("RGB", size, colour).save(path)


def fill(root: Path, per_class: int = 4) -> Path:
    """One folder per class with flat images; the red value is the class, the green value the image."""
    for label, name in enumerate(CLASSES):
        for number in range(per_class):
            save(root / name / f"{number}.png", (label * 40, number * 10, 7))
    return root


@pytest.fixture
def root(tmp_path: Path) -> Path:
    fill(tmp_path / "data" / "train")
    fill(tmp_path / "data" / "test", 2)
    return tmp_path / "data"


def test_classes_are_the_folders_in_order_of_name(root: Path) -> None:
    data = load_dataset("image_folder", root=root, validation=3)
    assert data.class_names == CLASSES
    for split in (data.train, data.validation, data.test):
        assert torch.equal(split.images[:, 0, 0, 0].long(), split.labels * 40)
    assert (len(data.train), len(data.validation), len(data.test)) == (9, 3, 6)
    assert data.input_shape == (3, 6, 6)


def test_without_a_test_folder_the_val_folder_is_the_test_split(root: Path) -> None:
    (root / "test").rename(root / "val")
    assert len(load_dataset("image_folder", root=root, validation=3).test) == 6


def test_a_single_folder_is_split_stratified_and_the_same_each_time(tmp_path: Path) -> None:
    fill(tmp_path, 10)
    one, other = (load_dataset("image_folder", root=tmp_path, seed=seed, options={"test_share": 0.3}) for seed in (1, 2))
    assert torch.bincount(one.test.labels).tolist() == [3, 3, 3]
    assert torch.equal(one.test.images, other.test.images)
    trained = {(int(image[0, 0, 0]), int(image[1, 0, 0])) for image in torch.cat((one.train.images, one.validation.images))}
    tested = {(int(image[0, 0, 0]), int(image[1, 0, 0])) for image in one.test.images}
    assert (len(trained), len(tested), trained & tested) == (21, 9, set())


def test_grey_images_have_one_channel(root: Path) -> None:
    data = load_dataset("image_folder", root=root, validation=3, options={"grey": True})
    assert data.input_shape == (1, 6, 6)
    # ITU-R BT.601 of (80, 0, 7), the first owl.
    assert data.test.images[data.test.labels == 2][0, 0, 0, 0] == round(0.299 * 80 + 0.114 * 7)


def test_images_of_different_sizes_need_a_size(root: Path) -> None:
    save(root / "train" / "owl" / "wide.png", (80, 0, 7), (12, 6))
    with pytest.raises(UsageError, match=r"wide.png is 12x6 and .*0.png is 6x6; set dataset.size"):
        load_dataset("image_folder", root=root, validation=3)
    data = load_dataset("image_folder", root=root, validation=3, size=5)
    assert data.input_shape == (3, 5, 5)
    assert torch.equal(data.test.images[:, 0, 4, 4].long(), data.test.labels * 40)


def test_a_long_image_is_cropped_to_its_middle(root: Path) -> None:
    stripes = np.zeros((6, 18, 3), np.uint8)
    stripes[:, 6:12] = 200
    Image.fromarray(stripes).save(root / "test" / "cat" / "0.png")
    data = load_dataset("image_folder", root=root, validation=3, size=6)
    assert (data.test.images[0] == 200).all()


def test_a_corrupt_image_is_reported_by_name(root: Path) -> None:
    broken = root / "train" / "dog" / "1.png"
    broken.write_bytes(broken.read_bytes()[:40])
    with pytest.raises(UsageError, match=f"{broken} is not a readable image; repair or remove it"):
        load_dataset("image_folder", root=root, validation=3)


def test_a_text_file_with_an_image_suffix_is_reported_by_name(root: Path) -> None:
    (root / "test" / "dog" / "1.jpg").write_text("hello")
    data = load_dataset("image_folder", root=root, validation=3)
    with pytest.raises(UsageError, match=r"dog/1.jpg is not a readable image"):
        _ = data.test


def test_an_image_of_16_bits_is_refused(root: Path) -> None:
    Image.fromarray(np.full((6, 6), 40_000, np.uint16)).save(root / "train" / "dog" / "1.png")
    with pytest.raises(UsageError, match=r"dog/1.png has more than 8 bits per channel"):
        load_dataset("image_folder", root=root, validation=3)


def test_files_that_are_no_images_are_ignored(root: Path) -> None:
    (root / "train" / "dog" / "notes.txt").write_text("good dog")
    (root / "train" / "dog" / "._0.png").write_text("a shadow file")
    assert len(load_dataset("image_folder", root=root, validation=3).train) == 9


def test_images_may_be_in_subfolders_of_their_class_folder(root: Path) -> None:
    save(root / "train" / "owl" / "night" / "deep.png", (80, 0, 7))
    assert len(load_dataset("image_folder", root=root, validation=3).train) == 10


def test_a_class_folder_without_images_is_reported(root: Path) -> None:
    (root / "train" / "yak").mkdir()
    with pytest.raises(UsageError, match=r"train/yak has no image"):
        load_dataset("image_folder", root=root)


def test_a_test_class_that_training_lacks_is_reported(root: Path) -> None:
    save(root / "test" / "yak" / "0.png", (0, 0, 0))
    with pytest.raises(UsageError, match="class folder 'yak' that the training images lack"):
        load_dataset("image_folder", root=root)


def test_a_folder_without_classes_is_reported(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="must have at least two folders, one per class, it has 0"):
        load_dataset("image_folder", root=tmp_path)


def test_training_images_without_test_images_are_reported(root: Path) -> None:
    (root / "test").rename(root / "elsewhere")
    with pytest.raises(UsageError, match="has a folder train but neither test nor val"):
        load_dataset("image_folder", root=root)


def test_only_the_images_within_the_limit_are_decoded(root: Path) -> None:
    data = load_dataset("image_folder", root=root, validation=3, options={"limit": 9})
    corners = torch.cat((data.train.images, data.validation.images))[:, :2, 0, 0].tolist()
    taken = {root / "train" / CLASSES[red // 40] / f"{green // 10}.png" for red, green in corners}
    assert len(taken) == 9
    for file in {*(root / "train").rglob("*.png")} - taken:
        file.write_bytes(b"broken")
    assert len(load_dataset("image_folder", root=root, validation=3, options={"limit": 9}).train) == 6
    with pytest.raises(UsageError, match="not a readable image"):
        load_dataset("image_folder", root=root, validation=3)


class TestCache:
    def load(self, root: Path, **options: bool) -> torch.Tensor:
        data = load_dataset("image_folder", root=root, validation=3, cache=root.parent / "cache", options=options)
        return data.train.images

    def refuse_decoding(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(folders, "decode_image", lambda *_, **__: pytest.fail("decoded again"))

    def test_decoded_images_are_not_decoded_again(self, root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        first = self.load(root)
        self.refuse_decoding(monkeypatch)
        assert torch.equal(self.load(root), first)

    @pytest.mark.parametrize("damage", ["flip", "truncate", "remove", "meta"])
    def test_a_damaged_cache_is_replaced(self, root: Path, damage: str, monkeypatch: pytest.MonkeyPatch) -> None:
        first = self.load(root)
        (cached,) = (root.parent / "cache").rglob("images.npy")
        payload = bytearray(cached.read_bytes())
        if damage == "flip":
            payload[-1] ^= 255
            cached.write_bytes(payload)
        elif damage == "truncate":
            cached.write_bytes(payload[:-10])
        elif damage == "remove":
            cached.unlink()
        else:
            (cached.parent / "meta.json").write_text("{}")
        assert torch.equal(self.load(root), first)
        self.refuse_decoding(monkeypatch)
        assert torch.equal(self.load(root), first)

    def test_a_changed_file_is_decoded_again(self, root: Path) -> None:
        first = self.load(root)
        for number in range(4):
            save(root / "train" / "cat" / f"{number}.png", (3, 3, 3))
        assert not torch.equal(self.load(root), first)

    def test_other_options_have_their_own_cache(self, root: Path) -> None:
        assert self.load(root).shape[1] == 3
        assert self.load(root, grey=True).shape[1] == 1

    def test_a_cache_that_cannot_be_written_costs_a_warning_only(self, root: Path) -> None:
        (root.parent / "cache").write_text("a file where a folder should be")
        with pytest.warns(UserWarning, match="decoded images cannot be stored in"):
            assert len(self.load(root)) == 9
