"""The phases of a sweep, search and confirm: which trials each has, and running them until none is missing."""

import itertools
import shutil
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, replace

from stillhouse.errors import InfrastructureError
from stillhouse.provenance import code_facts
from stillhouse.spec.records import Trial, TrialRecord
from stillhouse.spec.schema import SearchBudget
from stillhouse.sweep.cluster.cluster import Cluster
from stillhouse.sweep.cluster.trial_watch import LostTrial
from stillhouse.sweep.cluster.tune_run import RESTARTS_OF_A_TRIAL
from stillhouse.sweep.context import RunContext, resume_command
from stillhouse.sweep.execution.trial_environment import TrialEnvironment
from stillhouse.sweep.failures import check_not_removed
from stillhouse.sweep.home.ledger import now
from stillhouse.sweep.home.sweep_home import SweepHome
from stillhouse.sweep.latency_limit import Latencies, slow_student_filter
from stillhouse.sweep.planning.plan import Plan
from stillhouse.sweep.search.budget import BudgetTracker
from stillhouse.sweep.search.trial_queue import ListQueue, TrialQueue, start_queue, undone_note

_MAX_WORKER_DEATHS = 2 * (1 + RESTARTS_OF_A_TRIAL)
"""After so many deaths of its workers a trial is given up: it was tried again until nothing else was left to run."""

Records = Mapping[str, TrialRecord]
"""Records by trial key."""


@dataclass(frozen=True, kw_only=True)
class Phases:
    """Which trials the phases of a plan have, as far as records decide them.

    Attributes:
        read_latencies: the measured latencies, which decide which students are too slow.
    """

    plan: Plan
    read_latencies: Callable[[], Latencies]

    def search(self, records: Records, budget: BudgetTracker | None = None) -> TrialQueue:
        """The search phase; without a budget, all of it."""
        refuse = slow_student_filter(self.plan.spec, self.read_latencies())
        return self.plan.queue(records, budget or _unlimited(), refuse=refuse)

    def searched(self, records: Records) -> TrialQueue:
        """The search phase with every trial handed out that the records decide."""
        queue = self.search(records)
        start_queue(queue)
        return queue

    def confirming(self, records: Records) -> list[Trial]:
        """The trials of the confirm phase. They depend on the results of the search."""
        return self.plan.trials_to_confirm(records.values(), self.searched(records).known.values())

    def confirm(self, records: Records, budget: BudgetTracker | None = None) -> TrialQueue:
        """The confirm phase. Its trials are not stopped early: they exist to be measured."""
        return ListQueue(self.confirming(records), records, budget or _unlimited(), stoppable=False)

    def wanted(self, records: Records) -> set[str]:
        """Keys of the trials of both phases."""
        return {*self.searched(records).known, *(trial.key for trial in self.confirming(records))}

    def undone_notes(self, records: Records, budget: BudgetTracker) -> list[str]:
        """What the budget left undone, if it ended the sweep."""
        if budget.reason is None:
            return []
        undone = self.searched(records).undone() or self.confirm(records).undone()
        return [undone_note(undone, budget.reason)] if undone else []


def run_phase(
    cluster: Cluster,
    queue_of: Callable[[], TrialQueue],
    phases: Phases,
    context: RunContext,
    environment: TrialEnvironment,
    records: Records,
    on_record: Callable[[TrialRecord], None],
) -> None:
    """Runs the trials of one phase until each has a record, the budget is spent or the sweep is requested to end.

    Args:
        queue_of: makes the phase's queue from the present records.
        on_record: called with each new record; adds it to `records`.

    Raises:
        InfrastructureError: trials are lost again and again, or the sweep's folder was removed; finished trials are stored.
    """
    sweep_home = context.sweep_home
    begun, deaths = len(records), dict[str, LostTrial]()
    for attempt in itertools.count():
        queue, before = queue_of(), len(records)
        context.progress.plan(len({*phases.searched(records).known} - {*queue.known}) + queue.expected)
        lost = cluster.run(
            queue,
            environment,
            metric=context.plan.metric,
            parameters=lambda trial: context.plan.size_of(trial).parameters,
            history=list(records.values()),
            on_record=on_record,
            give_up=lambda: sweep_home.is_removed,
        )
        check_not_removed(sweep_home)
        if context.shutdown.requested or not lost:
            return
        deaths = {each.key: _with_earlier_deaths(each, deaths.get(each.key)) for each in lost}
        if deadly := _deadly(deaths.values(), records):
            for each in deadly:
                record = _give_up(queue.known[each.key], each, sweep_home)
                context.progress.trial_done(record)
                on_record(record)
            continue
        # Tune gives a trial up for good when its worker is lost while it changes trials (ray 2.60).
        if attempt > 0 and len(records) == before:
            raise InfrastructureError(
                f"{len(lost)} of {len(lost) + len(records) - begun} trials did not finish, the first is "
                f"{lost[0].key}: {lost[0].reason}; the others are stored. Continue with: {resume_command(sweep_home)}"
            )
        context.progress.note(f"{len(lost)} trials were lost with their workers and run again")


def _unlimited() -> BudgetTracker:
    return BudgetTracker(SearchBudget())


def _with_earlier_deaths(lost: LostTrial, before: LostTrial | None) -> LostTrial:
    """With the deaths of an earlier attempt, if they were in the same epoch."""
    same = before is not None and before.epoch == lost.epoch and lost.deaths > 0
    return replace(lost, deaths=lost.deaths + before.deaths) if before is not None and same else lost


def _deadly(lost: Iterable[LostTrial], records: Records) -> list[LostTrial]:
    """The lost trials that kill every worker they get; none while fewer trials than those have finished."""
    deadly = [each for each in lost if each.deaths >= _MAX_WORKER_DEATHS]
    finished = sum(record.status == "finished" for record in records.values())
    return deadly if len(deadly) <= finished else []


def _give_up(trial: Trial, lost: LostTrial, sweep_home: SweepHome) -> TrialRecord:
    """Writes the record of a trial that no worker survives, so that the sweep continues without it."""
    record = TrialRecord(
        trial=trial,
        status="failed",
        reason=f"its worker died {lost.deaths} times in epoch {lost.epoch + 1}; if memory ran out, lower "
        f"training.batch_size or give each trial more of a machine by trial_resources.cpu. Ray reports: {lost.reason}",
        code=code_facts(),
        finished=now(),
    )
    sweep_home.ledger.write(record)
    shutil.rmtree(sweep_home.folder / "trials" / trial.key, ignore_errors=True)
    return record
