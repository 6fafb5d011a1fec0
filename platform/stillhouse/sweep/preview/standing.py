"""How far a sweep is that has run before: which trials are done, which run again and why, and what is left to pay."""

from collections import Counter, defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any, Literal, get_args

from stillhouse.data.evaluation_identity import evaluation_identity
from stillhouse.device import Float32Precision
from stillhouse.durable import canonical_json
from stillhouse.errors import StillhouseError
from stillhouse.knowledge.store import KnowledgeStore
from stillhouse.spec.controls import all_teachers
from stillhouse.spec.records import Trial, TrialRecord
from stillhouse.sweep.outdated import Reason, RecordCheck, of_other_evaluation
from stillhouse.sweep.phases import Phases
from stillhouse.sweep.planning.cost import estimate_cost, planned_students, planned_teachers
from stillhouse.sweep.planning.knowledge_demand import KnowledgeDemand, knowledge_demand
from stillhouse.sweep.run_context import RunContext
from stillhouse.sweep.teacher_setup import definition_in
from stillhouse.teachers.definition import TeacherDefinition, base_identity, view_identity
from stillhouse.teachers.library import TeacherLibrary

Status = Literal["finished", "failed", "stopped", "missing", "outdated"]
_WHY = {
    Reason.CODE: "the code of its method, operator or models has changed",
    Reason.CONTENT: "the data set, a teacher or the method has changed",
    Reason.TEACHER: "its teacher is another network than the one that taught it",
    Reason.STUDENT: "the weights that its student begins with have changed",
    Reason.DAMAGE: "its stored weights are damaged or missing",
}
_OTHER_TEST = "the test split, or how it is evaluated, has changed: the stored student is evaluated again"
_DAMAGED = "its record is damaged"
_NO_SCHEDULER = "the sweep no longer stops trials early: it runs to its end"
_SHOWN = 5


@dataclass(frozen=True, kw_only=True)
class TrialStanding:
    """How far one trial is.

    Attributes:
        status: that of its record; `missing` without one, `outdated` where the record no longer stands for it.
        why: why it is outdated, as a clause; None otherwise.
        trains: whether the next run trains it.
    """

    status: Status
    why: str | None = None
    trains: bool = False


@dataclass(frozen=True, kw_only=True)
class TeacherStanding:
    """What a home has of one teacher.

    Attributes:
        found: whether its weights are known without training.
        views: of each kind of knowledge that any trial reads, how many of its views are sealed, and how many are needed.
        left: the views that trials which will run need and that are not sealed.
        problem: why it cannot be looked up; None if it can.
    """

    name: str
    found: bool
    views: Mapping[str, tuple[int, int]]
    left: int = 0
    problem: str | None = None


