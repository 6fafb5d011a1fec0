"""A trial of a sweep found by its key, with the spec and the data that its student was trained with."""

from collections.abc import Sequence
from pathlib import Path

from stillhouse.data.datasets import ImageData
from stillhouse.errors import UsageError
from stillhouse.spec.load import validate_stored
from stillhouse.spec.records import TrialRecord
from stillhouse.spec.schema import SweepSpec, find_code_in
from stillhouse.sweep.execution.stored_student import how_to_resume
from stillhouse.sweep.home.sweep_home import SweepHome
from stillhouse.sweep.moved_paths import check_same_data, with_overrides
from stillhouse.sweep.results.results import Results
from stillhouse.sweep.sweep_data import load_sweep_data

BEST = "best"
_SHOWN_KEYS = 5


def find_trial(results: Results, wanted: str) -> TrialRecord:
    """The finished trial whose key is `wanted`, or the only one whose key begins with it.

    `best` is the trial that names the best student of all sizes on the report's page.

    Raises:
        UsageError: there is no such trial, there are several, or the trial did not finish and stored no weights.
    """
    sweep = results.facts.name
    if wanted == BEST:
        return _best(results)
    keys = sorted(results.sweep_home.ledger.keys())
    found = [key for key in keys if key == wanted] or [key for key in keys if wanted and key.startswith(wanted)]
    if not found:
        example = f", as in {keys[0]}" if keys else ""
        raise UsageError(f"sweep '{sweep}' has no trial '{wanted}'; give a key or the beginning of one{example}, or '{BEST}'")
    if len(found) > 1:
        shown = ", ".join(found[:_SHOWN_KEYS]) + (", ..." if len(found) > _SHOWN_KEYS else "")
        raise UsageError(f"'{wanted}' begins the keys of {len(found)} trials of sweep '{sweep}': {shown}; give more characters")
    record = results.sweep_home.ledger.read(found[0])
    if record is None:
        raise UsageError(f"the record of trial {found[0]} is damaged; run it again with: {how_to_resume(results.sweep_home)}")
    if record.status != "finished" or record.weights is None:
        why = f"failed ({record.reason})" if record.status == "failed" else f"was stopped after {record.epochs_run} epochs"
        raise UsageError(f"trial {record.trial.key} {why}, so it stored no weights; choose a finished one")
    return record


def read_spec(sweep_home: SweepHome, overrides: Sequence[str] = ()) -> SweepSpec:
    """The spec that the sweep was started with.

    Args:
        overrides: `KEY=VALUE`, such as `dataset.root=/new/place` of the same data.

    Raises:
        UsageError: it is missing or damaged.
    """
    stored = sweep_home.read_spec()
    if stored is None:
        raise UsageError(f"sweep '{sweep_home.name}' has no spec under {sweep_home.folder}")
    spec = validate_stored(with_overrides(stored, overrides))
    find_code_in(Path.cwd(), spec)
    return spec


def load_data(results: Results, spec: SweepSpec) -> ImageData:
    """The sweep's data set as its students were trained on it; nothing is downloaded.

    Raises:
        UsageError: its files are missing, damaged or have changed.
    """
    data = load_sweep_data(spec, results.home, download=False)
    check_same_data(spec.name, results.facts, data)
    return data


def _best(results: Results) -> TrialRecord:
    best = results.best()
    if best is None:
        if results.facts.dataset.get("validation_samples") == 0:
            raise UsageError(
                f"sweep '{results.facts.name}' has no validation split, so it chose no best student; name a trial by its key"
            )
        why = " that did not collapse" if results.collapsed else ""
        raise UsageError(f"sweep '{results.facts.name}' has no finished trial to export{why}")
    return find_trial(results, best.key)
