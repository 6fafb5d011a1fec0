"""A sweep from its spec to its results."""

import shlex
import shutil
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Self

from stillhouse import methods
from stillhouse.data.datasets import ImageData, load_dataset
from stillhouse.data.views import Views
from stillhouse.errors import InfrastructureError, Interrupted
from stillhouse.knowledge.kinds import Knowledge
from stillhouse.models.architecture import Architecture
from stillhouse.provenance import environment_facts
from stillhouse.report import ReportFiles, parse_budget, write_report
from stillhouse.spec.load import spec_to_dict
from stillhouse.spec.records import SweepFacts, TeacherFacts, Trial, TrialRecord
from stillhouse.spec.schema import SweepSpec
from stillhouse.spec.training import Training
from stillhouse.sweep.blueprint import blueprint
from stillhouse.sweep.check import check, check_file
from stillhouse.sweep.cluster import Cluster, Teacher, asked, request_ahead
from stillhouse.sweep.home import SweepHome, find_sweep, resolve_home
from stillhouse.sweep.hyperparameters import make_method
from stillhouse.sweep.plan import Plan, confirm_trials, make_plan, make_views
from stillhouse.sweep.progress import Progress
from stillhouse.sweep.results import Results
from stillhouse.sweep.runner import TeacherScore, TrialEnvironment, now, student_key
from stillhouse.teachers.actor import make_ticket
from stillhouse.teachers.choice import Choice, choose_way
from stillhouse.teachers.definition import TeacherDefinition, TeacherTicket
from stillhouse.teachers.service import count_fills, fill_log, kind_id
from stillhouse.tracking import Tracker, fetch_weights

