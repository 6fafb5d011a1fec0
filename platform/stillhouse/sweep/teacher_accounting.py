"""What the teachers of a sweep computed and what its trials read back, in one run and over all runs of the sweep."""

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass

from stillhouse.knowledge.fill_log import count_fills
from stillhouse.spec.metric import Metric
from stillhouse.spec.records import SweepFacts, TeacherFacts, TrialRecord
from stillhouse.spec.teacher_comparison import outdone_teachers
from stillhouse.sweep.home.sweep_home import SweepHome

Fills = Mapping[str, float]
"""`samples`, `bytes` and `seconds` of filled views."""


@dataclass(frozen=True, kw_only=True)
class TeacherUse:
    """What one run of the sweep took of a teacher.

    Attributes:
        forwarded: samples that the teacher computed, in its actor and in trials.
        gathered: samples whose knowledge trials read back from sealed views.
        fills: what the actor filled.
    """

    forwarded: int
    gathered: int
    fills: Fills


class TeacherAccounts:
    """Adds up what teachers did for one sweep. Every run begins with a new one.

    The log of filled views is shared by all sweeps of a home and only grows, so a run counts what follows its beginning.

    Args:
        earlier: the facts that the previous run wrote; None in the first run.

    Attributes:
        log_start: length in bytes of the log of filled views when this run began.
    """

    def __init__(self, sweep_home: SweepHome, earlier: SweepFacts | None) -> None:
        self._sweep_home = sweep_home
        self._earlier = earlier
        self.log_start = sweep_home.fill_log_bytes()
        self._unrecorded = self._fills_of_interrupted_run()

    def use_in_run(self, teacher: TeacherFacts, new: Sequence[TrialRecord]) -> TeacherUse:
        """What this run took of the teacher; `new` are the records that it wrote."""
        fills = self._fills(teacher, self.log_start)
        shares = list(_shares(teacher, new))
        return TeacherUse(
            forwarded=int(fills["samples"]) + sum(share.get("samples_forwarded", 0) for share in shares),
            gathered=sum(share.get("samples_gathered", 0) for share in shares),
            fills=fills,
        )

    def total(self, teacher: TeacherFacts, records: Iterable[TrialRecord], use: TeacherUse | None = None) -> TeacherFacts:
        """The teacher's facts over the whole life of the sweep.

        Args:
            records: of the sweep's trials, whichever run wrote them.
            use: of this run; None before it has used anything.
        """
        fills = [self._unrecorded.get(teacher.key, {}), *([use.fills] if use is not None else [])]
        return _add_up(teacher, fills, records, self._earlier)

    def _fills_of_interrupted_run(self) -> dict[str, Fills]:
        """By the hash of the weights: what was filled for an earlier run that ended before it recorded this.

        Teachers may outlive the run that started them, so everything counts up to the beginning of this run.
        """
        if self._earlier is None or self._earlier.open_fills is None:
            return {}
        found: dict[str, Fills] = {}
        for teacher in self._earlier.teachers:
            since, after = (self._fills(teacher, byte) for byte in (self._earlier.open_fills, self.log_start))
            found[teacher.key] = {name: since[name] - after[name] for name in since}
        return found

    def _fills(self, teacher: TeacherFacts, since_byte: int) -> dict[str, float]:
        """What the teacher filled for this sweep after a position of the log."""
        folder = self._sweep_home.home / "knowledge"
        return count_fills(folder, teacher.key, since_byte=since_byte, sweep=self._sweep_home.name)


def teacher_warnings(teachers: Sequence[TeacherFacts], records: Iterable[TrialRecord], metric: Metric) -> list[str]:
    """Warns of teachers whose outputs look wrong, or that are worse than the best student."""
    known = [doubt for teacher in teachers for doubt in teacher.doubts]
    column = metric.column("validation")
    values = [record.metrics[column] for record in records if record.status == "finished" and column in record.metrics]
    if not values:
        return known
    best = metric.best(values)
    return known + [
        f"teacher {teacher.name} is worse than the best student on the validation split "
        f"({teacher.value(column):.4f} against {best:.4f}): train it longer, or choose a larger one"
        for teacher in outdone_teachers(teachers, best, metric)
    ]


def _shares(teacher: TeacherFacts, records: Iterable[TrialRecord]) -> Iterator[dict[str, int]]:
    """What each record took of the teacher; the teachers of one trial are used equally."""
    for record in records:
        if teacher.name in record.trial.teachers:
            counts = {name: count for name, count in record.teaching.items() if isinstance(count, int)}
            yield {name: count // len(record.trial.teachers) for name, count in counts.items()}


def _add_up(
    teacher: TeacherFacts, fills: Sequence[Fills], records: Iterable[TrialRecord], earlier: SweepFacts | None
) -> TeacherFacts:
    """Adds `fills`, which came after `earlier` was written, and the shares of all records to the teacher's facts."""
    before = next((known for known in (earlier.teachers if earlier else []) if known.name == teacher.name), None)
    shares = list(_shares(teacher, records))
    filled = (before.samples_filled if before else 0) + int(sum(each.get("samples", 0) for each in fills))
    return teacher.model_copy(
        update={
            "samples_filled": filled,
            "samples_forwarded": filled + sum(share.get("samples_forwarded", 0) for share in shares),
            "samples_reused": sum(share.get("samples_gathered", 0) for share in shares),
            "samples_called": sum(share.get("samples_called", 0) for share in shares),
            "bytes_written": (before.bytes_written if before else 0) + int(sum(each.get("bytes", 0) for each in fills)),
            "fill_seconds": (before.fill_seconds if before else 0.0) + sum(each.get("seconds", 0.0) for each in fills),
            "trained_now": teacher.trained_now or bool(before and before.trained_now),
        }
    )
