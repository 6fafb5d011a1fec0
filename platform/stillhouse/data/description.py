"""What a sweep records about its data set: the numbers of images, the classes, and how common the most common class is."""

from typing import Any

import numpy as np

from stillhouse.data.images import ImageData, Split


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
        described["majority"] = {name: _majority(split, data.class_names) for name, split in splits.items()}
    return described


def _majority(split: Split, class_names: tuple[str, ...]) -> dict[str, Any]:
    counts = np.bincount(split.labels.numpy(), minlength=len(class_names))
    first = int(counts.argmax())
    return {"class": class_names[first], "share": int(counts[first]) / len(split)}
