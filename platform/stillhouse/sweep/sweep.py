"""A sweep from its spec to its results."""

import itertools
import shlex
import shutil
import time
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Self

from stillhouse import methods, tasks
from stillhouse.data.datasets import ImageData, load_dataset
from stillhouse.data.views import Views
from stillhouse.distill.sources import Reading
from stillhouse.errors import (
    DiskFullError,
    InfrastructureError,
    Interrupted,
    SpecError,
    StillhouseError,
    UsageError,
    as_disk_full,
)
from stillhouse.knowledge.fill_log import count_fills
from stillhouse.models.blueprint import blueprint
from stillhouse.models.size_limits import over_limit
from stillhouse.provenance import code_facts, environment_facts
from stillhouse.report import ReportFiles, parse_budget, write_report
from stillhouse.spec.load import spec_to_dict
from stillhouse.spec.records import StudentChoice, SweepFacts, TeacherFacts, Trial, TrialRecord
from stillhouse.spec.schema import SearchBudget, SweepSpec
from stillhouse.spec.training import Training
from stillhouse.sweep.cluster.cluster import RESTARTS_OF_A_TRIAL, Cluster
from stillhouse.sweep.cluster.teacher_actors import Teacher, call_actor, request_ahead
from stillhouse.sweep.cluster.trial_watch import LostTrial
from stillhouse.sweep.execution.students import student_key
from stillhouse.sweep.execution.trial_environment import TeacherScore, TrialEnvironment
from stillhouse.sweep.home.ledger import now
from stillhouse.sweep.home.status import publish_status
from stillhouse.sweep.home.sweep_home import TRIALS_PER_METHOD, SweepHome, extended_spec, find_sweep, resolve_home
from stillhouse.sweep.planning.knowledge_delivery import StoreQuota
from stillhouse.sweep.planning.knowledge_demand import knowledge_demand, stored_form_of_logits
from stillhouse.sweep.planning.plan import Plan, make_plan
from stillhouse.sweep.planning.spec_check import check, check_file
from stillhouse.sweep.planning.trial_keys import make_views
from stillhouse.sweep.progress import Progress
from stillhouse.sweep.results.mlflow_sync import store_front
from stillhouse.sweep.results.results import Results
from stillhouse.sweep.search.budget import BudgetTracker
from stillhouse.sweep.search.trial_queue import ListQueue, TrialQueue, start_queue, undone_note
from stillhouse.sweep.shutdown import TIMEOUT_S, ShutdownRequest
from stillhouse.teachers.actor import make_ticket
from stillhouse.teachers.definition import FillPlan, TeacherDefinition, TeacherTicket
from stillhouse.teachers.delivery_cost import Choice, choose_calling_way
from stillhouse.tracking import Tracker, fetch_weights

_TRACKING_TIMEOUT_S = 120.0
_MLFLOW = "mlflow:"
VERIFIED_PAIRS = 1024
_MEASURED = "latency_ms"
"""The one size of a student that is not known before the sweep runs."""
_SHOWN_STUDENTS = 5
_NOTE_INTERVAL_S = 60.0
_DEATHS_OF_A_TRIAL = 2 * (1 + RESTARTS_OF_A_TRIAL)
"""Of its workers, before a trial is given up: as often as it is tried until nothing else is left to run."""