@dataclass(frozen=True, kw_only=True)
class Standing:
    """How far a sweep is.

    Attributes:
        trials: the trials that are known now, of all phases, with the standing of each, by key.
        unknown: how many trials an adaptive search will choose later.
        teachers: those of the spec.
        student_macs: that the trials which will run cost, a training step counted as three forward passes.
        teacher_macs: of teachers that must be trained, and of the views that must be filled.
        whole_macs: of all students of the plan.
    """

    trials: Mapping[str, tuple[Trial, TrialStanding]]
    unknown: int
    teachers: Sequence[TeacherStanding]
    student_macs: int
    teacher_macs: int
    whole_macs: int

    def of(self, key: str) -> TrialStanding:
        """The standing of a trial of the plan."""
        return self.trials[key][1]

    @property
    def to_train(self) -> list[Trial]:
        """The known trials that the next run trains."""
        return [trial for trial, standing in self.trials.values() if standing.trains]

    def to_dict(self, planned: Iterable[str]) -> dict[str, Any]:
        """As plain data.

        Args:
            planned: keys of the trials that are listed elsewhere, with their standing.
        """
        listed = {*planned}
        return {
            **{status: self._counts[status] for status in get_args(Status)},
            "unknown": self.unknown,
            "further_trials": [
                {**trial.model_dump(mode="json"), **asdict(standing)}
                for key, (trial, standing) in self.trials.items()
                if key not in listed
            ],
            "teachers": [
                {
                    **asdict(teacher),
                    "views": {kind: {"sealed": sealed, "needed": needed} for kind, (sealed, needed) in teacher.views.items()},
                }
                for teacher in self.teachers
            ],
            "left": {
                "trials": len(self.to_train) + self.unknown,
                "student_macs": self.student_macs,
                "teacher_macs": self.teacher_macs,
                "views": sum(teacher.left for teacher in self.teachers),
            },
        }

    def lines(self) -> list[str]:
        """As text."""
        counts, total = self._counts, len(self.trials) + self.unknown
        done = {status: counts[status] for status in ("finished", "stopped", "failed") if counts[status]}
        shown = f" ({', '.join(f'{count} {status}' for status, count in done.items())})" if done else ""
        lines = [f"done before: {sum(done.values())} of {total} trials{shown}"]
        if missing := counts["missing"] + self.unknown:
            lines.append(f"missing: {missing} trials")
        for why, trials in self._outdated().items():
            names = sorted({f"{trial.method} on {trial.student.name}" for trial in trials})
            more = ", ..." if len(names) > _SHOWN else ""
            lines.append(f"outdated: {len(trials)} trials ({', '.join(names[:_SHOWN])}{more}): {why}")
        lines += [_teacher_line(teacher) for teacher in self.teachers]
        left = len(self.to_train) + self.unknown
        if not left:
            return [*lines, "left: no trial; the same command writes the report again"]
        share = f", {100 * self.student_macs / self.whole_macs:.0f} % of the plan" if self.whole_macs else ""
        return [
            *lines,
            f"left: {left} trials, {self.student_macs:.3g} MACs{share}, and {self.teacher_macs:.3g} MACs of teachers",
        ]

    @property
    def _counts(self) -> Counter[str]:
        return Counter(standing.status for _trial, standing in self.trials.values())

    def _outdated(self) -> Mapping[str, list[Trial]]:
        found: dict[str, list[Trial]] = defaultdict(list)
        for trial, standing in self.trials.values():
            if standing.why is not None:
                found[standing.why].append(trial)
        return found


def find_standing(context: RunContext) -> Standing:
    """Compares the plan with the ledger and the home. Nothing is written, moved or started."""
    plan, sweep_home = context.plan, context.sweep_home
    records, damaged = sweep_home.ledger.read_all()
    if plan.search is not None:
        plan.search.memory.update(sweep_home.read_suggestions())
    looked_up = {name: _look_up(context, name) for name in all_teachers(context.spec)}
    outdated = _outdated_records(
        context, records, {name: found.identity for name, found in looked_up.items() if found.identity}
    )
    usable = {key: record for key, record in records.items() if key not in outdated}
    phases = Phases(plan=plan, read_latencies=sweep_home.read_latencies)
    searched = phases.searched(usable)
    trials = {trial.key: trial for trial in (*plan.trials, *searched.known.values(), *phases.confirming(usable))}
    again = {**outdated, **dict.fromkeys(damaged, _DAMAGED)}
    same = {_settings(records[key].trial): why for key, why in outdated.items()}
    other_test = {record.trial.key for record in of_other_evaluation(usable.values(), evaluation_identity(context.data))}
    standings = {}
    for key, trial in trials.items():
        if key in usable:
            evaluated = TrialStanding(status="outdated", why=_OTHER_TEST)
            standings[key] = evaluated if key in other_test else TrialStanding(status=usable[key].status)
        elif (why := again.get(key) or same.get(_settings(trial))) is not None:
            standings[key] = TrialStanding(status="outdated", why=why, trains=True)
        else:
            standings[key] = TrialStanding(status="missing", trains=True)
    to_train = [trials[key] for key, standing in standings.items() if standing.trains]
    teachers = _teachers(context, looked_up, to_train)
    unknown = [each for each in planned_teachers(context.spec, to_train, context.data) if not looked_up[each.name].identity]
    cost = estimate_cost(context.spec, to_train, planned_students(to_train, context.data), unknown, context.data)
    sizes = {teacher.name: teacher.size.macs for teacher in plan.teachers}
    filled = sum(sizes.get(teacher.name, 0) * teacher.left * len(context.data.train.labels) for teacher in teachers)
    return Standing(
        trials={key: (trial, standings[key]) for key, trial in trials.items()},
        unknown=max(0, searched.expected - len(searched.known)) if plan.search is not None else 0,
        teachers=teachers,
        student_macs=cost.students,
        teacher_macs=cost.teacher_training + filled,
        whole_macs=plan.cost.students,
    )


