"""The trade-off table: one row per trial, every column with a type, a unit and a description."""

import io
import json
import math
from collections.abc import Callable, Hashable, Iterable, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq

from stillhouse.report.formatting import redacted
from stillhouse.spec.records import TEACHER_JOINT, SweepFacts, TeacherFacts, TrialRecord

_LARGEST_INTEGER = 2**63 - 1


@dataclass(frozen=True)
class Column:
    """What a reader of the table must know of one column; goes into the Parquet schema."""

    name: str
    dtype: Literal["str", "Int64", "float64", "boolean"]
    unit: str
    description: str


LEADING: tuple[Column, ...] = (
    Column("trial", "str", "", "key of the trial: the hash of all that decides its result"),
    Column("method", "str", "", "distillation method"),
    Column("student", "str", "", "label of the student in the spec"),
    Column("teacher", "str", "", "label of the teacher in the spec; missing when the method has none"),
    Column("seed", "Int64", "", "seed of weights, batches and order of views"),
    Column("parameters", "Int64", "parameters", "all parameters of the student; helpers of the method not counted"),
    Column("size_bytes", "Int64", "bytes", "size of the student's stored weights"),
    Column("macs", "Int64", "multiply-accumulates", "multiply-accumulate operations for one sample"),
    Column("latency_ms", "float64", "ms", "median time of a forward pass of one sample"),
    Column("validation_accuracy", "float64", "fraction", "share of validation samples classified right; used to choose"),
    Column("test_accuracy", "float64", "fraction", "share of test samples classified right; used to report"),
)
TRAILING: tuple[Column, ...] = (
    Column("status", "str", "", "finished, stopped (early, by the scheduler) or failed"),
    Column("phase", "str", "", "search, or confirm (a winner of the search again, on a fresh seed)"),
    Column("epochs_run", "Int64", "epochs", "epochs that were trained"),
    Column("epochs", "Int64", "epochs", "epochs that the trial was given"),
    Column("train_seconds", "float64", "s", "time spent training"),
    Column("compression_ratio", "float64", "ratio", "parameters of the teacher over parameters of the student"),
    Column("accuracy_drop", "float64", "fraction", "test accuracy of the teacher minus test accuracy of the student"),
    Column("model", "str", "", "model of the student"),
    Column("trainable_parameters", "Int64", "parameters", "parameters of the student that were trained"),
    Column("latency_p95_ms", "float64", "ms", "95th percentile of the time of a forward pass of one sample"),
    Column("latency_batch64_ms", "float64", "ms", "median time of a forward pass of 64 samples"),
    Column("way", "str", "", "how the teacher's knowledge came: cached, served or inline"),
    Column("samples_gathered", "Int64", "samples", "samples whose knowledge the trial used"),
    Column("bytes_gathered", "Int64", "bytes", "knowledge that the trial used"),
    Column("wait_seconds", "float64", "s", "time that the trial waited for knowledge"),
    Column("device", "str", "", "device that the trial ran on"),
    Column("reason", "str", "", "why the trial failed or stopped"),
    Column("weights", "str", "", "file of the student's weights, relative to the sweep's folder"),
    Column("weights_hash", "str", "", "hash of the student's weights"),
    Column("started", "str", "", "when the trial began"),
    Column("finished", "str", "", "when the trial ended"),
)
_METRICS = ("parameters", "size_bytes", "macs", "latency_ms", "validation_accuracy", "test_accuracy", "train_seconds")
_MORE_METRICS = ("trainable_parameters", "latency_p95_ms", "latency_batch64_ms")
_DERIVED = ("compression_ratio", "accuracy_drop")
_TEACHING = ("way", "samples_gathered", "bytes_gathered", "wait_seconds")


def trials_table(facts: SweepFacts, records: Sequence[TrialRecord]) -> pd.DataFrame:
    """One row per record, in their order: what the trial was, what came out, then one column per hyper-parameter and the rest.

    A hyper-parameter keeps its plain name, with `hyperparameter_` before it where another column has that name; options of
    students begin with `student_`, metrics that a method adds with `metric_` where they collide.
    """
    return _assemble(facts, records)[0]


def table_columns(facts: SweepFacts, records: Sequence[TrialRecord]) -> tuple[Column, ...]:
    """The columns of `trials_table`, described."""
    return _assemble(facts, records)[1]


def reference_teacher(facts: SweepFacts, teacher: str | None) -> TeacherFacts | None:
    """The teacher that a student's size and accuracy are held against: its own, else one of the sweep; the most accurate."""
    names = teacher.split(TEACHER_JOINT) if teacher else []
    own = [each for each in facts.teachers if each.name in names] or facts.teachers
    return max(own, key=lambda each: _finite(each.test_accuracy, -1.0), default=None)


def parquet_bytes(table: pd.DataFrame, columns: Iterable[Column], about: dict[str, Any]) -> bytes:
    """The table as Parquet; each field carries its unit and description, the schema carries `about`."""
    described = {column.name: column for column in columns}
    arrow = pa.Table.from_pandas(table, preserve_index=False)
    fields = []
    for field in arrow.schema:
        column = described[field.name]
        type_ = pa.string() if column.dtype == "str" else field.type
        fields.append(pa.field(field.name, type_, metadata={"unit": column.unit, "description": column.description}))
    stillhouse = json.dumps({**about, "columns": {name: _described(column) for name, column in described.items()}})
    metadata = {**(arrow.schema.metadata or {}), b"stillhouse": stillhouse.encode()}
    buffer = io.BytesIO()
    pq.write_table(arrow.cast(pa.schema(fields, metadata=metadata)), buffer)
    return buffer.getvalue()


def csv_bytes(table: pd.DataFrame) -> bytes:
    return table.to_csv(index=False, lineterminator="\n").encode()


