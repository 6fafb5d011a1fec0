"""The content of the runs in the store, made from records by pure functions; no MLflow here."""

import json
import posixpath
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime
from itertools import pairwise
from typing import Any

from stillhouse.durable import content_hash
from stillhouse.spec.late_metrics import is_late
from stillhouse.spec.metric import Metric
from stillhouse.spec.records import FULL_BITS, SweepFacts, TeacherFacts, TrialRecord
from stillhouse.spec.schema import RANDOM_TEACHER
from stillhouse.spec.secret_masking import mask_data, mask_text
from stillhouse.spec.teacher_comparison import against_teacher, reference_teacher

# mlflow.utils.validation: MAX_ENTITY_KEY_LENGTH, MAX_PARAM_VAL_LENGTH, MAX_TAG_VAL_LENGTH
_MAX_NAME = 250
_MAX_PARAM = 6000
_MAX_TAG = 8000

CURVE_PREFIX = "epoch_"
SYSTEM_PREFIX = "system/"
"""By this MLflow's page knows what belongs under "System metrics"."""


@dataclass(frozen=True, kw_only=True)
class Point:
    """One value of a metric.

    Attributes:
        when_ms: Unix time; None for that of the run's other points.
    """

    name: str
    value: float
    step: int = 0
    when_ms: int | None = None


@dataclass(frozen=True, kw_only=True)
class RunEntry:
    """One child run, ready to be written.

    Attributes:
        digest: hash of the record that it was made from; a run with an equal digest need not be written again.
        started_ms, finished_ms: Unix time; also the time of every point, so that writing twice changes nothing.
    """

    key: str
    name: str
    status: str
    digest: str
    tags: dict[str, str]
    params: dict[str, str]
    points: list[Point] = field(default_factory=list)
    started_ms: int
    finished_ms: int


def record_digest(record: TrialRecord) -> str:
    """Content hash of a record: the same for a new record and for one read back from a file.

    Fields that the first release did not have do not count where they say nothing, so that its runs remain; the basis never
    counts: it is added to stored records. Nor do numbers that are measured later: a run that is there gets them too.
    """
    content = json.loads(record.model_dump_json(exclude={"basis"}))
    content["metrics"] = {name: value for name, value in content["metrics"].items() if not is_late(name)}
    if content["collapsed"] is None:
        del content["collapsed"]
    return content_hash(content)


def trial_entry(record: TrialRecord, facts: SweepFacts) -> RunEntry:
    """The child run of one trial, which is compared with one of the sweep's teachers as far as they are known."""
    trial, sweep = record.trial, facts.name
    tags = {
        "sweep": sweep,
        "role": "trial",
        "trial_key": trial.key,
        "method": trial.method,
        "student": trial.student.name,
        "model": trial.student.model,
        "teacher": trial.teacher,
        "seed": trial.seed,
        "phase": trial.phase,
        "control": RANDOM_TEACHER if trial.is_control else None,
        "status": record.status,
        "reason": record.reason,
        "collapsed": "true" if record.collapsed else None,
        "device": record.device,
        "way": record.teaching.get("way"),
        "weights": record.weights,
        "weights_hash": record.weights_hash,
        "mlflow.source.name": "stillhouse",
        "mlflow.source.git.commit": record.code.get("commit"),
        "mlflow.note.content": trial_note(record, facts),
    }
    params: dict[str, Any] = {f"student.{name}": value for name, value in trial.student.settings.items()}
    if record.compression:
        params["compression"] = record.compression
    if trial.student.derived_from is not None:
        params["student.from"] = trial.student.derived_from
    own = {"student": trial.student.name, "method": trial.method, "seed": trial.seed, "epochs": trial.epochs}
    if trial.teacher is not None:
        own["teacher"] = trial.teacher
    for name, value in trial.hyperparameters.items():
        params[f"{trial.method}.{name}" if name in own else name] = value
    settings = {f"training.{name}": value for name, value in facts.spec.get("training", {}).items()}
    data = {f"dataset.{name}": value for name, value in data_facts(facts).items()}
    finished_ms = milliseconds(record.finished)
    return RunEntry(
        key=trial.key,
        name=f"{trial.method} {trial.student.name} seed {trial.seed} {trial.key[:8]}",
        status="FAILED" if record.status == "failed" else "FINISHED",
        digest=record_digest(record),
        tags=clean_tags(tags),
        params=clean_params(settings | data | own | params),
        points=list({(point.name, point.step): point for point in _points(record, facts.teachers, facts.metric)}.values()),
        started_ms=milliseconds(record.started) or finished_ms,
        finished_ms=finished_ms,
    )


