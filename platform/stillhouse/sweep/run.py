"""One run of a sweep: runs the trials that have no record, then writes facts, report and tracking."""

import shlex
import time
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from functools import partial

from stillhouse import tasks
from stillhouse.errors import Interrupted
from stillhouse.report import ReportFiles, parse_budget, write_report
from stillhouse.spec.controls import all_teachers
from stillhouse.spec.records import SweepFacts, TeacherFacts, TrialRecord
from stillhouse.sweep.cluster.cluster import Cluster
from stillhouse.sweep.execution.students import student_key
from stillhouse.sweep.execution.trial_environment import TeacherScore, TrialEnvironment
from stillhouse.sweep.facts import inherited_teachers, initial_facts, with_seconds
from stillhouse.sweep.failures import check_teacher_folders, interrupted_message
from stillhouse.sweep.home.sweep_home import SweepHome
from stillhouse.sweep.latency_limit import LATENCY, measure_latencies, slow_student_notes, store_latencies
from stillhouse.sweep.outdated import Reason, of_other_evaluation, set_aside, taught_by
from stillhouse.sweep.phases import Phases
from stillhouse.sweep.planning.plan import Plan
from stillhouse.sweep.re_evaluation import evaluate_again
from stillhouse.sweep.results.mlflow_sync import store_front
from stillhouse.sweep.results.predictions import drop_outputs, write_predictions
from stillhouse.sweep.results.results import Results
from stillhouse.sweep.reuse import reusable_records, take_over_trials
from stillhouse.sweep.run_context import RunContext
from stillhouse.sweep.search.budget import BudgetTracker
from stillhouse.sweep.search.trial_queue import TrialQueue
from stillhouse.sweep.shutdown import TIMEOUT_S
from stillhouse.sweep.student_starts import prepare_starts
from stillhouse.sweep.teacher_accounting import TeacherAccounts, TeacherUse, teacher_warnings
from stillhouse.sweep.teacher_setup import ReadyTeacher, start_filling, start_teachers
from stillhouse.sweep.trial_retries import run_phase
from stillhouse.sweep.winner_measurements import lacking_robustness, measure_robustness, measure_winners
from stillhouse.tracking import Tracker

_TRACKING_TIMEOUT_S = 120.0
_NOTE_INTERVAL_S = 60.0


def run_sweep(
    context: RunContext, *, started: float, again: Collection[str] = (), origin: SweepHome | None = None, command: str = ""
) -> Results:
    """Runs what the ledger lacks and returns the results of the whole sweep. Hold the sweep's lock.

    Args:
        started: when the run began, by `time.perf_counter`.
        again: statuses whose trials run again.
        origin: the sweep that this one is a fork of.
        command: how the sweep was called, for the report.

    Raises:
        Interrupted: the user requested the sweep to end; facts and report are written.
        InfrastructureError: the cluster, the disk or a teacher failed.
    """
    plan, sweep_home = context.plan, context.sweep_home
    phases = Phases(plan=plan, read_latencies=sweep_home.read_latencies)
    earlier = sweep_home.read_facts()
    records = _known_records(context, phases, again, origin)
    known = dict(records)
    accounts = TeacherAccounts(sweep_home, earlier)
    budget = _budget(context, records, started)
    missing = any(queue_of().has_next() for queue_of in _queues(phases, records, budget))
    inherited = inherited_teachers(origin.read_facts(), records.values()) if origin else []
    facts = initial_facts(context, earlier, command, works=missing, teachers=inherited)
    tracker = Tracker(
        context.spec.tracking.uri, home=sweep_home.home, experiment=context.spec.tracking.experiment or context.spec.name
    )
    try:
        facts = _with_tracking(facts, tracker)
        evaluation = facts.dataset["evaluation"]
        outdated = {record.trial.key for record in of_other_evaluation(records.values(), evaluation)}
        for key, record in records.items():
            if key not in outdated:
                tracker.log_trial(record)
        publish = partial(_publish_teachers, sweep_home, tracker, accounts, facts, records)
        # Where the facts of an earlier run are lost, the teachers are loaded to know them again.
        needed = missing or bool(outdated) or not _knows_teachers(facts, records.values())
        if needed:
            ready = _run_missing(context, phases, records, budget, tracker, evaluation, publish, facts)
        else:
            ready = {}
            _add_robustness(context, records, tracker, facts)
        sweep_home.drop_checkpoints(records)
        teachers = [teacher.facts for teacher in ready.values()] or facts.teachers
        outcome = _outcome(phases, records, known, teachers, accounts)
        notes = _closing_notes(context, phases, records, budget, teachers, outcome)
        facts = _closing_facts(context, facts, accounts, teachers, outcome, notes, tracker)
        if missing or earlier is None:
            facts = with_seconds(facts, time.perf_counter() - started)
        files = _write_outcome(context, facts, outcome.records, tracker)
    finally:
        tracker.close()
    if context.shutdown.requested:
        raise Interrupted(interrupted_message(sweep_home))
    return Results(
        facts=facts,
        records=outcome.records,
        sweep_home=sweep_home,
        planned=outcome.planned,
        reused=outcome.reused,
        forwarded={name: use.forwarded for name, use in outcome.uses.items()},
        gathered={name: use.gathered for name, use in outcome.uses.items()},
        files=files,
        tracking=facts.tracking,
        seconds=time.perf_counter() - started,
    )


