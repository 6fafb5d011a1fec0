"""Folders of images with boxes, in the layout of Pascal VOC or of COCO, decoded once and cached as one array.

What is wrong with a single box is either left out, with a note that counts it and names the first file, or refused:

- boxes without an area and boxes that are wholly outside of their image are left out;
- boxes that reach beyond their image are cut at its border;
- regions of COCO that stand for a crowd (`iscrowd`) are left out;
- images without a box are used, as examples of the background;
- a missing or unreadable annotation or image file, a box that is no box, and an unknown class are refused.
"""

import json
import xml.etree.ElementTree as ET
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from stillhouse.data.boxes import BOXES, padded
from stillhouse.data.decode import WHITE, Ground, decode_image
from stillhouse.data.decoded_files import decoded_files
from stillhouse.data.hashing import derive_key
from stillhouse.data.images import Arrays
from stillhouse.data.published import Published, Reader, limited
from stillhouse.data.splits import stratified_split
from stillhouse.errors import UsageError, name_all

Layout = Literal["voc", "coco"]
Fit = Literal["stretch", "letterbox"]
FITS: tuple[Fit, ...] = ("stretch", "letterbox")
Size = tuple[int, int]
_CACHE_VERSION = 1
_TRAIN, _VALIDATION, _TEST = "train", "val", "test"


@dataclass(frozen=True)
class Annotated:
    """One image file with its boxes.

    Attributes:
        source: the file that names the boxes.
        boxes: (x1, y1, x2, y2) in pixels of the file's upright image.
        classes: the name of the class of each.
    """

    image: Path
    source: Path
    boxes: tuple[tuple[float, float, float, float], ...]
    classes: tuple[str, ...]


@dataclass(frozen=True, kw_only=True)
class BoxFolder:
    """Images with boxes below `root`.

    Attributes:
        size: height and width of the images; boxes are changed as their images. None leaves the images' own.
        fit: `stretch` changes height and width each to its own; `letterbox` keeps their ratio and fills the rest with black,
            on the right or below.
        classes: the classes in their order; boxes of others are left out. None: those of the training and validation images.
        test_share: of the images, where there is no test split.
    """

    root: Path
    layout: Layout
    size: Size | None = None
    fit: Fit = "stretch"
    classes: Sequence[str] | None = None
    test_share: float = 0.2
    ground: Ground = WHITE
    cache: Path | None = None
    _notes: list[str] = field(default_factory=list, init=False, compare=False, repr=False)

    def find(self) -> Published:
        """Reads all annotations; no image is decoded yet.

        Raises:
            UsageError: there is no such folder, or an annotation cannot be used.
        """
        splits = _voc_splits(self.root) if self.layout == "voc" else _coco_splits(self.root)
        names = tuple(map(str, self.classes)) if self.classes else _classes(splits)
        if not names:
            raise UsageError(f"{self.root} has no box in any training image; name another dataset.root")
        self._check_classes(splits, names)
        if _TEST not in splits:
            everything = splits[_TRAIN]
            present = np.array(
                [min([names.index(each) for each in item.classes if each in names] or [0]) for item in everything]
            )
            rest, taken = stratified_split(present, max(1, round(self.test_share * len(everything))), derive_key("test"))
            splits = {**splits, _TRAIN: [everything[i] for i in rest], _TEST: [everything[i] for i in taken]}

        def reader(split: str) -> Reader:
            return lambda limit: self._read(split, splits[split], names, limit)

        return Published(
            num_classes=len(names),
            class_names=names,
            train=reader(_TRAIN),
            test=reader(_TEST),
            validation=reader(_VALIDATION) if _VALIDATION in splits else None,
            notes=self._notes,
        )

    def _check_classes(self, splits: Mapping[str, Sequence[Annotated]], names: Sequence[str]) -> None:
        """Every class that a box has is known, unless the user chose the classes."""
        if self.classes:
            return
        for item in (item for items in splits.values() for item in items):
            for name in item.classes:
                if name not in names:
                    raise UsageError(
                        f"{item.source} has a box of class '{name}', which no training image has; correct it, or list the "
                        "classes in dataset.options.classes, so that other boxes are left out"
                    )

    def _read(self, split: str, items: Sequence[Annotated], names: Sequence[str], limit: int | None) -> Arrays:
        kept = [_boxes_of(item, names) for item in items]
        chosen = limited(BOXES.strata(padded(kept)), limit)
        shapes: dict[str, tuple[int, int]] = {}

        def decode(file: str) -> tuple[NDArray[np.uint8], bool]:
            pixels, transparent = decode_image(file, size=None, grey=False, where=file, ground=self.ground)
            return (pixels if self.size is None else _fitted(pixels, self.size, self.fit)), transparent

        facts = {
            "version": _CACHE_VERSION,
            "boxes": True,
            "size": None if self.size is None else list(self.size),
            "fit": self.fit,
            "ground": list(self.ground),
        }
        files = [str(items[place].image) for place in chosen]
        decoded = decoded_files(files, decode, facts, self.cache)
        shapes = {file: image_shape(file) for file in files}
        left_out = _LeftOut()
        targets = [
            self._fitted_boxes(kept[place], shapes[file], items[place], left_out)
            for place, file in zip(chosen, files, strict=True)
        ]
        self._notes.extend(left_out.notes(self.root, split))
        return decoded.pixels, padded(targets)

    def _fitted_boxes(
        self, boxes: NDArray[np.float32], shape: tuple[int, int], item: Annotated, left_out: "_LeftOut"
    ) -> NDArray[np.float32]:
        """The boxes [m, 5] of an image of `shape` in pixels of the image as it is read; what is no box is left out."""
        height, width = shape
        cut = boxes.copy()
        cut[:, 0:4:2] = cut[:, 0:4:2].clip(0, width)
        cut[:, 1:4:2] = cut[:, 1:4:2].clip(0, height)
        flat = (boxes[:, 2] <= boxes[:, 0]) | (boxes[:, 3] <= boxes[:, 1])
        outside = ~flat & ((cut[:, 2] <= cut[:, 0]) | (cut[:, 3] <= cut[:, 1]))
        left_out.count("without an area", int(flat.sum()), item.source)
        left_out.count("outside of their image", int(outside.sum()), item.source)
        left_out.other_classes(len(item.boxes) - len(boxes), item.source)
        scale_x, scale_y = _scales(shape, self.size, self.fit)
        cut[:, 0:4:2] *= scale_x
        cut[:, 1:4:2] *= scale_y
        return cut[~flat & ~outside]


