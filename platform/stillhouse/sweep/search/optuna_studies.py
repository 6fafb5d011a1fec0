"""Adaptive search: each method and student is one study, whose later trials are chosen by the results of its earlier ones.

Optuna suggests; the ledger stores. A study requests suggestions in a fixed order and reports results to Optuna in the same
order, so what it chooses is a function of the seed and the results alone, whichever trial ends first. A resumed sweep therefore
requests the same trials again and finds the finished ones in the ledger.
"""

import math
from collections import deque
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import optuna
from optuna.distributions import BaseDistribution, CategoricalDistribution, FloatDistribution, IntDistribution
from optuna.study import StudyDirection
from optuna.trial import TrialState

from stillhouse.data.hashing import derive_key
from stillhouse.spec.priors import Choice, Integers, LogUniform, Prior, Uniform
from stillhouse.spec.records import StudentChoice, Trial, TrialRecord
from stillhouse.sweep.search.draws import Draw
from stillhouse.sweep.search.prior_values import rounded
from stillhouse.sweep.search.tpe_history import BoundedHistory

optuna.logging.set_verbosity(optuna.logging.WARNING)

_STUDENT = "student"
_TEACHER = "teacher"
_SETTING = "method."
_MAX_ATTEMPTS = 10
"""How many suggestions are requested until one is new and can run."""

_HISTORY_LIMIT = 1000
"""How many results TPE reads at most (see `BoundedHistory`)."""

_INFEASIBLE = "can run"

Memory = dict[str, dict[str, Any]]
"""Suggested parameters by method, student, number of the suggestion, and a hash of all results reported before it."""


@dataclass(frozen=True, kw_only=True)
class StudyPlan:
    """What one study may choose from.

    Attributes:
        settings: the method's hyper-parameters, with a prior for each that is searched.
        students: those within the limits, smallest first.
        teachers: those that fit the method, in turn.
        trials: how many trials the study has.
        fixed: its first trials: random draws, or every point of a small space.
        reserve: random draws that replace duplicate suggestions.
    """

    method: str
    label: str
    settings: Mapping[str, Any]
    students: tuple[StudentChoice, ...]
    teachers: tuple[str | None, ...]
    trials: int
    fixed: tuple[Draw, ...]
    reserve: tuple[Draw, ...] = ()


@dataclass(frozen=True)
class _Suggestion:
    """Parameters that Optuna suggested or was given, and the number of its own trial."""

    number: int
    params: Mapping[str, Any]


@dataclass
class _Slot:
    """A trial of a study, its suggestion, and its objectives once they are reported to Optuna: None when it failed."""

    trial: Trial
    suggestion: _Suggestion
    values: Sequence[float] | None = None


class _Tpe(optuna.samplers.TPESampler):
    """Optuna's TPE for a search space that is the same in every trial; Optuna would read all trials to infer that."""

    def __init__(self, space: Mapping[str, BaseDistribution], **options: Any) -> None:
        super().__init__(**options)
        self._known_space = {name: space[name] for name in sorted(space) if not space[name].single()}

    def infer_relative_search_space(self, study: optuna.Study, trial: optuna.trial.FrozenTrial) -> dict[str, BaseDistribution]:
        return self._known_space