def data_facts(facts: SweepFacts) -> dict[str, Any]:
    """The name and the path of the data set and the size of its test split, as far as they are known."""
    spec = facts.spec.get("dataset")
    root = spec.get("root") if isinstance(spec, Mapping) else None
    known = {"name": facts.dataset.get("name"), "root": root, "test_samples": facts.test_samples}
    return {name: value for name, value in known.items() if value is not None}


def trial_note(record: TrialRecord, facts: SweepFacts) -> str:
    """Markdown shown on the run's page: what was trained, and what came out."""
    trial, metric = record.trial, facts.metric
    taught = f" by {', '.join(trial.teachers)}" if trial.teachers else " without a teacher"
    size = record.metrics.get("parameters")
    words = f"**{trial.student.name}**" + (f" ({size:,.0f} parameters)" if size is not None else "")
    words += f" trained with **{trial.method}**{taught} on {facts.dataset_label}, seed {trial.seed}, "
    words += f"{record.epochs_run} of {trial.epochs} epochs"
    if record.status != "finished":
        return clip(mask_text(f"{words}: {record.status}" + (f", {record.reason}" if record.reason else "")), _MAX_TAG)
    scores = {split: record.metrics.get(metric.column(split)) for split in ("test", "validation")}
    known = [f"{split} {metric.label} {metric.format(value)}" for split, value in scores.items() if value is not None]
    return clip(mask_text(f"{words}: {', '.join(known)}." if known else f"{words}."), _MAX_TAG)


def _points(record: TrialRecord, teachers: Sequence[TeacherFacts], metric: Metric) -> Iterator[Point]:
    """In the order of their weight: of two points of one name and step the later one counts.

    A trial is compared with its teacher when it ends, and again when it is written; the teacher may have been evaluated anew.
    """
    full = {} if record.trial.student.compress else {"weight_bits": FULL_BITS, "activation_bits": FULL_BITS}
    yield from _numbers(full | record.metrics)
    yield Point(name="epochs_run", value=float(record.epochs_run))
    yield from _numbers({f"teaching_{name}": value for name, value in record.teaching.items()})
    for name, value in comparison(record.metrics, record.trial.teachers, teachers, metric).items():
        yield Point(name=name, value=value)
    for step, entry in zip(_steps(record.curve), record.curve, strict=True):
        named = {f"{CURVE_PREFIX}{name}": value for name, value in entry.items() if name not in ("epoch", "comparable")}
        yield from _numbers(named, step=step)
    for step, sample in enumerate(record.system, 1):
        when_ms = int(sample["time_ms"])
        for name, value in sample.items():
            if name != "time_ms":
                yield Point(name=f"{SYSTEM_PREFIX}{name}", value=value, step=step, when_ms=when_ms)


def _steps(curve: Sequence[Mapping[str, Any]]) -> Sequence[int]:
    """The epochs, or positions from 1 where a method counts its epochs from 1 in every stage."""
    epochs = [entry.get("epoch") for entry in curve]
    whole = [epoch for epoch in epochs if isinstance(epoch, int) and epoch > 0]
    if len(whole) == len(epochs) and all(before < after for before, after in pairwise(whole)):
        return whole
    return range(1, len(curve) + 1)


def _numbers(values: Mapping[str, Any], *, step: int = 0) -> Iterator[Point]:
    for name, value in values.items():
        if isinstance(value, bool | int | float):
            yield Point(name=clean_name(name), value=float(value), step=step)


def comparison(
    metrics: Mapping[str, float], taught_by: Sequence[str], teachers: Sequence[TeacherFacts], metric: Metric
) -> dict[str, float]:
    """`compression_ratio` and the metric's drop (`accuracy_drop`) of a student, as far as they are known.

    A teacher's value on the test split may be read only at the end of the sweep.

    Args:
        metrics: of the student's record.
        taught_by: names of the trial's own teachers; a student without a teacher is compared with the best of the sweep.
    """
    teacher = reference_teacher(teachers, taught_by, metric)
    if teacher is None:
        return {}
    return against_teacher(metrics, metric, parameters=teacher.parameters, score=teacher.value(metric.column("test")))


