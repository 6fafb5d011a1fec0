"""Which stored records no longer stand for their trials, since something that decides a result has changed under its name."""

from collections import defaultdict
from collections.abc import Callable, Iterable, Mapping
from enum import Enum
from pathlib import Path

import safetensors
import safetensors.torch

from stillhouse.data.evaluation_identity import evaluation_identity
from stillhouse.data.images import ImageData
from stillhouse.models.given_content import given_content
from stillhouse.models.weights import state_hash
from stillhouse.spec.records import Basis, StudentChoice, SweepFacts, Trial, TrialRecord
from stillhouse.sweep.planning.trial_keys import TrialKeys
from stillhouse.sweep.run_context import RunContext

_SHOWN_KEYS = 5


class Reason(Enum):
    """Why a trial runs again; the value is the note's beginning, with the number of trials and which ones."""

    CODE = "the code of {count} trials has changed since they ran ({which}); they run again"
    CONTENT = "the data set, a teacher's weights or the method have changed since {count} trials ran ({which}); they run again"
    TEACHER = "the teacher of {count} trials is another network than the one that taught them ({which}); they run again"
    STUDENT = (
        "the weights that a user-defined student begins with have changed since {count} trials ran ({which}); they run again"
    )
    DAMAGE = "the stored weights of {count} trained students are damaged or missing ({which}); these trials run again"


class RecordCheck:
    """Compares the records of one sweep with the present data, code, teachers and files.

    Args:
        folder: of the sweep that wrote the records; its students' weights are relative to it.
        facts: of that sweep as its latest run wrote them; None if it has none.
        teachers: the identity of each teacher that is known now, by name.
    """

    def __init__(
        self, keys: TrialKeys, data: ImageData, *, folder: Path, facts: SweepFacts | None, teachers: Mapping[str, str]
    ) -> None:
        self._keys = keys
        self._data = data
        self._folder = folder
        self._facts = facts
        self._teachers = teachers
        self._given: dict[str, str] = {}

    def reason(self, record: TrialRecord, trial: Trial | None = None) -> Reason | None:
        """Why the record cannot be used; None if it can.

        Args:
            trial: the trial that it is to stand for; by default its own. Teachers may have other names there.
        """
        trial = trial or record.trial
        if self._keys.is_of_other_code(trial):
            return Reason.CODE
        if not self._keys.stands_for(trial):
            return Reason.CONTENT
        pairs = taught_by(trial, record.basis.model_copy(update={"teachers": self._taught_by(record)}))
        if any(identity and self._teachers.get(name, identity) != identity for name, identity in pairs):
            return Reason.TEACHER
        if record.basis.given and record.basis.given != self.given(trial.student):
            return Reason.STUDENT
        if record.status == "finished" and record.weights is not None and not self._is_whole(record):
            return Reason.DAMAGE
        return None

    def complete(self, record: TrialRecord) -> TrialRecord:
        """The record with its basis; one of the first release gets that of the sweep's facts, or else the present one."""
        if record.basis != Basis():
            return record
        known = self._facts.dataset.get("evaluation") if self._facts is not None else None
        evaluation = known or evaluation_identity(self._data)
        basis = Basis(**evaluation, teachers=self._taught_by(record), given=self.given(record.trial.student))
        return record.model_copy(update={"basis": basis})

    def given(self, student: StudentChoice) -> str:
        """The `given_content` of a student, computed once."""
        if student.variant not in self._given:
            data = self._data
            self._given[student.variant] = given_content(student.model, student.options, data.num_classes, data.input_shape)
        return self._given[student.variant]

    def _taught_by(self, record: TrialRecord) -> list[str]:
        """The identities of the record's teachers, in their order; those of the facts if it names none; "" for unknown ones."""
        if record.basis.teachers:
            return record.basis.teachers
        known = {teacher.name: teacher.identity for teacher in (self._facts.teachers if self._facts else ())}
        return [known.get(name, self._teachers.get(name, "")) for name in record.trial.teachers]

    def _is_whole(self, record: TrialRecord) -> bool:
        assert record.weights is not None
        try:
            content = (self._folder / record.weights).read_bytes()
            return state_hash(safetensors.torch.load(content)) == record.weights_hash
        except (OSError, safetensors.SafetensorError):
            return False


def taught_by(trial: Trial, basis: Basis) -> list[tuple[str, str]]:
    """The name and the recorded identity of each teacher, including the one whose weights the student began with."""
    pairs = list(zip(trial.teachers, basis.teachers, strict=False))
    return pairs if trial.student.derived_from is None else [*pairs, (trial.student.derived_from, basis.source)]


def set_aside(
    context: RunContext, records: dict[str, TrialRecord], reason_of: Callable[[TrialRecord], Reason | None]
) -> list[str]:
    """Takes the records with a reason out of `records` and the ledger, says so, and returns their keys."""
    found: dict[Reason, list[TrialRecord]] = defaultdict(list)
    for record in records.values():
        if (reason := reason_of(record)) is not None:
            found[reason].append(record)
    ledger = context.sweep_home.ledger
    for reason, outdated in found.items():
        note = reason.value.format(count=len(outdated), which=_which(reason, outdated))
        context.progress.note(f"{note}, and their earlier records are moved to {ledger.folder / 'aside'}")
        for record in outdated:
            ledger.set_aside(record.trial.key)
            del records[record.trial.key]
    return [record.trial.key for outdated in found.values() for record in outdated]


def of_other_evaluation(records: Iterable[TrialRecord], evaluation: Mapping[str, str]) -> list[TrialRecord]:
    """The finished records whose students were evaluated on other test data, or in another way."""
    return [
        record
        for record in records
        if record.status == "finished"
        and any(evaluation.get(name, value) != value for name, value in record.basis.evaluation.items())
    ]


def _which(reason: Reason, records: Iterable[TrialRecord]) -> str:
    if reason is Reason.DAMAGE:
        names = sorted(f"{record.trial.key} {record.trial.method} {record.trial.student.name}" for record in records)
    elif reason is Reason.TEACHER:
        names = sorted({f"{record.trial.method} with {record.trial.teacher}" for record in records})
    else:
        names = sorted({f"{record.trial.method} on {record.trial.student.name}" for record in records})
    return ", ".join(names[:_SHOWN_KEYS]) + (", ..." if len(names) > _SHOWN_KEYS else "")
