"""What the conformance suites share: running their checks, rules of options, and a training that is resumed."""

import json
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, TypeVar

from stillhouse.distill.trainer import Trainer
from stillhouse.spec.hyperparameter import Configured, HyperParameter

Trial = TypeVar("Trial")


def run_checks(
    checks: Mapping[str, Callable[[Trial], None]], trial: Trial, subject: str, tell: Callable[[str], None] = lambda _text: None
) -> None:
    """Runs every check on the trial.

    Args:
        checks: by name; the first line of a check's docstring is what it requires.
        subject: what is checked, for messages.
        tell: called before each check with its number and name.

    Raises:
        AssertionError: at least one check fails. The message lists every failed check, what it requires and what was found.
            Any other exception of a check is raised as it is, with a note that names the check.
    """
    failures = []
    for number, (name, check) in enumerate(checks.items(), start=1):
        tell(f"[{number}/{len(checks)}] {name.replace('_', ' ')}")
        requirement = (check.__doc__ or name).partition("\n")[0]
        try:
            check(trial)
        except AssertionError as error:
            failures.append(f"{name}: {error}\n    required: {requirement}")
        except Exception as error:
            error.add_note(f"raised in the check '{name}' of {subject}; required: {requirement}")
            raise
    if failures:
        listed = "\n".join(f"  - {failure}" for failure in failures)
        raise AssertionError(f"{subject} fails {len(failures)} of {len(checks)} checks:\n{listed}")


def train_resumed(new_trainer: Callable[[], Trainer], checkpoint: Path) -> Trainer:
    """A whole training that is saved to the checkpoint and loaded by a new trainer after every epoch."""
    trainer = new_trainer()
    while not trainer.finished:
        trainer.run_epoch()
        trainer.save(checkpoint)
        trainer = new_trainer()
        trainer.load(checkpoint)
    return trainer


def check_configured(cls: type[Configured]) -> None:
    """Checks that defaults and priors follow the rules, that the constructor rejects other values and names them.

    Raises:
        AssertionError: they do not.
    """
    defaults = cls.defaults()
    json.dumps(defaults)
    assert cls(**defaults) == cls(), "a method made of its own defaults must equal one made without arguments"
    for name, rule in cls.hyperparameters().items():
        for value in rule.prior.ends() if rule.prior is not None else ():
            assert rule.broken_by(value) is None, f"the prior of {name} reaches {value!r}, which {rule.broken_by(value)}"
        for value in [rule.prior.at(quantile) for quantile in (0.0, 0.5, 0.999)] if rule.prior is not None else []:
            cls(**{name: value})
        for value in _values_that_break(rule):
            refusal = _refusal(cls, {name: value})
            assert refusal is not None, f"{name}={value!r} breaks the rule of {name}, but the constructor accepts it"
            assert name in refusal, f"the error for {name}={value!r} must name {name}, it reads: {refusal}"


def _refusal(cls: type[Configured], hyperparameters: Mapping[str, Any]) -> str | None:
    try:
        cls(**hyperparameters)
    except ValueError as error:
        return str(error)
    return None


def _values_that_break(rule: HyperParameter) -> list[Any]:
    """A value just outside each bound of the rule."""
    bounds = (rule.above, rule.below)
    outside = [bound for bound in bounds if bound is not None]
    outside += [rule.minimum - 1] if rule.minimum is not None else []
    outside += [rule.maximum + 1] if rule.maximum is not None else []
    return [*outside, *(["no such choice"] if rule.choices is not None else [])]