class _LeftOut:
    """Counts what is left out, by reason, with the first file of each."""

    def __init__(self) -> None:
        self._found: dict[str, tuple[int, Path]] = {}

    def count(self, why: str, number: int, source: Path) -> None:
        if number:
            before, first = self._found.get(why, (0, source))
            self._found[why] = before + number, first

    def other_classes(self, number: int, source: Path) -> None:
        self.count("of other classes", number, source)

    def notes(self, root: Path, split: str) -> Iterator[str]:
        for why, (number, first) in self._found.items():
            boxes = "box is" if number == 1 else "boxes are"
            yield f"{root}: {number} {boxes} left out of the {split} split, {why} (first in {first.name})."


def image_shape(file: str) -> tuple[int, int]:
    """Height and width of an image file, upright.

    Raises:
        UsageError: it is no readable image.
    """
    from stillhouse.data.decode import scan_image

    traits = scan_image(Path(file).read_bytes(), where=file)
    return traits.height, traits.width


def _boxes_of(item: Annotated, names: Sequence[str]) -> NDArray[np.float32]:
    places = {name: place for place, name in enumerate(names)}
    rows = [(*box, places[name]) for box, name in zip(item.boxes, item.classes, strict=True) if name in places]
    return np.array(rows, np.float32).reshape(-1, 5)


def _scales(shape: tuple[int, int], size: Size | None, fit: Fit) -> tuple[float, float]:
    """What x and y of a box are multiplied by."""
    if size is None:
        return 1.0, 1.0
    down, right = size[0] / shape[0], size[1] / shape[1]
    if fit == "letterbox":
        height, width = _inner(shape, size)
        return width / shape[1], height / shape[0]
    return right, down


def _inner(shape: tuple[int, int], size: Size) -> Size:
    """Height and width of an image that keeps its ratio within `size`."""
    scale = min(size[0] / shape[0], size[1] / shape[1])
    return max(1, round(shape[0] * scale)), max(1, round(shape[1] * scale))


