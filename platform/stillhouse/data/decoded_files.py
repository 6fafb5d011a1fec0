"""Image files of one size as one array, from the cache of decoded images where it has them."""

import contextlib
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from stillhouse.data.decoded_cache import DecodedImages, check_decoded, file_hashes, read_decoded, write_decoded
from stillhouse.durable import content_hash
from stillhouse.errors import UsageError, name_all

Decode = Callable[[str], tuple[NDArray[np.uint8], bool]]
"""The pixels of a file, uint8 [C, H, W], and whether the ground is visible in it."""


def decoded_files(files: Sequence[str], decode: Decode, facts: Mapping[str, Any], cache: Path | None) -> DecodedImages:
    """All images, in the order of the files.

    Args:
        decode: a function of the file's content and of `facts`.
        facts: plain data that is equal if and only if equal files give equal pixels.
        cache: the folder for decoded images; None keeps none.

    Raises:
        UsageError: images are damaged or differ in size; all of them are named, up to a limit.
    """
    if cache is None:
        return _decoded(files, decode)
    folder = cache / content_hash({**facts, "files": file_hashes(files)})
    with contextlib.suppress(OSError, ValueError):
        return read_decoded(folder)
    decoded = _decoded(files, decode)
    try:
        write_decoded(folder, decoded)
    except OSError as error:
        message = f"decoded images cannot be stored in {cache} ({error.strerror}); they are decoded again next time"
        warnings.warn(message, stacklevel=2)
    return decoded


def _decoded(files: Sequence[str], decode: Decode) -> DecodedImages:
    images: NDArray[np.uint8] | None = None
    transparent = 0
    problems: list[UsageError] = []
    for place, (pixels, shows_ground) in _each(files, decode, problems):
        if images is None:
            check_decoded((len(files), *pixels.shape))
            images, first = np.empty((len(files), *pixels.shape), np.uint8), files[place]
        if pixels.shape != images.shape[1:]:
            raise UsageError(
                f"{files[place]} is {_by(pixels.shape)} and {first} is {_by(images.shape[1:])}; "
                f"set dataset.size, to resize them"
            )
        images[place] = pixels
        transparent += shows_ground
    if problems or images is None:
        raise name_problems(problems)
    return DecodedImages(images, transparent)


def _each(
    files: Sequence[str], decode: Decode, problems: list[UsageError]
) -> Iterator[tuple[int, tuple[NDArray[np.uint8], bool]]]:
    """Place and decoded pixels of each readable image; what is wrong with the others is added to `problems`."""
    for place, file in enumerate(files):
        try:
            decoded = decode(file)
        except UsageError as error:
            problems.append(error)
            continue
        yield place, decoded


def name_problems(problems: Sequence[UsageError]) -> UsageError:
    """One error for the problems of several images."""
    if len(problems) == 1:
        return problems[0]
    return UsageError(name_all([str(problem) for problem in problems], one="", many="images cannot be used"))


def _by(shape: tuple[int, ...]) -> str:
    return f"{shape[-1]}x{shape[-2]}"
