"""The spec's keys `dataset` and `views`."""

from collections.abc import Mapping
from typing import Annotated, Any

from pydantic import Field, PlainValidator

from stillhouse.spec.display import show
from stillhouse.spec.values import Section, invalid, parse_plain

_LARGEST_SIDE = 4096


def _parse_validation(value: Any) -> int | float:
    if isinstance(value, bool) or not isinstance(value, int | float) or value < 0 or (isinstance(value, float) and value >= 1):
        raise invalid(f"must be a number of samples >= 0 or a fraction between 0 and 1, got {show(value)}")
    return value or 0


def _parse_size(value: Any) -> int | tuple[int, int] | None:
    sides = list(value) if isinstance(value, list | tuple) else [value]
    good = all(isinstance(side, int) and not isinstance(side, bool) and 1 <= side <= _LARGEST_SIDE for side in sides)
    if value is not None and not (good and len(sides) in (1, 2)):
        raise invalid(f"must be a number of pixels in 1..{_LARGEST_SIDE}, [height, width], or null, got {show(value)}")
    return value if value is None or isinstance(value, int) else (sides[0], sides[-1])


def _parse_policy_entry(value: Any) -> Any:
    if isinstance(value, str):
        return value
    if isinstance(value, Mapping) and len(value) == 1:
        name, options = next(iter(value.items()))
        if options is None or isinstance(options, Mapping):
            return {name: {key: parse_plain(item) for key, item in (options or {}).items()}}
    raise invalid(f"must be a name such as crop or a one-key mapping such as {{crop: {{padding: 4}}}}, got {show(value)}")


class DatasetSpec(Section):
    """The data set.

    Attributes:
        name: a built-in data set, `image_folder`, `pack`, or `module:function` of a user-defined one.
        root: the folder of its files; relative to the spec file's folder.
        validation: how many samples of the training split, or which fraction, become the validation split. 0 makes none, as to
            repeat a published result: students see all training samples, and nothing is chosen.
        download: whether missing files may be downloaded.
        size: height and width to which images are resized: one number for both, or `[height, width]` for images with boxes.
        options: further arguments of the data set, such as `limit` and `limit_test`, which take a part of it.
    """

    name: str
    root: str | None = None
    validation: Annotated[int | float, PlainValidator(_parse_validation)] = 0.1
    download: bool = False
    size: Annotated[int | tuple[int, int] | None, PlainValidator(_parse_size)] = None
    options: dict[str, Annotated[Any, PlainValidator(parse_plain)]] = Field(default_factory=dict)


class ViewsSpec(Section):
    """How images are augmented, and how many augmentations of the whole data set the trials share.

    Attributes:
        policy: the operations in their order, each a name or `{name: {option: value}}`; none leaves images as they are.
        count: how many augmentations of the whole data set there are; a trial reads another one in each epoch.
    """

    policy: tuple[Annotated[Any, PlainValidator(_parse_policy_entry)], ...] = ()
    count: Annotated[int, Field(ge=1, le=100_000)] = 1
