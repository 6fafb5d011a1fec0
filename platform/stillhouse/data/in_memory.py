"""A published data set with its images in memory: split, checked, and resized to one size."""

from collections.abc import Iterator
from contextlib import contextmanager

import numpy as np
from numpy.typing import NDArray

from stillhouse.data.hashing import array_hash
from stillhouse.data.images import Arrays, ImageData, channel_statistics, split_of
from stillhouse.data.memory import check_memory
from stillhouse.data.published import Published, Reader
from stillhouse.data.splitting import Splitting, own_validation_note
from stillhouse.durable import content_hash
from stillhouse.errors import UsageError


def in_memory(
    name: str,
    published: Published,
    limits: tuple[int | None, int | None],
    splitting: Splitting,
    size: int | None,
    task: str | None,
) -> ImageData:
    """The data set with its training and validation images in memory; the test split is read when it is used."""
    where = splitting.where

    def read(reader: Reader, limit: int | None) -> Arrays:
        with readable(where):
            images, labels = reader(limit)
        return _resized(images, size, where), labels

    images, labels = read(published.train, limits[0])
    num_outputs, class_names = splitting.targets.outputs(labels, published.class_names, published.num_classes)
    labels = splitting.convert(labels, num_outputs, class_names)
    channels, height, width = input_shape = images.shape[1:]

    def read_split(split: str, reader: Reader, limit: int | None) -> Arrays:
        """The images of another split, which must be like those for training."""
        others, targets = read(reader, limit)
        if others.shape[1:] != input_shape:
            raise UsageError(f"{split} images of {where} are {_by(others)} and training images {_by(images)}; set dataset.size")
        return others, splitting.convert(targets, num_outputs, class_names, split=split)

    if published.validation is None:
        rest, taken = splitting.split(labels, class_names)
        train, validation = (images[rest], labels[rest]), (images[taken], labels[taken])
    else:
        splitting.check_training(labels, class_names)
        train, validation = (images, labels), read_split("validation", published.validation, limits[0])
        published.notes.append(own_validation_note(where))
    mean, std = channel_statistics(train[0])
    return ImageData(
        name=name,
        num_classes=num_outputs,
        input_shape=(channels, height, width),
        class_names=class_names,
        fingerprint=content_hash(
            {
                "num_classes": num_outputs,
                "input_shape": [channels, height, width],
                "arrays": [array_hash(array) for array in (*train, *validation)],
            }
        ),
        mean=mean,
        std=std,
        train=split_of(train),
        validation=split_of(validation),
        read_test=lambda: read_split("test", published.test, limits[1]),
        task=task,
        notes=published.notes,
    )


@contextmanager
def readable(where: str) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        raise UsageError(f"{where} cannot be read ({error}); repair it, or name another dataset.root") from error


def _resized(images: NDArray[np.uint8], size: int | None, where: str) -> NDArray[np.uint8]:
    """[N, C, H, W] resized to `size` x `size`; images that are not square are cropped to the middle of their longer side."""
    if size is None or images.shape[2:] == (size, size):
        return images
    from PIL import Image, ImageOps

    shape = (*images.shape[:2], size, size)
    # Twice: the splits for training and for validation are copies of their rows.
    check_memory(shape, what=f"{where} with dataset.size {size}", copies=2)
    resized = np.empty(shape, np.uint8)
    for place in np.ndindex(*images.shape[:2]):
        image = Image.fromarray(np.ascontiguousarray(images[place]))
        resized[place] = np.asarray(ImageOps.fit(image, (size, size), Image.Resampling.BILINEAR))
    return resized


def _by(images: NDArray[np.uint8]) -> str:
    return "x".join(str(length) for length in images.shape[1:])
