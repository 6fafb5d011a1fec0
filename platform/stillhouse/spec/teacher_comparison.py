"""A student against its teacher: how much smaller it is, and how much worse. One rule for records, table, answers, MLflow."""

import math
from collections.abc import Mapping, Sequence

from stillhouse.spec.metric import Metric
from stillhouse.spec.records import TeacherFacts, trained_name

RATIO_COLUMN = "compression_ratio"


def reference_teacher(teachers: Sequence[TeacherFacts], taught_by: Sequence[str], metric: Metric) -> TeacherFacts | None:
    """The teacher that a student is compared with: the best of those that taught it, or else the best of all.

    Args:
        taught_by: the names of the student's own teachers; empty for a student that learned alone.
        metric: decides which teacher is the best, on the test split, or on the validation split where the test split was not
            read yet.
    """

    def score(teacher: TeacherFacts) -> float:
        known = (teacher.value(metric.column(split)) for split in ("test", "validation"))
        return next((value for value in known if value is not None and math.isfinite(value)), metric.worst)

    # A student of an untrained network is compared with its trained counterpart.
    trained = [teacher for teacher in teachers if not teacher.untrained]
    names = {trained_name(name) for name in taught_by}
    own = [teacher for teacher in trained if teacher.name in names] or trained
    return max(own, key=lambda teacher: metric.sign * score(teacher), default=None)


def outdone_teachers(teachers: Sequence[TeacherFacts], best: float, metric: Metric) -> list[TeacherFacts]:
    """The teachers that are worse on the validation split than `best`, the value of the best student."""
    values = ((teacher, teacher.value(metric.column("validation"))) for teacher in teachers if not teacher.untrained)
    return [teacher for teacher, value in values if value is not None and metric.better(best, value)]


def against_teacher(
    student: Mapping[str, float], metric: Metric, *, parameters: int | None, score: float | None
) -> dict[str, float]:
    """`compression_ratio` and the metric's drop; each only if both of its values are known and finite.

    Args:
        student: the metrics of the student's record.
        parameters: of the teacher.
        score: of the teacher, on the test split.

    Returns:
        the teacher's parameters over the student's, and by how much the student is worse than the teacher on the test split:
        positive when it is worse, for both directions of the metric.
    """
    found = {}
    if parameters is not None and student.get("parameters", 0) > 0:
        found[RATIO_COLUMN] = parameters / student["parameters"]
    if score is not None and metric.column("test") in student:
        found[metric.drop_column] = metric.gain(score, student[metric.column("test")])
    return {name: value for name, value in found.items() if math.isfinite(value)}