_TRACKING_TIMEOUT_S = 120.0
_MLFLOW = "mlflow:"


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
        self.place = SweepHome(resolve_home(home), spec.name)
        self._address = address
        self._command = command
        self._progress = Progress(spec.name, quiet=True) if progress is None else progress
        self._data: ImageData | None = None
        self._plan: Plan | None = None

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
        place = find_sweep(resolve_home(home), name)
        kept = place.read_spec()
        assert kept is not None
        return cls(check(kept), home=place.home, **options)

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
                cache=self.place.home / "data",
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

    def run(self) -> Results:
        """Runs what the ledger lacks, writes report and tracking, and gives the results.

        Raises:
            SpecError, UsageError: before anything starts.
            InfrastructureError: the cluster, the disk or a teacher failed; what is finished is kept.
            Interrupted: by Ctrl-C; what is finished is kept.
        """
        started = time.perf_counter()
        plan = self.plan()
        with self.place.locked():
            self.place.keep_spec(spec_to_dict(self.spec, secrets=True))
            try:
                return self._run(plan, started)
            except KeyboardInterrupt as interrupt:
                raise Interrupted(f"interrupted; finished trials are kept. Go on with: {self.resume_command}") from interrupt
            except OSError as error:
                raise InfrastructureError(f"{error.strerror or error} ({error.filename or self.place.folder})") from error

    @property
    def resume_command(self) -> str:
        return f"stillhouse resume {self.spec.name} --home {shlex.quote(str(self.place.home))}"

    def _run(self, plan: Plan, started: float) -> Results:
        records = self._read_ledger()
        before = set(records)
        earlier = self.place.read_facts()
        facts = self._first_facts(plan, earlier)
        self._progress.plan(len(plan.trials), [records[trial.key] for trial in plan.trials if trial.key in records])
        fills = fill_log(self.place.home / "knowledge")
        fills_before = fills.stat().st_size if fills.exists() else 0
        tracker = Tracker(
            self.spec.tracking.uri, home=self.place.home, experiment=self.spec.tracking.experiment or self.spec.name
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
                known = [_add_up(teacher, _Spent(), earlier) for teacher in teachers]
                self.place.write_facts(
                    facts.model_copy(update={"teachers": known, "seconds": earlier.seconds if earlier else 0.0})
                )

            crew = self._run_missing(plan, records, tracker, keep_teachers)
            wanted = {trial.key for trial in [*plan.trials, *confirm_trials(self.spec, plan, list(records.values()))]}
            kept = [records[key] for key in sorted(records) if key in wanted]
            new = [record for record in kept if record.trial.key not in before]
            teachers = [member.facts for member in crew.values()] or facts.teachers
            spent = {teacher.name: self._spent(teacher, new, fills_before) for teacher in teachers}
            facts = facts.model_copy(
                update={
                    "teachers": [_add_up(teacher, spent[teacher.name], earlier) for teacher in teachers],
                    "notes": [*facts.notes, *_warnings(teachers, kept)],
                    "tracking": {**facts.tracking, "run_id": tracker.run_id},
                    "seconds": (earlier.seconds if earlier else 0.0) + time.perf_counter() - started,
                }
            )
            self.place.write_facts(facts)
            if addresses := tracker.drain(_TRACKING_TIMEOUT_S):
                self.place.write_addresses(addresses)
            budgets = [parse_budget(text) for text in self.spec.report.budgets]
            files = write_report(facts, kept, self.place.report, budgets, self.place.read_addresses())
            self._track(tracker, facts, files)
        finally:
            tracker.close()
        return Results(
            facts=facts,
            records=kept,
            place=self.place,
            planned=len(wanted),
            reused=len(kept) - len(new),
            forwarded={name: one.forwarded for name, one in spent.items()},
            gathered={name: one.gathered for name, one in spent.items()},
            files=files,
            tracking=facts.tracking,
            seconds=time.perf_counter() - started,
        )

    def _read_ledger(self) -> dict[str, TrialRecord]:
        records, damaged = self.place.ledger.read_all()
        for key in damaged:
            self._progress.note(f"the record of trial {key} is damaged; the trial runs again")
            self.place.ledger.remove(key)
        return records

    def _run_missing(
        self,
        plan: Plan,
        records: dict[str, TrialRecord],
        tracker: Tracker,
        on_teachers: Callable[[Sequence[TeacherFacts]], None],
    ) -> dict[str, "_ReadyTeacher"]:
        """Runs what `records` lacks and adds it there. Gives the teachers it started: none when nothing was missing.

        Args:
            on_teachers: told of the teachers when they are ready, in front of the first trial.
        """

        def missing(trials: Sequence[Trial]) -> list[Trial]:
            return [trial for trial in trials if trial.key not in records]

        def confirming() -> list[Trial]:
            return confirm_trials(self.spec, plan, list(records.values()))

        if not missing(plan.trials) and not missing(confirming()):
            return {}
        with Cluster(self.spec, address=self._address, progress=self._progress) as cluster:
            cluster.share(self.data())
            crew = self._start_teachers(cluster, plan)
            environment = self._environment(cluster, plan, crew)
            on_teachers([member.facts for member in crew.values()])
            # Latency was measured on a quiet machine; from here on the teachers run ahead of the trials.
            for member in crew.values():
                if member.cached:
                    request_ahead(member.running, self._planned_views(plan.trials, self._views()), member.cached)

            def keep(record: TrialRecord) -> None:
                records[record.trial.key] = record
                tracker.log_trial(record)

            # The confirm phase depends on what the search found, so its trials are known only behind it.
            phases: tuple[Callable[[], Sequence[Trial]], ...] = (lambda: plan.trials, confirming)
            for phase in phases:
                todo = missing(phase())
                if not todo:
                    continue
                self._progress.plan(len({trial.key for trial in [*plan.trials, *todo]}))
                lost = cluster.run(
                    todo,
                    environment,
                    parameters={trial.key: plan.size_of(trial).parameters for trial in todo},
                    history=list(records.values()),
                    on_record=keep,
                )
                if lost:
                    raise InfrastructureError(
                        f"{len(lost)} of {len(todo)} trials did not finish, the first is {lost[0]}; "
                        f"the others are kept. Go on with: {self.resume_command}"
                    )
        return crew

    def _views(self) -> Views:
        return make_views(self.spec, self.data())

    def _start_teachers(self, cluster: Cluster, plan: Plan) -> dict[str, "_ReadyTeacher"]:
        """Starts every teacher that a trial asks, and decides the ways of what is asked of it."""
        data, views = self.data(), self._views()
        kinds = self._asked_knowledge(plan.trials)
        definitions = [self._definition(name) for name in self.spec.teachers if name in kinds]
        crew = {}
        for running in cluster.start_teachers(definitions, data, views, home=self.place.home):
            name = running.definition.name
            choices = self._choose(running, kinds[name], views)
            for text, choice in choices.items():
                self._progress.note(f"teacher {name}: {kinds[name][text]} {choice.way}: {choice.reason}")
            cached = [kind for text, kind in kinds[name].items() if choices[text].way == "cached"]
            crew[name] = _ReadyTeacher(
                running,
                cached,
                make_ticket(
                    running.definition,
                    running.facts,
                    home=self.place.home,
                    dtype=self.spec.knowledge.dtype,
                    actor=running.actor,
                    ways={text: choice.way for text, choice in choices.items()},
                ),
                self._teacher_facts(running, {str(kinds[name][text]): choice for text, choice in choices.items()}),
            )
        return crew

    def _definition(self, name: str) -> TeacherDefinition:
        teacher, data = self.spec.teachers[name], self.data()
        weights = teacher.weights
        if weights is not None and weights.startswith(_MLFLOW):
            weights = str(fetch_weights(weights.removeprefix(_MLFLOW), self.spec.tracking.uri, home=self.place.home))
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

    def _asked_knowledge(self, trials: Sequence[Trial]) -> dict[str, dict[str, Knowledge]]:
        """All that the trials ask of each teacher, each kind once: one forward pass gives them all."""
        asked_of: dict[str, dict[str, Knowledge]] = {}
        for trial in trials:
            for name in trial.teachers:
                teacher = self._describe(self.spec.teachers[name].model, self.spec.teachers[name].options)
                student = self._describe(trial.student.model, trial.student.options)
                for kind in make_method(trial.method, trial.hyperparameters).knowledge(teacher, student).values():
                    asked_of.setdefault(name, {}).setdefault(kind_id(kind), kind)
        return asked_of

    def _describe(self, model: str, options: Mapping[str, Any]) -> Architecture:
        data = self.data()
        return blueprint(model, options, data.num_classes, data.input_shape).architecture

    def _planned_views(self, trials: Sequence[Trial], views: Views) -> list[int]:
        """The views that trials will see, in the order in which they will."""
        seen: dict[int, None] = {}
        for seed, epochs in dict.fromkeys((trial.seed, trial.epochs) for trial in trials):
            seen |= dict.fromkeys(int(view) for view in views.order(seed)[:epochs])
        return list(seen)

    def _choose(self, running: Teacher, kinds: Mapping[str, Knowledge], views: Views) -> dict[str, Choice]:
        measured = asked(running.handle, "measure", list(kinds.values()))
        free = shutil.disk_usage(self.place.home).free
        return {
            text: choose_way(
                asked=self.spec.knowledge.way,
                seconds_per_sample=measured["seconds_per_sample"],
                bytes_per_sample=measured["bytes_per_sample"][text],
                num_samples=len(self.data().train.labels),
                num_views=views.count,
                free_bytes=free,
            )
            for text in kinds
        }

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
            test_accuracy=asked(running.handle, "evaluate", "test"),
            way="+".join(sorted({choice.way for choice in choices.values()})),
            reason="; ".join(f"{kind} {choice.way}: {choice.reason}" for kind, choice in choices.items()),
            seconds_per_sample=running.facts["seconds_per_sample"],
            train_seconds=running.facts["train_seconds"],
            trained_now=running.facts["trained_now"],
        )

    def _environment(self, cluster: Cluster, plan: Plan, crew: Mapping[str, "_ReadyTeacher"]) -> TrialEnvironment:
        students = {student_key(trial.student): (trial.student.model, trial.student.options) for trial in plan.trials}
        teachers = {_teacher_key(name): (member.facts.model, member.ticket.definition.options) for name, member in crew.items()}
        self._progress.note(f"measuring the latency of {len(students)} students")
        latencies = cluster.measure_latency({**students, **teachers}, self.data())
        for name, member in crew.items():
            member.facts = member.facts.model_copy(update={"latency_ms": latencies[_teacher_key(name)]["latency_ms"]})
        return TrialEnvironment(
            folder=str(self.place.folder),
            views=self._views(),
            training=self.spec.training,
            tickets={name: member.ticket for name, member in crew.items()},
            teachers={
                name: TeacherScore(parameters=member.facts.parameters, test_accuracy=member.facts.test_accuracy or 0.0)
                for name, member in crew.items()
            },
            latencies=latencies,
            threads=cluster.threads,
            import_paths=cluster.import_paths,
            method_folders=tuple(self.spec.method_paths),
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
            planned=len(plan.trials),
            teachers=earlier.teachers if earlier else [],
            objectives=self.spec.objectives,
            notes=[*plan.notes],
            environment=environment_facts(),
            command=self._command,
            started=earlier.started if earlier else now(),
        )

    def _spent(self, teacher: TeacherFacts, new: Sequence[TrialRecord], fills_before: int) -> "_Spent":
        fills = count_fills(self.place.home / "knowledge", teacher.key, since_byte=fills_before)
        # Several teachers of one trial are asked equally often.
        own = [
            {name: count // len(record.trial.teachers) for name, count in record.teaching.items() if isinstance(count, int)}
            for record in new
            if teacher.name in record.trial.teachers
        ]
        return _Spent(
            forwarded=int(fills["samples"]) + sum(teaching.get("samples_forwarded", 0) for teaching in own),
            gathered=sum(teaching.get("samples_gathered", 0) for teaching in own),
            written=int(fills["bytes"]),
            seconds=fills["seconds"],
        )

    def _track(self, tracker: Tracker, facts: SweepFacts, files: ReportFiles) -> None:
        artifacts = {name: getattr(files, name) for name in ("page", "table", "figure", "csv")}
        if not tracker.finish(facts, artifacts, _TRACKING_TIMEOUT_S):
            self._progress.note(f"tracking is not complete; later: stillhouse sync {facts.name} --home {self.place.home}")


@dataclass
class _ReadyTeacher:
    """A loaded teacher with everything that trials and the report need of it, and the kinds of knowledge that it seals."""

    running: Teacher
    cached: Sequence[Knowledge]
    ticket: TeacherTicket
    facts: TeacherFacts


@dataclass(frozen=True, kw_only=True)
class _Spent:
    """What one run of the sweep took of a teacher: samples forwarded, samples read back, bytes and seconds of filling."""

    forwarded: int = 0
    gathered: int = 0
    written: int = 0
    seconds: float = 0.0


def _teacher_key(name: str) -> str:
    return f"teacher {name}"


def _add_up(teacher: TeacherFacts, spent: _Spent, earlier: SweepFacts | None) -> TeacherFacts:
    """The teacher's facts over the whole life of the sweep: what earlier runs took, and this one."""
    before = next((known for known in (earlier.teachers if earlier else []) if known.name == teacher.name), None)
    return teacher.model_copy(
        update={
            "samples_forwarded": spent.forwarded + (before.samples_forwarded if before else 0),
            "samples_reused": spent.gathered + (before.samples_reused if before else 0),
            "bytes_written": spent.written + (before.bytes_written if before else 0),
            "fill_seconds": spent.seconds + (before.fill_seconds if before else 0.0),
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
