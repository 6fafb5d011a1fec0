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

from stillhouse.report.columns import Column
from stillhouse.report.control_columns import gains_over_controls
from stillhouse.report.late_columns import late_columns, robustness_names
from stillhouse.spec.collapse import is_collapsed, trivial_value
from stillhouse.spec.late_metrics import EXPORTED_LATENCIES, is_late
from stillhouse.spec.metric import Metric
from stillhouse.spec.records import FULL_BITS, SweepFacts, TeacherFacts, TrialRecord, operator_settings
from stillhouse.spec.secret_masking import mask_text
from stillhouse.spec.teacher_comparison import RATIO_COLUMN, against_teacher, reference_teacher

_LARGEST_INTEGER = 2**63 - 1


@dataclass(frozen=True)
class TrialsTable:
    """One row per trial, and the description of every column."""

    frame: pd.DataFrame
    columns: tuple[Column, ...]


_LEADING: tuple[Column, ...] = (
    Column("trial", "str", "", "key of the trial: the hash of all that decides its result"),
    Column("method", "str", "", "distillation method"),
    Column("student", "str", "", "label of the student in the spec"),
    Column("teacher", "str", "", "label of the teacher in the spec; missing when the method has none"),
    Column("seed", "Int64", "", "seed of weights, batches and order of views"),
    Column("parameters", "Int64", "parameters", "all parameters of the student; helpers of the method not counted"),
    Column("size_bytes", "Int64", "bytes", "size of the student's stored weights"),
    Column("macs", "Int64", "multiply-accumulates", "multiply-accumulate operations for one sample"),
    Column("latency_ms", "float64", "ms", "median time of a forward pass of one sample"),
)
_TRAILING: tuple[Column, ...] = (
    Column("status", "str", "", "finished, stopped (early, by the scheduler) or failed"),
    Column(
        "phase", "str", "", "search, confirm (a winner again, on a fresh seed), or control (again, with an untrained teacher)"
    ),
    Column("epochs_run", "Int64", "epochs", "epochs that were trained"),
    Column("epochs", "Int64", "epochs", "epochs that the trial was given"),
    Column("train_seconds", "float64", "s", "time spent training"),
    Column("model", "str", "", "model of the student"),
    Column("trainable_parameters", "Int64", "parameters", "parameters of the student that were trained"),
    Column("latency_p95_ms", "float64", "ms", "95th percentile of the time of a forward pass of one sample"),
    Column("latency_batch64_ms", "float64", "ms", "median time of a forward pass of 64 samples"),
    Column("images_per_second", "float64", "1/s", "images of a forward pass of 64 samples by its median time"),
    Column("peak_memory_bytes", "Int64", "bytes", "weights, inputs and results in a forward pass of one sample, at their peak"),
    Column("peak_memory_batch64_bytes", "Int64", "bytes", "the same in a forward pass of 64 samples"),
    Column("way", "str", "", "delivery mode of the teacher's knowledge: cached, served or inline"),
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
_COLLAPSED = Column(
    "collapsed",
    "boolean",
    "",
    "whether a finished student is no better than a model that ignores the image",
)
_OPERATORS = (
    Column("weight_bits", "Int64", "bits", "bits of a stored weight in the layers that have the fewest"),
    Column("activation_bits", "Int64", "bits", "bits of a layer's input in the layers that have the fewest"),
    Column("compression", "str", "", "operators that were applied to the student, in order"),
    Column("nonzero_parameters", "Int64", "parameters", "parameters of the student that are not zero; empty without operators"),
    Column("int8_latency_ms", "float64", "ms", "median time of one sample in int8, by onnxruntime; empty without an int8 form"),
)
_MEASURED = (
    "parameters",
    "size_bytes",
    "macs",
    "latency_ms",
    "train_seconds",
    "trainable_parameters",
    "latency_p95_ms",
    "latency_batch64_ms",
    "images_per_second",
    "peak_memory_bytes",
    "peak_memory_batch64_bytes",
)
_TEACHING = ("way", "samples_gathered", "bytes_gathered", "wait_seconds")


def trials_table(facts: SweepFacts, records: Sequence[TrialRecord]) -> pd.DataFrame:
    """One row per record, in their order: what the trial was, what came out, then one column per hyper-parameter and the rest.

    A hyper-parameter keeps its plain name, with `hyperparameter_` before it where another column has that name; options of
    students begin with `student_`, metrics that a method adds with `metric_` where they collide.
    """
    return described_table(facts, records).frame


def parquet_bytes(table: TrialsTable, about: dict[str, Any]) -> bytes:
    """The table as Parquet; each field has its unit and description as metadata, the schema has `about`."""
    described = {column.name: column for column in table.columns}
    arrow = pa.Table.from_pandas(table.frame, preserve_index=False)
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
    """The table as CSV in UTF-8."""
    return table.to_csv(index=False, lineterminator="\n").encode()


def _described(column: Column) -> dict[str, str]:
    return {"type": column.dtype, "unit": column.unit, "description": column.description}


def described_table(facts: SweepFacts, records: Sequence[TrialRecord]) -> TrialsTable:
    """The table of `trials_table` with the description of its columns."""
    leading, trailing = _leading(facts.metric), _trailing(facts.metric)
    taken = {column.name for column in (*leading, *trailing, _COLLAPSED, *_OPERATORS)}
    taken |= {*(measure.name for measure in facts.measures), *EXPORTED_LATENCIES, *robustness_names(records)}
    hyperparameters = _varying(
        records, lambda record: record.trial.hyperparameters, "hyperparameter_", taken, "hyper-parameter {}"
    )
    searched = _searched_options(records)
    options = _varying(
        records,
        lambda record: record.trial.student.options | searched(record),
        "student_",
        taken,
        "option {} of the student",
        always=True,
    )
    operators = [column.name for column in _OPERATORS]
    known = {*_MEASURED, *operators, *_score_columns(facts.metric), *_comparison_columns(facts.metric)}
    known |= {measure.name for measure in facts.measures}
    extras = _varying(
        records,
        lambda record: {name: value for name, value in record.metrics.items() if name not in known and not is_late(name)},
        "metric_",
        taken,
        "metric {}, recorded by the trial",
    )
    measured = _measured_columns(facts, records)
    rows = _fixed_values(facts, records)
    data: dict[str, Any] = {}
    columns: list[Column] = []
    for group in (
        [(column, rows[column.name]) for column in leading],
        hyperparameters,
        [(column, rows[column.name]) for column in trailing],
        options,
        extras,
        measured,
        gains_over_controls(facts, records, taken),
        [(column, rows[column.name]) for column in (_COLLAPSED, *_OPERATORS)],
        late_columns(facts, records),
    ):
        for column, values in group:
            columns.append(column)
            data[column.name] = _typed(values, column.dtype)
    return TrialsTable(pd.DataFrame(data, index=pd.RangeIndex(len(records))), tuple(columns))


def _measured_columns(facts: SweepFacts, records: Sequence[TrialRecord]) -> list[tuple[Column, list[Any]]]:
    """What the task measures beside its metric: these columns are there whether or not any record has a value."""
    return [
        (
            Column(measure.name, "float64", "fraction" if measure.percent else "", measure.description),
            [record.metrics.get(measure.name) for record in records],
        )
        for measure in facts.measures
    ]


def _score_columns(metric: Metric) -> tuple[str, str]:
    return metric.column("validation"), metric.column("test")


def _range_columns(metric: Metric) -> tuple[str, ...]:
    return tuple(f"{metric.column('test')}_{end}" for end in ("low", "high")) if metric.proportion else ()


def _comparison_columns(metric: Metric) -> tuple[str, str]:
    return RATIO_COLUMN, metric.drop_column


def _leading(metric: Metric) -> tuple[Column, ...]:
    validation, test = _score_columns(metric)
    kind = "fraction" if metric.percent else ""
    better = "higher" if metric.direction == "max" else "lower"
    return (
        *_LEADING,
        Column(validation, "float64", kind, f"{metric.label} on the validation split ({better} is better); used to choose"),
        Column(test, "float64", kind, f"{metric.label} on the test split ({better} is better); used to report"),
    )


def _trailing(metric: Metric) -> tuple[Column, ...]:
    place = next(index for index, column in enumerate(_TRAILING) if column.name == "model")
    ratio, drop = _comparison_columns(metric)
    kind = "fraction" if metric.percent else ""
    ends = "of the 95% interval of the value on the test split that comes from the size of the split (Wilson)"
    of_split = [Column(name, "float64", kind, f"{name.rpartition('_')[2]} end {ends}") for name in _range_columns(metric)]
    return (
        *_TRAILING[:place],
        Column(ratio, "float64", "ratio", "parameters of the teacher over parameters of the student"),
        Column(drop, "float64", kind, f"by how much the student's test {metric.label} is worse than the teacher's"),
        *_TRAILING[place:],
        *of_split,
    )


def _fixed_values(facts: SweepFacts, records: Sequence[TrialRecord]) -> dict[str, list[Any]]:
    """The values of the columns that every table has, by column."""
    metric = facts.metric
    rows: dict[str, list[Any]] = {
        column.name: [] for column in (*_leading(metric), *_trailing(metric), _COLLAPSED, *_OPERATORS)
    }
    trivial = trivial_value(facts, "validation")
    teachers = {record.trial.teacher: reference_teacher(facts.teachers, record.trial.teachers, metric) for record in records}
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
            "reason": None if record.reason is None else mask_text(record.reason),
            "weights": record.weights,
            "weights_hash": record.weights_hash,
            "started": record.started or None,
            "finished": record.finished or None,
            _COLLAPSED.name: is_collapsed(record, metric, trivial),
            **_operator_values(record),
            **{name: record.metrics.get(name) for name in (*_MEASURED, *_score_columns(metric))},
            **{name: record.teaching.get(name) for name in _TEACHING},
            **_against(teachers[trial.teacher], record, metric),
            **_test_range(record, facts),
        }
        for name, column in rows.items():
            column.append(values[name])
    return rows


