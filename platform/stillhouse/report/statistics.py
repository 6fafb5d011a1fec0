"""What the numbers of a sweep are worth: means with intervals over seeds, choice on validation data, paired gains.

A *configuration* is everything of a trial but its seed. Its seeds give a mean and a 95% interval. Configurations are chosen by
validation accuracy and reported by test accuracy; where a winner was run again on fresh seeds, only those seeds are reported,
because the seed that made it win is not a fair sample.
"""

import json
import math
from collections import defaultdict
from collections.abc import Callable, Hashable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import cache, cached_property
from statistics import fmean, median, stdev
from typing import Any, Literal, TypeVar

import numpy as np
from scipy import stats

from stillhouse.spec.records import StudentChoice, TrialRecord

CONFIDENCE = 0.95
_MAX_STUDENT_COLUMNS = 12
_Key = TypeVar("_Key", bound=Hashable)
_Item = TypeVar("_Item")


@dataclass(frozen=True)
class Estimate:
    """A mean over `n` independent values; `half_width` of its 95% interval, None where n is 1."""

    mean: float
    half_width: float | None
    n: int

    @property
    def low(self) -> float:
        return self.mean - (self.half_width or 0.0)

    @property
    def high(self) -> float:
        return self.mean + (self.half_width or 0.0)

    def sign(self) -> Literal[-1, 0, 1] | None:
        """Which side of zero the whole interval lies on; 0 when it holds zero, None without an interval."""
        if self.half_width is None:
            return None
        return 1 if self.low > 0 else -1 if self.high < 0 else 0


def mean_with_interval(values: Iterable[float]) -> Estimate:
    """The mean and Student's 95% interval, t(0.975, n - 1) s / sqrt(n).

    Raises:
        ValueError: no values.
    """
    sample = [float(value) for value in values]
    if not sample:
        raise ValueError("a mean needs at least one value, got none")
    half_width = None
    if len(sample) > 1:
        half_width = _t_quantile(len(sample) - 1) * stdev(sample) / math.sqrt(len(sample))
    return Estimate(fmean(sample), half_width, len(sample))


def difference_of_means(left: Sequence[float], right: Sequence[float]) -> Estimate:
    """mean(left) - mean(right) of unpaired samples with Welch's 95% interval; n is that of the smaller one."""
    a, b = np.asarray(left, dtype=np.float64), np.asarray(right, dtype=np.float64)
    mean, n = float(a.mean() - b.mean()), int(min(a.size, b.size))
    if n < 2:
        return Estimate(mean, None, n)
    of_a, of_b = float(a.var(ddof=1)) / a.size, float(b.var(ddof=1)) / b.size
    if of_a + of_b == 0:
        return Estimate(mean, 0.0, n)
    freedom = (of_a + of_b) ** 2 / (of_a**2 / (a.size - 1) + of_b**2 / (b.size - 1))
    return Estimate(mean, _t_quantile(freedom) * math.sqrt(of_a + of_b), n)


@cache
def _t_quantile(freedom: float) -> float:
    return float(stats.t.ppf((1 + CONFIDENCE) / 2, freedom))


