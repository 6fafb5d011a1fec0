"""What the two layouts of folders of images with boxes have in common as data sets."""

from collections.abc import Mapping
from typing import Any, ClassVar

from stillhouse.data.box_folders import FITS, BoxFolder, Layout
from stillhouse.data.decode import WHITE, parse_ground
from stillhouse.data.images import ImageData
from stillhouse.data.in_memory import in_memory
from stillhouse.data.shipped import DatasetFacts, Request, ShippedData, Size


class BoxData(ShippedData):
    """Images with boxes."""

    layout: ClassVar[Layout]
    task: ClassVar[str | None] = "detection"
    options: ClassVar[tuple[str, ...]] = ("classes", "fit", "ground", "test_share")
    has_two_sizes: ClassVar[bool] = True

    def facts(self, size: Size | None, options: Mapping[str, Any]) -> DatasetFacts:
        classes = options.get("classes")
        shape = None if size is None else (3, *_pair(size))
        return DatasetFacts(len(classes) if isinstance(classes, list | tuple) and classes else None, shape, self.task)

    def broken_rule(self, option: str, value: Any) -> str | None:
        if option == "classes":
            good = isinstance(value, list | tuple) and value and len(set(map(str, value))) == len(value)
            return None if good else "must be a list of different class names"
        if option == "fit":
            return None if value in FITS else f"must be {' or '.join(FITS)}"
        if option == "ground":
            return (
                None
                if parse_ground(value) is not None
                else "must be white, black, a grey value in 0..255, or [red, green, blue]"
            )
        return None if isinstance(value, float) and 0 < value < 1 else "must be in (0, 1)"

    def read(self, request: Request) -> ImageData:
        options = request.options
        ground = parse_ground(options.get("ground", "white")) or WHITE
        folder = BoxFolder(
            root=request.root,
            layout=self.layout,
            size=None if request.size is None else _pair(request.size),
            fit=options.get("fit", FITS[0]),
            classes=options.get("classes"),
            test_share=options.get("test_share", 0.2),
            ground=ground,
            cache=request.cache,
        )
        name = type(self).__module__.rpartition(".")[2]
        data = in_memory(name, folder.find(), request.limits, request.splitting, None, request.task)
        data.ground, data.fit = ground, folder.fit
        return data


def _pair(size: Size) -> tuple[int, int]:
    return (size, size) if isinstance(size, int) else (size[0], size[1])