class Sweep:
    """One sweep.

    Args:
        spec: a validated spec.
        home: where sweeps, teachers and knowledge are kept; see `resolve_home`.
        address: of a Ray cluster; None starts Ray on this machine.
        command: how the sweep was called, for the report.
        progress: shows events; by default nothing is shown.
    """

    def __init__(
        self,
        spec: SweepSpec,
        *,
        home: str | Path | None = None,
        address: str | None = None,
        command: str = "",
        progress: Progress | None = None,
    ) -> None:
        self.spec = spec
        self.sweep_home = SweepHome(resolve_home(home), spec.name)
        self._address = address
        self._command = command
        self._progress = Progress(spec.name, quiet=True) if progress is None else progress
        self._data: ImageData | None = None
        self._plan: Plan | None = None
        self._may_change: frozenset[str] = frozenset()
        self._origin: SweepHome | None = None
        self._left_undone: list[str] = []
        self._shutdown = ShutdownRequest(self.sweep_home.stop_request, last_words=self._how_to_go_on, tell=self._progress.note)

    @classmethod
    def from_yaml(cls, path: str | Path, overrides: Sequence[str] = (), **options: Any) -> Self:
        """The sweep that a YAML file describes, with `key=value` overrides; options as for `Sweep`.

        Raises:
            SpecError: with every problem of the spec.
        """
        return cls(check_file(path, overrides), **options)

    @classmethod
    def named(cls, name: str, *, home: str | Path | None = None, **options: Any) -> Self:
        """The sweep that was started before under this name.

        Raises:
            UsageError: there is none.
        """
        sweep_home = find_sweep(resolve_home(home), name)
        return cls(check(sweep_home.read_spec_dict()), home=sweep_home.home, **options)

    @classmethod
    def extended(cls, name: str, trials_per_method: int, *, home: str | Path | None = None, **options: Any) -> Self:
        """The sweep that was started before under this name, with more trials of each method.

        Raises:
            UsageError: there is none, its algorithm has no number of trials, or it has more than that already.
        """
        sweep_home = find_sweep(resolve_home(home), name)
        sweep = cls(check(extended_spec(sweep_home.read_spec_dict(), trials_per_method)), home=sweep_home.home, **options)
        sweep._may_change = frozenset({TRIALS_PER_METHOD})
        return sweep

    @classmethod
    def forked(cls, spec: SweepSpec, name: str, *, home: str | Path | None = None, **options: Any) -> Self:
        """A sweep called `name` that takes over whatever fits `spec` of the trials of the sweep that `spec` names.

        Raises:
            UsageError: there is no such sweep, or it is to be its own fork.
            SpecError: `name` can not be a sweep's.
        """
        origin = find_sweep(resolve_home(home), spec.name)
        if name == spec.name:
            raise UsageError(f"--fork must be another name than that of the sweep, got '{name}'")
        sweep = cls(check({**spec_to_dict(spec, secrets=True), "name": name}), home=origin.home, **options)
        sweep._origin = origin
        return sweep

    def data(self) -> ImageData:
        """The data set, loaded once.

        Raises:
            UsageError: its files are missing or damaged.
        """
        if self._data is None:
            wanted = self.spec.dataset
            self._data = load_dataset(
                wanted.name,
                root=wanted.root,
                # One split for all searches of this data: a teacher is found again whatever the search's seed.
                validation=wanted.validation,
                download=wanted.download,
                size=wanted.size,
                options=wanted.options,
                cache=self.sweep_home.home / "data",
                task=tasks.name_of(self.spec.task),
                targets=tasks.find(self.spec.task).targets,
            )
        return self._data

    def plan(self) -> Plan:
        """The trials that the spec implies.

        Raises:
            SpecError: with everything that can not work.
        """
        if self._plan is None:
            self._plan = make_plan(self.spec, self.data())
            self.spec = self._plan.spec
        return self._plan

    def run(self, *, again: Collection[str] = ()) -> Results:
        """Runs what the ledger lacks, writes report and tracking, and gives the results.

        In the main thread it takes Ctrl-C and SIGTERM: the first ends it gracefully, the second at once.

        Args:
            again: statuses (`failed`, `stopped`) whose records are set aside first, so that their trials run again.

        Raises:
            SpecError, UsageError: before anything starts.
            InfrastructureError: the cluster, the disk or a teacher failed; what is finished is kept.
            Interrupted: by Ctrl-C, SIGTERM or `stillhouse stop`; what is finished is kept.
        """
        started = time.perf_counter()
        with self._one_sentence():
            plan = self.plan()
            # Whoever sees the lock may ask the sweep to end.
            with self.sweep_home.locked(), self._shutdown:
                self.sweep_home.write_spec(
                    spec_to_dict(self.spec, secrets=True), may_change=self._may_change, complete=_with_defaults
                )
                with self._unless_removed(), publish_status(self._progress, self.sweep_home):
                    return self._run(plan, started, again)

    def verify(self, pairs: int = VERIFIED_PAIRS) -> dict[str, Any]:
        """Asks the teachers again for a sample of what is sealed for this sweep, the same one for the same `search.seed`.

        Args:
            pairs: (view, sample) pairs of each teacher.

        Returns:
            `compared`, and `differences` with the `teacher` and what `verify_sealed` says of each; what differs is removed.
        """
        plan = self.plan()
        asked_of = knowledge_demand(
            self.spec, plan.representative_trials, self.data(), self._views(), adaptive=plan.search is not None
        )
        definitions = [self._definition(name) for name in self.spec.teachers if asked_of.get(name)]
        compared, differences = 0, []
        if definitions:
            with Cluster(
                self.spec, address=self._address, home=self.sweep_home.home, progress=self._progress, shutdown=self._shutdown
            ) as cluster:
                cluster.share(self.data())
                for running in cluster.start_teachers(definitions, self.data(), self._views()):
                    name = running.definition.name
                    kinds = [each.kind for each in asked_of[name].values()]
                    found = call_actor(running.handle, "verify", kinds, pairs, self.spec.search.seed)
                    compared += found["compared"]
                    differences += [{"teacher": name, **each} for each in found["differences"]]
        return {"compared": compared, "differences": differences}

    def train_teachers(self) -> list[dict[str, Any]]:
        """Trains or loads the spec's teachers, and fills nothing.

        Returns:
            of each its `name`, `model`, `key`, `weights` (a path), `validation_accuracy`, `train_seconds` and whether it was
            `trained_now`.

        Raises:
            UsageError: the spec has no teachers; weights that can not be read or do not fit.
            InfrastructureError: as for `run`.
            Interrupted: behind the epoch under way; the same command goes on there.
        """
        if not self.spec.teachers:
            raise UsageError("the spec has no teachers; name one under teachers, such as {big: {model: resnet56}}")
        definitions = [self._definition(name) for name in self.spec.teachers]
        self.sweep_home.home.mkdir(parents=True, exist_ok=True)
        try:
            with (
                self._shutdown,
                Cluster(
                    self.spec,
                    address=self._address,
                    home=self.sweep_home.home,
                    progress=self._progress,
                    shutdown=self._shutdown,
                ) as cluster,
            ):
                cluster.share(self.data())
                return [
                    {
                        "name": running.definition.name,
                        "model": running.definition.model,
                        "key": running.facts["key"],
                        "weights": running.facts["weights_path"],
                        **{name: running.facts[name] for name in ("validation_accuracy", "train_seconds", "trained_now")},
                    }
                    for running in cluster.start_teachers(definitions, self.data(), self._views())
                ]
        except (KeyboardInterrupt, Interrupted) as interrupt:
            raise Interrupted("interrupted; the same command goes on where the training was") from interrupt

    @contextmanager
    def _one_sentence(self) -> Iterator[None]:
        """Turns an interruption and the disk's errors into what the user should be told."""
        try:
            yield
        except (KeyboardInterrupt, Interrupted) as interrupt:
            raise Interrupted(self._how_to_go_on if self.sweep_home.folder.exists() else "interrupted") from interrupt
        except (OSError, InfrastructureError) as error:
            if (full := as_disk_full(error, self.sweep_home.folder)) is not None:
                raise DiskFullError(
                    f"{full}; finished trials are kept. Make room (`stillhouse teachers prune` helps) and go on with: "
                    f"{self.resume_command}"
                ) from error
            if isinstance(error, InfrastructureError):
                raise
            # Not every error of a write knows its file.
            raise InfrastructureError(f"{error.strerror or error} ({error.filename or self.sweep_home.folder})") from error

    @contextmanager
    def _unless_removed(self) -> Iterator[None]:
        """Whatever breaks since somebody removed the sweep's folder has that for its reason."""
        try:
            yield
        except (OSError, StillhouseError, KeyboardInterrupt) as error:
            if not self.sweep_home.is_removed:
                raise
            self._refuse_removed(error)

    def _refuse_removed(self, error: BaseException | None = None) -> None:
        if self.sweep_home.is_removed:
            raise InfrastructureError(
                f"the folder {self.sweep_home.folder} was removed while the sweep ran, and what had finished with it; "
                f"teachers and their knowledge are kept. Start the sweep again with its YAML file"
            ) from error

    @property
    def _how_to_go_on(self) -> str:
        return f"interrupted; finished trials are kept. Go on with: {self.resume_command}"

    @property
    def resume_command(self) -> str:
        return f"stillhouse resume {self.spec.name} --home {shlex.quote(str(self.sweep_home.home))}"

    def _run(self, plan: Plan, started: float, again: Collection[str]) -> Results:
        if plan.search is not None:
            plan.search.memory.update(self.sweep_home.read_suggestions())
        records = self._read_ledger(plan, again)
        self._take_over(plan, records)
        before = set(records)
        earlier = self.sweep_home.read_facts()
        facts = self._first_facts(plan, earlier)
        searched = self._searched(plan, records)
        self._progress.plan(searched.expected, [records[key] for key in searched.known if key in records])
        self._progress.claims(cpu=self.spec.trial_resources.cpu, gpu=self.spec.trial_resources.gpu)
        fills_before = self.sweep_home.fill_log_bytes()
        lost = self._fills_of_a_broken_run(earlier, fills_before)
        tracker = Tracker(
            self.spec.tracking.uri, home=self.sweep_home.home, experiment=self.spec.tracking.experiment or self.spec.name
        )
        try:
            facts = facts.model_copy(
                update={
                    "tracking": {"uri": tracker.uri, "experiment": tracker.experiment, "run_id": tracker.start_sweep(facts)}
                }
            )
            for record in records.values():
                tracker.log_trial(record)

            def keep_teachers(teachers: Sequence[TeacherFacts]) -> None:
                # Now, not at the end: a later run that finds nothing missing starts no teacher and must know of them.
                known = [_add_up(teacher, [lost.get(teacher.key, {})], records.values(), earlier) for teacher in teachers]
                seconds = earlier.seconds if earlier else 0.0
                told = facts.model_copy(update={"teachers": known, "seconds": seconds, "open_fills": fills_before})
                self.sweep_home.write_facts(told)
                tracker.know(told)

            account = BudgetTracker(
                self.spec.search.budget,
                records.values(),
                gpus=self.spec.trial_resources.gpu,
                started=started,
                clock=time.perf_counter,
            )
            crew = self._run_missing(plan, records, account, tracker, keep_teachers)
            searched = self._searched(plan, records)
            wanted = {*searched.known, *(trial.key for trial in self._confirming(plan, records, searched))}
            kept = [records[key] for key in sorted(records) if key in wanted]
            new = [record for record in kept if record.trial.key not in before]
            teachers = [member.facts for member in crew.values()] or facts.teachers
            spent = {teacher.name: self._spent(teacher, new, fills_before) for teacher in teachers}
            facts = facts.model_copy(
                update={
                    "teachers": [
                        _add_up(teacher, [lost.get(teacher.key, {}), spent[teacher.name].fills], kept, earlier)
                        for teacher in teachers
                    ],
                    "notes": [*facts.notes, *self._slow_students(plan), *self._left_undone, *_warnings(teachers, kept)],
                    "tracking": {**facts.tracking, "run_id": tracker.run_id},
                    "seconds": (earlier.seconds if earlier else 0.0) + time.perf_counter() - started,
                }
            )
            self.sweep_home.write_facts(facts)
            patience = _TRACKING_TIMEOUT_S if not self._shutdown.requested else TIMEOUT_S
            if addresses := tracker.drain(patience):
                self.sweep_home.write_addresses(addresses)
            budgets = [parse_budget(text) for text in self.spec.report.budgets]
            files = write_report(facts, kept, self.sweep_home.report, budgets, self.sweep_home.read_addresses())
            self._track(tracker, facts, kept, files, patience)
        finally:
            tracker.close()
        if self._shutdown.requested:
            raise Interrupted(self._how_to_go_on)
        return Results(
            facts=facts,
            records=kept,
            sweep_home=self.sweep_home,
            planned=len(wanted),
            reused=len(kept) - len(new),
            forwarded={name: one.forwarded for name, one in spent.items()},
            gathered={name: one.gathered for name, one in spent.items()},
            files=files,
            tracking=facts.tracking,
            seconds=time.perf_counter() - started,
        )

    def _read_ledger(self, plan: Plan, again: Collection[str]) -> dict[str, TrialRecord]:
        records, damaged = self.sweep_home.ledger.read_all()
        for key in damaged:
            self._progress.note(f"the record of trial {key} is damaged; the trial runs again")
            self.sweep_home.ledger.remove(key)
        if again and not any(record.status in again for record in records.values()):
            self._progress.note(f"no trial is {' or '.join(again)}: only what is missing runs")
        # What a scheduler stopped early says nothing of a trial that no scheduler may stop.
        again = {*again, "stopped"} if self.spec.search.scheduler == "none" else set(again)
        others = [key for key, record in records.items() if plan.keys.is_of_other_code(record.trial)]
        if others:
            changed = ", ".join(sorted({f"{records[key].trial.method} on {records[key].trial.student.name}" for key in others}))
            self._progress.note(
                f"code of your own has changed since {len(others)} trials ran ({changed}); they run again, and their "
                f"records lie in {self.sweep_home.ledger.folder / 'aside'}"
            )
        for key in {*others, *(key for key, record in records.items() if record.status in again)}:
            self.sweep_home.ledger.set_aside(key)
            del records[key]
        return records

    def _take_over(self, plan: Plan, records: dict[str, TrialRecord]) -> None:
        """Brings what the plan wants of the sweep that this one is a fork of into the own ledger and into `records`."""
        if self._origin is None:
            return
        # The control and the winners are known only behind the search, also behind one that is taken over.
        for confirming in (False, True):
            queue = self._confirm_queue(plan, records) if confirming else plan.queue(records, BudgetTracker(SearchBudget()))
            while (trial := queue.next()) is not None:
                record = self._origin.ledger.read(trial.key)
                if (
                    record is None
                    or record.status == "failed"
                    or (record.status, self.spec.search.scheduler) == ("stopped", "none")
                ):
                    queue.lose(trial.key)
                    continue
                records[trial.key] = self.sweep_home.take_over(self._origin, record.model_copy(update={"trial": trial}))
                queue.add(records[trial.key])

    def _searched(self, plan: Plan, records: Mapping[str, TrialRecord]) -> TrialQueue:
        """The search phase as far as the records decide it."""
        queue = plan.queue(records, BudgetTracker(SearchBudget()), refuse=self._refusal())
        start_queue(queue)
        return queue

    def _confirming(self, plan: Plan, records: Mapping[str, TrialRecord], searched: TrialQueue) -> list[Trial]:
        return plan.trials_to_confirm(records.values(), searched.known.values())

    def _confirm_queue(
        self, plan: Plan, records: Mapping[str, TrialRecord], account: BudgetTracker | None = None
    ) -> TrialQueue:
        trials = self._confirming(plan, records, self._searched(plan, records))
        # A confirming trial is there to be measured, not to be stopped.
        return ListQueue(trials, records, account or BudgetTracker(SearchBudget()), stoppable=False)

    def _refusal(self) -> Callable[[Trial], bool]:
        """Which trials must not start since their students were measured to be slower than the spec allows."""
        limits = {name: limit for name, limit in self.spec.search.limits.items() if name == _MEASURED}
        measured = self.sweep_home.read_latencies() if limits else {}
        return lambda trial: over_limit(limits, measured.get(student_key(trial.student), {})) is not None

    def _slow_students(self, plan: Plan) -> list[str]:
        """Which students the limit on latency kept out, for the report."""
        limit = self.spec.search.limits.get(_MEASURED)
        if limit is None:
            return []
        measured = self.sweep_home.read_latencies()
        took = [(measured.get(student_key(planned.student), {}).get(_MEASURED, 0.0), planned) for planned in plan.students]
        slow = [(latency, planned) for latency, planned in took if latency > limit]
        listed = ", ".join(f"{student_key(planned.student)} {latency:.3g} ms" for latency, planned in slow[:_SHOWN_STUDENTS])
        more = ", …" if len(slow) > _SHOWN_STUDENTS else ""
        return [
            f"search.limits.{_MEASURED} = {limit:g}: {len(slow)} of {len(took)} students are slower and "
            f"{sum(planned.trials for _, planned in slow)} planned trials with them were dropped: {listed}{more}"
        ] * bool(slow)

    def _fills_of_a_broken_run(self, earlier: SweepFacts | None, until: int) -> dict[str, dict[str, float]]:
        """What teachers forwarded for a run of this sweep that did not come to write it down, by the weights' hash.

        They may have gone on for a while behind its end.

        Args:
            until: length of the log of filled views when this run began.
        """
        if earlier is None or earlier.open_fills is None:
            return {}
        lost = {}
        for teacher in earlier.teachers:
            since, behind = (self._fills(teacher, byte) for byte in (earlier.open_fills, until))
            lost[teacher.key] = {name: since[name] - behind[name] for name in since}
        return lost

    def _fills(self, teacher: TeacherFacts, since_byte: int) -> dict[str, float]:
        """What the teacher filled for this sweep."""
        return count_fills(self.sweep_home.home / "knowledge", teacher.key, since_byte=since_byte, sweep=self.spec.name)

    def _run_missing(
        self,
        plan: Plan,
        records: dict[str, TrialRecord],
        account: BudgetTracker,
        tracker: Tracker,
        on_teachers: Callable[[Sequence[TeacherFacts]], None],
    ) -> dict[str, "_ReadyTeacher"]:
        """Runs what `records` lacks and adds it there. Gives the teachers it started: none when nothing was missing.

        Args:
            account: asked before each trial starts.
            on_teachers: told of the teachers when they are ready, in front of the first trial.
        """
        # The confirm phase depends on what the search found, so its trials are known only behind it.
        phases: tuple[Callable[[], TrialQueue], ...] = (
            lambda: plan.queue(records, account, refuse=self._refusal()),
            lambda: self._confirm_queue(plan, records, account),
        )
        if not any(phase().has_next() for phase in phases):
            self._note_undone(plan, records, account)
            return {}
        with Cluster(
            self.spec, address=self._address, home=self.sweep_home.home, progress=self._progress, shutdown=self._shutdown
        ) as cluster:
            cluster.share(self.data())
            crew = self._start_teachers(cluster, plan)
            environment = self._environment(cluster, plan, crew)
            on_teachers([member.facts for member in crew.values()])
            # Latency was measured on a quiet machine; from here on the teachers run ahead of the trials.
            for member in crew.values():
                ahead = self._planned_views(plan.representative_trials, self._views())
                request_ahead(member.running, ahead, member.ticket.plan, self.spec.name)

            noted = time.monotonic()

            def keep(record: TrialRecord) -> None:
                nonlocal noted
                records[record.trial.key] = record
                tracker.log_trial(record)
                if time.monotonic() - noted > _NOTE_INTERVAL_S:
                    self._note_suggestions(plan)
                    noted = time.monotonic()

            for phase in phases:
                if phase().has_next():
                    self._run_phase(cluster, phase, plan, environment, records, keep)
                if self._shutdown.requested:
                    break
            self._note_suggestions(plan)
            self._note_undone(plan, records, account)
        return crew

    def _run_phase(
        self,
        cluster: Cluster,
        phase: Callable[[], TrialQueue],
        plan: Plan,
        environment: TrialEnvironment,
        records: dict[str, TrialRecord],
        keep: Callable[[TrialRecord], None],
    ) -> None:
        """Runs what the phase's queue hands out; `keep` adds each new record to `records`.

        Raises:
            InfrastructureError: trials are lost again and again; the others are kept.
        """
        begun, deaths = len(records), dict[str, LostTrial]()
        for attempt in itertools.count():
            queue, before = phase(), len(records)
            self._progress.plan(len({*self._searched(plan, records).known} - {*queue.known}) + queue.expected)
            lost = cluster.run(
                queue,
                environment,
                parameters=lambda trial: plan.size_of(trial).parameters,
                history=list(records.values()),
                on_record=keep,
                give_up=lambda: self.sweep_home.is_removed,
            )
            self._refuse_removed()
            if self._shutdown.requested or not lost:
                return
            deaths = {each.key: _added(deaths.get(each.key), each) for each in lost}
            if deadly := self._deadly(deaths.values(), records):
                for each in deadly:
                    keep(self._give_up(queue.known[each.key], each))
                continue
            # Tune gives a trial up for good when its worker is lost while it changes trials (ray 2.60).
            if attempt > 0 and len(records) == before:
                raise InfrastructureError(
                    f"{len(lost)} of {len(lost) + len(records) - begun} trials did not finish, the first is "
                    f"{lost[0].key}: {lost[0].reason}; the others are kept. Go on with: {self.resume_command}"
                )
            self._progress.note(f"{len(lost)} trials were lost with their workers and run again")

    def _deadly(self, lost: Iterable[LostTrial], records: Mapping[str, TrialRecord]) -> list[LostTrial]:
        """The lost trials that kill whatever worker they get, while as many others as those at least did finish."""
        deadly = [each for each in lost if each.deaths >= _DEATHS_OF_A_TRIAL]
        finished = sum(record.status == "finished" for record in records.values())
        return deadly if len(deadly) <= finished else []

    def _give_up(self, trial: Trial, lost: LostTrial) -> TrialRecord:
        """Writes the record of a trial that no worker survives, so that the sweep goes on without it."""
        record = TrialRecord(
            trial=trial,
            status="failed",
            reason=f"its worker died {lost.deaths} times in epoch {lost.epoch + 1}; where memory ran out, lower "
            f"training.batch_size or give each trial more of a machine by trial_resources.cpu. Ray says: {lost.reason}",
            code=code_facts(),
            finished=now(),
        )
        self.sweep_home.ledger.write(record)
        shutil.rmtree(self.sweep_home.folder / "trials" / trial.key, ignore_errors=True)
        self._progress.trial_done(record)
        return record

    def _note_suggestions(self, plan: Plan) -> None:
        """What is not noted is found out again; a full disk is noticed elsewhere."""
        if plan.search is not None:
            with suppress(OSError):
                self.sweep_home.write_suggestions(plan.search.memory)

    def _note_undone(self, plan: Plan, records: Mapping[str, TrialRecord], account: BudgetTracker) -> None:
        """Says what the budget left undone, if it ended the sweep."""
        if account.reason is None:
            return
        searched = self._searched(plan, records)
        undone = searched.undone() or self._confirm_queue(plan, records).undone()
        if undone:
            self._left_undone = [undone_note(undone, account.reason)]
            self._progress.note(self._left_undone[0])

    def _views(self) -> Views:
        return make_views(self.spec, self.data())

    def _start_teachers(self, cluster: Cluster, plan: Plan) -> dict[str, "_ReadyTeacher"]:
        """Starts every teacher that a trial asks, and decides the ways of what is asked of it."""
        data, views = self.data(), self._views()
        asked_of = knowledge_demand(self.spec, plan.representative_trials, data, views, adaptive=plan.search is not None)
        definitions = [self._definition(name) for name in self.spec.teachers if name in asked_of]
        crew = {}
        room = StoreQuota(self.spec.knowledge, self.sweep_home.home)
        for running in cluster.start_teachers(definitions, data, views):
            name = running.definition.name
            kinds = asked_of[name]
            measured = call_actor(running.handle, "measure", [each.kind for each in kinds.values()])
            choices = room.choose(kinds, measured, running.facts["base"], views.num_samples)
            explained = {str(kinds[text].kind): choice for text, choice in choices.items()}
            calling = self._choose_calling(running)
            if any(methods.find(trial.method).calls_teacher for trial in plan.representative_trials if name in trial.teachers):
                explained["calls"] = calling
            for what, choice in explained.items():
                self._progress.note(f"teacher {name}: {what} {choice.way}: {choice.reason}")
            cached = [(each.kind, each.views) for text, each in kinds.items() if choices[text].way == "cached"]
            crew[name] = _ReadyTeacher(
                running,
                make_ticket(
                    running.definition,
                    running.facts,
                    home=cluster.home,
                    dtype=self.spec.knowledge.dtype,
                    actor=running.actor,
                    replicas=tuple(running.replicas),
                    ways={text: choice.way for text, choice in choices.items()},
                    plan=FillPlan.make(cached),
                    calling_way=calling.way,
                    top_k=stored_form_of_logits(self.spec.knowledge),
                    sweep=self.spec.name,
                ),
                self._teacher_facts(running, explained),
            )
        room.check_forced()
        if removed := room.evict():
            size = sum(entry["bytes"] for entry in removed)
            self._progress.note(f"removed {len(removed)} sealed views that were of no use for longest, {size / 1e6:.1f} MB")
        return crew

    def _definition(self, name: str) -> TeacherDefinition:
        teacher, data = self.spec.teachers[name], self.data()
        weights = teacher.weights
        if weights is not None and weights.startswith(_MLFLOW):
            weights = str(fetch_weights(weights.removeprefix(_MLFLOW), self.spec.tracking.uri, home=self.sweep_home.home))
        recipe = teacher.train.model_dump(exclude={"epochs", "seed"})
        return TeacherDefinition(
            name=name,
            model=teacher.model,
            options=teacher.options,
            weights=weights,
            training=Training.model_validate(recipe),
            epochs=teacher.train.epochs,
            seed=teacher.train.seed,
            num_classes=data.num_classes,
            input_shape=data.input_shape,
        )

    def _planned_views(self, trials: Sequence[Trial], views: Views) -> dict[int, Reading]:
        """The views that trials will see, in the order in which they will, and how each is read first."""
        seen: dict[int, Reading] = {}
        for seed, epochs in dict.fromkeys((trial.seed, trial.epochs) for trial in trials):
            for epoch, view in enumerate(views.order(seed)[:epochs]):
                seen.setdefault(int(view), (seed, epoch))
        return seen

    def _choose_calling(self, running: Teacher) -> Choice:
        return choose_calling_way(
            asked=self.spec.knowledge.way,
            teacher_on_gpu=running.facts["device"] != "cpu",
            trials_on_gpu=self.spec.trial_resources.gpu > 0,
        )

    def _teacher_facts(self, running: Teacher, choices: Mapping[str, Choice]) -> TeacherFacts:
        definition = running.definition
        size = blueprint(definition.model, definition.options, definition.num_classes, definition.input_shape).size
        return TeacherFacts(
            name=definition.name,
            model=definition.model,
            key=running.facts["weights_hash"],
            parameters=size.parameters,
            size_bytes=size.size_bytes,
            macs=size.macs,
            validation_accuracy=running.facts["validation_accuracy"],
            # A fixed network: nothing is chosen by it.
            test_accuracy=call_actor(running.handle, "evaluate", "test"),
            way="+".join(sorted({choice.way for choice in choices.values()})),
            reason="; ".join(f"{kind} {choice.way}: {choice.reason}" for kind, choice in choices.items()),
            seconds_per_sample=running.facts["seconds_per_sample"],
            train_seconds=running.facts["train_seconds"],
            trained_now=running.facts["trained_now"],
        )

    def _environment(self, cluster: Cluster, plan: Plan, crew: Mapping[str, "_ReadyTeacher"]) -> TrialEnvironment:
        students = {student_key(planned.student): (planned.student.model, planned.student.options) for planned in plan.students}
        of_teacher = {
            name: StudentChoice(name=name, model=member.facts.model, options=dict(member.ticket.definition.options))
            for name, member in crew.items()
        }
        teachers = {student_key(choice): (choice.model, choice.options) for choice in of_teacher.values()}
        # Once for the life of the sweep: it takes seconds for each, and a student that was within the limit stays so.
        latencies = self.sweep_home.read_latencies()
        if missing := {name: model for name, model in {**students, **teachers}.items() if name not in latencies}:
            self._progress.note(f"measuring the latency of {len(missing)} networks")
            latencies |= cluster.measure_latency(missing, self.data())
            self.sweep_home.write_latencies(latencies)
        if (limit := self.spec.search.limits.get(_MEASURED)) is not None:
            quickest = min((latencies[name][_MEASURED] for name in students if name in latencies), default=0.0)
            if quickest > limit:
                raise UsageError(
                    f"search.limits.{_MEASURED} must leave a student, the quickest takes {quickest:.3g}, got {limit:g}"
                )
        for name, member in crew.items():
            measured = latencies.get(student_key(of_teacher[name]), {})
            member.facts = member.facts.model_copy(update={"latency_ms": measured.get(_MEASURED)})
        return TrialEnvironment(
            folder=str(self.sweep_home.folder),
            views=self._views(),
            training=self.spec.training,
            tickets={name: member.ticket for name, member in crew.items()},
            teachers={
                name: TeacherScore(parameters=member.facts.parameters, test_value=member.facts.test_accuracy or 0.0)
                for name, member in crew.items()
            },
            latencies=latencies,
            threads=cluster.threads,
            workers=self.spec.trial_resources.num_workers,
            gpu_share=self.spec.trial_resources.gpu / self.spec.trial_resources.num_workers,
            import_paths=cluster.import_paths,
            method_folders=tuple(self.spec.method_paths),
            home=cluster.home,
        )

    def _first_facts(self, plan: Plan, earlier: SweepFacts | None) -> SweepFacts:
        data = self.data()
        return SweepFacts(
            name=self.spec.name,
            spec=spec_to_dict(self.spec),
            dataset={
                "name": data.name,
                "num_classes": data.num_classes,
                "input_shape": list(data.input_shape),
                "train_samples": len(data.train.labels),
                "validation_samples": len(data.validation.labels),
                "fingerprint": data.fingerprint,
            },
            baseline=methods.baseline(),
            planned=plan.num_trials,
            teachers=earlier.teachers if earlier else [],
            objectives=self.spec.objectives,
            notes=[*plan.notes],
            environment=environment_facts(),
            command=self._command,
            started=earlier.started if earlier else now(),
        )

    def _spent(self, teacher: TeacherFacts, new: Sequence[TrialRecord], fills_before: int) -> "_Spent":
        fills = self._fills(teacher, fills_before)
        own = list(_shares(teacher, new))
        return _Spent(
            forwarded=int(fills["samples"]) + sum(teaching.get("samples_forwarded", 0) for teaching in own),
            gathered=sum(teaching.get("samples_gathered", 0) for teaching in own),
            fills=fills,
        )

    def _track(
        self, tracker: Tracker, facts: SweepFacts, records: Sequence[TrialRecord], files: ReportFiles, timeout_s: float
    ) -> None:
        artifacts = {name: getattr(files, name) for name in ("page", "table", "figure", "csv")}
        later = f"later: stillhouse sync {facts.name} --home {shlex.quote(str(self.sweep_home.home))}"
        if not tracker.finish(facts, artifacts, timeout_s):
            self._progress.note(f"tracking is not complete; {later}")
            return
        if self._shutdown.requested:
            # Who asked the sweep to end does not wait for students; the run that goes on stores them.
            return
        results = Results(facts=facts, records=records, sweep_home=self.sweep_home, planned=len(records))
        if reasons := store_front(results, self.spec, self.data()).reasons:
            self._progress.note(f"not every student of the front is stored in MLflow ({reasons[0]}); {later}")