def _known_records(
    context: RunContext, phases: Phases, again: Collection[str], origin: SweepHome | None
) -> dict[str, TrialRecord]:
    """The records that need not be produced again, by trial key; shows them together with the plan."""
    if context.plan.search is not None:
        context.plan.search.memory.update(context.sweep_home.read_suggestions())
    records = reusable_records(context, again=again)
    if origin is not None:
        take_over_trials(origin, context, phases, records)
    searched = phases.searched(records)
    claim = context.spec.trial_resources
    task = tasks.of(context.data)
    judged = context.data.validation
    context.progress.use_metric(task.metric, task.trivial_value(judged.labels) if len(judged) else None)
    context.progress.plan(searched.expected, [records[key] for key in searched.known if key in records])
    context.progress.claims(cpu=claim.cpu, gpu=claim.gpu)
    return records


def _publish_teachers(
    sweep_home: SweepHome,
    tracker: Tracker,
    accounts: TeacherAccounts,
    facts: SweepFacts,
    records: Mapping[str, TrialRecord],
    teachers: Sequence[TeacherFacts],
) -> None:
    """Stores what is known of the teachers before the first trial: a later run may find nothing missing and start none."""
    known = [accounts.total(teacher, records.values()) for teacher in teachers]
    place = sweep_home.latency_place()
    published = facts.model_copy(update={"teachers": known, "open_fills": accounts.log_start, "latency_place": place})
    sweep_home.write_facts(published)
    tracker.know(published)


def _with_tracking(facts: SweepFacts, tracker: Tracker) -> SweepFacts:
    tracking = {"uri": tracker.uri, "experiment": tracker.experiment, "run_id": tracker.start_sweep(facts)}
    return facts.model_copy(update={"tracking": tracking})


def _budget(context: RunContext, records: Mapping[str, TrialRecord], started: float) -> BudgetTracker:
    return BudgetTracker(
        context.spec.search.budget,
        records.values(),
        gpus=context.spec.trial_resources.gpu,
        packed=context.spec.trial_resources.packed,
        started=started,
        clock=time.perf_counter,
    )


def _run_missing(
    context: RunContext,
    phases: Phases,
    records: dict[str, TrialRecord],
    budget: BudgetTracker,
    tracker: Tracker,
    evaluation: Mapping[str, str],
    on_teachers: Callable[[Sequence[TeacherFacts]], None],
    facts: SweepFacts,
) -> Mapping[str, ReadyTeacher]:
    """Runs the trials that `records` lacks and adds their records. Returns the teachers that it started.

    Args:
        budget: consulted before each trial starts.
        evaluation: the `evaluation_identity` of the data; students that were evaluated otherwise are evaluated again.
        on_teachers: called with the teachers' facts when they are ready, before the first trial.
        facts: by which winners are chosen when all trials have ended.
    """
    plan = context.plan
    queues = _queues(phases, records, budget)
    if all_teachers(context.spec):
        check_teacher_folders(context.sweep_home.home)
    with context.connect() as cluster:
        cluster.share(context.data)
        ready = start_teachers(cluster, context)
        _set_aside_taught_by_others(context, records, ready)
        environment = _trial_environment(cluster, context, ready, evaluation)
        on_teachers([teacher.facts for teacher in ready.values()])
        changed = evaluate_again(context, records, environment)
        changed |= store_latencies(context, records, environment.latencies)
        for record in changed.values():
            tracker.log_trial(record)
        if any(queue_of().has_next() for queue_of in queues):
            # Only now: latency is measured on a quiet machine.
            start_filling(ready.values(), context)
        noted = time.monotonic()

        def add(record: TrialRecord) -> None:
            nonlocal noted
            records[record.trial.key] = record
            tracker.log_trial(record)
            if time.monotonic() - noted > _NOTE_INTERVAL_S:
                _store_suggestions(plan, context.sweep_home)
                noted = time.monotonic()

        for queue_of in queues:
            if queue_of().has_next():
                run_phase(cluster, queue_of, phases, context, environment, records, add)
            if context.shutdown.requested:
                break
        _store_suggestions(plan, context.sweep_home)
        for record in measure_winners(cluster, context, facts, records).values():
            tracker.log_trial(record)
    return ready