@dataclass(frozen=True, kw_only=True, eq=False)
class Configuration:
    """One student, method, teacher and set of hyper-parameters with all its finished seeds.

    Attributes:
        choice: the student's label, with the options in which students of that label differ.
        considered: finished and stopped trials that the search tried for this method and student label.
        sweep: its sweep's name where several are compared.
        devices: GPUs, or the share of one, that a trial held; 1 for a trial on the CPU.
    """

    method: str
    student: str
    choice: str
    teacher: str | None
    hyperparameters: Mapping[str, Any]
    records: tuple[TrialRecord, ...]
    considered: int = 1
    sweep: str = ""
    devices: float = 1.0

    @cached_property
    def reported(self) -> tuple[TrialRecord, ...]:
        """The seeds whose numbers are reported: the fresh ones of the confirm phase where there are any."""
        fresh = tuple(record for record in self.records if record.trial.phase == "confirm")
        return fresh or self.records

    @property
    def confirmed(self) -> bool:
        return self.reported[0].trial.phase == "confirm"

    @cached_property
    def test(self) -> Estimate:
        return mean_with_interval(record.metrics["test_accuracy"] for record in self.reported)

    @cached_property
    def validation(self) -> Estimate:
        return mean_with_interval(record.metrics["validation_accuracy"] for record in self.reported)

    @cached_property
    def search_validation(self) -> float:
        """The validation accuracy that the search saw: what this configuration won or lost its place by."""
        seen = [record for record in self.records if record.trial.phase == "search"] or self.records
        return fmean(record.metrics["validation_accuracy"] for record in seen)

    @property
    def key(self) -> str:
        """The key of its first trial: names the configuration on pages and in documents."""
        return self.reported[0].trial.key

    def metric(self, name: str) -> float | None:
        """The median over the reported seeds; None where none has it."""
        values = [record.metrics[name] for record in self.reported if math.isfinite(record.metrics.get(name, math.nan))]
        return float(median(values)) if values else None

    def by_seed(self, *, every: bool = False) -> dict[int, float]:
        """Test accuracy by seed, of the reported seeds or of every one."""
        records = self.records if every else self.reported
        return {record.trial.seed: record.metrics["test_accuracy"] for record in records}


def configurations(
    records: Sequence[TrialRecord], *, sweep: str = "", labels: Mapping[str, str] | None = None, devices: float = 1.0
) -> list[Configuration]:
    """The finished trials with both accuracies, gathered over their seeds; in order of their first record.

    Args:
        sweep: noted with each of them.
        labels: of the concrete students by `student_key`; by default those that `records` need.
        devices: that each trial held.
    """
    labels = choice_labels(records) if labels is None else labels
    considered: dict[tuple[str, str], int] = defaultdict(int)
    for record in records:
        if record.trial.phase == "search" and record.status != "failed":
            considered[record.trial.method, record.trial.student.name] += 1
    groups = grouped((record for record in records if has_result(record)), _configuration_key)
    return [
        Configuration(
            method=first.trial.method,
            student=first.trial.student.name,
            choice=labels[student_key(first.trial.student)],
            teacher=first.trial.teacher,
            hyperparameters=first.trial.hyperparameters,
            records=tuple(sorted(group, key=lambda record: (record.trial.phase, record.trial.seed, record.trial.key))),
            considered=max(1, considered[first.trial.method, first.trial.student.name]),
            sweep=sweep,
            devices=devices,
        )
        for group in groups.values()
        for first in group[:1]
    ]


def has_result(record: TrialRecord) -> bool:
    """Whether the trial finished with both accuracies."""
    accuracies = (record.metrics.get(name, math.nan) for name in ("test_accuracy", "validation_accuracy"))
    return record.status == "finished" and all(math.isfinite(accuracy) for accuracy in accuracies)


def winners(
    candidates: Iterable[Configuration],
    by: Callable[[Configuration], Hashable] = lambda each: (each.sweep, each.method, each.choice),
) -> list[Configuration]:
    """Of each group the configuration with the best validation accuracy of the search."""
    return [
        min(group, key=lambda each: (-each.search_validation, not each.confirmed, each.key))
        for group in grouped(candidates, by).values()
    ]


def compare(left: Configuration, right: Configuration) -> tuple[Estimate, Literal["paired", "unpaired"]]:
    """Test accuracy of `left` minus that of `right`: over the seeds that both have, else between their means."""
    for every in (False, True):
        mine, theirs = left.by_seed(every=every), right.by_seed(every=every)
        shared = sorted(mine.keys() & theirs.keys())
        if shared:
            return mean_with_interval(mine[seed] - theirs[seed] for seed in shared), "paired"
    return difference_of_means(list(left.by_seed().values()), list(right.by_seed().values())), "unpaired"


