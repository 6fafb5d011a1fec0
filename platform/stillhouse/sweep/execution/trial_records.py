"""The records of trials in the ledger: reading one, writing one, and the reason of a failure."""

import traceback
from pathlib import Path

from stillhouse.device import is_out_of_memory
from stillhouse.errors import TrialError, describe_error, first_line
from stillhouse.provenance import code_facts
from stillhouse.spec.records import Trial, TrialRecord
from stillhouse.sweep.execution.trial_environment import TrialEnvironment
from stillhouse.sweep.home.ledger import Ledger, now


def failed_record(trial: Trial, environment: TrialEnvironment, error: BaseException, *, device: str) -> TrialRecord:
    """Writes the record of a trial that failed before it had a runner."""
    record = TrialRecord(
        trial=trial,
        status="failed",
        reason=failure_reason(error),
        device=device,
        code=code_facts(),
        started=now(),
        finished=now(),
        basis=environment.basis(trial),
    )
    store_record(record, environment)
    return record


def existing_record(trial: Trial, environment: TrialEnvironment) -> TrialRecord | None:
    """The trial's record, if it has one: a worker may die after writing it and before reporting it."""
    home = environment.own_home
    ledger = Ledger(home.here(environment.folder) / "ledger")
    home.pull(ledger.path(trial.key))
    return ledger.read(trial.key)


def store_record(record: TrialRecord, environment: TrialEnvironment) -> None:
    home = environment.own_home
    ledger = Ledger(home.here(environment.folder) / "ledger")
    ledger.write(record)
    home.push(ledger.path(record.trial.key))


def failure_reason(error: BaseException) -> str:
    """One sentence for the ledger: what happened, where in the code, and what to do about it where that is known."""
    if isinstance(error, TrialError):
        return str(error)
    on_device = is_out_of_memory(error)
    if on_device or isinstance(error, MemoryError):
        reason = first_line(error, "no free memory").rstrip(".")
        share = ", or give each trial a larger trial_resources.gpu" if on_device else ""
        return f"out of memory: {reason}; lower training.batch_size, set training.micro_batch to auto{share}"
    frame = traceback.extract_tb(error.__traceback__)[-1] if error.__traceback__ else None
    where = f" ({Path(frame.filename).name}:{frame.lineno})" if frame else ""
    return f"{describe_error(error)}{where}"