def _fitted(pixels: NDArray[np.uint8], size: Size, fit: Fit) -> NDArray[np.uint8]:
    """Pixels [3, H, W] resized to `size`, bilinearly with antialiasing."""
    from PIL import Image

    inner = _inner((pixels.shape[1], pixels.shape[2]), size) if fit == "letterbox" else size
    image = Image.fromarray(np.ascontiguousarray(pixels.transpose(1, 2, 0)))
    if image.size != (inner[1], inner[0]):
        image = image.resize((inner[1], inner[0]), Image.Resampling.BILINEAR)
    result = np.zeros((pixels.shape[0], *size), np.uint8)
    result[:, : inner[0], : inner[1]] = np.asarray(image).transpose(2, 0, 1)
    return result


def _classes(splits: Mapping[str, Sequence[Annotated]]) -> tuple[str, ...]:
    """The classes of the training images and, where the splits are given, of the validation images, sorted."""
    known = [item for split in (_TRAIN, _VALIDATION) for item in splits.get(split, ())]
    return tuple(sorted({name for item in known for name in item.classes}))


def _voc_splits(root: Path) -> dict[str, list[Annotated]]:
    folder = _voc_folder(root)
    lists = folder / "ImageSets" / "Main"
    names = {split: _voc_list(lists / f"{split}.txt") for split in (_TRAIN, _VALIDATION, _TEST)}
    found = {split: listed for split, listed in names.items() if listed is not None}
    if _TRAIN not in found:
        both = _voc_list(lists / "trainval.txt")
        found[_TRAIN] = both if both is not None else sorted(each.stem for each in (folder / "Annotations").glob("*.xml"))
        found.pop(_VALIDATION, None)
    missing = [f"{name}.xml" for listed in found.values() for name in listed if not _annotation(folder, name).is_file()]
    if missing:
        rule = "listed in ImageSets/Main and missing in"
        where = f"{rule} {folder / 'Annotations'}; add it, or take it off the list"
        raise UsageError(name_all(missing, one=f"is {where}", many=f"annotation files are {where}"))
    return {split: [_voc_image(folder, name) for name in listed] for split, listed in found.items()}


def _voc_folder(root: Path) -> Path:
    """The folder with `Annotations` and `JPEGImages`: the root, or the only such folder below it."""
    places = [root, *sorted(root.glob("VOC*")), *sorted(root.glob("VOCdevkit/VOC*"))]
    found = [place for place in places if (place / "Annotations").is_dir() and (place / "JPEGImages").is_dir()]
    if not found:
        raise UsageError(
            f"{root} is no folder in the layout of Pascal VOC: it needs Annotations and JPEGImages; name another dataset.root"
            + (", or the data set image_folder" if any(each.is_dir() for each in root.iterdir()) else "")
        )
    if len(found) > 1:
        raise UsageError(f"{root} has several VOC folders ({', '.join(each.name for each in found)}); name one as dataset.root")
    return found[0]


def _voc_list(path: Path) -> list[str] | None:
    """The names in one list of a split; None if there is no such list."""
    if not path.is_file():
        return None
    lines = path.read_text(encoding="utf-8", errors="replace").splitlines()
    return [line.split()[0] for line in lines if line.strip()]


def _annotation(folder: Path, name: str) -> Path:
    return folder / "Annotations" / f"{name}.xml"


def _voc_image(folder: Path, name: str) -> Annotated:
    source = _annotation(folder, name)
    try:
        # Entities, with which XML can grow without bound, are refused below; expat resolves none from outside.
        text = source.read_bytes()
        if b"<!ENTITY" in text:
            raise UsageError(f"{source} declares XML entities, which no annotation needs; remove them")
        tree = ET.fromstring(text)  # noqa: S314
    except ET.ParseError as error:
        raise UsageError(f"{source} is no readable XML ({error}); repair it, or take it off the list") from error
    boxes, classes = [], []
    for thing in tree.iter("object"):
        label, box = thing.findtext("name"), thing.find("bndbox")
        if not label or box is None:
            raise UsageError(f"{source} has an object without a name or a bndbox; repair it")
        boxes.append(_numbers([box.findtext(side) for side in ("xmin", "ymin", "xmax", "ymax")], source))
        classes.append(label)
    return Annotated(_voc_file(folder, tree.findtext("filename"), name, source), source, tuple(boxes), tuple(classes))