@dataclass
class _ReadyTeacher:
    """A loaded teacher with everything that trials and the report need of it."""

    running: Teacher
    ticket: TeacherTicket
    facts: TeacherFacts


@dataclass(frozen=True, kw_only=True)
class _Spent:
    """What one run of the sweep took of a teacher: samples forwarded, samples read back, what was filled."""

    forwarded: int
    gathered: int
    fills: Mapping[str, float]


def _added(before: LostTrial | None, lost: LostTrial) -> LostTrial:
    """With the deaths of an earlier run, where they were in the same epoch."""
    same = before is not None and before.epoch == lost.epoch and lost.deaths > 0
    return replace(lost, deaths=lost.deaths + before.deaths) if before is not None and same else lost


def _with_defaults(kept: dict[str, Any]) -> dict[str, Any]:
    try:
        return spec_to_dict(check(kept), secrets=True)
    except SpecError:
        return kept


def _shares(teacher: TeacherFacts, records: Iterable[TrialRecord]) -> Iterator[dict[str, int]]:
    """What each record took of the teacher; several teachers of one trial are asked equally often."""
    for record in records:
        if teacher.name in record.trial.teachers:
            counts = {name: count for name, count in record.teaching.items() if isinstance(count, int)}
            yield {name: count // len(record.trial.teachers) for name, count in counts.items()}


def _add_up(
    teacher: TeacherFacts,
    fills: Iterable[Mapping[str, float]],
    records: Iterable[TrialRecord],
    earlier: SweepFacts | None,
) -> TeacherFacts:
    """The teacher's facts over the whole life of the sweep.

    Args:
        fills: what was filled since `earlier` was written.
        records: of the sweep's trials, whichever run wrote them.
    """
    before = next((known for known in (earlier.teachers if earlier else []) if known.name == teacher.name), None)
    own, fills = list(_shares(teacher, records)), list(fills)
    filled = (before.samples_filled if before else 0) + int(sum(each.get("samples", 0) for each in fills))
    return teacher.model_copy(
        update={
            "samples_filled": filled,
            "samples_forwarded": filled + sum(share.get("samples_forwarded", 0) for share in own),
            "samples_reused": sum(share.get("samples_gathered", 0) for share in own),
            "samples_called": sum(share.get("samples_called", 0) for share in own),
            "bytes_written": (before.bytes_written if before else 0) + int(sum(each.get("bytes", 0) for each in fills)),
            "fill_seconds": (before.fill_seconds if before else 0.0) + sum(each.get("seconds", 0.0) for each in fills),
            "trained_now": teacher.trained_now or bool(before and before.trained_now),
        }
    )


def _warnings(teachers: Sequence[TeacherFacts], records: Sequence[TrialRecord]) -> list[str]:
    """What a reader should be told about teachers that are no better than their students."""
    best = max((record.metrics["validation_accuracy"] for record in records if record.status == "finished"), default=0.0)
    return [
        f"teacher {teacher.name} is worse than the best student on the validation split "
        f"({teacher.validation_accuracy:.4f} against {best:.4f}): train it longer, or choose a larger one"
        for teacher in teachers
        if teacher.validation_accuracy is not None and teacher.validation_accuracy < best
    ]
