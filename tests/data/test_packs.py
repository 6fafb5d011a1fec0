"""Packs compared with their image folder: the pixels are the same, and damaged data is never used."""

import contextlib
import pickle
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from stillhouse.data import packing
from stillhouse.data.datasets import load_dataset
from stillhouse.data.hashing import uniform
from stillhouse.data.images import ImageData, read_ahead
from stillhouse.data.packing import pack_folder
from stillhouse.data.packs import Pack, PackedImages
from stillhouse.data.views import Views
from stillhouse.distill.evaluation import evaluate
from stillhouse.distill.method import Method
from stillhouse.distill.trainer import Trainer
from stillhouse.durable import write_atomic
from stillhouse.errors import DiskFullError, UsageError
from stillhouse.knowledge import logits
from stillhouse.knowledge.store import KnowledgeStore
from stillhouse.models.registry import build_model
from stillhouse.spec.training import Training
from stillhouse.teachers.definition import TeacherDefinition, view_identity
from stillhouse.teachers.library import TeacherLibrary
from stillhouse.teachers.service import TeacherService

SMALL = 4000
SIZE = 16


def noise(key: int, width: int, height: int) -> Image.Image:
    return Image.fromarray((256 * uniform(key, np.arange(width * height * 3))).astype(np.uint8).reshape(height, width, 3))


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Three classes; sizes differ, half the files are JPEG and half PNG."""
    root = tmp_path_factory.mktemp("images")
    for split, per_class in (("train", 12), ("test", 4)):
        for label, name in enumerate(("cat", "dog", "owl")):
            (root / split / name).mkdir(parents=True)
            for number in range(per_class):
                suffix = "jpg" if number % 2 else "png"
                noise(100 * label + number, 20 + number, 24).save(root / split / name / f"{number:02d}.{suffix}")
    return root


@pytest.fixture(scope="module")
def pack(folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("pack")
    assert pack_folder(folder, root, shard_bytes=SMALL).shards > 6
    return root


@pytest.fixture
def data(pack: Path) -> ImageData:
    return load_dataset("pack", root=pack, size=SIZE, validation=6)


@pytest.fixture
def decoded(folder: Path) -> ImageData:
    """The same data set in memory."""
    return load_dataset("image_folder", root=folder, size=SIZE, validation=6)


def packed(data: ImageData) -> PackedImages:
    assert isinstance(data.train.images, PackedImages)
    return data.train.images


def copy_of(pack: Path, to: Path) -> Path:
    to.mkdir()
    for path in pack.iterdir():
        (to / path.name).write_bytes(path.read_bytes())
    return to


# The same data set


def test_a_pack_has_the_images_of_its_folder(data: ImageData, decoded: ImageData) -> None:
    for one, other in ((data.train, decoded.train), (data.validation, decoded.validation), (data.test, decoded.test)):
        assert torch.equal(one.labels, other.labels)
        assert torch.equal(one.images[:], other.images[:])
    assert data.class_names == decoded.class_names
    assert (data.input_shape, data.num_classes) == (decoded.input_shape, decoded.num_classes)
    assert (data.mean, data.std) == (decoded.mean, decoded.std)


def test_limits_and_grey_have_the_same_effect_as_for_a_folder(pack: Path, folder: Path) -> None:
    wanted: dict[str, Any] = {"size": 8, "validation": 3, "options": {"limit": 12, "limit_test": 6, "grey": True}}
    one, other = load_dataset("pack", root=pack, **wanted), load_dataset("image_folder", root=folder, **wanted)
    assert torch.equal(one.train.images[:], other.train.images[:])
    assert torch.equal(one.test.images[:], other.test.images[:])


@pytest.mark.parametrize("policy", [(), ("crop", "flip"), ("flip", "cutmix")])
def test_a_view_of_a_pack_is_the_view_of_its_pixels(policy: tuple[str, ...], data: ImageData, decoded: ImageData) -> None:
    views = Views(policy, 3, data.input_shape, len(data.train))
    some = torch.tensor([29, 3, 3, 17, 0])
    for view in range(views.count):
        one, other = (views.augment(each.train.images, some, view) for each in (data, decoded))
        assert torch.equal(one, other)


def test_a_student_of_a_pack_is_bit_for_bit_the_student_of_its_pixels(data: ImageData, decoded: ImageData) -> None:
    def trained(data: ImageData) -> Trainer:
        trainer = Trainer(
            new_student=lambda: build_model("mlp", num_classes=3, input_shape=data.input_shape, hidden=[8]),
            method=Method(),
            data=data,
            views=Views(("crop", "mixup"), 2, data.input_shape, len(data.train)),
            training=Training(batch_size=8),
            epochs=2,
        )
        trainer.fit()
        return trainer

    one, other = trained(data), trained(decoded)
    for name, weights in one.student.state_dict().items():
        assert torch.equal(weights, other.student.state_dict()[name])
    assert evaluate(one.student, data, data.test, "cpu") == evaluate(other.student, decoded, decoded.test, "cpu")


def test_a_teacher_fills_from_a_pack_what_it_fills_from_its_pixels(data: ImageData, decoded: ImageData, tmp_path: Path) -> None:
    definition = TeacherDefinition(name="big", model="mlp", epochs=1, num_classes=3, input_shape=data.input_shape)
    filled = []
    for number, each in enumerate((data, decoded)):
        views = Views(("crop", "cutmix"), 2, each.input_shape, len(each.train))
        teacher = TeacherLibrary(tmp_path / f"teachers-{number}").obtain(definition, each, views)
        (tmp_path / f"knowledge-{number}").mkdir()
        store = KnowledgeStore(tmp_path / f"knowledge-{number}")
        service = TeacherService(teacher, each, views, store)
        service.fill(1, [logits()])
        filled.append(store.open(view_identity(service.base, logits(), 1)).gather(torch.arange(len(each.train))))
    assert torch.equal(filled[0], filled[1])


def test_the_fingerprint_depends_on_content_size_and_split(pack: Path, data: ImageData) -> None:
    again = load_dataset("pack", root=pack, size=SIZE, validation=6)
    assert again.fingerprint == data.fingerprint
    others = [load_dataset("pack", root=pack, size=size, validation=taken) for size, taken in ((8, 6), (SIZE, 3))]
    assert len({data.fingerprint, *(other.fingerprint for other in others)}) == 3


def test_statistics_are_computed_once_for_each_home(
    pack: Path, tmp_path: Path, data: ImageData, monkeypatch: pytest.MonkeyPatch
) -> None:
    load_dataset("pack", root=pack, size=SIZE, validation=6, cache=tmp_path)
    monkeypatch.setattr(PackedImages, "index_select", lambda *_: pytest.fail("decoded again"))
    again = load_dataset("pack", root=pack, size=SIZE, validation=6, cache=tmp_path)
    assert (again.mean, again.std) == (data.mean, data.std)


# Reading


def test_batches_that_are_announced_are_decoded_once_and_in_the_background(data: ImageData, decoded: ImageData) -> None:
    images, batches = packed(data), torch.split(torch.arange(30).flip(0), 7)
    before = images.samples_decoded
    with read_ahead(images, batches):
        for batch in batches:
            assert torch.equal(images.index_select(0, batch), decoded.train.images[batch])
    assert images.samples_decoded - before == 30


def test_a_batch_that_was_not_announced_is_decoded_too(data: ImageData, decoded: ImageData) -> None:
    images, announced, asked = packed(data), torch.arange(5), torch.tensor([9, 2])
    with read_ahead(images, [announced]):
        assert torch.equal(images.index_select(0, asked), decoded.train.images[asked])
        assert torch.equal(images.index_select(0, announced), decoded.train.images[announced])


def test_only_row_numbers_are_sent_to_another_process(data: ImageData, decoded: ImageData) -> None:
    arrays, facts = pickle.loads(pickle.dumps(data.to_arrays()))
    assert sum(array.nbytes for array in arrays.values()) == 2 * 8 * (30 + 6 + 12)
    there = ImageData.from_arrays(arrays, facts)
    for one, other in ((there.train, decoded.train), (there.validation, decoded.validation), (there.test, decoded.test)):
        assert torch.equal(one.images[:], other.images[:])


def test_a_process_with_another_pack_at_the_root_is_an_error(data: ImageData, folder: Path, tmp_path: Path) -> None:
    arrays, facts = data.to_arrays()
    pack_folder(folder / "train", tmp_path / "other")
    facts["pack"]["root"] = str(tmp_path / "other")
    with pytest.raises(UsageError, match="is not the one with which the sweep began"):
        ImageData.from_arrays(arrays, facts)


# Packing


def test_files_are_packed_unchanged(folder: Path, pack: Path) -> None:
    content, where = Pack(pack).encoded("train", 13)
    assert content == (folder / "train" / "dog" / "01.jpg").read_bytes()
    assert where.endswith("train/dog/01.jpg")


def test_interrupted_packing_continues(folder: Path, pack: Path, tmp_path: Path) -> None:
    class Killed(BaseException):
        pass

    def kill(done: int, total: int) -> None:
        if done > total / 2:
            raise Killed

    with contextlib.suppress(Killed):
        pack_folder(folder, tmp_path, shard_bytes=SMALL, progress=kill)
    kept = {path.name for path in tmp_path.glob("*.arrow")}
    with pytest.raises(UsageError, match="has no complete pack; make or complete one"):
        Pack(tmp_path)
    done = pack_folder(folder, tmp_path, shard_bytes=SMALL)
    assert done.written == done.shards - len(kept) < done.shards
    assert Pack(tmp_path).key == Pack(pack).key
    assert pack_folder(folder, tmp_path, shard_bytes=SMALL).written == 0


def test_the_same_command_repairs_a_damaged_shard(folder: Path, pack: Path, tmp_path: Path) -> None:
    copy = copy_of(pack, tmp_path / "copy")
    shard = sorted(copy.glob("*.arrow"))[2]
    shard.write_bytes(shard.read_bytes()[:-9])
    with pytest.raises(UsageError, match=r"has \d+ bytes, expected \d+; repair it with the command that packed it"):
        Pack(copy)
    assert pack_folder(folder, copy, shard_bytes=SMALL).written == 1
    assert Pack(copy).key == Pack(pack).key


def flipped(path: Path, place: int) -> None:
    content = bytearray(path.read_bytes())
    content[place] ^= 1
    path.write_bytes(content)


def test_a_changed_bit_in_an_image_is_found_when_it_is_read(pack: Path, tmp_path: Path, folder: Path) -> None:
    copy = copy_of(pack, tmp_path / "copy")
    image = (folder / "train" / "cat" / "00.png").read_bytes()
    (shard,) = copy.glob("train-000000000-*.arrow")
    flipped(shard, shard.read_bytes().index(image) + len(image) // 2)
    opened = Pack(copy)
    with pytest.raises(UsageError, match=r"train/cat/00\.png does not match its checksum"):
        opened.encoded("train", 0)
    assert opened.encoded("train", 1)[0] == (folder / "train" / "cat" / "01.jpg").read_bytes()


def test_a_changed_label_is_found_when_the_pack_is_opened(pack: Path, tmp_path: Path) -> None:
    copy = copy_of(pack, tmp_path / "copy")
    shards = sorted(copy.glob("train-*.arrow"))
    labels = Pack(copy).labels("train")
    rows = int(shards[-1].name.split("-")[1])
    # The last shard's labels are all 2: a run of little-endian int64 of that value.
    assert set(labels[rows:]) == {2}
    flipped(shards[-1], shards[-1].read_bytes().index(np.full(len(labels) - rows, 2, np.int64).tobytes()))
    with pytest.raises(UsageError, match=r"index of .* does not match its checksum"):
        Pack(copy)


def test_a_changed_manifest_is_found(pack: Path, tmp_path: Path) -> None:
    copy = copy_of(pack, tmp_path / "copy")
    flipped(copy / "manifest", 200)
    with pytest.raises(UsageError, match="does not match its checksum"):
        load_dataset("pack", root=copy, size=8)


def small_folder(root: Path) -> Path:
    for name in ("cat", "dog"):
        (root / name).mkdir(parents=True)
        for number in range(5):
            noise(number, 8, 8).save(root / name / f"{number}.png")
    return root


def test_images_of_one_size_need_no_size(tmp_path: Path) -> None:
    pack_folder(small_folder(tmp_path / "images"), tmp_path / "pack")
    assert load_dataset("pack", root=tmp_path / "pack", validation=2).input_shape == (3, 8, 8)


def test_images_of_several_sizes_need_a_size(pack: Path) -> None:
    with pytest.raises(UsageError, match=r"differ in size; set dataset\.size"):
        load_dataset("pack", root=pack)


def test_an_image_that_cannot_be_decoded_stops_the_packing(tmp_path: Path) -> None:
    root = small_folder(tmp_path / "images")
    broken = root / "dog" / "3.png"
    broken.write_bytes(broken.read_bytes()[:60])
    with pytest.raises(UsageError, match=r"dog/3\.png is not a readable image; repair or remove it"):
        pack_folder(root, tmp_path / "pack")


def test_a_pack_of_other_images_is_not_overwritten(tmp_path: Path) -> None:
    root = small_folder(tmp_path / "images")
    pack_folder(root, tmp_path / "pack")
    noise(9, 8, 8).save(root / "cat" / "new.png")
    with pytest.raises(UsageError, match="has a pack of other images"):
        pack_folder(root, tmp_path / "pack")


def test_a_pack_must_not_be_inside_the_folder_of_images(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="must be outside"):
        pack_folder(small_folder(tmp_path), tmp_path / "cat" / "pack")


def test_a_full_disk_is_one_error_and_complete_shards_remain(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    root, real, room = small_folder(tmp_path / "images"), write_atomic, iter([True, True])

    def write(path: Path, payload: bytes) -> None:
        if not next(room, False):
            raise OSError(28, "No space left on device")
        real(path, payload)

    monkeypatch.setattr(packing, "write_atomic", write)
    with pytest.raises(DiskFullError, match=r"no space for the pack .* run the same command again"):
        pack_folder(root, tmp_path / "pack", shard_bytes=500)
    monkeypatch.undo()
    done = pack_folder(root, tmp_path / "pack", shard_bytes=500)
    assert done.written == done.shards - 2