def sweep_tags(facts: SweepFacts, *, home_id: str) -> dict[str, str]:
    """Tags of the parent run. Not params: those cannot change, and a sweep may be extended."""
    return clean_tags(
        {
            "sweep": facts.name,
            "role": "sweep",
            "home_id": home_id,
            "dataset": facts.dataset.get("name"),
            **{f"dataset_{name}": value for name, value in data_facts(facts).items() if name != "name"},
            "baseline": facts.baseline,
            "latency_place": facts.latency_place or None,
            "planned": facts.planned,
            "objectives": ", ".join(f"{name}: {goal}" for name, goal in facts.objectives.items()) or None,
            "command": facts.command or None,
            "later_commands": "\n".join(run.command for run in facts.later_runs if run.command) or None,
            "mlflow.source.name": "stillhouse",
            "mlflow.source.git.commit": facts.environment.get("commit"),
        }
    )


def sweep_points(facts: SweepFacts, statuses: Sequence[str], best: Mapping[str, float]) -> list[Point]:
    """Summary of a sweep: counts, the student chosen on validation data, the teachers' numbers and cost.

    Args:
        statuses: of each trial.
        best: numbers of the student that the report names as the best of all sizes; empty if no trial finished.
    """
    values: dict[str, float] = {"trials_planned": facts.planned, "seconds": facts.seconds}
    for status in ("finished", "stopped", "failed"):
        values[f"trials_{status}"] = statuses.count(status)
    values |= {f"best_{name}": value for name, value in best.items()}
    for name in ("samples_forwarded", "samples_reused", "fill_seconds", "train_seconds"):
        values[f"teachers_{name}"] = sum(getattr(teacher, name) for teacher in facts.teachers)
    for teacher in facts.teachers:
        for name, value in teacher_numbers(teacher, facts.metric).items():
            values[f"teacher_{teacher.name}_{name}"] = value
    return list(_numbers(values))


def teacher_numbers(teacher: TeacherFacts, metric: Metric) -> dict[str, float]:
    """The sizes, the latency and the metric of a teacher, as far as they are known."""
    scores = {column: teacher.value(column) for column in (metric.column("validation"), metric.column("test"))}
    sizes = {name: getattr(teacher, name) for name in ("parameters", "size_bytes", "macs", "latency_ms")}
    return {name: float(value) for name, value in (sizes | scores).items() if value is not None}


def sweep_note(facts: SweepFacts, trials: str | None = None) -> str:
    """Markdown shown on the parent run's page.

    Args:
        trials: the address of the page that shows the sweep's trials.
    """
    lines = [f"Sweep **{facts.name}** on {facts.dataset_label}: {facts.planned} trials planned."]
    if trials is not None:
        lines.append(f"- [All trials of this sweep, with charts]({trials})")
    lines += [
        f"- teacher **{teacher.name}** ({teacher.model}): {teacher.parameters:,} parameters, delivery mode {teacher.way}"
        for teacher in facts.teachers
    ]
    lines += [f"- {note}" for note in facts.notes]
    return clip(mask_text("\n".join(lines)), _MAX_TAG)


def clean_name(name: str) -> str:
    """`name` as MLflow allows it. A slash would put the chart into a separate section, so it becomes a dot."""
    name = re.sub(r"[^\w.\- :]", "_", name.replace("/", "."))[:_MAX_NAME]
    return name if name and posixpath.normpath(name) == name and name not in {".", ".."} else f"_{name}"[:_MAX_NAME]


def clean_tags(tags: Mapping[str, Any]) -> dict[str, str]:
    """Tags as text, without secrets and clipped; tags without a value are left out."""
    return {clean_name(name): clip(_text(value), _MAX_TAG) for name, value in tags.items() if value is not None}


def clean_params(params: Mapping[str, Any]) -> dict[str, str]:
    """Params as text, without secrets and clipped."""
    return {clean_name(name): clip(_text(value), _MAX_PARAM) for name, value in mask_data(params).items()}


def _text(value: Any) -> str:
    """Text as it is, other values as JSON: `0.1`, `true`, `[1, 2]`."""
    return mask_text(value if isinstance(value, str) else json.dumps(value, ensure_ascii=False, default=str))


def clip(text: str, length: int) -> str:
    """`text` with at most `length` characters."""
    return text if len(text) <= length else text[: length - 1] + "…"


def milliseconds(moment: str) -> int:
    """Unix time of an ISO 8601 moment, in UTC where it names no time zone; 0 when there is none."""
    try:
        when = datetime.fromisoformat(moment)
    except ValueError:
        return 0
    return int((when if when.tzinfo else when.replace(tzinfo=UTC)).timestamp() * 1000)
