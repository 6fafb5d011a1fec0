"""Which trial starts next: a queue hands out the trials that have no record, in rounds over the methods, within a budget."""

from abc import ABC, abstractmethod
from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence

from stillhouse.spec.records import Trial, TrialRecord
from stillhouse.sweep.search.budget import BudgetTracker
from stillhouse.sweep.search.optuna_studies import Study


class TrialQueue(ABC):
    """The trials of one phase of a sweep, handed out one by one.

    Args:
        records: of finished trials, by key; their trials are not handed out again.
        budget: consulted before each trial.
    """

    _adapts = False
    """Whether a result may lead to further trials."""

    def __init__(self, records: Mapping[str, TrialRecord], budget: BudgetTracker) -> None:
        self._records = dict(records)
        self._budget = budget
        self._under_way: set[str] = set()
        self._held: Trial | None = None
        self._ended = False
        self.stoppable = True
        """Whether early stopping may end its trials."""
        self.known: dict[str, Trial] = {}
        """The trials of the phase that are decided so far, by key, finished ones included."""

    def next(self) -> Trial | None:
        """The next trial to start; None when there is none now, or no further one at all (`finished`)."""
        if self._ended:
            return None
        trial = self._held or self._decide()
        self._held = None
        if trial is None:
            self._ended = not (self._adapts and self._under_way)
            return None
        if self._budget.over(trial):
            self._held = trial
            self._ended = True
            return None
        self._budget.start(trial)
        self._under_way.add(trial.key)
        return trial

    def has_next(self) -> bool:
        """Whether a trial could start now; `next` hands it out."""
        if self._held is None and not self._ended:
            self._held = self._decide()
        return self._held is not None and not self._budget.over(self._held)

    @property
    def finished(self) -> bool:
        """Whether no further trial will be handed out."""
        return self._ended

    @property
    def expected(self) -> int:
        """How many trials the phase has at most, finished ones included."""
        return len(self.known)

    def add(self, record: TrialRecord) -> None:
        """Adds the result of a trial."""
        self._records[record.trial.key] = record
        self._under_way.discard(record.trial.key)
        self._budget.end(record)

    def lose(self, key: str) -> None:
        """Notes that a trial was lost by the infrastructure: it has no result in this run."""
        self._under_way.discard(key)

    @abstractmethod
    def undone(self) -> Counter[str]:
        """How many trials of each method have no result."""

    @abstractmethod
    def _decide(self) -> Trial | None:
        """The next trial that has no record."""


class ListQueue(TrialQueue):
    """Trials that are all known from the beginning, in their order."""

    def __init__(
        self,
        trials: Iterable[Trial],
        records: Mapping[str, TrialRecord],
        budget: BudgetTracker,
        *,
        refuse: Callable[[Trial], bool] = lambda trial: False,
        stoppable: bool = True,
    ) -> None:
        super().__init__(records, budget)
        self.stoppable = stoppable
        self.known = {trial.key: trial for trial in trials if trial.key in records or not refuse(trial)}
        self._left = iter([trial for key, trial in self.known.items() if key not in records])

    def _decide(self) -> Trial | None:
        return next(self._left, None)

    def undone(self) -> Counter[str]:
        return Counter(trial.method for key, trial in self.known.items() if key not in self._records)


class StudyQueue(TrialQueue):
    """Trials that studies choose as results arrive; the study with the fewest trials so far chooses first.

    Args:
        studies: in the order of a round.
        lead: how many trials a study may be ahead of one that waits for results.
    """

    _adapts = True

    def __init__(
        self, studies: Sequence[Study], records: Mapping[str, TrialRecord], budget: BudgetTracker, *, lead: int
    ) -> None:
        super().__init__(records, budget)
        self._studies = studies
        self._lead = lead

    @property
    def expected(self) -> int:
        return sum(study.plan.trials if not study.done else study.drawn for study in self._studies)

    def _decide(self) -> Trial | None:
        while True:
            unfinished = [study for study in self._studies if not study.done]
            fewest = min((study.drawn for study in unfinished), default=0)
            for study in sorted(unfinished, key=lambda each: each.drawn):
                if study.drawn >= fewest + self._lead:
                    return None
                trial = study.advance(self._records)
                if trial is not None:
                    break
            else:
                return None
            if trial.key not in self.known:
                self.known[trial.key] = trial
                if trial.key not in self._records:
                    return trial

    def undone(self) -> Counter[str]:
        left = Counter(trial.method for key, trial in self.known.items() if key not in self._records)
        for study in self._studies:
            left[study.plan.method] += study.plan.trials - study.drawn
        return +left


def start_queue(queue: TrialQueue) -> list[Trial]:
    """Everything that the queue can hand out before a further result arrives."""
    handed: list[Trial] = []
    while (trial := queue.next()) is not None:
        handed.append(trial)
    return handed


def undone_note(undone: Mapping[str, int], reason: str) -> str:
    """The sentence about trials that the budget left undone."""
    listed = ", ".join(f"{method} {count}" for method, count in sorted(undone.items()))
    return f"{reason}; {sum(undone.values())} trials were not started: {listed}"