@dataclass(frozen=True)
class _LookedUp:
    """A teacher of the spec: `identity` is that of `TeacherFacts`, empty while only training can tell it."""

    definition: TeacherDefinition | None
    weights: str = ""
    identity: str = ""
    problem: str | None = None


def _look_up(context: RunContext, name: str) -> _LookedUp:
    try:
        definition = definition_in(context, name)
        content = TeacherLibrary(context.sweep_home.home / "teachers").content(definition, context.data, context.views)
    except StillhouseError as error:
        return _LookedUp(None, problem=str(error))
    if content is None:
        return _LookedUp(definition)
    return _LookedUp(definition, content, f"{content} {definition.normalization}".rstrip())


def _outdated_records(context: RunContext, records: Mapping[str, TrialRecord], teachers: Mapping[str, str]) -> dict[str, str]:
    """Why records no longer stand for their trials, by key; see `reuse.reusable_records`."""
    sweep_home = context.sweep_home
    facts = sweep_home.read_facts()
    check = RecordCheck(context.plan.keys, context.data, folder=sweep_home.folder, facts=facts, teachers=teachers)
    found = {}
    for key, record in records.items():
        if (reason := check.reason(record)) is not None:
            found[key] = _WHY[reason]
        elif record.status == "stopped" and context.spec.search.scheduler == "none":
            found[key] = _NO_SCHEDULER
    return found


def _settings(trial: Trial) -> str:
    """What the user sees of a trial: equal for a trial before and after a change of code or data."""
    return canonical_json(trial.model_dump(mode="json", exclude={"key", "own_code"}))


def _teachers(context: RunContext, looked_up: Mapping[str, _LookedUp], to_train: Sequence[Trial]) -> list[TeacherStanding]:
    """What the home has of the teachers that the plan needs."""
    store = KnowledgeStore(context.sweep_home.home / "knowledge")
    whole = _demand(context, context.plan.representative_trials)
    left = _demand(context, to_train)
    needed = {*whole, *(name for trial in to_train for name in trial.loaded_teachers)}
    found = []
    for name, teacher in looked_up.items():
        if name not in needed:
            continue
        sealed = {key: _sealed(context, store, teacher, each) for key, each in whole.get(name, {}).items()}
        views = {str(each.kind): (len(sealed[key]), len(each.views)) for key, each in whole.get(name, {}).items()}
        lacking = {view for key, each in left.get(name, {}).items() for view in each.views - sealed.get(key, set())}
        found.append(
            TeacherStanding(name=name, found=bool(teacher.identity), views=views, left=len(lacking), problem=teacher.problem)
        )
    return found


def _demand(context: RunContext, trials: Iterable[Trial]) -> dict[str, dict[str, KnowledgeDemand]]:
    return knowledge_demand(context.spec, trials, context.data, context.views, adaptive=context.plan.search is not None)


def _sealed(context: RunContext, store: KnowledgeStore, teacher: _LookedUp, demand: KnowledgeDemand) -> set[int]:
    """The views of a kind that are sealed, in the precision of any device."""
    if teacher.definition is None or not teacher.weights:
        return set()
    bases = [
        base_identity(
            weights_hash=teacher.weights,
            definition=teacher.definition,
            data=context.data,
            views=context.views,
            dtype=context.spec.knowledge.dtype,
            precision=precision,
        )
        for precision in get_args(Float32Precision)
    ]
    return {view for view in demand.views if any(store.is_sealed(view_identity(base, demand.kind, view)) for base in bases)}


def _teacher_line(teacher: TeacherStanding) -> str:
    if teacher.problem is not None:
        return f"teacher {teacher.name}: cannot be looked up: {teacher.problem}"
    views = "; ".join(f"{sealed} of {needed} views of {kind} are sealed" for kind, (sealed, needed) in teacher.views.items())
    found = "found" if teacher.found else "not trained yet"
    return f"teacher {teacher.name}: {found}{views and f'; {views}'}"
