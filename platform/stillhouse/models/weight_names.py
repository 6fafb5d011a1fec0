"""Names of weights in a checkpoint of another program: how a user maps them to a model's, and which mapping would fit."""

import re
from collections.abc import Iterable, Iterator, Mapping

from torch import Tensor

from stillhouse.errors import UsageError

Rename = Mapping[str, str | None]
"""Regular expressions with their replacements, as `re.sub` takes them; None leaves out the weights whose name matches."""

_MAX_COMPARED = 400
_MAX_RULES = 4
_SHOWN = 3

Shapes = Mapping[str, tuple[int, ...]]


class RenameError(UsageError):
    """A mapping of names that cannot be applied."""


def renamed(weights: Mapping[str, Tensor], rename: Rename, source: str) -> dict[str, Tensor]:
    """The weights under their new names; the entries of `rename` are applied in their order.

    Args:
        source: the origin of the weights, for the error.

    Raises:
        RenameError: an entry matches no name, or two weights get one name.
    """
    names: dict[str, str | None] = {name: name for name in weights}
    for pattern, replacement in rename.items():
        compiled = re.compile(pattern)
        matching = [(name, new) for name, new in names.items() if new is not None and compiled.search(new)]
        if not matching:
            some = [new for new in names.values() if new is not None]
            raise RenameError(f"'{pattern}' matches no weight in {source}, which has {listed(some)}")
        names |= {name: None if replacement is None else compiled.sub(replacement, new) for name, new in matching}
    result: dict[str, Tensor] = {}
    origin: dict[str, str] = {}
    for name, new in names.items():
        if new is None:
            continue
        if new in result:
            raise RenameError(f"gives the weights '{origin[new]}' and '{name}' of {source} the same name '{new}'")
        result[new], origin[new] = weights[name], name
    return result


def suggested_rename(weights: Shapes, model: Shapes, required: Iterable[str]) -> dict[str, str | None]:
    """Entries of `rename` that give the weights more of the model's names, each by one part of a name or by its beginning.

    If they have all of the names then, further entries leave out the parts that the model lacks.

    Args:
        weights: the shapes of a checkpoint's weights.
        model: the shapes of the model's.
        required: names of the model that the checkpoint must have.
    """
    names = {name: name for name in weights}
    found: dict[str, str | None] = {}
    needed = set(required)
    for _ in range(_MAX_RULES):
        taken = set(names.values())
        missing = {name: model[name] for name in model if name in needed and name not in taken}
        extra = {new: weights[name] for name, new in names.items() if new not in model}
        best = max(
            dict.fromkeys(_candidates(extra, missing)),
            key=lambda rule: _matched(rule, extra, missing),
            default=None,
        )
        if best is None or not _keeps_names(best, [new for new in names.values() if new in model]):
            break
        found[best[0]] = best[1]
        names = {name: new if new in model else re.sub(best[0], best[1], new) for name, new in names.items()}
    if needed <= set(names.values()):
        parts = dict.fromkeys(new.partition(".")[0] for new in names.values() if new not in model)
        own = {name.partition(".")[0] for name in model}
        found |= {rf"^{re.escape(part)}\b": None for part in list(parts)[:_MAX_RULES] if part not in own}
    return found


def listed(names: Iterable[str]) -> str:
    """The first few of them: `'a', 'b' and 7 more`."""
    names = list(names)
    shown = ", ".join(f"'{name}'" for name in names[:_SHOWN])
    return f"{shown} and {len(names) - _SHOWN} more" if len(names) > _SHOWN else shown


def _candidates(extra: Shapes, missing: Shapes) -> Iterator[tuple[str, str]]:
    """Entries that turn one of the extra names into a missing one of the same shape."""
    by_kind: dict[tuple[str, tuple[int, ...]], list[str]] = {}
    for name, shape in list(missing.items())[:_MAX_COMPARED]:
        by_kind.setdefault((name.rpartition(".")[2], shape), []).append(name)
    for name, shape in list(extra.items())[:_MAX_COMPARED]:
        for wanted in by_kind.get((name.rpartition(".")[2], shape), ()):
            yield from _between(name.split("."), wanted.split("."))


def _between(old: list[str], new: list[str]) -> Iterator[tuple[str, str]]:
    differing = [place for place, parts in enumerate(zip(old, new, strict=False)) if parts[0] != parts[1]]
    if len(old) == len(new) and len(differing) == 1:
        (place,) = differing
        start = "^" if place == 0 else r"\."
        yield rf"{start}{re.escape(old[place])}\.", f"{'' if place == 0 else '.'}{new[place]}."
    while old and new and old[-1] == new[-1]:
        old, new = old[:-1], new[:-1]
    begins, becomes = ".".join(old), ".".join(new)
    if begins:
        yield rf"^{re.escape(begins)}\.", f"{becomes}." if becomes else ""


def _matched(rule: tuple[str, str], extra: Shapes, missing: Shapes) -> int:
    changed = [(re.sub(*rule, name), shape) for name, shape in extra.items()]
    return len({name for name, shape in changed if missing.get(name) == shape})


def _keeps_names(rule: tuple[str, str], names: Iterable[str]) -> bool:
    return all(re.sub(*rule, name) == name for name in names)
