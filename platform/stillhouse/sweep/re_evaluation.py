"""Trained students evaluated again: the test data, or what else decides their test values, changed after they were trained."""

from collections.abc import Mapping, MutableMapping

from stillhouse import tasks
from stillhouse.distill.evaluation import evaluate, split_outputs
from stillhouse.errors import UsageError
from stillhouse.spec.metric import Metric
from stillhouse.spec.records import TrialRecord
from stillhouse.sweep.execution import robustness
from stillhouse.sweep.execution.examination import examine
from stillhouse.sweep.execution.stored_student import load_student
from stillhouse.sweep.execution.trial_environment import TrialEnvironment
from stillhouse.sweep.outdated import of_other_evaluation
from stillhouse.sweep.run_context import RunContext


def evaluate_again(
    context: RunContext, records: MutableMapping[str, TrialRecord], environment: TrialEnvironment
) -> dict[str, TrialRecord]:
    """Evaluates the stored students that were evaluated on other test data, and stores their new records.

    A student that cannot be evaluated, such as one whose values include those of peers that are not stored, is taken out of
    `records`: its trial runs again.

    Returns:
        the new records, by trial key.
    """
    outdated = of_other_evaluation(records.values(), environment.evaluation)
    if not outdated:
        return {}
    metric, ledger = context.plan.metric, context.sweep_home.ledger
    context.progress.note(
        f"the test split, its classes or its normalisation have changed since {len(outdated)} students were evaluated; "
        "they are evaluated again"
    )
    changed = {}
    for record in outdated:
        key = record.trial.key
        renewed = _evaluated(context, record, metric, environment)
        if renewed is None:
            context.progress.note(f"trial {key} cannot be evaluated again from what it stored; it runs again")
            ledger.set_aside(key)
            del records[key]
            continue
        ledger.write(renewed)
        records[key] = changed[key] = renewed
    return changed


def _evaluated(context: RunContext, record: TrialRecord, metric: Metric, environment: TrialEnvironment) -> TrialRecord | None:
    """The record with the values of its student on the present test split; None if they cannot be computed."""
    column, data = metric.column("test"), context.data
    if record.weights is None or any(name.startswith(f"{column}_") for name in record.metrics):
        return None
    try:
        student = load_student(context.sweep_home, context.spec, record, data)
    except UsageError:
        return None
    task = tasks.of(data)
    value, evidence = examine(
        lambda split: split_outputs(student, data, split, "cpu"),
        lambda split: evaluate(student, data, split, "cpu"),
        data,
        task,
        record.trial,
        environment,
    )
    stale = {*(measure.name for measure in task.measures), *robustness.NAMES}
    kept = {name: each for name, each in record.metrics.items() if name not in stale}
    metrics: Mapping[str, float] = {**kept, column: value, **evidence.numbers}
    metrics = {**metrics, **environment.against_teachers(metrics, record.trial, metric)}
    basis = record.basis.model_copy(update=dict(environment.evaluation))
    return record.model_copy(update={"metrics": metrics, "basis": basis, "details": dict(evidence.details)})
