"""The methods of a sweep with every hyper-parameter spelled out, from the spec, the methods' priors and their defaults."""

import warnings
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

from stillhouse import methods
from stillhouse.distill.hyperparameters import make_method
from stillhouse.distill.method import Method, serves_task
from stillhouse.errors import Problem, UsageError, describe_error, did_you_mean
from stillhouse.spec.combinations import Soundness
from stillhouse.spec.hyperparameter import plain, setting_problem, typed
from stillhouse.spec.priors import Prior
from stillhouse.spec.schema import FIXED, SweepSpec
from stillhouse.tasks import Task
from stillhouse.user_code import user_code


@dataclass
class MethodSettings:
    """What was found out about the spec's section `methods`.

    Attributes:
        settings: of each method that serves the task, every hyper-parameter: a value or a prior.
    """

    settings: dict[str, dict[str, Any]] = field(default_factory=dict)
    problems: list[Problem] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)


def resolve_methods(spec: SweepSpec, sound: Soundness, task: Task) -> MethodSettings:
    """The hyper-parameters of each method: the spec's value or prior, else the method's prior, else its default.

    The baseline is always among them. A spec that names no methods means all that serve the task.

    Args:
        sound: which of the spec's sections have no problem of their own.
    """
    found = MethodSettings()
    named = spec.methods is not None
    requested: Mapping[str, Any] = spec.methods or {}
    if not named and sound("methods") and not sound.touched("methods"):
        requested = {name: {} for name in methods.names()}
    try:
        with user_code():
            baseline = methods.baseline()
    except Exception as error:  # a user-defined method can raise anything when it is imported
        found.problems.append(Problem("methods", f"cannot be loaded: {describe_error(error)}"))
    else:
        requested = {baseline: requested.get(baseline, {}), **requested}
    for name, settings in requested.items():
        try:
            with user_code():
                kind = methods.find(name)
        except UsageError as error:
            found.problems.append(Problem.caused_by(error, f"methods.{name}"))
        except Exception as error:
            found.problems.append(Problem(f"methods.{name}", f"cannot be loaded: {describe_error(error)}"))
        else:
            fixed = settings == FIXED or spec.search.algorithm == "grid"
            given = {} if isinstance(settings, str) else settings
            if problems := _setting_problems(name, kind, given):
                found.problems += problems
            else:
                found.settings[name] = _spelled_out(kind, given, fixed=fixed)
    _drop_other_tasks(found, task, named=named)
    return found


def can_serve(name: str, settings: Mapping[str, Any], task: Task) -> bool:
    """Whether the method serves the task with some of the hyper-parameters that `settings` allow; the others are defaults.

    True as well if the method cannot be made with them, since that is another problem.
    """
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            with user_code():
                return any(serves_task(make_method(name, values), task) for values in prior_corners(settings))
    except Exception:  # a user-defined method can raise anything
        return True


def prior_corners(settings: Mapping[str, Any]) -> Iterator[dict[str, Any]]:
    """The settings with each prior at each of its ends in turn, the other priors at their first end."""
    priors = {name: setting for name, setting in settings.items() if isinstance(setting, Prior)}
    first = {name: setting.ends()[0] if isinstance(setting, Prior) else setting for name, setting in settings.items()}
    yield first
    for name, prior in priors.items():
        for end in prior.ends()[1:]:
            yield {**first, name: end}


def _setting_problems(name: str, kind: type[Method], given: Mapping[str, Any]) -> list[Problem]:
    rules = kind.hyperparameters()
    problems = []
    for key, setting in given.items():
        if key not in rules:
            message = f"is not a hyper-parameter of {name}{did_you_mean(key, rules)}"
            problems.append(Problem(f"methods.{name}.{key}", message))
        elif (problem := setting_problem(kind, key, setting)) is not None:
            problems.append(problem.under(f"methods.{name}"))
    return problems


def _spelled_out(kind: type[Method], given: Mapping[str, Any], *, fixed: bool) -> dict[str, Any]:
    """Every hyper-parameter in the method's own order; `fixed` means defaults instead of the method's priors."""
    defaults = kind.defaults()
    values: dict[str, Any] = {}
    for key, rule in kind.hyperparameters().items():
        if rule.added_later and given.get(key, defaults[key]) == plain(defaults[key]):
            continue
        if key in given:
            value = given[key]
            values[key] = value if isinstance(value, Prior) else plain(typed(kind, key, value))
        else:
            values[key] = plain(defaults[key]) if fixed or rule.prior is None else rule.prior
    return values


def _drop_other_tasks(found: MethodSettings, task: Task, *, named: bool) -> None:
    """Drops the methods that do not serve the task; those that the spec names are problems."""
    others = [name for name, values in found.settings.items() if not can_serve(name, values, task)]
    if others and named:
        serving = ", ".join(name for name in methods.names() if can_serve(name, {}, task))
        found.problems += [
            Problem(f"methods.{name}", f"does not serve task {task.name}; these do: {serving}") for name in others
        ]
    elif others:
        found.notes.append(f"left out, since they do not serve task {task.name}: {', '.join(sorted(others))}")
    found.settings = {name: values for name, values in found.settings.items() if name not in others}
