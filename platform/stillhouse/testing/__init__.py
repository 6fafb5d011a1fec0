"""For authors of methods, tasks and operators: conformance suites, numbers of published implementations, a step for losses.

Where to find what:
    methods           `check_method` and `CHECKS`: what every method must satisfy.
    method_trial      `MethodTrial`: the data, the teacher and the student that a method is checked on.
    grounds           the small data set of each task, with the models that fit it.
    watched_method    the wrapper that inspects every step of a method while it trains.
    reference_cases   `ReferenceCase`: numbers of a published implementation.
    tasks             `check_task` and `TASK_CHECKS`: what every task must satisfy.
    operators         `check_operator` and `OPERATOR_CHECKS`: what every operator must satisfy.
    tolerance         how far results may differ on a device.
    waits             `counted`: the calls that would make the processor wait for a GPU.
    steps             `make_step`: one batch, as a loss receives it.
"""

from stillhouse.testing.method_trial import MethodTrial, suiting_trial
from stillhouse.testing.methods import CHECKS, check_method
from stillhouse.testing.operators import OPERATOR_CHECKS, OperatorTrial, check_operator
from stillhouse.testing.reference_cases import ReferenceCase
from stillhouse.testing.steps import make_step
from stillhouse.testing.tasks import TASK_CHECKS, TaskTrial, check_task

__all__ = [
    "CHECKS",
    "OPERATOR_CHECKS",
    "TASK_CHECKS",
    "MethodTrial",
    "OperatorTrial",
    "ReferenceCase",
    "TaskTrial",
    "check_method",
    "check_operator",
    "check_task",
    "make_step",
    "suiting_trial",
]