@dataclass(frozen=True, kw_only=True)
class Gain:
    """What a method adds to the baseline's test accuracy for one column of students.

    Attributes:
        difference: None where the baseline has no finished trial of the same student.
        kind: `paired` when both ran with the same student and seed.
        over: what its n counts: seeds of one concrete student, or the concrete students that a label pools.
        considered: trials that the search tried for the method's side.
    """

    method: str
    column: str
    difference: Estimate | None
    kind: Literal["paired", "unpaired"] = "paired"
    over: Literal["seeds", "students"] = "seeds"
    considered: int = 1


def gains(found: Sequence[Configuration], baseline: str) -> list[Gain]:
    """One gain per method and column of students: per concrete student, or per label where there are many of a label.

    Every value is a difference between two winners of the *same* concrete student. Where a label pools several of them, the
    interval is over those students.
    """
    best = {(each.method, each.choice): each for each in winners(found)}
    pooled = len({each.choice for each in found}) > _MAX_STUDENT_COLUMNS
    result = []
    for (method, column), group in grouped(
        (each for each in best.values() if each.method != baseline),
        lambda each: (each.method, each.student if pooled else each.choice),
    ).items():
        pairs = [(each, best[baseline, each.choice]) for each in group if (baseline, each.choice) in best]
        considered = max(each.considered for each in group)
        if not pairs:
            result.append(Gain(method=method, column=column, difference=None, considered=considered))
            continue
        compared = [compare(*pair) for pair in pairs]
        difference = compared[0][0] if len(pairs) == 1 else mean_with_interval(estimate.mean for estimate, _ in compared)
        result.append(
            Gain(
                method=method,
                column=column,
                difference=difference,
                kind="paired" if all(how == "paired" for _, how in compared) else "unpaired",
                over="seeds" if len(pairs) == 1 else "students",
                considered=considered,
            )
        )
    return result


@dataclass(frozen=True, kw_only=True)
class Sensitivity:
    """How validation accuracy moves with one hyper-parameter of one method.

    Each trial counts as its difference from the mean of its method and concrete student, or of the student's label where a
    concrete student has one trial, so that sizes do not drown it.

    Attributes:
        correlation: Spearman's, for numbers; None for words and where it is not defined.
        explained: share of the variance between groups of equal values, for words.
        best: the value of the trial that stands highest above its mean.
    """

    method: str
    hyperparameter: str
    values: tuple[Any, ...]
    effects: tuple[float, ...]
    students: tuple[str, ...]
    seen: str
    numeric: bool
    correlation: float | None
    p_value: float | None
    explained: float | None
    best: Any


def sensitivities(records: Sequence[TrialRecord]) -> list[Sensitivity]:
    """One entry for each hyper-parameter that took two values or more on one student; strongest first within a method."""
    finished = [record for record in records if record.trial.phase == "search" and _validated(record)]
    result: list[Sensitivity] = []
    for method, group in sorted(grouped(finished, lambda record: record.trial.method).items()):
        effects = _centred(group)
        of_method = []
        for name in sorted({name for record in group for name in record.trial.hyperparameters}):
            chosen = [
                (record.trial.hyperparameters[name], effect, record.trial.student.name)
                for record, effect in zip(group, effects, strict=True)
                if record.trial.hyperparameters.get(name) is not None
            ]
            # Where every student was trained once there is nothing to compare it with.
            compared = any(effect for _, effect, _ in chosen)
            if compared and len({json.dumps(value, default=str, sort_keys=True) for value, _, _ in chosen}) > 1:
                of_method.append(_sensitivity(method, name, chosen))
        of_method.sort(key=lambda each: -max(abs(each.correlation or 0.0), math.sqrt(each.explained or 0.0)))
        result += of_method
    return result


