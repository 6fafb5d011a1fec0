"""Small folders in both layouts; what is wrong with one is named in one sentence with its file."""

import json
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from stillhouse import tasks
from stillhouse.data.datasets import dataset_facts, dataset_problems, load_dataset
from stillhouse.data.images import ImageData
from stillhouse.errors import UsageError

Box = tuple[str, float, float, float, float]
TASK = tasks.find("detection")
CELLS: dict[str, list[Box]] = {
    "a": [("red", 2, 4, 10, 12), ("white", 10, 2, 18, 8)],
    "b": [("red", 0, 0, 8, 8)],
    "c": [("white", 4, 4, 12, 10)],
    "d": [("red", 1, 1, 5, 5)],
}
SPLITS = {"train": ("a", "b"), "val": ("c",), "test": ("d",)}


def _image(path: Path, width: int = 20, height: int = 16) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    draw = np.random.default_rng(len(path.name) + sum(path.name.encode()))
    Image.fromarray(draw.integers(0, 255, (height, width, 3)).astype(np.uint8)).save(path)


def voc(root: Path, cells: Mapping[str, Sequence[Box]] = CELLS, splits: Mapping[str, Sequence[str]] | None = None) -> Path:
    """A folder in the layout of Pascal VOC."""
    for name, boxes in cells.items():
        _image(root / "JPEGImages" / f"{name}.jpg")
        things = "".join(
            f"<object><name>{label}</name><bndbox><xmin>{x1}</xmin><ymin>{y1}</ymin><xmax>{x2}</xmax><ymax>{y2}</ymax>"
            "</bndbox></object>"
            for label, x1, y1, x2, y2 in boxes
        )
        (root / "Annotations").mkdir(exist_ok=True)
        (root / "Annotations" / f"{name}.xml").write_text(f"<annotation><filename>{name}.jpg</filename>{things}</annotation>")
    for split, names in (SPLITS if splits is None else splits).items():
        lists = root / "ImageSets" / "Main"
        lists.mkdir(parents=True, exist_ok=True)
        (lists / f"{split}.txt").write_text("\n".join(names) + "\n")
    return root


def coco(root: Path, change: Callable[[dict[str, Any]], None] = lambda _document: None) -> Path:
    """A folder in the layout of COCO, with gaps between the numbers of images, categories and annotations."""
    for split, names in SPLITS.items():
        document: dict[str, Any] = {
            "categories": [{"id": 7, "name": "red"}, {"id": 90, "name": "white"}],
            "images": [{"id": 10 * place + 3, "file_name": f"{name}.jpg"} for place, name in enumerate(names)],
            "annotations": [
                {
                    "id": 100 * place + number,
                    "image_id": 10 * place + 3,
                    "category_id": 7 if label == "red" else 90,
                    "bbox": [x1, y1, x2 - x1, y2 - y1],
                    "iscrowd": 0,
                }
                for place, name in enumerate(names)
                for number, (label, x1, y1, x2, y2) in enumerate(CELLS[name])
            ],
        }
        if split == "train":
            change(document)
        for name in names:
            _image(root / split / f"{name}.jpg")
        (root / "annotations").mkdir(exist_ok=True)
        (root / "annotations" / f"instances_{split}.json").write_text(json.dumps(document))
    return root


def load(name: str, root: Path, **arguments: Any) -> ImageData:
    return load_dataset(name, root=root, task="detection", targets=TASK.targets, **arguments)


@pytest.mark.parametrize(("name", "make"), [("voc_folder", voc), ("coco_folder", coco)])
def test_both_layouts_give_the_same_boxes(name: str, make: Callable[[Path], Path], tmp_path: Path) -> None:
    data = load(name, make(tmp_path))
    assert data.class_names == ("red", "white")
    assert data.input_shape == (3, 16, 20)
    assert data.task == "detection"
    assert data.train.labels.tolist() == [
        [[2, 4, 10, 12, 0], [10, 2, 18, 8, 1]],
        [[0, 0, 8, 8, 0], [0, 0, 0, 0, -1]],
    ]
    assert data.validation.labels.tolist() == [[[4, 4, 12, 10, 1]]]
    assert data.test.labels.tolist() == [[[1, 1, 5, 5, 0]]]


