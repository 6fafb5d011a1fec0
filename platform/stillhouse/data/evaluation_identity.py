"""What decides the value of a trained model on a data set, besides the model: test split, classes, normalisation, judge."""

from typing import Any

import numpy as np
from numpy.typing import NDArray

from stillhouse.data.decode import decoder_identity
from stillhouse.data.images import ImageData, Split
from stillhouse.data.packs import PackedImages
from stillhouse.durable import bytes_hash, content_hash


def evaluation_identity(data: ImageData) -> dict[str, str]:
    """Hashes by name, each equal for equal content: `test` (images and targets), `classes` (names and order), `normalisation`.

    And `judge`, what the metric needs besides: `ImageData.prepared`, where there is something.

    The test split is loaded, unless it was before.

    Raises:
        UsageError: the files of the test split are missing or damaged.
    """
    judge = {name: [list(array.shape), _hash(array)] for name, array in sorted(data.prepared.items())}
    return {
        "test": _split_hash(data.test),
        "classes": content_hash(list(data.class_names)),
        "normalisation": content_hash([list(data.mean), list(data.std)]),
        **({"judge": content_hash(judge)} if judge else {}),
    }


def _split_hash(split: Split) -> str:
    images, labels = split.images, split.labels.numpy()
    if isinstance(images, PackedImages):
        facts = images.facts()
        # Decoded images are large; pack, rows and decoder determine them.
        pixels = {
            "pack": facts["key"],
            "size": facts["size"],
            "grey": facts["grey"],
            "decoder": decoder_identity(),
            "rows": _hash(images.rows),
        }
        return content_hash({"pixels": pixels, "labels": _hash(labels)})
    array = images.numpy()
    return content_hash(
        {
            "shape": list(array.shape),
            "pixels": _hash(array),
            "labels": [str(labels.dtype), list(labels.shape), _hash(labels)],
        }
    )


def _hash(array: NDArray[Any]) -> str:
    return bytes_hash(np.ascontiguousarray(array).data.cast("B"))
