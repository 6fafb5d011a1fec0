"""Images with boxes in the layout of Pascal VOC: `Annotations/*.xml`, `JPEGImages`, and lists in `ImageSets/Main`."""

from typing import ClassVar

from stillhouse.data.box_folders import Layout
from stillhouse.data.sets._boxes import BoxData


class VocFolder(BoxData):
    """See `data/box_folders.py` for what is left out and what is refused."""

    layout: ClassVar[Layout] = "voc"
