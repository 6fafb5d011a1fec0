"""What a sweep records about its data set: the numbers of samples, the classes, and what a user should know of them."""

from collections.abc import Iterator
from typing import Any

import numpy as np
from numpy.typing import NDArray

from stillhouse.data.boxes import presence
from stillhouse.data.duplicates import in_two_classes, shared_with_training
from stillhouse.data.images import ImageData, Split

_NAMED_CLASSES = 5


def describe_data(data: ImageData) -> dict[str, Any]:
    """The data set as plain JSON data. The test split is loaded, unless it was before.

    `majority` has for each split its most common class, the first one by label of several, and that class's share of the
    split: the accuracy of a model that always returns this class.

    Raises:
        UsageError: the files of the test split are missing or damaged.
    """
    splits = {"train": data.train, "validation": data.validation, "test": data.test}
    described: dict[str, Any] = {
        "name": data.name,
        **({"folder": data.folder} if data.folder else {}),
        **({"task": data.task} if data.task else {}),
        ("num_classes" if data.class_names else "outputs"): data.num_classes,
        "input_shape": list(data.input_shape),
        **{f"{name}_samples": len(split) for name, split in splits.items()},
        "fingerprint": data.fingerprint,
    }
    if data.class_names:
        described["class_names"] = list(data.class_names)
    if data.class_names and _has_one_class_each(data.train):
        described["majority"] = {name: _majority(split, data.class_names) for name, split in splits.items() if len(split)}
    return described


def training_notes(data: ImageData) -> Iterator[str]:
    """What a user should know of the samples for training and validation, as sentences; the test split is not read."""
    yield from data.notes
    if data.class_names:
        yield from _rare_classes(data)
        if _has_one_class_each(data.train) and (count := in_two_classes(data)):
            yield f"{_counted(data, count, len(data.train), 'training')} the same as one of another class."
    if count := shared_with_training(data, data.validation):
        counted = _counted(data, count, len(data.validation), "validation")
        yield f"{counted} among the training {data.sample}s too, so validation is too good."


def notes_on_test(data: ImageData) -> Iterator[str]:
    """What a user should know of the test samples, as sentences. The test split is loaded, unless it was before."""
    before = len(data.notes)
    split = data.test
    yield from data.notes[before:]
    if data.class_names:
        counts = _counts(split, len(data.class_names))
        if missing := [name for name, count in zip(data.class_names, counts, strict=True) if not count]:
            yield f"The test split has no {data.sample} of {_named(missing)}."
    if count := shared_with_training(data, split):
        counted = _counted(data, count, len(split), "test")
        yield f"{counted} among the training {data.sample}s too, so test results are too good."


def _has_one_class_each(split: Split) -> bool:
    """Whether targets are classes, not boxes of several ones."""
    return split.labels.ndim == 1


def _counts(split: Split, classes: int) -> NDArray[np.int64]:
    """How many samples have each class, or a box of it."""
    labels = split.labels.numpy()
    return np.bincount(labels, minlength=classes) if _has_one_class_each(split) else presence(labels, classes).sum(0)


def _majority(split: Split, class_names: tuple[str, ...]) -> dict[str, Any]:
    counts = np.bincount(split.labels.numpy(), minlength=len(class_names))
    first = int(counts.argmax())
    return {"class": class_names[first], "share": int(counts[first]) / len(split)}


def _rare_classes(data: ImageData) -> Iterator[str]:
    """Classes with one training sample, and classes that the validation split, if there is one, lacks."""
    names = data.class_names
    trained, judged = (_counts(each, len(names)) for each in (data.train, data.validation))
    if single := [name for name, count in zip(names, trained, strict=True) if count == 1]:
        yield f"Only one training {data.sample} has {_named(single)}."
    if len(data.validation) and (missing := [name for name, count in zip(names, judged, strict=True) if not count]):
        yield f"The validation split has no {data.sample} of {_named(missing)}; dataset.validation may be larger."


def _counted(data: ImageData, count: int, total: int, split: str) -> str:
    return f"{count} of the {total} {split} {data.sample}s {'is' if count == 1 else 'are'}"


def _named(names: list[str]) -> str:
    """`class 'a'`, or `classes 'a', 'b', 'c' and 2 more`."""
    shown = ", ".join(f"'{name}'" for name in names[:_NAMED_CLASSES])
    more = f" and {len(names) - _NAMED_CLASSES} more" if len(names) > _NAMED_CLASSES else ""
    return f"{'class' if len(names) == 1 else 'classes'} {shown}{more}"
