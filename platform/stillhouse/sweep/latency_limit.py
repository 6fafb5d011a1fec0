"""`search.limits.latency_ms`: the only size of a student that is measured when the sweep starts, not known in the plan."""

from collections.abc import Callable, Mapping, MutableMapping

from stillhouse.errors import UsageError
from stillhouse.models.size_limits import over_limit
from stillhouse.spec.records import StudentChoice, Trial, TrialRecord
from stillhouse.spec.schema import SweepSpec
from stillhouse.sweep.cluster.cluster import Cluster
from stillhouse.sweep.execution.students import student_key
from stillhouse.sweep.planning.plan import Plan
from stillhouse.sweep.run_context import RunContext

LATENCY = "latency_ms"
_METRICS = (
    LATENCY,
    "latency_p95_ms",
    "latency_batch64_ms",
    "images_per_second",
    "peak_memory_bytes",
    "peak_memory_batch64_bytes",
    "int8_latency_ms",
)
_SHOWN_STUDENTS = 5

Latencies = Mapping[str, Mapping[str, float]]
"""Latency metrics by `student_key`."""


def measure_latencies(cluster: Cluster, context: RunContext, teachers: Mapping[str, StudentChoice]) -> Latencies:
    """The latencies of all students and teachers, all of them measured at the same place.

    Each is measured once in the life of a sweep, since it takes seconds; again only if others must be measured elsewhere.

    Args:
        teachers: by name, the network of each.

    Raises:
        UsageError: every student is slower than `search.limits.latency_ms`.
        InfrastructureError: the worker that measures died.
    """
    students = {student_key(planned.student): planned.student for planned in context.plan.students}
    networks = {**students, **{student_key(choice): choice for choice in teachers.values()}}
    latencies, place = context.sweep_home.read_latencies(), context.sweep_home.latency_place()
    if missing := networks.keys() - latencies.keys():
        context.progress.note(f"measuring the latency of {len(missing)} networks")
        found, here = cluster.measure_latency(networks, context.data, known=latencies.keys(), place=place)
        if latencies and here != place:
            before = place or "a place that is not recorded"
            context.progress.note(f"earlier latencies were measured on {before}; all are measured again on {here}")
            latencies = {}
        latencies |= found
        context.sweep_home.write_latencies(latencies, here)
    limit = context.spec.search.limits.get(LATENCY)
    if limit is not None:
        fastest = min((latencies[key][LATENCY] for key in students if key in latencies), default=0.0)
        if fastest > limit:
            raise UsageError(f"search.limits.{LATENCY} must leave a student, the fastest takes {fastest:.3g}, got {limit:g}")
    return latencies


def store_latencies(
    context: RunContext, records: MutableMapping[str, TrialRecord], latencies: Latencies
) -> dict[str, TrialRecord]:
    """Gives the finished records that have other latencies those in `latencies`, in `records` and in the ledger.

    One whose network is not in `latencies`, such as one that does not run here, has none.

    Returns:
        the new records, by trial key.
    """
    renewed = {}
    for key, record in records.items():
        measured = latencies.get(student_key(record.trial.student), {})
        held = {name: value for name, value in record.metrics.items() if name in _METRICS}
        if record.status == "finished" and held != measured:
            others = {name: value for name, value in record.metrics.items() if name not in _METRICS}
            renewed[key] = record.model_copy(update={"metrics": {**others, **measured}})
    for record in renewed.values():
        context.sweep_home.ledger.write(record)
    records.update(renewed)
    return renewed


def slow_student_filter(spec: SweepSpec, latencies: Latencies) -> Callable[[Trial], bool]:
    """Which trials must not start because their students were measured to be slower than the spec allows."""
    limits = {name: limit for name, limit in spec.search.limits.items() if name == LATENCY}
    if not limits:
        return lambda trial: False
    return lambda trial: over_limit(limits, latencies.get(student_key(trial.student), {})) is not None


def slow_student_notes(plan: Plan, latencies: Latencies) -> list[str]:
    """Which students the limit on latency excluded, for the report."""
    limit = plan.spec.search.limits.get(LATENCY)
    if limit is None:
        return []
    measured = [(latencies.get(student_key(planned.student), {}).get(LATENCY, 0.0), planned) for planned in plan.students]
    slow = [(latency, planned) for latency, planned in measured if latency > limit]
    if not slow:
        return []
    listed = ", ".join(f"{student_key(planned.student)} {latency:.3g} ms" for latency, planned in slow[:_SHOWN_STUDENTS])
    more = ", …" if len(slow) > _SHOWN_STUDENTS else ""
    return [
        f"search.limits.{LATENCY} = {limit:g}: {len(slow)} of {len(measured)} students are slower and "
        f"{sum(planned.trials for _, planned in slow)} planned trials with them were dropped: {listed}{more}"
    ]