def test_boxes_are_stretched_with_their_images(tmp_path: Path) -> None:
    data = load("voc_folder", voc(tmp_path), size=(32, 20))
    assert data.input_shape == (3, 32, 20)
    assert data.train.labels[0, 0].tolist() == [2, 8, 10, 24, 0]


def test_a_letterbox_keeps_the_ratio_and_fills_the_rest_with_black(tmp_path: Path) -> None:
    data = load("voc_folder", voc(tmp_path), size=(40, 40), options={"fit": "letterbox"})
    # 20 x 16 pixels become 40 x 32; the last 8 rows are black.
    assert data.train.labels[0, 0].tolist() == [4, 8, 20, 24, 0]
    assert int(data.train.images[:, :, 32:].max()) == 0
    assert int(data.train.images[:, :, 31].max()) > 0


def test_decoded_images_are_found_again(tmp_path: Path) -> None:
    root, cache = voc(tmp_path / "data"), tmp_path / "cache"
    first, again = (load("voc_folder", root, size=(8, 8), cache=cache) for _ in range(2))
    assert first.fingerprint == again.fingerprint
    other = load("voc_folder", root, size=(8, 8), cache=cache, options={"fit": "letterbox"})
    assert other.fingerprint != first.fingerprint


def test_without_lists_a_share_of_the_images_is_the_test_split(tmp_path: Path) -> None:
    cells = {f"{name}{place}": boxes for name, boxes in CELLS.items() for place in range(5)}
    data = load("voc_folder", voc(tmp_path, cells, {}), options={"test_share": 0.25}, validation=5)
    assert (len(data.train), len(data.validation), len(data.test)) == (10, 5, 5)


@pytest.mark.parametrize(
    ("box", "note"),
    [
        (("red", 5, 5, 5, 9), "1 box is left out of the train split, without an area (first in b.xml)"),
        (("red", 9, 9, 5, 5), "1 box is left out of the train split, without an area (first in b.xml)"),
        (("red", 50, 2, 60, 9), "1 box is left out of the train split, outside of their image (first in b.xml)"),
    ],
)
def test_what_is_no_box_of_the_image_is_left_out_with_a_note(box: Box, note: str, tmp_path: Path) -> None:
    data = load("voc_folder", voc(tmp_path, {**CELLS, "b": [*CELLS["b"], box]}))
    assert data.train.labels[1].tolist() == [[0, 0, 8, 8, 0], [0, 0, 0, 0, -1]]
    assert any(note in each for each in data.notes)


def test_a_box_beyond_the_border_is_cut_there_and_an_image_without_boxes_is_used(tmp_path: Path) -> None:
    data = load("voc_folder", voc(tmp_path, {**CELLS, "a": [("red", -4, 10, 30, 40), *CELLS["a"]], "b": []}))
    assert data.train.labels[0, 0].tolist() == [0, 10, 20, 16, 0]
    assert data.train.labels[1, :, 4].tolist() == [-1, -1, -1]


def test_chosen_classes_have_their_order_and_others_are_left_out(tmp_path: Path) -> None:
    data = load(
        "voc_folder", voc(tmp_path, {**CELLS, "b": [*CELLS["b"], ("dust", 1, 1, 4, 4)]}), options={"classes": ["white", "red"]}
    )
    assert data.class_names == ("white", "red")
    assert data.train.labels[1, 0].tolist() == [0, 0, 8, 8, 1]
    assert any("of other classes" in note for note in data.notes)


def _without_annotation(root: Path) -> None:
    (root / "Annotations" / "b.xml").unlink()


def _without_image(root: Path) -> None:
    (root / "JPEGImages" / "b.jpg").unlink()


def _write(text: str) -> Callable[[Path], None]:
    def change(root: Path) -> None:
        (root / "Annotations" / "b.xml").write_text(text)

    return change