def _described(column: Column) -> dict[str, str]:
    return {"type": column.dtype, "unit": column.unit, "description": column.description}


def _assemble(facts: SweepFacts, records: Sequence[TrialRecord]) -> tuple[pd.DataFrame, tuple[Column, ...]]:
    taken = {column.name for column in (*LEADING, *TRAILING)}
    hyperparameters = _varying(
        records, lambda record: record.trial.hyperparameters, "hyperparameter_", taken, "hyper-parameter {}"
    )
    options = _varying(
        records, lambda record: record.trial.student.options, "student_", taken, "option {} of the student", always=True
    )
    known = {*_METRICS, *_MORE_METRICS, *_DERIVED}
    extras = _varying(
        records,
        lambda record: {name: value for name, value in record.metrics.items() if name not in known},
        "metric_",
        taken,
        "metric {}, recorded by the trial",
    )
    rows = _fixed_values(facts, records)
    data: dict[str, Any] = {}
    columns: list[Column] = []
    for group in ([(column, rows[column.name]) for column in LEADING], hyperparameters):
        for column, values in group:
            columns.append(column)
            data[column.name] = _typed(values, column.dtype)
    for group in ([(column, rows[column.name]) for column in TRAILING], options, extras):
        for column, values in group:
            columns.append(column)
            data[column.name] = _typed(values, column.dtype)
    return pd.DataFrame(data, index=pd.RangeIndex(len(records))), tuple(columns)


def _fixed_values(facts: SweepFacts, records: Sequence[TrialRecord]) -> dict[str, list[Any]]:
    rows: dict[str, list[Any]] = {column.name: [] for column in (*LEADING, *TRAILING)}
    teachers = {name: reference_teacher(facts, name) for name in {record.trial.teacher for record in records}}
    for record in records:
        trial = record.trial
        values: dict[str, Any] = {
            "trial": trial.key,
            "method": trial.method,
            "student": trial.student.name,
            "teacher": trial.teacher,
            "seed": trial.seed,
            "status": record.status,
            "phase": trial.phase,
            "epochs_run": record.epochs_run,
            "epochs": trial.epochs,
            "model": trial.student.model,
            "device": record.device,
            "reason": None if record.reason is None else redacted(record.reason),
            "weights": record.weights,
            "weights_hash": record.weights_hash,
            "started": record.started or None,
            "finished": record.finished or None,
            **{name: record.metrics.get(name) for name in (*_METRICS, *_MORE_METRICS)},
            **{name: record.teaching.get(name) for name in _TEACHING},
            **_against(teachers[trial.teacher], record),
        }
        for name, column in rows.items():
            column.append(values[name])
    return rows


def _against(teacher: TeacherFacts | None, record: TrialRecord) -> dict[str, float | None]:
    """How much smaller than the teacher, and how much less accurate; without a teacher, what the record says itself."""
    ratio, drop = record.metrics.get("compression_ratio"), record.metrics.get("accuracy_drop")
    parameters, accuracy = record.metrics.get("parameters"), record.metrics.get("test_accuracy")
    if teacher is not None and parameters:
        ratio = teacher.parameters / parameters
    if teacher is not None and teacher.test_accuracy is not None and accuracy is not None:
        drop = teacher.test_accuracy - accuracy
    return {"compression_ratio": ratio, "accuracy_drop": drop}


def _varying(
    records: Sequence[TrialRecord],
    values_of: Callable[[TrialRecord], dict[str, Any]],
    prefix: str,
    taken: set[str],
    description: str,
    *,
    always: bool = False,
) -> list[tuple[Column, list[Any]]]:
    """One column for each name that any record has; adds the names it gave to `taken`."""
    per_record = [values_of(record) for record in records]
    columns = []
    for name in sorted({name for values in per_record for name in values}):
        free = prefix + name if always else name
        while free in taken:
            free = prefix + free
        taken.add(free)
        values = [_scalar(each.get(name)) for each in per_record]
        columns.append((Column(free, _dtype(values), "", description.format(name)), values))
    return columns


def _scalar(value: Any) -> bool | int | float | str | None:
    """`value` as one cell: lists and mappings become their JSON."""
    if value is None or isinstance(value, bool | int | float | str):
        return value
    return json.dumps(value, sort_keys=True, default=str)


def _dtype(values: Iterable[Hashable]) -> Literal["str", "Int64", "float64", "boolean"]:
    """The narrowest type that holds them all; a mixture of kinds is text."""
    present = [value for value in values if value is not None]
    if not present or any(isinstance(value, str) for value in present):
        return "str"
    bools = sum(isinstance(value, bool) for value in present)
    if bools:
        return "boolean" if bools == len(present) else "str"
    whole = all(isinstance(value, int) and abs(value) <= _LARGEST_INTEGER for value in present)
    return "Int64" if whole else "float64"


def _typed(values: Sequence[Any], dtype: Literal["str", "Int64", "float64", "boolean"]) -> Any:
    match dtype:
        case "Int64":
            return pd.array([_whole(value) for value in values], dtype="Int64")
        case "float64":
            return np.array([_finite_or_nan(value) for value in values], dtype=np.float64)
        case "boolean":
            return pd.array(list(values), dtype="boolean")
        case "str":
            return pd.array([None if value is None else str(value) for value in values], dtype="str")


def _whole(value: float | None) -> int | None:
    if value is None or not math.isfinite(value) or abs(value) > _LARGEST_INTEGER:
        return None
    return round(value)


def _finite_or_nan(value: Any) -> float:
    return math.nan if value is None else float(value)


def _finite(value: float | None, otherwise: float) -> float:
    return otherwise if value is None or not math.isfinite(value) else value
