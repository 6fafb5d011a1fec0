"""Data and weights that lie at another path than when a sweep began: what they contain decides, not where they are."""

import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from stillhouse.data.images import ImageData
from stillhouse.errors import UsageError
from stillhouse.spec.load import resolve_paths
from stillhouse.spec.overrides import apply_overrides, copy_data, parse_key
from stillhouse.spec.records import SweepFacts, TrialRecord
from stillhouse.sweep.home.sweep_home import changed_keys
from stillhouse.sweep.planning.trial_keys import TrialKeys

ROOT = "dataset.root"
_PATHS = re.compile(r"dataset\.root|(teachers\.[^.]+|students\[\d+\])\.weights")
_MOST_CLASSES = 5


def with_overrides(stored: Mapping[str, Any], overrides: Sequence[str]) -> dict[str, Any]:
    """A stored spec with `KEY=VALUE` overrides; relative paths in them start at the working folder.

    Raises:
        SpecError: an override names a key that cannot exist.
    """
    return resolve_paths(apply_overrides(stored, overrides), Path.cwd()) if overrides else dict(stored)


def moved_paths(stored: Mapping[str, Any] | None, spec: Mapping[str, Any]) -> frozenset[str]:
    """The keys of data and weights that have another path in `spec` than in the stored one."""
    return frozenset() if stored is None else frozenset(key for key in changed_keys(stored, spec) if _PATHS.fullmatch(key))


def with_paths_of(stored: Mapping[str, Any], spec: Mapping[str, Any]) -> dict[str, Any]:
    """The stored spec with the paths of data and weights that another one has: the stored files may be gone."""
    moved: dict[str, Any] = copy_data(stored)
    for key in moved_paths(stored, spec):
        *parts, last = parse_key(key) or ()
        place, source = moved, spec
        for part in parts:
            place, source = place[part], source[part]  # type: ignore[index]
        place[last] = source[last]  # type: ignore[index]
    return moved


def check_moved(
    moved: Iterable[str],
    *,
    sweep: str,
    keys: TrialKeys,
    data: ImageData,
    facts: SweepFacts | None,
    records: Iterable[TrialRecord],
) -> None:
    """Checks that what lies at the new paths is what the sweep began with.

    Args:
        sweep: its name.
        keys: of the sweep with the new paths.
        facts: as the latest run wrote them.
        records: of the sweep.

    Raises:
        UsageError: it is not; the message names what differs.
    """
    if (moved := sorted(moved)) and ROOT in moved:
        check_same_data(sweep, facts, data)
    # A trial of edited code has another key whatever its data are.
    known = [record.trial for record in records if not keys.is_of_other_code(record.trial)]
    if moved and (other := [trial.key for trial in known if not keys.stands_for(trial)]):
        raise UsageError(
            f"sweep '{sweep}' began with other content than {' and '.join(moved)} has now: {len(other)} of its "
            f"trials would have other keys, such as {other[0]}; name the same files, or start another sweep with --fork NEWNAME"
        )


def check_same_data(sweep: str, facts: SweepFacts | None, data: ImageData) -> None:
    """Checks that the data set is the one of the sweep's facts; facts without a fingerprint are of no help.

    Raises:
        UsageError: it is not; the message names what differs.
    """
    known = {} if facts is None else facts.dataset
    if known.get("fingerprint") in (None, data.fingerprint):
        return
    what = ", ".join(_differences(known, data)) or "the content of training or validation samples"
    raise UsageError(
        f"data set {data.name} is not the one that sweep '{sweep}' was trained on: its fingerprint was {known['fingerprint']} "
        f"and is {data.fingerprint}; what differs: {what}. Restore the earlier files, or name their folder: --set {ROOT}=DIR"
    )


def _differences(known: Mapping[str, Any], data: ImageData) -> Iterator[str]:
    """What the recorded description of a data set and the data have not in common, as phrases."""
    now = {
        "name": data.name,
        "num_classes": data.num_classes if data.class_names else None,
        "input_shape": list(data.input_shape),
        "train_samples": len(data.train),
        "validation_samples": len(data.validation),
    }
    for key, value in now.items():
        if key in known and value is not None and known[key] != value:
            yield f"{key.replace('_', ' ')} {_shown(known[key])} before, {_shown(value)} now"
    before = list(known.get("class_names", ()))
    if before and data.class_names and before != list(data.class_names):
        gone = [name for name in before if name not in data.class_names]
        new = [name for name in data.class_names if name not in before]
        for names, words in ((gone, "without class"), (new, "with the new class")):
            if names:
                more = f" and {len(names) - _MOST_CLASSES} more" if len(names) > _MOST_CLASSES else ""
                yield f"{words} {', '.join(names[:_MOST_CLASSES])}{more}"
        if not gone and not new:
            yield "the order of the classes"


def _shown(value: Any) -> str:
    return "x".join(map(str, value)) if isinstance(value, list) else str(value)
