"""A sweep and its results as tables, as text and for a notebook."""

import html
from collections.abc import Sequence
from typing import TYPE_CHECKING

from stillhouse.spec.schema import SweepSpec
from stillhouse.sweep.home.status import StatusReader
from stillhouse.sweep.home.sweep_home import SweepHome

if TYPE_CHECKING:
    import pandas as pd

    from stillhouse.sweep.results.results import Results

Rows = Sequence[tuple[str, str]]
_FRONT_COLUMNS = ("trial", "method", "student", "seeds", "parameters", "latency_ms")
_MOST_NAMES = 8


def sweep_rows(spec: SweepSpec, sweep_home: SweepHome) -> Rows:
    """What a sweep is and how far it is, as (label, value)."""
    return [
        ("sweep", spec.name),
        ("home", str(sweep_home.home)),
        ("data set", spec.dataset.name if spec.dataset.root is None else f"{spec.dataset.name} in {spec.dataset.root}"),
        ("teachers", _listed(list(spec.teachers)) or "none"),
        ("students", _listed([student.name for student in spec.students])),
        ("methods", "all that fit" if spec.methods is None else _listed(list(spec.methods))),
        ("state", _state(sweep_home)),
    ]


def rows_as_text(rows: Rows) -> str:
    """One line for each row, the values aligned."""
    width = max(len(label) for label, _ in rows)
    return "\n".join(f"{label:<{width}}  {value}" for label, value in rows)


def rows_as_html(rows: Rows) -> str:
    """A table with one row for each."""
    cells = "".join(
        f'<tr><th style="text-align:left">{html.escape(label)}</th><td style="text-align:left">{html.escape(value)}</td></tr>'
        for label, value in rows
    )
    return f"<table>{cells}</table>"


def results_as_text(results: "Results") -> str:
    """How trials ended, and the students on the Pareto front."""
    table = front_table(results)
    return _summary(results) if table.empty else f"{_summary(results)}\n{table.to_string(index=False)}"


def results_as_html(results: "Results") -> str:
    """As `results_as_text`, for a notebook."""
    table = front_table(results)
    shown = "" if table.empty else table.to_html(index=False, float_format=lambda value: f"{value:.4g}")
    return f"<p>{html.escape(_summary(results))}</p>{shown}"


def front_table(results: "Results") -> "pd.DataFrame":
    """The Pareto front with the columns that tell its students apart, and the metric under its own names."""
    front, metric = results.pareto(), results.facts.metric
    columns = (*_FRONT_COLUMNS, metric.column("validation"), metric.column("test"))
    return front[[column for column in columns if column in front and not front[column].isna().all()]]


def _summary(results: "Results") -> str:
    statuses = [record.status for record in results.records]
    counts = [f"{statuses.count(each)} {each}" for each in ("finished", "stopped", "failed") if each in statuses]
    shown = f": {', '.join(counts)}" if counts else ""
    return f"results of sweep '{results.facts.name}', {results.planned} trials{shown}; students on the Pareto front:"


def _state(sweep_home: SweepHome) -> str:
    if not sweep_home.folder.is_dir():
        return "not started"
    try:
        status = StatusReader(sweep_home).read()
    except OSError as error:
        return f"cannot be read: {error.strerror or error}"
    planned = "?" if status["planned"] is None else status["planned"]
    failed = f", {status['failed']} failed" if status["failed"] else ""
    return f"{status['state']}, {status['done']} of {planned} trials done{failed}"


def _listed(names: Sequence[str]) -> str:
    more = f" and {len(names) - _MOST_NAMES} more" if len(names) > _MOST_NAMES else ""
    return ", ".join(names[:_MOST_NAMES]) + more
