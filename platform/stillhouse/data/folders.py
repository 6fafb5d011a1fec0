"""Image folders: one sub-folder per class, decoded once and cached as one array."""

import contextlib
import warnings
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from stillhouse.data.decode import WHITE, Ground, decode_image
from stillhouse.data.decoded_cache import DecodedImages, check_decoded, file_hashes, read_decoded, write_decoded
from stillhouse.data.images import Arrays
from stillhouse.data.listing import TEST, TRAIN, VALIDATION, Listing, list_folder
from stillhouse.data.published import Published, Reader, limited
from stillhouse.durable import content_hash
from stillhouse.errors import UsageError, name_all

# 2: files are known by their content; images are turned upright and laid on the ground.
_CACHE_VERSION = 2


@dataclass(frozen=True, kw_only=True)
class ImageFolder:
    """Image files below `root`, by class; `data.listing.list_folder` chooses the splits.

    Attributes:
        size: height and width of the images; of other images, the middle square is cut out and resized.
        grey: one channel instead of three.
        ground: the colour on which transparent images are laid.
        cache: folder for decoded images.
    """

    root: Path
    size: int | None = None
    grey: bool = False
    test_share: float = 0.2
    ground: Ground = WHITE
    cache: Path | None = None
    _notes: list[str] = field(default_factory=list, init=False, compare=False, repr=False)

    def find(self) -> Published:
        """Lists the files; nothing is decoded yet.

        Raises:
            UsageError: there is no such folder, or its classes cannot be used.
        """
        found = list_folder(self.root, self.test_share)
        self._notes.extend(found.notes)

        def reader(split: str) -> Reader:
            listing = found.splits[split]
            return lambda limit: self._read(split, listing.only(limited(listing.labels, limit)))

        return Published(
            num_classes=len(found.class_names),
            class_names=found.class_names,
            train=reader(TRAIN),
            test=reader(TEST),
            validation=reader(VALIDATION) if VALIDATION in found.splits else None,
            notes=self._notes,
        )

    def _read(self, split: str, listing: Listing) -> Arrays:
        decoded = self._cached(listing.files)
        if decoded.transparent:
            self._notes.append(
                f"{self.root}: {decoded.transparent} of the {len(listing.files)} {split} images have transparent parts, shown "
                f"on the ground {list(self.ground)}. If they hold something of that colour, set dataset.options.ground."
            )
        return decoded.pixels, listing.labels

    def _cached(self, files: Sequence[str]) -> DecodedImages:
        if self.cache is None:
            return self._decode(files)
        facts = {
            "version": _CACHE_VERSION,
            "files": file_hashes(files),
            "size": self.size,
            "grey": self.grey,
            "ground": list(self.ground),
        }
        folder = self.cache / content_hash(facts)
        with contextlib.suppress(OSError, ValueError):
            return read_decoded(folder)
        decoded = self._decode(files)
        try:
            write_decoded(folder, decoded)
        except OSError as error:
            message = f"decoded images cannot be stored in {self.cache} ({error.strerror}); they are decoded again next time"
            warnings.warn(message, stacklevel=2)
        return decoded

    def _decode(self, files: Sequence[str]) -> DecodedImages:
        """All images, decoded.

        Raises:
            UsageError: images are damaged or differ in size; all of them are named, up to a limit.
        """
        images: NDArray[np.uint8] | None = None
        transparent = 0
        problems: list[UsageError] = []
        for place, (pixels, shows_ground) in self._each(files, problems):
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

    def _each(self, files: Sequence[str], problems: list[UsageError]) -> Iterator[tuple[int, tuple[NDArray[np.uint8], bool]]]:
        """Place and decoded pixels of each readable image; what is wrong with the others is added to `problems`."""
        for place, file in enumerate(files):
            try:
                decoded = decode_image(file, size=self.size, grey=self.grey, where=file, ground=self.ground)
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