def _sensitivity(method: str, name: str, chosen: list[tuple[Any, float, str]]) -> Sensitivity:
    values = [value for value, _, _ in chosen]
    effects = np.array([effect for _, effect, _ in chosen])
    numeric = all(isinstance(value, int | float) and not isinstance(value, bool) for value in values)
    correlation = p_value = explained = None
    if numeric:
        if len(values) > 2 and np.ptp(effects) > 0 and min(values) < max(values):
            found = stats.spearmanr(np.array(values, dtype=np.float64), effects)
            correlation, p_value = float(found.statistic), float(found.pvalue)
        seen = f"{min(values):.4g} to {max(values):.4g}"
    else:
        values = [value if isinstance(value, str) else json.dumps(value, default=str, sort_keys=True) for value in values]
        total = float(((effects - effects.mean()) ** 2).sum())
        groups = grouped(zip(values, effects, strict=True), lambda pair: pair[0])
        between = sum(len(g) * (float(np.mean([e for _, e in g])) - float(effects.mean())) ** 2 for g in groups.values())
        explained = between / total if total > 0 and len(groups) < len(values) else None
        seen = ", ".join(sorted(groups)[:6]) + (" and more" if len(groups) > 6 else "")
    return Sensitivity(
        method=method,
        hyperparameter=name,
        values=tuple(values),
        effects=tuple(float(effect) for effect in effects),
        students=tuple(student for _, _, student in chosen),
        seen=seen,
        numeric=numeric,
        correlation=correlation,
        p_value=p_value,
        explained=explained,
        best=values[int(np.argmax(effects))],
    )


def _centred(records: Sequence[TrialRecord]) -> list[float]:
    """Validation accuracy less the mean of the trials of the same student."""
    by_choice = grouped(records, lambda record: student_key(record.trial.student))
    by_name = grouped(records, lambda record: record.trial.student.name)
    means = {key: _mean_validation(group) for key, group in by_choice.items() if len(group) > 1}
    name_means = {name: _mean_validation(group) for name, group in by_name.items()}
    return [
        record.metrics["validation_accuracy"]
        - means.get(student_key(record.trial.student), name_means[record.trial.student.name])
        for record in records
    ]


def _mean_validation(records: Sequence[TrialRecord]) -> float:
    return fmean(record.metrics["validation_accuracy"] for record in records)


def _validated(record: TrialRecord) -> bool:
    return record.status == "finished" and math.isfinite(record.metrics.get("validation_accuracy", math.nan))


def choice_labels(records: Iterable[TrialRecord]) -> dict[str, str]:
    """The label of each concrete student by its `student_key`: its name and the options that tell it from its namesakes."""
    by_name: dict[str, dict[str, StudentChoice]] = defaultdict(dict)
    for record in records:
        by_name[record.trial.student.name][student_key(record.trial.student)] = record.trial.student
    labels = {}
    for name, choices in by_name.items():
        told_apart = _differing([choice.options | {"model": choice.model} for choice in choices.values()])
        for key, choice in choices.items():
            options = choice.options | {"model": choice.model}
            shown = [f"{option}={_brief(options[option])}" for option in told_apart if option in options]
            labels[key] = " ".join([name, *shown])
    return labels


def _differing(mappings: Sequence[Mapping[str, Any]]) -> list[str]:
    names = sorted({name for mapping in mappings for name in mapping})
    missing = object()
    return [name for name in names if len({repr(mapping.get(name, missing)) for mapping in mappings}) > 1]


def _brief(value: Any) -> str:
    return f"{value:.3g}" if isinstance(value, float) else str(value)


def student_key(student: StudentChoice) -> str:
    """Equal for equal concrete students."""
    return json.dumps([student.name, student.model, student.options], sort_keys=True, default=str)


def _configuration_key(record: TrialRecord) -> str:
    trial = record.trial
    return json.dumps(
        [trial.method, student_key(trial.student), trial.teacher, trial.hyperparameters, trial.epochs],
        sort_keys=True,
        default=str,
    )


def grouped(items: Iterable[_Item], key: Callable[[_Item], _Key]) -> dict[_Key, list[_Item]]:
    """The items by their key, groups and items in order of appearance."""
    groups: dict[_Key, list[_Item]] = {}
    for item in items:
        groups.setdefault(key(item), []).append(item)
    return groups