def _add_robustness(context: RunContext, records: dict[str, TrialRecord], tracker: Tracker, facts: SweepFacts) -> None:
    """Evaluates winners of a finished sweep on degraded images, if the spec requests it since."""
    if lacking_robustness(context, facts, records):
        with context.connect() as cluster:
            cluster.share(context.data)
            for record in measure_robustness(cluster, context, facts, records).values():
                tracker.log_trial(record)


def _queues(
    phases: Phases, records: Mapping[str, TrialRecord], budget: BudgetTracker
) -> tuple[Callable[[], TrialQueue], Callable[[], TrialQueue]]:
    """A new queue of each phase. The trials of the second depend on what the first found."""
    return lambda: phases.search(records, budget), lambda: phases.confirm(records, budget)


def _knows_teachers(facts: SweepFacts, records: Iterable[TrialRecord]) -> bool:
    """Whether the facts have every teacher that taught a trial."""
    known = {teacher.name for teacher in facts.teachers}
    return all(known.issuperset(record.trial.loaded_teachers) for record in records)


def _set_aside_taught_by_others(
    context: RunContext, records: dict[str, TrialRecord], teachers: Mapping[str, ReadyTeacher]
) -> None:
    """Sets the records aside that other networks taught than those that are loaded now under their names."""
    loaded = {name: teacher.facts.identity for name, teacher in teachers.items()}

    def reason(record: TrialRecord) -> Reason | None:
        pairs = taught_by(record.trial, record.basis)
        return Reason.TEACHER if any(identity and loaded.get(name, identity) != identity for name, identity in pairs) else None

    set_aside(context, records, reason)


def _trial_environment(
    cluster: Cluster, context: RunContext, teachers: Mapping[str, ReadyTeacher], evaluation: Mapping[str, str]
) -> TrialEnvironment:
    """What trials need; measures the latencies, which it also adds to the teachers' facts."""
    spec, metric = context.spec, context.plan.metric
    networks = {name: teacher.network for name, teacher in teachers.items()}
    latencies = measure_latencies(cluster, context, networks)
    for name, teacher in teachers.items():
        measured = latencies.get(student_key(networks[name]), {})
        teacher.facts = teacher.facts.model_copy(update={LATENCY: measured.get(LATENCY)})
    claim = spec.trial_resources
    return TrialEnvironment(
        folder=str(context.sweep_home.folder),
        views=context.views,
        training=spec.training,
        tickets={name: teacher.ticket for name, teacher in teachers.items()},
        teachers={
            name: TeacherScore(
                parameters=teacher.facts.parameters,
                test_value=teacher.facts.value(metric.column("test")) or 0.0,
                identity=teacher.facts.identity,
                outputs=teacher.outputs,
            )
            for name, teacher in teachers.items()
        },
        latencies=latencies,
        starts=prepare_starts(spec, context.sweep_home.home),
        evaluation=evaluation,
        threads=cluster.threads,
        workers=claim.num_workers,
        gpu_share=claim.gpu / claim.num_workers,
        import_paths=cluster.import_paths,
        method_folders=tuple(spec.method_paths),
        home=cluster.home,
    )


def _store_suggestions(plan: Plan, sweep_home: SweepHome) -> None:
    """Stores what an adaptive search suggested. A failure costs the next run time and nothing else."""
    if plan.search is not None:
        with suppress(OSError):
            sweep_home.write_suggestions(plan.search.memory)