def _with_dust(root: Path) -> None:
    file = root / "Annotations" / "d.xml"
    file.write_text(file.read_text().replace("red", "dust"))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (_without_annotation, "b.xml is listed in ImageSets/Main and missing in"),
        (_without_image, "b.xml describes b, which has no image in"),
        (_write("<annotation><object>"), "b.xml is no readable XML"),
        (
            _write("<annotation><object><name>red</name></object></annotation>"),
            "b.xml has an object without a name or a bndbox",
        ),
        (
            _write("<annotation><object><name>red</name><bndbox><xmin>x</xmin></bndbox></object></annotation>"),
            "b.xml has a box that is not four numbers: ['x', None, None, None]",
        ),
        (_write('<!DOCTYPE a [<!ENTITY x "y">]><annotation/>'), "b.xml declares XML entities"),
        (_with_dust, "d.xml has a box of class 'dust', which no training image has"),
    ],
)
def test_what_cannot_be_used_is_named_with_its_file(change: Callable[[Path], None], message: str, tmp_path: Path) -> None:
    change(voc(tmp_path))
    with pytest.raises(UsageError) as error:
        load("voc_folder", tmp_path)
    assert message in str(error.value)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize(
    ("key", "field", "value", "message"),
    [
        ("annotations", "image_id", 999, "annotation 0 is of image 999, which is not listed"),
        ("annotations", "category_id", 8, "annotation 0 is of category 8, which is not listed"),
        ("annotations", "bbox", [1, 2], "has a box that is not four numbers"),
        ("images", "file_name", "gone.jpg", "lists gone.jpg, which is not there"),
    ],
)
def test_a_document_of_coco_that_contradicts_itself_is_named(
    key: str, field: str, value: Any, message: str, tmp_path: Path
) -> None:
    coco(tmp_path, lambda document: document[key][0].update({field: value}))
    with pytest.raises(UsageError) as error:
        load("coco_folder", tmp_path)
    assert message in str(error.value)
    assert "instances_train.json" in str(error.value)


def test_regions_of_a_crowd_are_left_out(tmp_path: Path) -> None:
    coco(tmp_path, lambda document: document["annotations"][0].update({"iscrowd": 1}))
    assert load("coco_folder", tmp_path).train.labels[0].tolist() == [[10, 2, 18, 8, 1]]


def test_an_image_folder_is_no_folder_of_boxes(tmp_path: Path) -> None:
    _image(tmp_path / "cats" / "a.png")
    for name, layout in (("voc_folder", "Pascal VOC"), ("coco_folder", "COCO")):
        with pytest.raises(UsageError, match=f"is no folder in the layout of {layout}.*name another dataset.root"):
            load(name, tmp_path)


def test_classes_of_an_image_folder_are_no_boxes_and_boxes_no_classes(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match=r"must be boxes .* use a data set of boxes such as voc_folder"):
        load_dataset("digits", targets=TASK.targets)
    with pytest.raises(UsageError, match=r"must be whole numbers \[N\], got float32"):
        load_dataset("voc_folder", root=voc(tmp_path))


@pytest.mark.parametrize(
    ("options", "rule"),
    [
        ({"fit": "crop"}, "must be stretch or letterbox"),
        ({"classes": ["a", "a"]}, "must be a list of different class names"),
        ({"test_share": 1.5}, "must be in (0, 1)"),
        ({"sample": 3}, "is not an option of voc_folder"),
    ],
)
def test_options_are_checked_before_anything_is_read(options: dict[str, Any], rule: str, tmp_path: Path) -> None:
    (problem,) = dataset_problems("voc_folder", root=tmp_path, options=options)
    assert rule in str(problem)


def test_height_and_width_are_known_before_anything_is_read_and_for_other_data_refused() -> None:
    facts = dataset_facts("voc_folder", size=(60, 80), options={"classes": ["a", "b"]})
    assert (facts.num_classes, facts.input_shape, facts.task) == (2, (3, 60, 80), "detection")
    (problem,) = dataset_problems("digits", size=(6, 8))
    assert "must be a whole number of pixels" in str(problem)
