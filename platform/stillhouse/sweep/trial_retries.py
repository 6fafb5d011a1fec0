"""Trials that were lost with their workers: run again while that helps, given up when a trial kills every worker."""

import itertools
from collections.abc import Callable, Iterable
from dataclasses import replace

from stillhouse.errors import InfrastructureError
from stillhouse.provenance import code_facts
from stillhouse.spec.records import Trial, TrialRecord
from stillhouse.sweep.cluster.cluster import Cluster
from stillhouse.sweep.cluster.trial_watch import LostTrial
from stillhouse.sweep.cluster.tune_run import RESTARTS_OF_A_TRIAL
from stillhouse.sweep.execution.trial_environment import TrialEnvironment
from stillhouse.sweep.failures import check_folder, folder_problem
from stillhouse.sweep.home.ledger import now
from stillhouse.sweep.home.sweep_home import SweepHome
from stillhouse.sweep.phases import Phases, Records
from stillhouse.sweep.run_context import RunContext, resume_command
from stillhouse.sweep.search.trial_queue import TrialQueue

_MAX_WORKER_DEATHS = 2 * (1 + RESTARTS_OF_A_TRIAL)
"""After so many deaths of its workers a trial is given up: it was tried again until nothing else was left to run."""


def run_phase(
    cluster: Cluster,
    queue_of: Callable[[], TrialQueue],
    phases: Phases,
    context: RunContext,
    environment: TrialEnvironment,
    records: Records,
    on_record: Callable[[TrialRecord], None],
) -> None:
    """Runs the trials of one phase until each has a record, the budget is spent or the sweep is requested to end.

    Args:
        queue_of: makes the phase's queue from the present records.
        on_record: called with each new record; adds it to `records`.

    Raises:
        InfrastructureError: trials are lost again and again, or the sweep's folder was removed or cannot be written; finished
            trials are stored.
    """
    sweep_home = context.sweep_home
    begun, deaths = len(records), dict[str, LostTrial]()
    for attempt in itertools.count():
        queue, before = queue_of(), len(records)
        context.progress.plan(len({*phases.searched(records).known} - {*queue.known}) + queue.expected)
        lost = cluster.run(
            queue,
            environment,
            metric=context.plan.metric,
            parameters=lambda trial: context.plan.size_of(trial).parameters,
            history=list(records.values()),
            on_record=on_record,
            give_up=lambda: folder_problem(sweep_home) is not None,
        )
        check_folder(sweep_home)
        if context.shutdown.requested or not lost:
            return
        deaths = {each.key: _with_earlier_deaths(each, deaths.get(each.key)) for each in lost}
        if deadly := _deadly(deaths.values(), records):
            for each in deadly:
                record = _give_up(queue.known[each.key], each, sweep_home)
                context.progress.trial_done(record)
                on_record(record)
            continue
        # Tune gives a trial up for good when its worker is lost while it changes trials (ray 2.60).
        if attempt > 0 and len(records) == before:
            raise InfrastructureError(
                f"{len(lost)} of {len(lost) + len(records) - begun} trials did not finish, the first is "
                f"{lost[0].key}: {lost[0].reason}; the others are stored. Continue with: {resume_command(sweep_home)}"
            )
        context.progress.note(f"{len(lost)} trials were lost with their workers and run again")


def _with_earlier_deaths(lost: LostTrial, before: LostTrial | None) -> LostTrial:
    """With the deaths of an earlier attempt, if they were in the same epoch."""
    same = before is not None and before.epoch == lost.epoch and lost.deaths > 0
    return replace(lost, deaths=lost.deaths + before.deaths) if before is not None and same else lost


def _deadly(lost: Iterable[LostTrial], records: Records) -> list[LostTrial]:
    """The lost trials that kill every worker they get; none while fewer trials than those have finished."""
    deadly = [each for each in lost if each.deaths >= _MAX_WORKER_DEATHS]
    finished = sum(record.status == "finished" for record in records.values())
    return deadly if len(deadly) <= finished else []


def _give_up(trial: Trial, lost: LostTrial, sweep_home: SweepHome) -> TrialRecord:
    """Writes the record of a trial that no worker survives, so that the sweep continues without it."""
    record = TrialRecord(
        trial=trial,
        status="failed",
        reason=f"its worker died {lost.deaths} times in epoch {lost.epoch + 1}; if memory ran out, lower "
        f"training.batch_size or give each trial more of a machine by trial_resources.cpu. Ray reports: {lost.reason}",
        code=code_facts(),
        finished=now(),
    )
    sweep_home.ledger.write(record)
    sweep_home.drop_checkpoints([trial.key])
    return record
