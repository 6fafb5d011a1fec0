"""The results of a sweep: the same object for the command line and for Python."""

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal, Self

import pandas as pd

from stillhouse.errors import InfrastructureError, UsageError
from stillhouse.report import (
    Budget,
    Configuration,
    ReportFiles,
    Source,
    best_student,
    gains_of_best,
    gains_to_json,
    parse_budget,
    robustness_names,
    sweep_front,
    sweep_winners,
    trials_table,
    write_comparison,
    write_report,
)
from stillhouse.spec.collapse import is_collapsed, trivial_value
from stillhouse.spec.late_metrics import EXPORTED_LATENCIES
from stillhouse.spec.metric import Metric
from stillhouse.spec.records import SweepFacts, TrialRecord
from stillhouse.sweep.display_tables import results_as_html, results_as_text
from stillhouse.sweep.home.sweep_home import SweepHome, find_sweep, resolve_home
from stillhouse.user_paths import resolve_path

_COST_KEYS = (
    *("latency_batch64_ms", "images_per_second", "peak_memory_bytes", "peak_memory_batch64_bytes"),
    *EXPORTED_LATENCIES,
)
_FRONT_KEYS = ("trial", "method", "student", "seed", "seeds", "parameters", "size_bytes", "macs", "latency_ms")


@dataclass(frozen=True, kw_only=True, repr=False)
class Results:
    """The results of a sweep.

    Attributes:
        planned: how many trials the sweep has.
        reused: how many of the records an earlier run wrote.
        forwarded: samples that each teacher computed in this run, by teacher.
        gathered: samples whose knowledge this run's trials read back, by teacher.
        files: the report; None before it is written.
        seconds: that this run took.
    """

    facts: SweepFacts
    records: Sequence[TrialRecord]
    sweep_home: SweepHome
    planned: int
    reused: int = 0
    forwarded: Mapping[str, int] = field(default_factory=dict)
    gathered: Mapping[str, int] = field(default_factory=dict)
    files: ReportFiles | None = None
    tracking: Mapping[str, str | None] = field(default_factory=dict)
    seconds: float = 0.0

    @classmethod
    def read(cls, home: str | Path, name: str) -> Self:
        """The results of a sweep as they are stored.

        Args:
            home: the folder that stores sweeps.
            name: the sweep's.

        Raises:
            UsageError: there is no such sweep, or it has no facts yet.
        """
        home = resolve_home(home)
        sweep_home = find_sweep(home, name)
        facts = sweep_home.read_facts()
        if facts is None:
            raise UsageError(f"sweep '{name}' has no results yet; continue with: stillhouse resume {name} --home {home}")
        stored = sweep_home.read_records()
        records = [record for record in stored if record.basis.test in ("", _test_of(facts) or record.basis.test)]
        if other := len(stored) - len(records):
            note = (
                f"{other} trials are left out: another test split was read than the one of this sweep; "
                f"continue with: stillhouse resume {name} --home {home}"
            )
            facts = facts.model_copy(update={"notes": [*facts.notes, note]})
        return cls(
            facts=facts,
            records=records,
            sweep_home=sweep_home,
            planned=len(records),
            reused=len(records),
            tracking=facts.tracking,
        )

    def __repr__(self) -> str:
        return results_as_text(self)

    def _repr_html_(self) -> str:
        return results_as_html(self)

    @property
    def home(self) -> Path:
        return self.sweep_home.home

    @property
    def metric(self) -> Metric:
        """What students are judged by; `metric.column("test")` is its column in the tables."""
        return self.facts.metric

    @property
    def failed(self) -> list[TrialRecord]:
        return [record for record in self.records if record.status == "failed"]

    @property
    def collapsed(self) -> list[TrialRecord]:
        """The finished trials whose students are no better than a model that ignores the image."""
        trivial = trivial_value(self.facts, "validation")
        own = [record for record in self.records if not record.trial.is_control]
        return [record for record in own if is_collapsed(record, self.facts.metric, trivial)]

    def table(self) -> pd.DataFrame:
        """One row per trial."""
        return trials_table(self.facts, self.records)

    def front(self, objectives: Mapping[str, Literal["max", "min"]] | None = None) -> list[Configuration]:
        """The students on the Pareto front, as the report has them: winners on validation data, each with all its seeds.

        Args:
            objectives: `max` or `min` by column of the table; by default those of the spec.
        """
        return sweep_front(self.facts, self.records, objectives or self.facts.objectives or None)

    def pareto(self, objectives: Mapping[str, Literal["max", "min"]] | None = None) -> pd.DataFrame:
        """The Pareto front as a table: one row for each student of `front`, the best in the first objective first.

        A row is that of the trial which names the student on the page. Its values of the metric and of what the task measures
        beside it are means over the `seeds` that the report counts.
        """
        front = self.front(objectives)
        table = self.table()
        row_of = {key: row for row, key in enumerate(table["trial"].tolist())}
        rows = table.iloc[[row_of[each.key] for each in front]].copy()
        rows["seeds"] = [len(each.reported) for each in front]
        for split in ("validation", "test"):
            rows[self.facts.metric.column(split)] = [each.score(split).mean for each in front]
        for name in (*(measure.name for measure in self.facts.measures), *robustness_names(self.records)):
            rows[name] = [each.mean(name) for each in front]
        return rows

    def best(self) -> Configuration | None:
        """The student that validation data choose of all sizes, as on the page; None if no trial finished."""
        return best_student(sweep_winners(self.facts, self.records))

    def best_numbers(self) -> dict[str, float]:
        """The metric on both splits, the size and the gains over the controls of `best`; empty if no trial finished."""
        if (best := self.best()) is None:
            return {}
        scores = {self.facts.metric.column(split): best.score(split).mean for split in ("validation", "test")}
        sizes = {name: size for name in ("parameters", "size_bytes") if (size := best.median(name)) is not None}
        return scores | sizes | gains_of_best(self.facts, self.records)

    def report(self, folder: str | Path, budgets: Sequence[Budget] | None = None) -> ReportFiles:
        """Writes page, figure and tables into `folder`.

        Args:
            budgets: the size bounds for which the page names the best student; by default those of the spec.

        Raises:
            InfrastructureError: `folder` cannot be written.
        """
        folder = resolve_path(folder, "the folder")
        budgets = self.budgets() if budgets is None else budgets
        with _writing(folder):
            return write_report(self.facts, self.records, folder, budgets, self.sweep_home.read_addresses())

    def budgets(self) -> list[Budget]:
        """The size bounds that the spec names."""
        return [parse_budget(text) for text in self.facts.spec.get("report", {}).get("budgets", ())]

    def to_json(self) -> dict[str, Any]:
        """The document that `stillhouse sweep --json` ends with."""
        statuses = [record.status for record in self.records]
        metric = self.facts.metric
        measures = [measure.name for measure in self.facts.measures]
        front_keys = (*_FRONT_KEYS, metric.column("validation"), metric.column("test"), *measures, *_COST_KEYS)
        front_keys += tuple(robustness_names(self.records))
        return {
            "sweep": self.facts.name,
            "home": str(self.home),
            "status": "failures" if "failed" in statuses else "finished",
            "trials": {
                "planned": self.planned,
                "finished": len(statuses) - statuses.count("failed"),
                "failed": statuses.count("failed"),
                "reused": self.reused,
            },
            "teachers": [
                {
                    "name": teacher.name,
                    metric.name: teacher.value(metric.column("test")),
                    "test_split_interval": self._of_split(teacher.value(metric.column("test"))),
                    "way": teacher.way,
                    "samples_forwarded": self.forwarded.get(teacher.name, 0),
                    "samples_reused": self.gathered.get(teacher.name, 0),
                }
                for teacher in self.facts.teachers
            ],
            "collapsed": [record.trial.key for record in self.collapsed],
            "pareto": [
                {key: _plain(row[key]) for key in front_keys if key in row}
                | {"test_split_interval": self._of_split(row[metric.column("test")])}
                for row in self.pareto().to_dict(orient="records")
            ],
            "gains": gains_to_json(self.facts, self.records),
            "report": {name: str(getattr(self.files, name)) for name in ("page", "table", "figure")} if self.files else None,
            "tracking": dict(self.tracking),
            "seconds": round(self.seconds, 3),
        }

    def _of_split(self, value: float | None) -> list[float] | None:
        """The 95 % interval of a value on the test split that comes from the size of the split."""
        interval = self.facts.metric.sampling_interval(value, self.facts.test_samples)
        return None if interval is None else list(interval)


