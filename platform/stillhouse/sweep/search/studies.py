"""Adaptive search: each method and student is one study, whose later trials are chosen by the results of its earlier ones.

Optuna chooses; the ledger remembers. A study asks for its trials in one order and is told their results in the same order,
so what it chooses is a function of the seed and of the results alone, whichever trial ends first. A resumed sweep therefore
asks for the same trials again and finds those that are finished in the ledger.
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
from stillhouse.sweep.search.draws import Draw, rounded
from stillhouse.sweep.search.tpe_history import BoundedHistory

optuna.logging.set_verbosity(optuna.logging.WARNING)

_STUDENT = "student"
_TEACHER = "teacher"
_SETTING = "method."
_ATTEMPTS = 10
"""Suggestions that are asked for in place of ones that were made before or can not run."""

_LOOKED_AT = 1000
"""Results that TPE looks at, at most (see `BoundedHistory`)."""

_INFEASIBLE = "can run"

Memory = dict[str, dict[str, Any]]
"""Parameters by method, student, number of the question, and a hash of all that was told before it. Plain data."""


@dataclass(frozen=True, kw_only=True)
class StudyPlan:
    """What one study may choose from.

    Attributes:
        settings: the method's hyper-parameters, with priors where they are searched.
        students: those within the limits, smallest first.
        teachers: those that suit, in turn.
        trials: how many it may run in all.
        fixed: its first trials, drawn at random, or all there are.
        reserve: draws that take the place of suggestions that repeat themselves.
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
class _Asked:
    """An answer of Optuna's: the number of its trial, and the parameters."""

    number: int
    params: Mapping[str, Any]


@dataclass
class _Slot:
    """A trial of a study, Optuna's own of it, and its objectives once they are told: None when it failed."""

    trial: Trial
    asked: _Asked
    values: Sequence[float] | None = None


class _Tpe(optuna.samplers.TPESampler):
    """Optuna's TPE for parameters that are the same in every trial, which it finds out by reading all of them otherwise."""

    def __init__(self, space: Mapping[str, BaseDistribution], **options: Any) -> None:
        super().__init__(**options)
        self._known_space = {name: space[name] for name in sorted(space) if not space[name].single()}

    def infer_relative_search_space(self, study: optuna.Study, trial: optuna.trial.FrozenTrial) -> dict[str, BaseDistribution]:
        return self._known_space


