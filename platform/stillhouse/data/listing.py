"""Lists the image files of an image folder: which file is in which class and split, and which files are left out.

A link to a folder or to a file is followed. Each real file is listed once for each split, and a link back to a folder that
contains it is not followed, so that a folder with circles has a finite list.
"""

import os
import stat
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from stillhouse.data.decode import SUFFIXES
from stillhouse.data.hashing import derive_key
from stillhouse.data.splits import stratified_split
from stillhouse.errors import UsageError, name_all, printable

TRAIN, VALIDATION, TEST = SPLITS = ("train", "validation", "test")
_VALIDATION_FOLDERS = ("val", "valid", "validation")
_File = tuple[int, int | str]
"""A real file or folder, whatever link leads to it: device and inode."""


@dataclass(frozen=True)
class Listing:
    """Image files and their classes."""

    files: Sequence[str]
    labels: NDArray[np.int64]

    def only(self, chosen: NDArray[np.int64]) -> "Listing":
        return Listing([self.files[place] for place in chosen], self.labels[chosen])


@dataclass(frozen=True, kw_only=True)
class FolderListing:
    """The files of an image folder.

    Attributes:
        class_names: in the order of the labels.
        splits: by name: `train`, `test`, and `validation` if the folder has one of its own.
        notes: what was left out, as sentences.
    """

    class_names: tuple[str, ...]
    splits: Mapping[str, Listing]
    notes: tuple[str, ...]


def list_folder(root: Path, test_share: float) -> FolderListing:
    """The image files below `root`.

    With a folder `root/train`, the splits are folders beside it: `test`, and `val` (or `valid`, `validation`) for validation;
    without `test`, `val` is the test split. Otherwise the class folders are in `root`, and a share `test_share` of their images
    becomes the test split.

    Raises:
        UsageError: there is no such folder, or its classes or files cannot be used.
    """
    if not root.is_dir():
        raise UsageError(f"dataset.root {root} does not exist; name a folder with one sub-folder of images per class")
    search = _Search(root)
    if (root / TRAIN).is_dir():
        folders = _split_folders(root)
        names = search.class_folders(folders[TRAIN])
        splits = {split: search.listing(folder, names) for split, folder in folders.items()}
        search.note_unused(root, {folder.name for folder in folders.values()})
    else:
        names = search.class_folders(root)
        everything = search.listing(root, names)
        search.check()
        size = round(test_share * len(everything.files))
        if not 0 < size < len(everything.files):
            raise UsageError(f"{root} has {len(everything.files)} images, too few for a test share of {test_share}")
        rest, taken = stratified_split(everything.labels, size, derive_key("image_folder", "test"))
        splits = {TRAIN: everything.only(rest), TEST: everything.only(taken)}
    search.check()
    return FolderListing(class_names=tuple(map(printable, names)), splits=splits, notes=tuple(search.notes()))


def _split_folders(root: Path) -> dict[str, Path]:
    """The folder of each split below `root`, which has a folder `train`."""
    validation = [root / name for name in _VALIDATION_FOLDERS if (root / name).is_dir()]
    if len(validation) > 1:
        raise UsageError(f"{root} has the folders {validation[0].name} and {validation[1].name}; remove or rename one of them")
    if (root / TEST).is_dir():
        return {TRAIN: root / TRAIN, **({VALIDATION: validation[0]} if validation else {}), TEST: root / TEST}
    if not validation:
        raise UsageError(f"{root} has a folder train but neither test nor val; add one of them")
    return {TRAIN: root / TRAIN, TEST: validation[0]}