class Study:
    """The trials of one method and student, one after the other.

    Args:
        algorithm: `tpe` or `nsga2`.
        objectives: `max` or `min` by the name of a metric.
        ahead: how many trials may be suggested beyond those whose results were reported.
        make_trial: the trial of a draw; None when it cannot run, which is reported to Optuna.
        memory: earlier suggestions at the same point, shared by the studies of one sweep: suggesting again is slow.
        history_limit: how many results TPE reads at most.
    """

    def __init__(
        self,
        plan: StudyPlan,
        *,
        algorithm: str,
        objectives: Mapping[str, str],
        seed: int,
        startup_trials: int,
        ahead: int,
        make_trial: Callable[[Draw], Trial | None],
        memory: Memory | None = None,
        history_limit: int = _HISTORY_LIMIT,
    ) -> None:
        self.plan = plan
        self._history_limit = history_limit
        self._memory: Memory = {} if memory is None else memory
        self._objectives = objectives
        self._ahead = ahead
        self._make_trial = make_trial
        self._space = _search_space(plan)
        self._seed = seed
        self._algorithm = algorithm
        self._startup_trials = startup_trials
        self._study: optuna.Study | None = None
        self._pending: deque[Callable[[optuna.Study], Any]] = deque()
        self._open_trials: dict[int, optuna.Trial] = {}
        self._slots: list[_Slot] = []
        self._by_key: dict[str, int] = {}
        self._reserve = list(plan.reserve)
        self._drawn = 0
        self._reported = 0
        self._num_suggestions = 0
        self._history_hash = 0
        self._exhausted = False

    @property
    def drawn(self) -> int:
        """How many of its trials the study has used up, dropped duplicates included."""
        return self.plan.trials if self._exhausted else self._drawn

    @property
    def done(self) -> bool:
        """Whether it has no further trial."""
        return self.drawn >= self.plan.trials

    def advance(self, results: Mapping[str, TrialRecord]) -> Trial | None:
        """The next trial; None when the study waits for results or has no further trial.

        Args:
            results: records of finished trials, by key.
        """
        while not self.done:
            if self._drawn < len(self.plan.fixed):
                draw = self.plan.fixed[self._drawn]
                self._drawn += 1
                trial = self._make_trial(draw)
                if trial is None or trial.key in self._by_key:
                    continue
                return self._add_slot(trial, self._next_suggestion(_parameters(draw, self.plan, self._space)))
            if not self._report_until(len(self._slots) - self._ahead, results):
                return None
            found = self._suggest() or self._from_reserve()
            if found is None:
                self._exhausted = True
                return None
            self._drawn += 1
            return self._add_slot(*found)
        return None

    def _next_suggestion(self, parameters: Mapping[str, Any] | None = None) -> _Suggestion:
        """Optuna's next trial, with the given parameters or with those that it suggests."""
        number = self._num_suggestions
        point = f"{self.plan.method} {self.plan.label} {number} {self._history_hash:x}"
        self._num_suggestions += 1
        known = self._memory.get(point) if parameters is None else parameters
        if known is None:
            known = self._ask_optuna(self._optuna(), number=number, parameters=None)
        else:
            self._pending.append(partial(self._ask_optuna, number=number, parameters=known))
        self._memory[point] = dict(known)
        return _Suggestion(number, known)

    def _optuna(self) -> optuna.Study:
        """Optuna's study with everything reported so far. Reporting is lazy: replaying a stored search needs no Optuna."""
        if self._study is None:
            directions = [
                StudyDirection.MAXIMIZE if direction == "max" else StudyDirection.MINIMIZE
                for direction in self._objectives.values()
            ]
            # NSGA-II selects parents from any generation, which costs little.
            storage = BoundedHistory(directions, self._history_limit) if self._algorithm == "tpe" else None
            self._study = optuna.create_study(directions=directions, storage=storage)
        while self._pending:
            self._pending.popleft()(self._study)
        return self._study

    def _ask_optuna(self, study: optuna.Study, *, number: int, parameters: Mapping[str, Any] | None) -> Mapping[str, Any]:
        # A new sampler for each suggestion: its draws depend on the reported results, not on the number of earlier calls.
        seed = derive_key(self._algorithm, self._seed, self.plan.method, self.plan.label, number) % 2**32
        if self._algorithm == "nsga2":
            study.sampler = genetic = optuna.samplers.NSGAIISampler(population_size=self._startup_trials, seed=seed)
        elif parameters is None:
            study.sampler = _Tpe(self._space, n_startup_trials=self._startup_trials, multivariate=True, seed=seed)
        else:
            study.sampler = optuna.samplers.RandomSampler(seed=seed)
        if parameters is not None:
            study.enqueue_trial(dict(parameters))
        optuna_trial = self._open_trials[number] = study.ask(self._space)
        if self._algorithm == "nsga2":
            # Optuna records the generation only of trials whose parameters it suggests; given ones belong to one too.
            generation = genetic.get_trial_generation(study, study.get_trials(deepcopy=False)[optuna_trial.number])
            genetic.get_parent_population(study, generation)
        return optuna_trial.params

    def _report_to_optuna(self, study: optuna.Study, *, number: int, values: Sequence[float] | None) -> None:
        optuna_trial = self._open_trials.pop(number)
        # The search should avoid a point that fails; Optuna ignores trials that are reported as failed.
        optuna_trial.set_constraint(_INFEASIBLE, 1.0 if values is None else 0.0)
        study.tell(optuna_trial, [0.0] * len(self._objectives) if values is None else values)

    def _drop_at_optuna(self, study: optuna.Study, *, number: int) -> None:
        study.tell(self._open_trials.pop(number), state=TrialState.FAIL)

    def _add_slot(self, trial: Trial, suggestion: _Suggestion) -> Trial:
        self._by_key[trial.key] = len(self._slots)
        self._slots.append(_Slot(trial, suggestion))
        return trial

    def _report_until(self, last: int, results: Mapping[str, TrialRecord]) -> bool:
        """Reports the results of the slots up to `last`; False when one of them is not known yet."""
        while self._reported <= last:
            slot = self._slots[self._reported]
            record = results.get(slot.trial.key)
            if record is None:
                return False
            slot.values = self._values(record)
            self._report(slot.suggestion, slot.values)
            self._reported += 1
        return True

    def _report(self, suggestion: _Suggestion, values: Sequence[float] | None) -> None:
        self._history_hash = derive_key(self._history_hash, suggestion.number, repr(values))
        self._pending.append(partial(self._report_to_optuna, number=suggestion.number, values=values))

    def _values(self, record: TrialRecord) -> list[float] | None:
        """The objectives; None when the trial failed, or one of them is missing or not finite."""
        values = [record.metrics.get(name, math.nan) for name in self._objectives]
        return values if record.status != "failed" and all(map(math.isfinite, values)) else None

    def _suggest(self) -> tuple[Trial, _Suggestion] | None:
        for _ in range(_MAX_ATTEMPTS if self._space else 1):
            suggestion = self._next_suggestion()
            trial = self._make_trial(_draw_at(suggestion.params, self.plan))
            if trial is None:
                self._report(suggestion, None)
                continue
            slot = self._by_key.get(trial.key)
            if slot is None:
                return trial, suggestion
            if slot < self._reported:
                self._report(suggestion, self._slots[slot].values)
            else:
                self._pending.append(partial(self._drop_at_optuna, number=suggestion.number))
        return None

    def _from_reserve(self) -> tuple[Trial, _Suggestion] | None:
        while self._reserve:
            draw = self._reserve.pop(0)
            trial = self._make_trial(draw)
            if trial is not None and trial.key not in self._by_key:
                return trial, self._next_suggestion(_parameters(draw, self.plan, self._space))
        return None


