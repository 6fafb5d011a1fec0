"""Images with boxes in the layout of COCO: `annotations/instances_train.json`, or `train/_annotations.coco.json`."""

from typing import ClassVar

from stillhouse.data.box_folders import Layout
from stillhouse.data.sets._boxes import BoxData


class CocoFolder(BoxData):
    """See `data/box_folders.py` for what is left out and what is refused."""

    layout: ClassVar[Layout] = "coco"
