"""The facts of a sweep as its report shows them, from the first trial on."""

from stillhouse import methods
from stillhouse.data.description import describe_data, notes_on_test
from stillhouse.provenance import environment_facts
from stillhouse.spec.load import spec_to_dict
from stillhouse.spec.records import SweepFacts
from stillhouse.sweep.home.ledger import now
from stillhouse.sweep.run_context import RunContext


def initial_facts(context: RunContext, earlier: SweepFacts | None, command: str) -> SweepFacts:
    """What is known before this run starts anything; `seconds` are those of earlier runs.

    Args:
        earlier: the facts that the previous run wrote.
        command: how the sweep was called.

    Raises:
        UsageError: the test images are missing or damaged.
    """
    plan, data = context.plan, context.data
    later_notes = [*notes_on_test(data)]
    return SweepFacts(
        name=plan.spec.name,
        spec=spec_to_dict(plan.spec),
        dataset=describe_data(data),
        baseline=methods.baseline(),
        metric=plan.metric,
        planned=plan.num_trials,
        teachers=earlier.teachers if earlier else [],
        objectives=plan.spec.objectives,
        notes=[*plan.notes, *later_notes],
        environment=environment_facts(),
        command=command,
        started=earlier.started if earlier else now(),
        seconds=earlier.seconds if earlier else 0.0,
    )
