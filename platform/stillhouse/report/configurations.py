"""Trials gathered over their seeds, and the winners among them.

A *configuration* is everything of a trial but its seed. Its seeds give a mean and a 95% interval. Configurations are chosen by
the task's metric on the validation split, and the same metric on the test split is reported. Where a winner was run again on
fresh seeds, only those seeds are reported, because the seed that made it win is not a fair sample.
"""

import json
import math
from collections import defaultdict
from collections.abc import Callable, Hashable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from statistics import fmean, median
from typing import Any, Literal, TypeVar

from stillhouse.report.estimates import Estimate, difference_of_means, mean_with_interval
from stillhouse.spec.collapse import is_collapsed
from stillhouse.spec.metric import ACCURACY, Metric, Split
from stillhouse.spec.preference import Preference, comparable, preference
from stillhouse.spec.records import StudentChoice, TrialRecord
from stillhouse.spec.size_bound import SIZES

_Key = TypeVar("_Key", bound=Hashable)


_Item = TypeVar("_Item")


@dataclass(frozen=True, kw_only=True, eq=False)
class Configuration:
    """One student, method, teacher and set of hyper-parameters with all its finished seeds.

    Attributes:
        metric: by which the sweep's task judges students.
        choice: the student's label, with the options in which students of that label differ.
        considered: finished and stopped trials that the search tried for this method and student label.
        sweep: its sweep's name where several are compared.
        devices: GPUs, or the share of one, that a trial held; 1 for a trial on the CPU.
        control: whether its method is the baseline that gains are measured against.
        test_samples: size of the test split; None where it is not known.
        trivial: the value of a model that ignores the image, on the validation split; None where it is not known.
    """

    metric: Metric
    method: str
    student: str
    choice: str
    teacher: str | None
    hyperparameters: Mapping[str, Any]
    records: tuple[TrialRecord, ...]
    considered: int = 1
    sweep: str = ""
    devices: float = 1.0
    control: bool = False
    test_samples: int | None = None
    trivial: float | None = None

    @cached_property
    def reported(self) -> tuple[TrialRecord, ...]:
        """The seeds whose numbers are reported: the fresh ones of the confirm phase where there are any."""
        fresh = tuple(record for record in self.records if record.trial.phase == "confirm")
        return fresh or self.records

    @property
    def teachers(self) -> tuple[str, ...]:
        """The names of its own teachers; none for a student that learned alone."""
        return self.records[0].trial.teachers

    @property
    def confirmed(self) -> bool:
        return self.reported[0].trial.phase == "confirm"

    def score(self, split: Split) -> Estimate:
        """The metric on one split, over the reported seeds."""
        return self.test if split == "test" else self.validation

    @cached_property
    def test(self) -> Estimate:
        return mean_with_interval(record.metrics[self.metric.column("test")] for record in self.reported)

    @property
    def test_split_interval(self) -> tuple[float, float] | None:
        """The 95% interval of `test` that comes from the size of the test split, however many seeds there are."""
        return self.metric.sampling_interval(self.test.mean, self.test_samples)

    @cached_property
    def validation(self) -> Estimate:
        """NaN where the data set has no validation split."""
        if not self.judged:
            return Estimate(math.nan, None, len(self.reported))
        return mean_with_interval(record.metrics[self.metric.column("validation")] for record in self.reported)

    @property
    def judged(self) -> bool:
        """Whether it has values on a validation split; without one nothing is chosen."""
        return all(self.metric.column("validation") in record.metrics for record in self.records)

    @property
    def quality(self) -> float:
        """The mean on the validation split, with the sign that makes higher better: what fronts are made by."""
        return self.metric.sign * comparable(self.validation.mean)

    @cached_property
    def preference(self) -> Preference:
        """The sort key by which students are chosen: the mean on the validation split, then what is simpler."""
        return self._preference(self.validation.mean)

    @cached_property
    def search_preference(self) -> Preference:
        """The same by what the search saw: the key by which settings are chosen."""
        return self._preference(self.search_validation)

    def _preference(self, value: float) -> Preference:
        sizes = {name: self.median(name) for name in SIZES}
        return preference(value, self.metric, control=self.control, sizes=sizes, teachers=len(self.teachers))

    @cached_property
    def search_validation(self) -> float:
        """What the search saw on the validation split: the value by which this configuration won or lost; NaN without one."""
        if not self.judged:
            return math.nan
        seen = [record for record in self.records if record.trial.phase == "search"] or self.records
        return fmean(record.metrics[self.metric.column("validation")] for record in seen)

    @cached_property
    def num_collapsed(self) -> int:
        """How many of the reported seeds collapsed: their students are no better than a model that ignores the image."""
        return sum(bool(is_collapsed(record, self.metric, self.trivial)) for record in self.reported)

    @property
    def collapsed(self) -> bool:
        """Whether all its reported seeds collapsed: then it is no result, and no choice."""
        return self.num_collapsed == len(self.reported)

    @property
    def key(self) -> str:
        """The key of its first trial: names the configuration on pages and in documents."""
        return self.reported[0].trial.key

    def median(self, name: str) -> float | None:
        """The median over the reported seeds; None where none has it."""
        values = [record.metrics[name] for record in self.reported if math.isfinite(record.metrics.get(name, math.nan))]
        return float(median(values)) if values else None

    def mean(self, name: str) -> float | None:
        """The mean over the reported seeds that have it; None where none has."""
        values = [record.metrics[name] for record in self.reported if math.isfinite(record.metrics.get(name, math.nan))]
        return fmean(values) if values else None

    def by_seed(self, *, every: bool = False) -> dict[int, float]:
        """The metric on the test split by seed, of the reported seeds or of every one."""
        records = self.records if every else self.reported
        return {record.trial.seed: record.metrics[self.metric.column("test")] for record in records}


