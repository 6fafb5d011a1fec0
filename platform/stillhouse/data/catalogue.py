"""The data sets that a spec can name: what is known of each before it is read, and what is wrong with its arguments."""

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from stillhouse.data import sets
from stillhouse.data.decode import parse_ground
from stillhouse.data.published import declared_task
from stillhouse.data.shipped import DatasetFacts, Size
from stillhouse.errors import Problem, UnknownNameError, did_you_mean, suggestion
from stillhouse.user_paths import is_folder, show_path

MAX_SIZE = 65_500
"""The longest side of a JPEG that common encoders write; nothing is trained on larger images."""
_LIMITS = ("limit", "limit_test")


_FACTS = {
    "digits": DatasetFacts(10, (1, 8, 8)),
    "mnist": DatasetFacts(10, (1, 28, 28)),
    "fashion_mnist": DatasetFacts(10, (1, 28, 28)),
    "cifar10": DatasetFacts(10, (3, 32, 32)),
    "cifar100": DatasetFacts(100, (3, 32, 32)),
    "svhn": DatasetFacts(10, (3, 32, 32)),
    "stl10": DatasetFacts(10, (3, 96, 96)),
    "image_folder": DatasetFacts(None, None),
    "pack": DatasetFacts(None, None),
}
_OPTIONS: dict[str, tuple[str, ...]] = {
    "image_folder": (*_LIMITS, "grey", "ground", "test_share"),
    "pack": (*_LIMITS, "grey", "ground"),
}


def dataset_names() -> list[str]:
    """The names of the shipped data sets; any "module:function" names a user-defined one."""
    return [*_FACTS, *sets.names()]


def dataset_options(name: str) -> tuple[str, ...]:
    """The keys that `dataset.options` may have for a shipped data set."""
    if (own := sets.find(name)) is not None:
        return (*_LIMITS, *own.options)
    return _OPTIONS.get(name, _LIMITS)


def dataset_facts(name: str, *, size: Size | None = None, options: Mapping[str, Any] | None = None) -> DatasetFacts:
    """What is known of data set `name` without reading it, after resizing to `size`.

    Raises:
        UsageError: there is no data set of that name.
    """
    if ":" in name:
        return DatasetFacts(None, None, declared_task(name))
    if (own := sets.find(name)) is not None:
        return own.facts(size, options or {})
    if name not in _FACTS:
        raise _unknown(name)
    facts = _FACTS[name]
    if size is None:
        return facts
    if isinstance(size, tuple):
        return DatasetFacts(facts.num_classes, None)
    if name in ("image_folder", "pack"):
        return DatasetFacts(None, (1 if (options or {}).get("grey") else 3, size, size))
    return DatasetFacts(facts.num_classes, (facts.input_shape[0], size, size) if facts.input_shape else None)


def dataset_problems(
    name: str,
    *,
    root: str | Path | None = None,
    validation: float = 0.1,
    download: bool = False,
    size: Size | None = None,
    options: Mapping[str, Any] | None = None,
) -> list[Problem]:
    """What is wrong with the arguments of `load_dataset`, without reading any data; keys begin with `dataset`."""
    problems: list[Problem] = []
    own = sets.find(name)
    known = name in _FACTS or own is not None
    if not known and ":" not in name:
        problems.append(Problem.caused_by(_unknown(name), "dataset.name"))
    if known and name != "digits":
        if root is None:
            problems.append(Problem("dataset.root", f"must name the folder that holds {name}", "none"))
        elif not download and not is_folder(root):
            remedy = f"name the folder that holds {name}"
            problems.append(Problem("dataset.root", "must be a folder that exists", show_path(root), remedy))
    fraction = isinstance(validation, float)
    if isinstance(validation, bool) or not (0 < validation < 1 if fraction else validation >= 0):
        problems.append(Problem("dataset.validation", "must be a count >= 0 or a share in (0, 1)", repr(validation)))
    if size is not None and own is not None and not own.has_size:
        problems.append(Problem("dataset.size", f"has no effect on {name}", _shown(size), "remove it"))
    elif size is not None and (rule := _broken_size(size, two=own is not None and own.has_two_sizes)) is not None:
        problems.append(Problem("dataset.size", rule, _shown(size)))
    return [*problems, *_option_problems(name, options or {})]


def _option_problems(name: str, options: Mapping[str, Any]) -> Iterator[Problem]:
    """What is wrong with a data set's options. A user-defined function checks its options itself, except for the limits."""
    own = sets.find(name)
    known, possible = name in _FACTS or own is not None, dataset_options(name)
    for option, value in options.items():
        key = f"dataset.options.{option}"
        if option in _LIMITS:
            if not _is_count(value):
                yield Problem(key, "must be a whole number >= 1", repr(value))
        elif known and option not in possible:
            yield Problem(key, f"is not an option of {name}", remedy=suggestion(option, possible))
        elif own is not None:
            if (rule := own.broken_rule(option, value)) is not None:
                yield Problem(key, rule, _shown(value))
        elif known and option == "grey" and not isinstance(value, bool):
            yield Problem(key, "must be true or false", repr(value))
        elif known and option == "ground" and parse_ground(value) is None:
            yield Problem(key, "must be white, black, a grey value in 0..255, or [red, green, blue]", repr(value))
        elif known and option == "test_share" and not (isinstance(value, float) and 0 < value < 1):
            yield Problem(key, "must be in (0, 1)", repr(value))


def _broken_size(size: Any, *, two: bool) -> str | None:
    """The rule that a size breaks; with `two`, it may be height and width."""
    sides = size if two and isinstance(size, list | tuple) and len(size) == 2 else (size,)
    if all(_is_count(side) and side <= MAX_SIZE for side in sides):
        return None
    return f"must be a whole number of pixels in 1..{MAX_SIZE}" + (", or [height, width]" if two else "")


def _shown(value: Any) -> str:
    """`value` as a message shows it: a number of hundreds of digits only by their number."""
    if isinstance(value, int) and abs(value) >= 10**30:
        return "a number of more than 30 digits"
    return repr(value)


def _is_count(value: Any) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and value >= 1


def _unknown(name: str) -> UnknownNameError:
    return UnknownNameError(
        f"no data set '{name}'{did_you_mean(name, dataset_names())}; or module:function for a user-defined one"
    )
