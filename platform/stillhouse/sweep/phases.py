"""The phases of a sweep, search and confirm: which trials each has."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass

from stillhouse.spec.records import Trial, TrialRecord
from stillhouse.spec.schema import SearchBudget
from stillhouse.sweep.latency_limit import Latencies, slow_student_filter
from stillhouse.sweep.planning.plan import Plan
from stillhouse.sweep.search.budget import BudgetTracker
from stillhouse.sweep.search.trial_queue import ListQueue, TrialQueue, start_queue, undone_note

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


def _unlimited() -> BudgetTracker:
    return BudgetTracker(SearchBudget())