@dataclass(frozen=True, kw_only=True)
class _Outcome:
    """What a run leaves.

    Attributes:
        records: of the sweep's trials, sorted by key.
        planned: how many trials both phases have.
        reused: how many of the records existed when the run began.
        uses: what this run took of each teacher, by name.
    """

    records: Sequence[TrialRecord]
    planned: int
    reused: int
    uses: Mapping[str, TeacherUse]


def _outcome(
    phases: Phases,
    records: Mapping[str, TrialRecord],
    known: Mapping[str, TrialRecord],
    teachers: Sequence[TeacherFacts],
    accounts: TeacherAccounts,
) -> _Outcome:
    wanted = phases.wanted(records)
    ledger = [records[key] for key in sorted(records) if key in wanted]
    new = [record for record in ledger if _is_new(record, known)]
    uses = {teacher.name: accounts.use_in_run(teacher, new) for teacher in teachers}
    return _Outcome(records=ledger, planned=len(wanted), reused=len(ledger) - len(new), uses=uses)


def _closing_facts(
    context: RunContext,
    facts: SweepFacts,
    accounts: TeacherAccounts,
    teachers: Sequence[TeacherFacts],
    outcome: _Outcome,
    notes: Sequence[str],
    tracker: Tracker,
) -> SweepFacts:
    """The facts with what the run did."""
    totals = [accounts.total(each, outcome.records, outcome.uses[each.name]) for each in teachers]
    tracking = {**facts.tracking, "run_id": tracker.run_id}
    place = context.sweep_home.latency_place()
    return facts.model_copy(
        update={"teachers": totals, "notes": [*facts.notes, *notes], "tracking": tracking, "latency_place": place}
    )


def _is_new(record: TrialRecord, known: Mapping[str, TrialRecord]) -> bool:
    """Whether this run trained the student; the trial may have an earlier record that was set aside meanwhile."""
    before = known.get(record.trial.key)
    return before is None or (before.started, before.finished) != (record.started, record.finished)


def _closing_notes(
    context: RunContext,
    phases: Phases,
    records: Mapping[str, TrialRecord],
    budget: BudgetTracker,
    teachers: Sequence[TeacherFacts],
    outcome: _Outcome,
) -> list[str]:
    """What the report's reader must know of the run; what the budget left undone is also shown now."""
    undone = phases.undone_notes(records, budget)
    for note in undone:
        context.progress.note(note)
    return [
        *slow_student_notes(context.plan, context.sweep_home.read_latencies()),
        *undone,
        *teacher_warnings(teachers, outcome.records, context.plan.metric),
    ]


def _write_outcome(context: RunContext, facts: SweepFacts, records: Sequence[TrialRecord], tracker: Tracker) -> ReportFiles:
    """Writes facts and report, and completes the tracking."""
    sweep_home = context.sweep_home
    sweep_home.write_facts(facts)
    timeout_s = TIMEOUT_S if context.shutdown.requested else _TRACKING_TIMEOUT_S
    if addresses := tracker.drain(timeout_s):
        sweep_home.write_addresses(addresses)
    budgets = [parse_budget(text) for text in context.spec.report.budgets]
    files = write_report(facts, records, sweep_home.report, budgets, sweep_home.read_addresses())
    if note := write_predictions(facts, records, context.data.test.labels.numpy(), sweep_home):
        context.progress.note(note)
    if not context.shutdown.requested:
        drop_outputs(facts, records, sweep_home)
    results = Results(facts=facts, records=records, sweep_home=sweep_home, planned=len(records), files=files)
    _complete_tracking(context, results, files, tracker, timeout_s)
    return files


def _complete_tracking(context: RunContext, results: Results, files: ReportFiles, tracker: Tracker, timeout_s: float) -> None:
    """Stores the report and the students of the front; notes the command that adds what is missing."""
    sync = f"later: stillhouse sync {results.facts.name} --home {shlex.quote(str(results.home))}"
    artifacts = {name: getattr(files, name) for name in ("page", "table", "figure", "csv")}
    if not tracker.finish(results.facts, artifacts, timeout_s, best=results.best_numbers()):
        context.progress.note(f"tracking is not complete; {sync}")
        return
    if context.shutdown.requested:
        # The user does not wait for students; the run that continues stores them.
        return
    if reasons := store_front(results, context.spec, context.data).reasons:
        context.progress.note(f"not every student of the front is stored in MLflow ({reasons[0]}); {sync}")