@dataclass
class _Search:
    """A search for the image files below `root`, and what it met besides them."""

    root: Path
    _labels: dict[_File, tuple[str, str]] = field(default_factory=dict)
    _suffixes: Counter[str] = field(default_factory=Counter)
    _outside: int = 0
    _repeated: int = 0
    _circles: int = 0
    _unused: list[str] = field(default_factory=list)
    _unusable: list[str] = field(default_factory=list)
    _in_two_classes: list[str] = field(default_factory=list)

    def class_folders(self, folder: Path) -> list[str]:
        """The names of the class folders in `folder`, sorted."""
        names = _folder_names(folder)
        if len(names) < 2:
            raise UsageError(f"{folder} must have at least two folders, one per class, it has {len(names)}")
        return names

    def listing(self, folder: Path, names: Sequence[str]) -> Listing:
        """The image files of one split, by class folder; labels are positions in `names`."""
        found = _folder_names(folder)
        if strange := [name for name in found if name not in names]:
            raise UsageError(f"{folder} has a class folder '{strange[0]}' that the training images lack; rename or remove it")
        files: list[str] = []
        labels: list[int] = []
        seen: set[_File] = set()
        self._outside += sum(_is_image(entry.name) and not _is_folder(entry) for entry in _entries(str(folder)))
        for name in found:
            others = self._suffixes.total()
            below = sorted(self._images(folder / name, name, seen))
            if not below:
                self.check()
                others = self._suffixes.total() - others
                hint = f", only {others} files with other suffixes" if others else ""
                raise UsageError(
                    f"class folder {folder / name} has no image ({', '.join(SUFFIXES)}){hint}; fill, convert or remove it"
                )
            files += below
            labels += [names.index(name)] * len(below)
        return Listing(files, np.array(labels, dtype=np.int64))

    def note_unused(self, root: Path, used: set[str]) -> None:
        """Remembers the folders beside the splits' folders."""
        self._unused += [name for name in _folder_names(root) if name not in used]

    def check(self) -> None:
        """Raises what makes the folder unusable, all of it at once.

        Raises:
            UsageError: a file is not a regular file, or is in two classes.
        """
        if self._unusable:
            rule = "cannot be read; repair or remove"
            raise UsageError(name_all(self._unusable, one=f"{rule} it", many=f"image files {rule} them"))
        if self._in_two_classes:
            rule = "are one file in two classes; remove one of the two"
            raise UsageError(name_all(self._in_two_classes, one=rule, many=f"pairs of images {rule}"))

    def notes(self) -> Iterator[str]:
        """What was left out of the data set, as one sentence; nothing if everything was used."""
        if left_out := list(self._left_out()):
            yield f"{self.root}: left out: {'; '.join(left_out)}."

    def _left_out(self) -> Iterator[str]:
        if self._suffixes:
            kinds = ", ".join(f"{printable(suffix) or 'none'} ({count})" for suffix, count in self._suffixes.most_common(5))
            more = ", …" if len(self._suffixes) > 5 else ""
            yield f"files whose suffix is not that of an image ({self._suffixes.total()}): {kinds}{more}"
        if self._outside:
            yield f"images in no class folder ({self._outside})"
        if self._repeated:
            yield f"links to images that are already in the same split ({self._repeated})"
        if self._circles:
            yield f"links to a folder around them ({self._circles})"
        if self._unused:
            yield f"folders beside train that are no split ({printable(', '.join(self._unused))})"

    def _images(self, folder: Path, name: str, seen: set[_File]) -> Iterator[str]:
        """The image files of one class; `seen` has the real files of the split that were found before."""
        parents = {*folder.parents, *folder.resolve().parents}
        around = {_real(str(each), each.stat()) for each in parents}
        yield from self._below(str(folder), name, seen, around, set())

    def _below(self, folder: str, name: str, seen: set[_File], around: set[_File], listed: set[_File]) -> Iterator[str]:
        """The image files below one folder.

        Args:
            around: the folders that contain it: a link to one of them is a circle.
            listed: the folders of the class that were listed before; this one is added.
        """
        here = _real(folder, os.stat(folder))  # noqa: PTH116
        listed.add(here)
        for entry in _entries(folder):
            if _is_folder(entry):
                real = _real(entry.path, entry.stat())
                if real == here or real in around:
                    self._circles += 1
                elif real not in listed:
                    yield from self._below(entry.path, name, seen, around | {here}, listed)
            elif entry.name.startswith("."):
                continue
            elif _is_image(entry.name):
                if self._is_new(entry, name, seen):
                    yield entry.path
            else:
                self._suffixes[os.path.splitext(entry.name)[1].lower()] += 1  # noqa: PTH122

    def _is_new(self, entry: "os.DirEntry[str]", name: str, seen: set[_File]) -> bool:
        """Whether this real file was not found in the split yet."""
        try:
            status = entry.stat()
        except OSError as error:
            self._unusable.append(f"{entry.path} ({error.strerror})")
            return False
        if not stat.S_ISREG(status.st_mode):
            self._unusable.append(f"{entry.path} (not a file)")
            return False
        real = _real(entry.path, status)
        other, path = self._labels.setdefault(real, (name, entry.path))
        if other != name:
            self._in_two_classes.append(f"{path} and {entry.path}")
        if real in seen:
            self._repeated += 1
            return False
        seen.add(real)
        return True


def _entries(folder: str) -> "list[os.DirEntry[str]]":
    """The entries of a folder, sorted by name, so that the same links are followed on every machine."""
    with os.scandir(folder) as entries:
        return sorted(entries, key=lambda entry: entry.name)


def _folder_names(folder: Path) -> list[str]:
    return [entry.name for entry in _entries(str(folder)) if _is_folder(entry) and not entry.name.startswith(".")]


def _is_folder(entry: "os.DirEntry[str]") -> bool:
    try:
        return entry.is_dir()
    except OSError:  # a link to itself
        return False


def _is_image(name: str) -> bool:
    return name.lower().endswith(SUFFIXES) and not name.startswith(".")


def _real(path: str, status: os.stat_result) -> _File:
    # Some network file systems number no inodes.
    return status.st_dev, status.st_ino or os.path.realpath(path)