class Study:
    """The trials of one method and student, one after the other.

    Args:
        algorithm: `tpe` or `nsga2`.
        objectives: `max` or `min` by metric.
        ahead: trials that may be asked for beyond those whose results are told.
        make_trial: the trial of a draw; None when it can not run, which Optuna is told.
        memory: what was suggested before in the same place, shared by the studies of one sweep: asking again is slow.
        looked_at: results that TPE looks at, at most.
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
        looked_at: int = _LOOKED_AT,
    ) -> None:
        self.plan = plan
        self._looked_at = looked_at
        self._memory: Memory = {} if memory is None else memory
        self._objectives = objectives
        self._ahead = ahead
        self._make_trial = make_trial
        self._space = _search_space(plan)
        self._seed = seed
        self._algorithm = algorithm
        self._startup_trials = startup_trials
        self._study: optuna.Study | None = None
        self._later: deque[Callable[[optuna.Study], Any]] = deque()
        self._unanswered: dict[int, optuna.Trial] = {}
        self._slots: list[_Slot] = []
        self._by_key: dict[str, int] = {}
        self._reserve = list(plan.reserve)
        self._drawn = 0
        self._told = 0
        self._num_asked = 0
        self._heard = 0
        self._exhausted = False

    @property
    def asked(self) -> int:
        """Trials that the study has taken of its number, those that were dropped as duplicates among them."""
        return self.plan.trials if self._exhausted else self._drawn

    @property
    def done(self) -> bool:
        """Whether it has no further trial."""
        return self.asked >= self.plan.trials

    def advance(self, results: Mapping[str, TrialRecord]) -> Trial | None:
        """The next trial; None when there is none yet, or none any more.

        Args:
            results: of finished trials, by key.
        """
        while not self.done:
            if self._drawn < len(self.plan.fixed):
                draw = self.plan.fixed[self._drawn]
                self._drawn += 1
                trial = self._make_trial(draw)
                if trial is None or trial.key in self._by_key:
                    continue
                return self._take(trial, self._ask(_parameters(draw, self.plan, self._space)))
            if not self._tell_until(len(self._slots) - self._ahead, results):
                return None
            found = self._suggest() or self._from_reserve()
            if found is None:
                self._exhausted = True
                return None
            self._drawn += 1
            return self._take(*found)
        return None

    def _ask(self, parameters: Mapping[str, Any] | None = None) -> _Asked:
        """Optuna's next trial, with the given parameters or those that it suggests."""
        number = self._num_asked
        place = f"{self.plan.method} {self.plan.label} {number} {self._heard:x}"
        self._num_asked += 1
        known = self._memory.get(place) if parameters is None else parameters
        if known is None:
            known = self._optuna_asks(self._optuna(), number=number, parameters=None)
        else:
            self._later.append(partial(self._optuna_asks, number=number, parameters=known))
        self._memory[place] = dict(known)
        return _Asked(number, known)

    def _optuna(self) -> optuna.Study:
        """Optuna's study, which is told what happened only when it is asked: a search that is read again asks nothing."""
        if self._study is None:
            directions = [
                StudyDirection.MAXIMIZE if direction == "max" else StudyDirection.MINIMIZE
                for direction in self._objectives.values()
            ]
            # NSGA-II takes parents from any generation, and what it does with them costs little.
            storage = BoundedHistory(directions, self._looked_at) if self._algorithm == "tpe" else None
            self._study = optuna.create_study(directions=directions, storage=storage)
        while self._later:
            self._later.popleft()(self._study)
        return self._study

    def _optuna_asks(self, study: optuna.Study, *, number: int, parameters: Mapping[str, Any] | None) -> Mapping[str, Any]:
        # A sampler of its own for each question: what it draws depends on what was told, not on how often it was asked.
        seed = derive_key(self._algorithm, self._seed, self.plan.method, self.plan.label, number) % 2**32
        if self._algorithm == "nsga2":
            study.sampler = genetic = optuna.samplers.NSGAIISampler(population_size=self._startup_trials, seed=seed)
        elif parameters is None:
            study.sampler = _Tpe(self._space, n_startup_trials=self._startup_trials, multivariate=True, seed=seed)
        else:
            study.sampler = optuna.samplers.RandomSampler(seed=seed)
        if parameters is not None:
            study.enqueue_trial(dict(parameters))
        asked = self._unanswered[number] = study.ask(self._space)
        if self._algorithm == "nsga2":
            # It notes this only of trials whose parameters it suggests, and those that are given belong to a generation too.
            generation = genetic.get_trial_generation(study, study.get_trials(deepcopy=False)[asked.number])
            genetic.get_parent_population(study, generation)
        return asked.params

    def _optuna_hears(self, study: optuna.Study, *, number: int, values: Sequence[float] | None) -> None:
        asked = self._unanswered.pop(number)
        # A point that fails is one to keep away from, which Optuna does not learn of trials that are told as failed.
        asked.set_constraint(_INFEASIBLE, 1.0 if values is None else 0.0)
        study.tell(asked, [0.0] * len(self._objectives) if values is None else values)

    def _optuna_drops(self, study: optuna.Study, *, number: int) -> None:
        study.tell(self._unanswered.pop(number), state=TrialState.FAIL)

    def _take(self, trial: Trial, asked: _Asked) -> Trial:
        self._by_key[trial.key] = len(self._slots)
        self._slots.append(_Slot(trial, asked))
        return trial

    def _tell_until(self, last: int, results: Mapping[str, TrialRecord]) -> bool:
        """Tells the results of the slots up to `last`; False when one of them is not known yet."""
        while self._told <= last:
            slot = self._slots[self._told]
            record = results.get(slot.trial.key)
            if record is None:
                return False
            slot.values = self._values(record)
            self._tell(slot.asked, slot.values)
            self._told += 1
        return True

    def _tell(self, asked: _Asked, values: Sequence[float] | None) -> None:
        self._heard = derive_key(self._heard, asked.number, repr(values))
        self._later.append(partial(self._optuna_hears, number=asked.number, values=values))

    def _values(self, record: TrialRecord) -> list[float] | None:
        """The objectives; None when the trial failed or one of them is missing or no number."""
        values = [record.metrics.get(name, math.nan) for name in self._objectives]
        return values if record.status != "failed" and all(map(math.isfinite, values)) else None

    def _suggest(self) -> tuple[Trial, _Asked] | None:
        for _ in range(_ATTEMPTS if self._space else 1):
            asked = self._ask()
            trial = self._make_trial(_draw_at(asked.params, self.plan))
            if trial is None:
                self._tell(asked, None)
                continue
            place = self._by_key.get(trial.key)
            if place is None:
                return trial, asked
            if place < self._told:
                self._tell(asked, self._slots[place].values)
            else:
                self._later.append(partial(self._optuna_drops, number=asked.number))
        return None

    def _from_reserve(self) -> tuple[Trial, _Asked] | None:
        while self._reserve:
            draw = self._reserve.pop(0)
            trial = self._make_trial(draw)
            if trial is not None and trial.key not in self._by_key:
                return trial, self._ask(_parameters(draw, self.plan, self._space))
        return None


def _search_space(plan: StudyPlan) -> dict[str, BaseDistribution]:
    space = {f"{_SETTING}{name}": _distribution(prior) for name, prior in plan.settings.items() if isinstance(prior, Prior)}
    if len(plan.students) > 1:
        # Sorted by size, so that neighbours are alike.
        space[_STUDENT] = IntDistribution(0, len(plan.students) - 1)
    if len(plan.teachers) > 1:
        space[_TEACHER] = CategoricalDistribution(range(len(plan.teachers)))
    return space


def _distribution(prior: Prior) -> BaseDistribution:
    if isinstance(prior, Choice):
        # By place: the values may be lists.
        return CategoricalDistribution(range(len(prior.values)))
    if isinstance(prior, Integers):
        return IntDistribution(prior.low, prior.high)
    return FloatDistribution(prior.low, prior.high, log=isinstance(prior, LogUniform))


def _draw_at(parameters: Mapping[str, Any], plan: StudyPlan) -> Draw:
    """The trial that Optuna's parameters name."""
    settings = dict(plan.settings)
    for name, prior in plan.settings.items():
        if isinstance(prior, Choice):
            settings[name] = prior.values[parameters[f"{_SETTING}{name}"]]
        elif isinstance(prior, Uniform | LogUniform | Integers):
            settings[name] = rounded(prior, parameters[f"{_SETTING}{name}"])
    student = plan.students[parameters.get(_STUDENT, 0)]
    return Draw(plan.method, student, plan.teachers[parameters.get(_TEACHER, 0)], settings)


def _parameters(draw: Draw, plan: StudyPlan, space: Mapping[str, BaseDistribution]) -> dict[str, Any]:
    """The parameters that name a draw."""
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
