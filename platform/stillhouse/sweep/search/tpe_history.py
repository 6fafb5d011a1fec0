"""Bounds the results that TPE reads, so that the time for a suggestion does not grow with the number of trials."""

import copy
import math
from collections.abc import Container, Sequence

import numpy as np
from optuna.storages import InMemoryStorage
from optuna.study import StudyDirection
from optuna.trial import FrozenTrial, TrialState


class BoundedHistory(InMemoryStorage):
    """The storage of one Optuna study that shows samplers the open trials and a bounded choice of the results.

    When more than `limit` results were reported, five sevenths of `limit` remain visible: a fifth of them are the best ones,
    the others are spread evenly over the rest in the order of reporting, so that knowledge about bad regions is thinned out
    but not lost. For one objective Optuna's TPE takes a tenth of the results, at most 25, as good ones and gives the others
    less weight the older they are: with 350 visible results it always has 25 good ones. What remains visible follows from the
    results and their order alone, so that a replay shows the same.

    Args:
        directions: of the objectives.
        limit: how many results are visible at most.
    """

    def __init__(self, directions: Sequence[StudyDirection], limit: int) -> None:
        super().__init__()
        self._signs = [-1.0 if direction == StudyDirection.MAXIMIZE else 1.0 for direction in directions]
        self._limit = limit
        self._visible: list[int] = []
        self._losses: dict[int, list[float]] = {}

    def create_new_trial(self, study_id: int, template_trial: FrozenTrial | None = None) -> int:
        trial_id = super().create_new_trial(study_id, template_trial)
        self._visible.append(self.get_trial_number_from_id(trial_id))
        return trial_id

    def set_trial_state_values(self, trial_id: int, state: TrialState, values: Sequence[float] | None = None) -> bool:
        is_set = super().set_trial_state_values(trial_id, state, values)
        if state.is_finished():
            self._note(self.get_trial(trial_id))
        return is_set

    def get_all_trials(
        self, study_id: int, deepcopy: bool = True, states: Container[TrialState] | None = None
    ) -> list[FrozenTrial]:
        """The visible trials. A trial's number is not its index among them."""
        everything = super().get_all_trials(study_id, deepcopy=False)
        shown = [everything[number] for number in self._visible]
        if states is not None:
            shown = [trial for trial in shown if trial.state in states]
        return copy.deepcopy(shown) if deepcopy else shown

    def _note(self, trial: FrozenTrial) -> None:
        if trial.state != TrialState.COMPLETE:
            self._visible.remove(trial.number)
            return
        feasible = all(value <= 0 for value in trial.constraints.values())
        self._losses[trial.number] = [
            sign * value if feasible else math.inf for sign, value in zip(self._signs, trial.values, strict=True)
        ]
        if len(self._losses) > self._limit:
            self._forget()

    def _forget(self) -> None:
        numbers = list(self._losses)
        losses = np.array(list(self._losses.values()))
        # How many results are better in one objective and worse in none; with one objective, the rank.
        beaten_by = [np.sum(np.all(losses <= own, axis=1) & np.any(losses < own, axis=1)) for own in losses]
        ranked = sorted(range(len(numbers)), key=lambda index: (beaten_by[index], -index))
        count = self._limit * 5 // 7
        best, rest = ranked[: count // 5], sorted(ranked[count // 5 :])
        spread = np.linspace(0, len(rest) - 1, count - len(best)).round().astype(int)
        stay = {numbers[index] for index in [*best, *(rest[each] for each in spread)]}
        self._visible = [number for number in self._visible if number in stay or number not in self._losses]
        self._losses = {number: loss for number, loss in self._losses.items() if number in stay}