def _voc_file(folder: Path, named: str | None, name: str, source: Path) -> Path:
    images = folder / "JPEGImages"
    places = [images / f"{name}.jpg", *([images / Path(named).name] if named else []), *sorted(images.glob(f"{name}.*"))]
    found = next((place for place in places if place.is_file()), None)
    if found is None:
        raise UsageError(f"{source} describes {name}, which has no image in {images}; add it, or take it off the list")
    return found


def _numbers(values: Sequence[Any], source: Path) -> tuple[float, float, float, float]:
    try:
        x1, y1, x2, y2 = (float(value) for value in values)
    except (TypeError, ValueError) as error:
        raise UsageError(f"{source} has a box that is not four numbers: {list(values)}; repair it") from error
    if not all(np.isfinite([x1, y1, x2, y2])):
        raise UsageError(f"{source} has a box that is not finite: {list(values)}; repair it")
    return x1, y1, x2, y2


def _coco_splits(root: Path) -> dict[str, list[Annotated]]:
    found: dict[str, list[Annotated]] = {}
    for split, words in ((_TRAIN, ("train",)), (_VALIDATION, ("val", "valid", "validation")), (_TEST, ("test",))):
        documents = sorted(root.glob(f"annotations/instances_{words[0]}*.json"))
        documents += [place for word in words if (place := root / word / "_annotations.coco.json").is_file()]
        if len(documents) > 1:
            shown = ", ".join(str(each.relative_to(root)) for each in documents)
            raise UsageError(f"{root} has several annotation files for {split}: {shown}; keep one")
        if documents:
            found[split] = _coco_images(root, split, documents[0])
    if _TRAIN not in found:
        raise UsageError(
            f"{root} is no folder in the layout of COCO: it needs annotations/instances_train.json or "
            "train/_annotations.coco.json; name another dataset.root"
        )
    return found


def _coco_images(root: Path, split: str, source: Path) -> list[Annotated]:
    document = _coco_document(source)
    try:
        names = {entry["id"]: str(entry["name"]) for entry in document["categories"]}
        files = {entry["id"]: str(entry["file_name"]) for entry in document["images"]}
        by_image: dict[Any, list[Any]] = {identity: [] for identity in files}
        for entry in document["annotations"]:
            if entry["image_id"] not in files:
                raise UsageError(f"{source}: annotation {entry.get('id')} is of image {entry['image_id']}, which is not listed")
            if entry["category_id"] not in names:
                raise UsageError(
                    f"{source}: annotation {entry.get('id')} is of category {entry['category_id']}, which is not listed"
                )
            if not entry.get("iscrowd"):
                by_image[entry["image_id"]].append(entry)
    except (KeyError, TypeError) as error:
        raise UsageError(f"{source} lacks {error} where the layout of COCO has it; repair it") from error
    return [
        Annotated(
            _coco_file(root, split, source, files[identity]),
            source,
            tuple(_coco_box(entry, source) for entry in entries),
            tuple(names[entry["category_id"]] for entry in entries),
        )
        for identity, entries in by_image.items()
    ]


def _coco_document(source: Path) -> Mapping[str, Any]:
    try:
        document = json.loads(source.read_text(encoding="utf-8"))
    except ValueError as error:
        raise UsageError(f"{source} is no readable JSON ({error}); repair it") from error
    if not isinstance(document, Mapping):
        raise UsageError(f"{source} must be a JSON object in the layout of COCO, it is {type(document).__name__}")
    return document


def _coco_box(entry: Mapping[str, Any], source: Path) -> tuple[float, float, float, float]:
    given = entry["bbox"]
    x, y, width, height = _numbers(given if isinstance(given, Sequence) else [given], source)
    return x, y, x + width, y + height


def _coco_file(root: Path, split: str, source: Path, name: str) -> Path:
    folders = [source.parent, root / source.stem.removeprefix("instances_"), root / split, root / "images", root]
    found = next((place / name for place in folders if (place / name).is_file()), None)
    if found is None:
        raise UsageError(f"{source} lists {name}, which is not there; add it, or name another dataset.root")
    return found