def configurations(
    records: Sequence[TrialRecord],
    metric: Metric = ACCURACY,
    *,
    sweep: str = "",
    labels: Mapping[str, str] | None = None,
    devices: float = 1.0,
    baseline: str | None = None,
    test_samples: int | None = None,
    trivial: float | None = None,
    controls: bool = False,
) -> list[Configuration]:
    """The finished trials with their values, gathered over their seeds; in order of their first record.

    Args:
        controls: whether to gather the trials with untrained teachers, which are never chosen, instead of the others.
        sweep: noted with each of them.
        labels: of the concrete students by `StudentChoice.variant`; by default those that `records` need.
        devices: that each trial held.
        baseline: the method that gains are measured against; of equal results its own is chosen.
        test_samples: size of the test split, if it is known.
        trivial: the value of a model that ignores the image, on the validation split, if it is known.
    """
    labels = choice_labels(records) if labels is None else labels
    records = [record for record in records if record.trial.is_control == controls]
    considered: dict[tuple[str, str], int] = defaultdict(int)
    for record in records:
        if record.trial.phase == "search" and record.status != "failed":
            considered[record.trial.method, record.trial.student.name] += 1
    groups = grouped((record for record in records if has_result(record, metric)), _configuration_key)
    return [
        Configuration(
            metric=metric,
            method=first.trial.method,
            student=first.trial.student.name,
            choice=labels[first.trial.student.variant],
            teacher=first.trial.teacher,
            hyperparameters=first.trial.hyperparameters,
            records=tuple(sorted(group, key=lambda record: (record.trial.phase, record.trial.seed, record.trial.key))),
            considered=max(1, considered[first.trial.method, first.trial.student.name]),
            sweep=sweep,
            devices=devices,
            control=first.trial.method == baseline,
            test_samples=test_samples,
            trivial=trivial,
        )
        for group in groups.values()
        for first in group[:1]
    ]


def has_result(record: TrialRecord, metric: Metric) -> bool:
    """Whether the trial finished with a value on the test split and on the validation split, if the data set has one."""
    values = (record.metrics.get(metric.column("test"), math.nan), record.metrics.get(metric.column("validation"), 0.0))
    return record.status == "finished" and all(math.isfinite(value) for value in values)


def winners(
    candidates: Iterable[Configuration],
    by: Callable[[Configuration], Hashable] = lambda each: (each.sweep, each.method, each.choice),
) -> list[Configuration]:
    """Of each group the configuration that was best on the validation split in the search.

    Of equal ones the one that ran again on fresh seeds, then the simplest (`spec.preference`), then the first by key.
    """
    return [
        min(group, key=lambda each: (each.search_preference[0], not each.confirmed, each.search_preference, each.key))
        for group in grouped(candidates, by).values()
    ]


def preferred(each: Configuration) -> tuple[Preference, str]:
    """The sort key by which one of several students is chosen."""
    return each.preference, each.key


def compare(left: Configuration, right: Configuration) -> tuple[Estimate, Literal["paired", "unpaired"]]:
    """By how much `left` is better than `right` on the test split: over the seeds that both have, else between their means.

    Positive where `left` is better, whatever the direction of the metric.
    """
    gain = left.metric.gain
    for every in (False, True):
        mine, theirs = left.by_seed(every=every), right.by_seed(every=every)
        shared = sorted(mine.keys() & theirs.keys())
        if shared:
            return mean_with_interval(gain(mine[seed], theirs[seed]) for seed in shared), "paired"
    better, worse = (left, right) if left.metric.direction == "max" else (right, left)
    return difference_of_means(list(better.by_seed().values()), list(worse.by_seed().values())), "unpaired"


def choice_labels(records: Iterable[TrialRecord]) -> dict[str, str]:
    """The label of each concrete student by its `variant`: its name and the options that tell it from its namesakes."""
    by_name: dict[str, dict[str, StudentChoice]] = defaultdict(dict)
    for record in records:
        by_name[record.trial.student.name][record.trial.student.variant] = record.trial.student
    labels = {}
    for name, choices in by_name.items():
        told_apart = _differing([choice.settings | {"model": choice.model} for choice in choices.values()])
        for key, choice in choices.items():
            options = choice.settings | {"model": choice.model}
            # Of an operator's option the place in the list is left out: prune.ratio=0.5.
            shown = [f"{name.rpartition('].')[2]}={_brief(options[name])}" for name in told_apart if name in options]
            labels[key] = " ".join([name, *shown])
    return labels


def _differing(mappings: Sequence[Mapping[str, Any]]) -> list[str]:
    names = sorted({name for mapping in mappings for name in mapping})
    missing = object()
    return [name for name in names if len({repr(mapping.get(name, missing)) for mapping in mappings}) > 1]


def _brief(value: Any) -> str:
    return f"{value:.3g}" if isinstance(value, float) else str(value)


def _configuration_key(record: TrialRecord) -> str:
    trial = record.trial
    return json.dumps(
        [trial.method, trial.student.variant, trial.teacher, trial.hyperparameters, trial.epochs],
        sort_keys=True,
        default=str,
    )


def grouped(items: Iterable[_Item], key: Callable[[_Item], _Key]) -> dict[_Key, list[_Item]]:
    """The items by their key, groups and items in order of appearance."""
    groups: dict[_Key, list[_Item]] = {}
    for item in items:
        groups.setdefault(key(item), []).append(item)
    return groups
