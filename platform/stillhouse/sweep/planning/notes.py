"""A plan's notes for its reader: what is left out, and what limits and budget exclude."""

from collections.abc import Iterable, Mapping, Sequence

from stillhouse.data.images import ImageData
from stillhouse.distill.evaluation import can_degrade
from stillhouse.spec.controls import has_untrained_teachers
from stillhouse.spec.priors import Prior
from stillhouse.spec.records import Trial
from stillhouse.spec.schema import DEFAULTS, RANDOM_TEACHER, SearchBudget, SweepSpec
from stillhouse.sweep.planning.confirm import count_control_trials
from stillhouse.sweep.planning.cost import PlannedStudent
from stillhouse.sweep.planning.survey import Skipped
from stillhouse.sweep.search.adaptive import AdaptiveSearch

_FEW_STEPS = 50
"""With 16 steps deep networks end at chance, with 64 they learn; `benchmarks/README.md`, training at its defaults."""


def skip_notes(skipped: Iterable[Skipped]) -> list[str]:
    return [
        f"{item.method} is left out for {item.student}{f' with {item.teacher}' if item.teacher else ''}: {item.reason}"
        for item in skipped
    ]


def limit_notes(too_large: Mapping[str, tuple[str, int]], search: AdaptiveSearch | None) -> list[str]:
    if search is not None:
        return [
            f"{student}: variants over search.limits are never chosen: {excess}" for student, (excess, _) in too_large.items()
        ]
    return [
        f"{student}: {count} trial{'s' if count > 1 else ''} dropped by search.limits: {excess}"
        for student, (excess, count) in too_large.items()
    ]


def search_notes(search: AdaptiveSearch | None, known: Sequence[Trial], students: Sequence[PlannedStudent]) -> list[str]:
    if search is None:
        return []
    sizes = [planned.size.parameters for planned in students]
    return [
        f"{search.spec.search.algorithm} searches in {len(search.studies)} studies, one for each method and student: "
        f"{len(known)} of {search.num_trials} trials are known now, the others are chosen as results arrive, from students of "
        f"{min(sizes):,} to {max(sizes):,} parameters; trials by student and costs are estimated from the first ones"
    ]


def start_notes(spec: SweepSpec) -> list[str]:
    """Says so where every method and student has a single trial, which is the start: no prior is searched then."""
    search = spec.search
    searched = any(isinstance(value, Prior) for settings in (spec.methods or {}).values() for value in settings.values())
    if search.algorithm == "grid" or search.start != DEFAULTS or search.trials_per_method > len(spec.students) or not searched:
        return []
    return [
        f"search.trials_per_method = {search.trials_per_method} gives each method and student one trial at most, which has the "
        "method's defaults (search.start): no hyper-parameter is searched"
    ]


def step_notes(spec: SweepSpec, num_samples: int) -> list[str]:
    """Says so where a training has so few steps that students may learn nothing.

    Args:
        num_samples: of the training split.
    """
    steps = spec.search.max_epochs * -(-num_samples // spec.training.batch_size)
    if steps >= _FEW_STEPS:
        return []
    return [
        f"a training has {steps} steps, and with fewer than {_FEW_STEPS} a student may learn nothing: raise search.max_epochs "
        f"(it is {spec.search.max_epochs}) or lower training.batch_size (it is {spec.training.batch_size})"
    ]


def control_notes(spec: SweepSpec, trials: Iterable[Trial]) -> list[str]:
    """What the control with untrained teachers costs, and which methods have none since they use no teacher."""
    if not has_untrained_teachers(spec):
        return []
    trials = list(trials)
    taught = {trial.method for trial in trials if trial.teacher is not None}
    without = [method for method in spec.methods or {} if method not in taught]
    return [
        f"{RANDOM_TEACHER}: up to {count_control_trials(spec, trials)} trials follow, the winner of each method and student "
        "that has a teacher, again with an untrained one"
        + (f"; none for {', '.join(without)}, which {'uses' if len(without) == 1 else 'use'} no teacher" if without else "")
    ]


def robustness_notes(spec: SweepSpec, data: ImageData) -> list[str]:
    """Says so where images are to be degraded that do not exist."""
    if not spec.report.robustness or can_degrade(data):
        return []
    return [f"report.robustness has no effect: {data.name} has no images of whole numbers that could be degraded"]


def budget_notes(budget: SearchBudget) -> list[str]:
    given = [f"{value:g} {name.replace('_', '-')}" for name, value in budget.model_dump().items() if value is not None]
    return [f"search.budget: no trial starts beyond {' or '.join(given)} in all"] * bool(given)


def duplicate_notes(duplicates: Mapping[str, int]) -> list[str]:
    return [
        f"{method}: {count} trial{'s' if count > 1 else ''} dropped, equal to others in all settings"
        for method, count in duplicates.items()
    ]
