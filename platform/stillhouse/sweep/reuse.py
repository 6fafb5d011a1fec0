"""Records that a run need not produce again: those in the sweep's ledger, and those of the sweep that it is a fork of."""

from collections.abc import Collection

from stillhouse.spec.records import TrialRecord
from stillhouse.sweep.home.sweep_home import SweepHome
from stillhouse.sweep.outdated import RecordCheck, set_aside
from stillhouse.sweep.phases import Phases
from stillhouse.sweep.planning.plan import Plan
from stillhouse.sweep.run_context import RunContext
from stillhouse.sweep.teacher_setup import known_teachers


def reusable_records(context: RunContext, *, again: Collection[str] = ()) -> dict[str, TrialRecord]:
    """The ledger's records by trial key. Those whose trials run again are set aside in the ledger's folder.

    Args:
        again: statuses (`failed`, `stopped`) whose trials run again.
    """
    sweep_home, ledger, progress = context.sweep_home, context.sweep_home.ledger, context.progress
    records, damaged = ledger.read_all()
    for key in damaged:
        progress.note(f"the record of trial {key} is damaged and moved to {ledger.set_aside(key)}; the trial runs again")
    if again and not any(record.status in again for record in records.values()):
        progress.note(f"no trial is {' or '.join(again)}: only what is missing runs")
    # That a scheduler stopped a trial means nothing to a sweep whose scheduler may not stop any.
    again = {*again, "stopped"} if context.spec.search.scheduler == "none" else set(again)
    check = _check(context, sweep_home, records.values())
    set_aside(context, records, check.reason)
    for key in [key for key, record in records.items() if record.status in again]:
        ledger.set_aside(key)
        del records[key]
    for key, record in records.items():
        if (completed := check.complete(record)) != record:
            ledger.write(completed)
            records[key] = completed
    return records


def take_over_trials(origin: SweepHome, context: RunContext, phases: Phases, records: dict[str, TrialRecord]) -> None:
    """Copies the records that the plan wants from the sweep that this one is a fork of; adds them to `records`."""
    plan = context.plan
    if not context.sweep_home.read_latencies():
        context.sweep_home.write_latencies(origin.read_latencies(), origin.latency_place())
    check = _check(context, origin, origin.read_records())
    # Winners and controls are known only once the (possibly inherited) search phase is complete.
    for queue_of in (phases.search, phases.confirm):
        queue = queue_of(records)
        while (trial := queue.next()) is not None:
            record = origin.ledger.read(trial.key)
            if record is None or not _is_usable(record, plan) or check.reason(record, trial) is not None:
                queue.lose(trial.key)
                continue
            stored = check.complete(record).model_copy(update={"trial": trial})
            records[trial.key] = context.sweep_home.take_over(origin, stored)
            queue.add(records[trial.key])


def _check(context: RunContext, sweep_home: SweepHome, records: Collection[TrialRecord]) -> RecordCheck:
    """The check of the records of one sweep; the teachers are looked up only if some trial was taught."""
    taught = any(record.trial.loaded_teachers for record in records)
    return RecordCheck(
        context.plan.keys,
        context.data,
        folder=sweep_home.folder,
        facts=sweep_home.read_facts(),
        teachers=known_teachers(context) if taught else {},
    )


def _is_usable(record: TrialRecord, plan: Plan) -> bool:
    """Whether the record stands for its trial in this sweep; a sweep without a scheduler runs stopped trials to their end."""
    return record.status == "finished" or (record.status == "stopped" and plan.spec.search.scheduler != "none")
