"""What each teacher cost the sweep, and what sharing it saved."""

import math
from collections.abc import Sequence
from dataclasses import dataclass, field

from stillhouse.spec.records import SweepFacts, TeacherFacts, TrialRecord


@dataclass(frozen=True, kw_only=True)
class TeacherCost:
    """What one teacher cost the sweep, and what it would have cost inside every trial.

    Attributes:
        trials: trials that used its knowledge.
        samples_used: samples times epochs, summed over those trials.
        forward_seconds: time of its forward passes: filling views as it was measured, inside trials by the time per sample.
        inside_seconds: `samples_used` at its measured time per sample; None when that was not measured.
    """

    teacher: TeacherFacts
    trials: int
    samples_used: int
    forward_seconds: float
    inside_seconds: float | None = field(default=None)

    @property
    def saved_seconds(self) -> float | None:
        return None if self.inside_seconds is None else self.inside_seconds - self.forward_seconds


def teacher_costs(facts: SweepFacts, records: Sequence[TrialRecord]) -> list[TeacherCost]:
    """One entry per teacher of the sweep."""
    per_epoch = facts.dataset.get("train_samples")
    costs = []
    for teacher in facts.teachers:
        users = [record for record in records if teacher.name in record.trial.teachers]
        used = [_samples_used(record, per_epoch if isinstance(per_epoch, int) else 0) for record in users]
        forwarded = sum(_share(record, "samples_forwarded") or 0 for record in users)
        inside = None if teacher.seconds_per_sample is None else teacher.seconds_per_sample * sum(used)
        costs.append(
            TeacherCost(
                teacher=teacher,
                trials=sum(samples > 0 for samples in used),
                samples_used=sum(used),
                forward_seconds=teacher.fill_seconds + (teacher.seconds_per_sample or 0.0) * forwarded,
                inside_seconds=inside,
            )
        )
    return costs


def _samples_used(record: TrialRecord, per_epoch: int) -> int:
    """What the trial counted itself; failing that, its epochs over the training data.

    A sample of which some knowledge was read and some computed is one sample.
    """
    counted = [_share(record, name) for name in ("samples_gathered", "samples_forwarded")]
    known = [count for count in counted if count is not None]
    return max(known) if known else record.epochs_run * per_epoch


def _share(record: TrialRecord, name: str) -> int | None:
    """The trial's count for one of its teachers: it uses each of them equally often."""
    counted = record.teaching.get(name)
    if not isinstance(counted, int | float) or not math.isfinite(counted):
        return None
    return int(counted) // len(record.trial.teachers)
