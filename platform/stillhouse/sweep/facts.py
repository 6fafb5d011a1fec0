"""The facts of a sweep as its report shows them, from the first trial on."""

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from stillhouse import methods, tasks
from stillhouse.data.description import describe_data, notes_on_test
from stillhouse.data.evaluation_identity import evaluation_identity
from stillhouse.data.images import ImageData
from stillhouse.provenance import environment_facts
from stillhouse.spec.load import spec_to_dict
from stillhouse.spec.records import RunFacts, SweepFacts, TeacherFacts, TrialRecord
from stillhouse.sweep.home.ledger import now
from stillhouse.sweep.run_context import RunContext


def initial_facts(
    context: RunContext, earlier: SweepFacts | None, command: str, *, works: bool = True, teachers: Sequence[TeacherFacts] = ()
) -> SweepFacts:
    """What is known before this run starts anything; `seconds` are those of earlier runs.

    Args:
        earlier: the facts that the previous run wrote.
        command: how the sweep was called.
        works: whether this run has trials to train. One that has none leaves no trace in the facts.
        teachers: those that are known without earlier facts.

    Raises:
        UsageError: the test images are missing or damaged.
    """
    plan, data = context.plan, context.data
    later_notes = [*notes_on_test(data)]
    here = environment_facts()
    return SweepFacts(
        name=plan.spec.name,
        spec=spec_to_dict(plan.spec),
        dataset={**describe_data(data), "trivial": _trivial_values(data), "evaluation": evaluation_identity(data)},
        baseline=methods.baseline(),
        metric=plan.metric,
        measures=list(tasks.of(data).measures),
        planned=plan.num_trials,
        teachers=list((earlier and earlier.teachers) or teachers),
        objectives=plan.spec.objectives,
        notes=[*plan.notes, *tasks.of(data).prepared_notes(data), *later_notes],
        environment=earlier.environment if earlier else here,
        command=earlier.command if earlier else command,
        started=earlier.started if earlier else now(),
        seconds=earlier.seconds if earlier else 0.0,
        later_runs=[*earlier.later_runs, *([_run(command, earlier, here)] if works else [])] if earlier else [],
    )


def with_seconds(facts: SweepFacts, seconds: float) -> SweepFacts:
    """The facts at the end of a run that trained something, which took `seconds`."""
    runs = [*facts.later_runs]
    if runs:
        runs[-1] = runs[-1].model_copy(update={"seconds": seconds})
    return facts.model_copy(update={"seconds": facts.seconds + seconds, "later_runs": runs})


def inherited_teachers(origin: SweepFacts | None, records: Iterable[TrialRecord]) -> list[TeacherFacts]:
    """The teachers of the sweep that a fork comes from, as far as they taught the trials that it took over.

    What they cost was spent by the other sweep.
    """
    taught = {name for record in records for name in record.trial.loaded_teachers}
    free = {"samples_filled": 0, "bytes_written": 0, "fill_seconds": 0.0, "train_seconds": 0.0, "trained_now": False}
    return [teacher.model_copy(update=free) for teacher in (origin.teachers if origin else ()) if teacher.name in taught]


def _trivial_values(data: ImageData) -> dict[str, float | None]:
    task = tasks.of(data)
    splits = {"validation": data.validation, "test": data.test}
    return {name: task.trivial_value(split.labels) if len(split) else None for name, split in splits.items()}


def _run(command: str, first: SweepFacts, here: Mapping[str, Any]) -> RunFacts:
    differs = {name: value for name, value in here.items() if first.environment.get(name) != value}
    return RunFacts(command=command, started=now(), environment=differs)
