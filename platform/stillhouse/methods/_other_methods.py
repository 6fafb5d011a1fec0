"""Methods that are made of other methods: how these are named, set and checked, and how one of them is passed through."""

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

from torch import Tensor

from stillhouse.distill.method import Helper, Method, MethodError, Setup, Stage, Step, hyperparameter
from stillhouse.errors import UsageError, did_you_mean
from stillhouse.knowledge.kinds import Knowledge
from stillhouse.methods import find
from stillhouse.models.architecture import Architecture

_HOOKS_OF_MORE_THAN_A_LOSS = ("step", "begin_stage", "classifiers")


def make_other(name: str, settings: Mapping[str, Any], *, doing: str) -> Method:
    """The method `name` with these hyper-parameters, which another method is to use.

    Args:
        doing: what the other method does with it, as in "combine"; for messages.

    Raises:
        MethodError: there is no such method or hyper-parameter, or the method does more than add terms to a loss.
        ValueError: a setting breaks the rule of its hyper-parameter.
    """
    try:
        kind = find(name)
    except UsageError as error:
        raise MethodError(str(error), names=[name]) from error
    if kind.card.family == "control":
        raise MethodError(f"cannot {doing} '{name}': it adds nothing to cross-entropy", names=[name])
    for hook in _HOOKS_OF_MORE_THAN_A_LOSS:
        if getattr(kind, hook) is not getattr(Method, hook):
            raise MethodError(f"cannot {doing} '{name}': it changes more than the loss, it overrides {hook}()", names=[name])
    if kind.calls_teacher:
        raise MethodError(f"cannot {doing} '{name}': it calls the teacher on inputs that it generates", names=[name])
    if kind.every_teacher:
        raise MethodError(f"cannot {doing} '{name}': it learns from all teachers together", names=[name])
    unknown = [key for key in settings if key not in kind.hyperparameters()]
    if unknown:
        raise MethodError(f"{name} has no hyper-parameter '{unknown[0]}'{did_you_mean(unknown[0], kind.hyperparameters())}")
    return kind(**settings)


def read_settings(settings: Sequence[str], names: Sequence[str]) -> dict[str, dict[str, Any]]:
    """{method: {hyper-parameter: value}} of settings like 'name.temperature=2'; a value that is not valid JSON is text.

    Raises:
        MethodError: a setting does not look like this, or is for none of the methods.
    """
    read: dict[str, dict[str, Any]] = {}
    for setting in settings:
        key, equals, text = setting.partition("=")
        name, dot, hyperparameter_name = key.strip().partition(".")
        if not equals or not dot or name not in names:
            raise MethodError(
                f"settings must look like '{names[0]}.hyperparameter=value', with one of the methods, got '{setting}'",
                names=[setting],
            )
        try:
            value = json.loads(text)
        except ValueError:
            value = text.strip()
        read.setdefault(name, {})[hyperparameter_name] = tuple(value) if isinstance(value, list) else value
    return read


@dataclass(frozen=True, kw_only=True)
class WrappingMethod(Method):
    """Base class of methods that train as one other method does, which the trial names, and change one thing about it."""

    method: str
    """Name of the method that is changed; subclasses give it a default."""
    settings: tuple[str, ...] = hyperparameter((), help="hyper-parameters of that method, as in 'name.temperature=2'")

    def __post_init__(self) -> None:
        super().__post_init__()
        _ = self.inner

    @classmethod
    def other_methods(cls, hyperparameters: Mapping[str, Any]) -> Sequence[str]:
        name = hyperparameters["method"]
        own = read_settings(hyperparameters["settings"], [name]).get(name, {})
        kind = find(name)
        return [name, *kind.other_methods(kind.defaults() | own)]

    @cached_property
    def inner(self) -> Method:
        """The method that is changed; see `make_other` for what is raised."""
        return make_other(self.method, read_settings(self.settings, [self.method]).get(self.method, {}), doing="change")

    def serves(self, task: str) -> bool:
        return self.inner.serves(task)

    @property
    def differentiates_images(self) -> bool:
        return self.inner.differentiates_images

    @property
    def needs_whole_batch(self) -> bool:
        return self.inner.needs_whole_batch

    def knowledge(self, teacher: Architecture, student: Architecture) -> Mapping[str, Knowledge]:
        return self.inner.knowledge(teacher, student)

    def student_layers(self, teacher: Architecture | None, student: Architecture) -> Sequence[str]:
        return self.inner.student_layers(teacher, student)

    def stages(self, setup: Setup) -> Sequence[Stage]:
        return self.inner.stages(setup)

    def modules(self, setup: Setup) -> Mapping[str, Helper]:
        return self.inner.modules(setup)

    def loss(self, step: Step) -> dict[str, Tensor]:
        return self.inner.loss(step)
