"""What the page reports of each teacher."""

import re

from stillhouse.report.formatting import (
    counted,
    duration,
    milliseconds,
    percent,
    ratio,
    redacted,
    short,
    size,
    whole,
)
from stillhouse.report.teacher_costs import TeacherCost

# A teacher's `reason` has a part for each kind, "logits cached: 40 B per sample; ..."; a part may hold semicolons itself.
_NEXT_KIND = re.compile(r"; (?=[^;:]+ (?:cached|served|inline): )")


def teacher_sentences(cost: TeacherCost) -> list[str]:
    teacher = cost.teacher
    samples = counted(teacher.samples_forwarded, "sample")
    spent = f"Its forward passes took {duration(cost.forward_seconds)} ({samples})."
    if teacher.trained_now:
        spent += f" It was trained in this sweep, in {duration(teacher.train_seconds)}."
    else:
        spent += " It was not trained in this sweep."
    if cost.inside_seconds is None:
        return [spent, "What it would have cost inside every trial is not known: its time per sample was not measured."]
    inside = (
        f"Inside every trial it would have computed {whole(cost.samples_used)} samples over {counted(cost.trials, 'trial')}: "
        f"{duration(cost.inside_seconds)} of forward passes at {milliseconds(1000 * (teacher.seconds_per_sample or 0.0))} each."
    )
    if cost.saved_seconds is not None and cost.saved_seconds > 0:
        inside += f" Sharing saved {duration(cost.saved_seconds)} of device time"
        if cost.forward_seconds > 0:
            inside += f": the shared teacher worked {ratio(cost.inside_seconds / cost.forward_seconds)} less"
        inside += "."
    elif cost.saved_seconds is not None and cost.samples_used:
        inside += " Sharing it saved nothing here."
    return [spent, inside]


def teacher_facts(cost: TeacherCost) -> list[tuple[str, str]]:
    teacher = cost.teacher
    accuracies = f"test {percent(teacher.test_accuracy, 2)}, validation {percent(teacher.validation_accuracy, 2)}"
    return [
        ("Accuracy", accuracies),
        (
            "Size",
            f"{whole(teacher.parameters)} parameters, {size(teacher.size_bytes)}, {short(teacher.macs)} MACs, "
            f"{milliseconds(teacher.latency_ms)}",
        ),
        ("Way", teacher.way),
        ("Samples forwarded", whole(teacher.samples_forwarded)),
        ("Samples reused", whole(teacher.samples_reused)),
        ("Written", size(teacher.bytes_written)),
        ("Key", teacher.key),
    ]


def teacher_ways(cost: TeacherCost) -> list[str]:
    """Why each kind of its knowledge came the way it did."""
    return [redacted(kind) for kind in _NEXT_KIND.split(cost.teacher.reason) if kind]
