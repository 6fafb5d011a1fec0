"""Where a search starts: the point that each method and student tries before anything is drawn.

A method starts at its own defaults, which are the paper's values, or as near to them as the spec's priors allow. A student
whose options are searched starts in the middle of their priors, since no paper names values for them.
"""

from collections.abc import Mapping
from typing import Any

from stillhouse import methods
from stillhouse.spec.hyperparameter import plain
from stillhouse.spec.priors import Prior
from stillhouse.spec.records import StudentChoice
from stillhouse.spec.schema import StudentSpec
from stillhouse.sweep.search.prior_values import middle, nearest


def first_settings(method: str, settings: Mapping[str, Any]) -> dict[str, Any]:
    """The hyper-parameters of a method's first trial: fixed values as they are, searched ones at the method's defaults."""
    defaults = methods.find(method).defaults()
    return {
        name: nearest(setting, plain(defaults[name])) if isinstance(setting, Prior) else setting
        for name, setting in settings.items()
    }


def first_student(student: StudentSpec) -> StudentChoice:
    """The student of the first trial, each searched option in the middle of its prior."""
    return student.choose({name: middle(each) if isinstance(each, Prior) else each for name, each in student.settings.items()})
