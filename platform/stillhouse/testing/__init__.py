"""For authors of methods and tasks: the conformance suites, numbers of published implementations, a step to call a loss with.

Where to find what:
    methods           `check_method` and `CHECKS`: what every method must satisfy.
    method_trial      `MethodTrial`: the data, the teacher and the student that a method is checked on.
    watched_method    the wrapper that inspects every step of a method while it trains.
    reference_cases   `ReferenceCase`: numbers of a published implementation.
    tasks             `check_task` and `TASK_CHECKS`: what every task must satisfy.
    tolerance         how far results may differ on a device.
    steps             `make_step`: one batch, as a loss receives it.
"""

from stillhouse.testing.method_trial import MethodTrial
from stillhouse.testing.methods import CHECKS, check_method
from stillhouse.testing.reference_cases import ReferenceCase
from stillhouse.testing.steps import make_step
from stillhouse.testing.tasks import TASK_CHECKS, TaskTrial, check_task

__all__ = ["CHECKS", "TASK_CHECKS", "MethodTrial", "ReferenceCase", "TaskTrial", "check_method", "check_task", "make_step"]