def _search_space(plan: StudyPlan) -> dict[str, BaseDistribution]:
    space = {f"{_SETTING}{name}": _distribution(prior) for name, prior in plan.settings.items() if isinstance(prior, Prior)}
    if len(plan.students) > 1:
        # Sorted by size, so that neighbours are similar.
        space[_STUDENT] = IntDistribution(0, len(plan.students) - 1)
    if len(plan.teachers) > 1:
        space[_TEACHER] = CategoricalDistribution(range(len(plan.teachers)))
    return space


def _distribution(prior: Prior) -> BaseDistribution:
    if isinstance(prior, Choice):
        # By index: the values may be lists.
        return CategoricalDistribution(range(len(prior.values)))
    if isinstance(prior, Integers):
        return IntDistribution(prior.low, prior.high)
    return FloatDistribution(prior.low, prior.high, log=isinstance(prior, LogUniform))


def _draw_at(parameters: Mapping[str, Any], plan: StudyPlan) -> Draw:
    """The draw that Optuna's parameters describe."""
    settings = dict(plan.settings)
    for name, prior in plan.settings.items():
        if isinstance(prior, Choice):
            settings[name] = prior.values[parameters[f"{_SETTING}{name}"]]
        elif isinstance(prior, Uniform | LogUniform | Integers):
            settings[name] = rounded(prior, parameters[f"{_SETTING}{name}"])
    student = plan.students[parameters.get(_STUDENT, 0)]
    return Draw(plan.method, student, plan.teachers[parameters.get(_TEACHER, 0)], settings)


def _parameters(draw: Draw, plan: StudyPlan, space: Mapping[str, BaseDistribution]) -> dict[str, Any]:
    """The parameters that describe a draw to Optuna."""
    parameters: dict[str, Any] = {}
    for name, prior in plan.settings.items():
        if isinstance(prior, Choice):
            parameters[f"{_SETTING}{name}"] = prior.values.index(draw.hyperparameters[name])
        elif isinstance(prior, Prior):
            parameters[f"{_SETTING}{name}"] = draw.hyperparameters[name]
    if _STUDENT in space:
        parameters[_STUDENT] = plan.students.index(draw.student)
    if _TEACHER in space:
        parameters[_TEACHER] = plan.teachers.index(draw.teacher)
    return parameters
