"""What the page reports of each teacher: its cost, its numbers, the delivery modes of its knowledge."""

from stillhouse.report.formatting import (
    counted,
    duration,
    milliseconds,
    ratio,
    score,
    score_range,
    short,
    size,
    whole,
)
from stillhouse.report.teacher_costs import TeacherCost
from stillhouse.spec.metric import Metric
from stillhouse.spec.secret_masking import mask_text


def teacher_sentences(cost: TeacherCost) -> list[str]:
    """What its forward passes cost, and what sharing them saved."""
    teacher = cost.teacher
    samples = counted(teacher.samples_forwarded, "sample")
    spent = f"Its forward passes took {duration(cost.forward_seconds)} ({samples})."
    if teacher.trained_now:
        spent += f" It was trained in this sweep, in {duration(teacher.train_seconds)}."
    else:
        spent += " It was not trained in this sweep."
    if cost.inside_seconds is None:
        return [spent, "Its cost inside every trial is not known: its time per sample was not measured."]
    inside = (
        f"If every trial had run the teacher itself, it would have computed {whole(cost.samples_used)} samples in "
        f"{counted(cost.trials, 'trial')}: {duration(cost.inside_seconds)} of forward passes at "
        f"{milliseconds(1000 * (teacher.seconds_per_sample or 0.0))} each."
    )
    if cost.saved_seconds is not None and cost.saved_seconds > 0:
        inside += f" Sharing saved {duration(cost.saved_seconds)} of device time"
        if cost.forward_seconds > 0:
            inside += f": the shared teacher worked {ratio(cost.inside_seconds / cost.forward_seconds)} less"
        inside += "."
    elif cost.saved_seconds is not None and cost.samples_used:
        inside += " Sharing it saved nothing here."
    return [spent, inside]


def teacher_facts(cost: TeacherCost, metric: Metric, test_samples: int | None = None) -> list[tuple[str, str]]:
    """Terms and their values; `test_samples` is the size of the test split, if it is known."""
    teacher = cost.teacher
    test, validation = (score(teacher.value(metric.column(split)), metric, exact=True) for split in ("test", "validation"))
    chosen_by = "" if teacher.value(metric.column("validation")) is None else f", validation {validation}"
    of_split = metric.sampling_interval(teacher.value(metric.column("test")), test_samples)
    if of_split is not None:
        test += f" ({score_range(of_split, metric)} by the size of the test split)"
    return [
        (metric.heading, f"test {test}{chosen_by}"),
        (
            "Size",
            f"{whole(teacher.parameters)} parameters, {size(teacher.size_bytes)}, {short(teacher.macs)} MACs, "
            f"{milliseconds(teacher.latency_ms)}",
        ),
        ("Delivery mode", teacher.way),
        ("Samples forwarded", whole(teacher.samples_forwarded)),
        ("Samples reused", whole(teacher.samples_reused)),
        ("Knowledge written", size(teacher.bytes_written)),
        ("Key of its weights", teacher.key),
    ]


def delivery_reasons(cost: TeacherCost) -> list[str]:
    """Why each kind of its knowledge has its delivery mode; facts of the first release give one text for all kinds."""
    kinds = [str(kind) for kind in cost.teacher.kinds] or [cost.teacher.reason]
    return [mask_text(kind) for kind in kinds if kind]