def compare(sweeps: Sequence[Results], folder: str | Path, budgets: Sequence[Budget] | None = None) -> ReportFiles:
    """Writes one page about several sweeps; for a single sweep, its own report.

    Args:
        budgets: as for `Results.report`; by default those of all specs, each once.

    Raises:
        UsageError: there is no sweep.
        InfrastructureError: `folder` cannot be written.
    """
    if not sweeps:
        raise UsageError("a report needs at least one sweep")
    if len(sweeps) == 1:
        return sweeps[0].report(folder, budgets)
    folder = resolve_path(folder, "the folder")
    if budgets is None:
        budgets = list(dict.fromkeys(budget for each in sweeps for budget in each.budgets()))
    sources = [Source(facts=each.facts, records=each.records, addresses=each.sweep_home.read_addresses()) for each in sweeps]
    with _writing(folder):
        return write_comparison(sources, folder, budgets)


def _test_of(facts: SweepFacts) -> str:
    """The hash of the sweep's test split; empty in facts of the first release."""
    return str((facts.dataset.get("evaluation") or {}).get("test", ""))


@contextmanager
def _writing(folder: Path) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        raise InfrastructureError(
            f"cannot write the report into {folder}: {error.strerror or error}; choose another folder with --out"
        ) from error


def _plain(value: Any) -> Any:
    """A JSON value: NumPy scalars unwrapped, missing numbers as null."""
    if value is None or value is pd.NA or (isinstance(value, float) and value != value):
        return None
    return value.item() if hasattr(value, "item") else value
