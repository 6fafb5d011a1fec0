"""The confirm phase: the winners of the search and their controls again, on fresh seeds, and with untrained teachers."""

from collections import Counter
from collections.abc import Iterable, Sequence

from stillhouse import methods
from stillhouse.durable import canonical_json
from stillhouse.spec.controls import has_untrained_teachers
from stillhouse.spec.metric import Metric
from stillhouse.spec.preference import Preference, record_preference
from stillhouse.spec.priors import Prior
from stillhouse.spec.records import Trial, TrialRecord, untrained_name
from stillhouse.spec.schema import SweepSpec
from stillhouse.sweep.planning.trial_keys import TrialKeys
from stillhouse.sweep.search.draws import Draw


def confirm_trials(
    spec: SweepSpec, keys: TrialKeys, searched: Sequence[Trial], records: Iterable[TrialRecord], metric: Metric
) -> list[Trial]:
    """The best finished search trial of each (method, student label) again, on `search.confirm_seeds` fresh seeds.

    The baseline also runs with the exact student of each winner, so that every gain is a paired difference. With the control
    `random_teacher`, each winner that has a teacher follows on the seeds by which it is reported, taught by an untrained one.

    Args:
        searched: the trials of the search phase.
        records: of any trials. Of equal results the one that was confirmed before is chosen again, then the simplest
            (`spec.preference`), then the earlier one in `searched`.
        metric: decides which trial is best, by its value on the validation split. Without such a split each is alone.
    """
    winners, controls = _winners(searched, records, metric)
    wanted: list[Trial] = []
    for winner in winners.values():
        control = controls.get(winner.student.variant)
        if control is None and (best_control := winners.get((methods.baseline(), winner.student.name))) is not None:
            # An adaptive search may not have tried the baseline with exactly this student.
            control = best_control.model_copy(update={"student": winner.student})
        wanted += [*([control] if control is not None else []), winner]
    confirmed: dict[str, Trial] = {}
    for trial in wanted:
        draw = Draw(trial.method, trial.student, trial.teacher, trial.hyperparameters)
        for offset in range(1, spec.search.confirm_seeds + 1):
            again = keys.make_trial(draw, seed=spec.search.seed + offset, epochs=trial.epochs, phase="confirm")
            confirmed.setdefault(again.key, again)
    if has_untrained_teachers(spec):
        for trial in control_trials(spec, keys, winners.values()):
            confirmed.setdefault(trial.key, trial)
    return list(confirmed.values())


def control_trials(spec: SweepSpec, keys: TrialKeys, winners: Iterable[Trial]) -> list[Trial]:
    """The winners that have a teacher, each again with the untrained counterpart of its teacher and nothing else changed.

    They run on the seeds by which winners are reported: the fresh ones of the confirm phase, or else the seed of the search.
    """
    first = 1 if spec.search.confirm_seeds else 0
    seeds = range(spec.search.seed + first, spec.search.seed + spec.search.confirm_seeds + 1)
    return [
        keys.make_trial(
            Draw(trial.method, trial.student, untrained_name(trial.teacher), trial.hyperparameters),
            seed=seed,
            epochs=trial.epochs,
            phase="control",
        )
        for trial in winners
        if trial.teacher is not None
        for seed in seeds
    ]


def _winners(
    searched: Sequence[Trial], records: Iterable[TrialRecord], metric: Metric
) -> tuple[dict[tuple[str, str], Trial], dict[str, Trial]]:
    """The best trial of each (method, student label) in the order of `searched`, and the best baseline of each student."""
    baseline = methods.baseline()
    order = {trial.key: number for number, trial in enumerate(searched)}
    known = list(records)
    # Without a validation split no trial has a value there, and the plan holds one trial of each method and student.
    finished = [record for record in known if record.status == "finished" and record.trial.key in order]
    confirmed = {_settings(each.trial) for each in known if each.trial.phase == "confirm" and each.status == "finished"}

    def place(record: TrialRecord) -> tuple[float, bool, Preference, int]:
        preferred = record_preference(record, metric, baseline)
        return preferred[0], _settings(record.trial) not in confirmed, preferred, order[record.trial.key]

    finished.sort(key=place)
    best: dict[tuple[str, str], Trial] = {}
    controls: dict[str, Trial] = {}
    for record in finished:
        trial = searched[order[record.trial.key]]
        best.setdefault((trial.method, trial.student.name), trial)
        if trial.method == baseline:
            controls.setdefault(trial.student.variant, trial)
    return dict(sorted(best.items(), key=lambda item: order[item[1].key])), controls


def _settings(trial: Trial) -> str:
    """Equal for trials that differ in phase and seed only."""
    return canonical_json([trial.method, trial.student.variant, trial.teacher, trial.hyperparameters, trial.epochs])


def count_control_trials(spec: SweepSpec, trials: Iterable[Trial]) -> int:
    """How many trials the control `random_teacher` adds at most: one per seed for each method and student with a teacher."""
    if not has_untrained_teachers(spec):
        return 0
    taught = {(trial.method, trial.student.name) for trial in trials if trial.teacher is not None}
    return max(1, spec.search.confirm_seeds) * len(taught)


def count_confirm_trials(spec: SweepSpec, trials: Iterable[Trial]) -> int:
    """How many trials the confirm phase has at most: each winner and, where students are searched, a control for each."""
    searched = {
        student.name for student in spec.students if any(isinstance(value, Prior) for value in student.settings.values())
    }
    pairs = {(trial.method, trial.student.name) for trial in trials}
    methods_of = Counter(student for _, student in pairs)
    controls = sum(methods_of[student] - 1 for student in searched if methods_of[student])
    return spec.search.confirm_seeds * (len(pairs) + controls)
