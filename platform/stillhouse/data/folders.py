"""Image folders: one sub-folder per class, decoded once and cached as one array."""

from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from stillhouse.data.decode import WHITE, Ground, decode_image
from stillhouse.data.decoded_cache import DecodedImages
from stillhouse.data.decoded_files import decoded_files
from stillhouse.data.images import Arrays
from stillhouse.data.listing import TEST, TRAIN, VALIDATION, Listing, list_folder
from stillhouse.data.published import Published, Reader, limited

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
        facts = {
            "version": _CACHE_VERSION,
            "size": self.size,
            "grey": self.grey,
            "ground": list(self.ground),
        }

        def decode(file: str) -> tuple[NDArray[np.uint8], bool]:
            return decode_image(file, size=self.size, grey=self.grey, where=file, ground=self.ground)

        return decoded_files(files, decode, facts, self.cache)
