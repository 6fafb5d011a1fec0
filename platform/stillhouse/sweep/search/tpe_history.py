"""What TPE looks at: a bounded part of what it was told, so that its thousandth question takes no longer than its hundredth."""

import copy
import math
from collections.abc import Container, Sequence

import numpy as np
from optuna.storages import InMemoryStorage
from optuna.study import StudyDirection
from optuna.trial import FrozenTrial, TrialState


class BoundedHistory(InMemoryStorage):
    """The storage of one Optuna study, which shows samplers the trials under way and the results that matter.

    When more than `most` results were told, five sevenths of `most` stay in sight: a fifth of those are the best, the others
    are spread evenly over the rest in the order in which they were told, so that what is known of bad regions is thinned
    and not lost. Optuna's TPE calls a tenth of the results of one objective good, at most 25, and lets the others weigh less
    the older they are: from 350 in sight on it has its 25 good ones always. What stays follows from what was told and its
    order, so it is the same when the same is told again.

    Args:
        directions: of the objectives.
        most: results that are in sight at most.
    """

    def __init__(self, directions: Sequence[StudyDirection], most: int) -> None:
        super().__init__()
        self._signs = [-1.0 if direction == StudyDirection.MAXIMIZE else 1.0 for direction in directions]
        self._most = most
        self._shown: list[int] = []
        self._losses: dict[int, list[float]] = {}

    def create_new_trial(self, study_id: int, template_trial: FrozenTrial | None = None) -> int:
        trial_id = super().create_new_trial(study_id, template_trial)
        self._shown.append(self.get_trial_number_from_id(trial_id))
        return trial_id

    def set_trial_state_values(self, trial_id: int, state: TrialState, values: Sequence[float] | None = None) -> bool:
        is_set = super().set_trial_state_values(trial_id, state, values)
        if state.is_finished():
            self._note(self.get_trial(trial_id))
        return is_set

    def get_all_trials(
        self, study_id: int, deepcopy: bool = True, states: Container[TrialState] | None = None
    ) -> list[FrozenTrial]:
        """Those in sight. A trial's number is no longer its place among them."""
        everything = super().get_all_trials(study_id, deepcopy=False)
        shown = [everything[number] for number in self._shown]
        if states is not None:
            shown = [trial for trial in shown if trial.state in states]
        return copy.deepcopy(shown) if deepcopy else shown

    def _note(self, trial: FrozenTrial) -> None:
        if trial.state != TrialState.COMPLETE:
            self._shown.remove(trial.number)
            return
        feasible = all(value <= 0 for value in trial.constraints.values())
        self._losses[trial.number] = [
            sign * value if feasible else math.inf for sign, value in zip(self._signs, trial.values, strict=True)
        ]
        if len(self._losses) > self._most:
            self._forget()

    def _forget(self) -> None:
        numbers = list(self._losses)
        losses = np.array(list(self._losses.values()))
        # How many are better in one objective and worse in none: of one objective that is the rank.
        beaten_by = [np.sum(np.all(losses <= own, axis=1) & np.any(losses < own, axis=1)) for own in losses]
        ranked = sorted(range(len(numbers)), key=lambda place: (beaten_by[place], -place))
        kept = self._most * 5 // 7
        best, rest = ranked[: kept // 5], sorted(ranked[kept // 5 :])
        spread = np.linspace(0, len(rest) - 1, kept - len(best)).round().astype(int)
        stay = {numbers[place] for place in [*best, *(rest[each] for each in spread)]}
        self._shown = [number for number in self._shown if number in stay or number not in self._losses]
        self._losses = {number: loss for number, loss in self._losses.items() if number in stay}
