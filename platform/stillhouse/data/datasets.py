"""Finds a data set by name, splits it, and resizes its images to one size."""

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

from stillhouse.data import sets
from stillhouse.data.catalogue import dataset_facts, dataset_names, dataset_problems
from stillhouse.data.decode import WHITE, parse_ground
from stillhouse.data.folders import ImageFolder
from stillhouse.data.images import ImageData, Split
from stillhouse.data.in_memory import in_memory, readable
from stillhouse.data.packed_data import packed_data
from stillhouse.data.published import TORCHVISION, Published, digits, user_function
from stillhouse.data.shipped import DatasetFacts, Request, Size
from stillhouse.data.splitting import Splitting
from stillhouse.data.targets import CLASS_LABELS, TargetRule
from stillhouse.errors import UsageError
from stillhouse.user_paths import resolve_path

__all__ = ["DatasetFacts", "ImageData", "Split", "dataset_facts", "dataset_names", "dataset_problems", "load_dataset"]


def load_dataset(
    name: str,
    *,
    root: str | Path | None = None,
    validation: float = 0.1,
    seed: int = 0,
    download: bool = False,
    size: Size | None = None,
    options: Mapping[str, Any] | None = None,
    cache: str | Path | None = None,
    task: str | None = None,
    targets: TargetRule = CLASS_LABELS,
) -> ImageData:
    """Reads a data set's training images and splits off the validation images; the test split is read when it is used.

    Args:
        name: one of `dataset_names()`, or "module:function" for a user-defined one, see `user_function`.
        root: the folder with the data: torchvision's root, or that of an image folder.
        validation: how many training samples to split off, or their share; stratified, chosen by `seed`. With 0 the validation
            split is empty. Without effect for an image folder or pack with a validation split of its own.
        seed: determines only the validation split.
        download: whether torchvision may download missing files.
        size: height and width to resize to (antialiased, in integer arithmetic); both as one number, or two numbers for a data
            set that takes them.
        options: `limit` and `limit_test` take so many samples of the published training (validation included) and test split,
            stratified, the same ones for every seed. `grey`, `ground` and `test_share` are options of `ImageFolder`. A
            user-defined function gets the others.
        cache: a folder for decoded image files.
        task: the name of what models are trained to do with the data; None for the default task.
        targets: what that task requires of the targets.

    Raises:
        UsageError: data is missing, damaged or too small, or an argument is wrong.
    """
    options = dict(options or {})
    if problems := dataset_problems(name, root=root, validation=validation, download=download, size=size, options=options):
        raise UsageError("\n".join(map(str, problems)))
    cache = None if cache is None else Path(cache)
    limits = options.pop("limit", None), options.pop("limit_test", None)
    options = _with_ground(name, options)
    folder = None if root is None else resolve_path(root, "dataset.root")
    where = name if folder is None else f"{name} in {folder}"
    splitting = Splitting(where, targets, validation, seed, limited=limits[0] is not None)
    if (own := sets.find(name)) is not None:
        assert folder is not None, "the catalogue requires a root"
        splitting = replace(splitting, sample=own.sample)
        with readable(where):
            data = own.read(
                Request(root=folder, limits=limits, splitting=splitting, size=size, options=options, cache=cache, task=task)
            )
        data.sample = own.sample
    elif name == "pack":
        assert folder is not None, "a pack has a root"
        splitting = replace(splitting, where=f"the pack {folder}")
        assert not isinstance(size, tuple), "the catalogue allows one number only"
        with readable(f"pack in {folder}"):
            data = packed_data(folder, limits, splitting, size=size, options=options, cache=cache, task=task)
    else:
        assert not isinstance(size, tuple), "the catalogue allows one number only"
        with readable(where):
            published = _find(name, folder, download=download, size=size, options=options, cache=cache, targets=targets)
        data = in_memory(name, published, limits, splitting, size, task)
    if ":" not in name and own is None:
        data.ground = options.get("ground", WHITE)
    if folder is not None and name not in TORCHVISION:
        data.folder = folder.name
    return data


def _find(
    name: str,
    root: Path | None,
    *,
    download: bool,
    size: int | None,
    options: Mapping[str, Any],
    cache: Path | None,
    targets: TargetRule,
) -> Published:
    if name == "digits":
        return digits()
    if root is not None and name in TORCHVISION:
        return TORCHVISION[name].find(name, root, download)
    if root is not None and name == "image_folder":
        return ImageFolder(root=root, size=size, cache=cache, **options).find()
    return user_function(name, root, options, targets)


def _with_ground(name: str, options: Mapping[str, Any]) -> dict[str, Any]:
    """The options with the ground as a colour; a user-defined function gets its own option of that name unchanged."""
    if ":" in name or "ground" not in options:
        return dict(options)
    return {**options, "ground": parse_ground(options["ground"])}
