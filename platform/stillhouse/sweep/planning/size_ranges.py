"""How small and how large the students of each searched entry are, and which bounds no planned student meets."""

import statistics
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

from stillhouse.models.size_limits import known_sizes
from stillhouse.spec.size_bound import parse_budget
from stillhouse.sweep.planning.cost import PlannedStudent


@dataclass(frozen=True, kw_only=True)
class SizeRange:
    """The sizes of the planned students of one entry.

    Attributes:
        student: the entry's label.
        students: how many different ones are planned.
        smallest: by metric, as `known_sizes` names them; so are `median` and `largest`. Each metric has its own order.
        estimated: whether some sizes depend on weights that are not known yet.
    """

    student: str
    students: int
    smallest: Mapping[str, float]
    median: Mapping[str, float]
    largest: Mapping[str, float]
    estimated: bool = False


def size_ranges(students: Iterable[PlannedStudent]) -> list[SizeRange]:
    """Of each entry with several planned students, in their order."""
    by_label: dict[str, list[PlannedStudent]] = {}
    for planned in students:
        by_label.setdefault(planned.student.name, []).append(planned)
    return [_range_of(label, each) for label, each in by_label.items() if len(each) > 1]


def unmet_bounds(bounds: Iterable[str], students: Sequence[PlannedStudent]) -> list[str]:
    """A sentence for each bound of the report that no planned student meets; latency is known only once it is measured."""
    notes = []
    for text in bounds:
        bound = parse_budget(text)
        sizes = [known_sizes(planned.size).get(bound.metric) for planned in students]
        known = [size for size in sizes if size is not None]
        if known and min(known) > bound.limit:
            smallest = students[sizes.index(min(known))]
            about = "about " if smallest.estimated else ""
            notes.append(
                f"report.budgets: no planned student has {bound.metric} <= {bound.limit:,.6g}; the smallest, "
                f"{smallest.student.name}, has {about}{min(known):,.6g}"
            )
    return notes


def _range_of(label: str, students: Sequence[PlannedStudent]) -> SizeRange:
    sizes = [known_sizes(planned.size) for planned in students]
    by_metric = {metric: sorted(each[metric] for each in sizes) for metric in sizes[0]}
    return SizeRange(
        student=label,
        students=len(students),
        smallest={metric: values[0] for metric, values in by_metric.items()},
        median={metric: statistics.median(values) for metric, values in by_metric.items()},
        largest={metric: values[-1] for metric, values in by_metric.items()},
        estimated=any(planned.estimated for planned in students),
    )
