"""Collapsed trials: students that finished, and that judge images no better than a model that looks at none.

The value of such a model is the task's *trivial value* (`tasks.Task.trivial_value`): for accuracy, the share of the most common
class. Terminal, ledger, tables, page and MLflow take the mark from `is_collapsed`.
"""

from collections.abc import Mapping
from typing import Any

from stillhouse.spec.metric import ACCURACY, Metric, Split
from stillhouse.spec.records import SweepFacts, TrialRecord

_USUAL_CLIP = 5


def no_better(value: float, trivial: float | None, metric: Metric, samples: int | None = None) -> bool | None:
    """Whether a student's `value` is no better than the `trivial` one of the same split; None if that is unknown.

    A value that is better by chance is no better: for shares such as accuracy, the trivial value must be outside of the 95 %
    interval of the student's. A student that makes at most half of the trivial model's errors is better in any case: where
    nearly all samples have one class, the interval of a perfect student may hold the trivial value.

    Args:
        samples: of the split, for the interval; None compares the values alone.
    """
    if trivial is None:
        return None
    if not metric.better(value, trivial):
        return True
    interval = metric.sampling_interval(value, samples)
    if interval is None:
        return False
    worst, perfect = (interval[0], 1.0) if metric.direction == "max" else (interval[1], 0.0)
    return not metric.better(worst, trivial) and abs(perfect - value) > abs(perfect - trivial) / 2


def trivial_value(facts: SweepFacts, split: Split) -> float | None:
    """The metric's trivial value on a split of the sweep's data set; None if it is unknown.

    Facts of the first release know the number of classes C alone. The most common class has a share of at least 1/C, so that a
    student with at most this accuracy has certainly collapsed.
    """
    data = facts.dataset
    if "trivial" in data:
        known = data["trivial"].get(split)
        return None if known is None else float(known)
    if facts.metric != ACCURACY:
        return None
    if "majority" in data:
        return float(data["majority"][split]["share"])
    return 1 / data["num_classes"] if data.get("num_classes") else None


def is_collapsed(record: TrialRecord, metric: Metric, trivial: float | None = None) -> bool | None:
    """Whether a finished trial's student is no better than the trivial value, on the validation split.

    False for trials that did not finish. None if the task knows no trivial value, or if it is not recorded. A collapsed student
    is no base for a gain: the difference to it measures the collapse, no method.

    Args:
        metric: by which the sweep's task judges students.
        trivial: `trivial_value(facts, "validation")`, for records of the first release, which do not have the mark.
    """
    if record.status != "finished":
        return False
    if record.collapsed is not None:
        return record.collapsed
    value = record.metrics.get(metric.column("validation"))
    return None if value is None else no_better(value, trivial, metric)


def collapse_words(metric: Metric, trivial: float | None) -> str:
    """What a collapsed student is, as the rest of a sentence that names it.

    Args:
        trivial: as for `is_collapsed`.
    """
    known = "" if trivial is None else f" ({metric.label} {trivial:.4f})"
    return f"no better than a model that ignores the image{known}, or better by chance alone"


def collapse_remedy(training: Mapping[str, Any]) -> str:
    """Which setting to change so that students do not collapse, the likeliest first.

    Args:
        training: the section of the spec, with all defaults.
    """
    steps = ["train for more epochs"]
    if training.get("batchnorm_statistics", "running") == "running":
        steps.append("set training.batchnorm_statistics to recomputed")
    if not training.get("gradient_clip"):
        steps.append(f"set training.gradient_clip to {_USUAL_CLIP}")
    known = training.get("learning_rate")
    steps.append("lower training.learning_rate" + ("" if known is None else f" (it is {known:g})"))
    if training.get("schedule") != "one_cycle" and not training.get("warmup_epochs"):
        steps.append("set training.warmup_epochs to 1")
    return ", or ".join([", ".join(steps[:-1]), steps[-1]])
