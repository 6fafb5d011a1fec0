"""What the check of a spec finds: problems, notes, and the trials that can run."""

from dataclasses import dataclass, field

from stillhouse.errors import Problem
from stillhouse.spec.schema import SweepSpec
from stillhouse.sweep.search.draws import Draw


@dataclass(frozen=True)
class Skipped:
    """A method that the plan leaves out for one student and teacher, and why."""

    method: str
    student: str
    teacher: str | None
    reason: str
    trials: int


@dataclass
class Survey:
    """What is known about a spec after the check.

    Attributes:
        spec: with every method and hyper-parameter spelled out; None if it cannot be read at all.
        draws: the trials that can run, without the teachers that they do not need; duplicates are still included.
    """

    spec: SweepSpec | None
    problems: list[Problem] = field(default_factory=list)
    draws: list[Draw] = field(default_factory=list)
    skipped: list[Skipped] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)

    def add(self, key: str, message: str) -> None:
        """Adds a problem of the spec's key."""
        self.problems.append(Problem(key, message))

    def note(self, *notes: str) -> None:
        """Adds notes, each of them once."""
        self.notes += [note for note in notes if note not in self.notes]