def _operator_values(record: TrialRecord) -> dict[str, Any]:
    """What operators left of the student. Bits are known of a student without operators, and of a finished one."""
    full = None if record.trial.student.compress else FULL_BITS
    return {
        "weight_bits": record.metrics.get("weight_bits", full),
        "activation_bits": record.metrics.get("activation_bits", full),
        "compression": record.compression or None,
        "nonzero_parameters": record.metrics.get("nonzero_parameters"),
        "int8_latency_ms": record.metrics.get("int8_latency_ms"),
    }


def _searched_options(records: Sequence[TrialRecord]) -> Callable[[TrialRecord], dict[str, Any]]:
    """The options of operators in which the students of one label differ, by their dotted keys."""
    seen: dict[tuple[str, str], set[str]] = {}
    for record in records:
        student = record.trial.student
        for name, value in operator_settings(student.compress).items():
            seen.setdefault((student.name, name), set()).add(repr(value))

    def of(record: TrialRecord) -> dict[str, Any]:
        student = record.trial.student
        values = operator_settings(student.compress)
        return {name: value for name, value in values.items() if len(seen[student.name, name]) > 1}

    return of


def _test_range(record: TrialRecord, facts: SweepFacts) -> dict[str, float | None]:
    """The interval of the value on the test split, from the size of the split."""
    interval = facts.metric.sampling_interval(record.metrics.get(facts.metric.column("test")), facts.test_samples)
    return dict(zip(_range_columns(facts.metric), interval or (None, None), strict=False))


def _against(teacher: TeacherFacts | None, record: TrialRecord, metric: Metric) -> dict[str, float | None]:
    """The comparison with the teacher; without a teacher in the facts, what the record has itself."""
    recorded = {name: record.metrics.get(name) for name in _comparison_columns(metric)}
    if teacher is None:
        return recorded
    score = teacher.value(metric.column("test"))
    return recorded | against_teacher(record.metrics, metric, parameters=teacher.parameters, score=score)


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
    """The narrowest type for all of them; a mixture of types is text."""
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
