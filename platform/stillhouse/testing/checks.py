"""What the conformance suites of methods and of tasks share: running their checks, and a training that is resumed."""

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import TypeVar

from stillhouse.distill.trainer import Trainer

Trial = TypeVar("Trial")


def run_checks(checks: Mapping[str, Callable[[Trial], None]], trial: Trial, subject: str) -> None:
    """Runs every check on the trial.

    Args:
        checks: by name; the first line of a check's docstring is what it requires.
        subject: what is checked, for messages.

    Raises:
        AssertionError: at least one check fails. The message lists every failed check, what it requires and what was found.
            Any other exception of a check is raised as it is, with a note that names the check.
    """
    failures = []
    for name, check in checks.items():
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
