"""What is measured of winners when all trials have ended: latency of their exported forms, accuracy on degraded images."""

from collections.abc import Iterator, Mapping, MutableMapping, Sequence

from stillhouse.distill.evaluation import can_degrade
from stillhouse.report import sweep_front, sweep_winners
from stillhouse.spec.late_metrics import EXPORTED_LATENCIES
from stillhouse.spec.records import StudentChoice, SweepFacts, TrialRecord
from stillhouse.sweep.cluster.cluster import Cluster
from stillhouse.sweep.execution.robustness import NAMES
from stillhouse.sweep.execution.students import student_key
from stillhouse.sweep.home.latency_file import MeasuredLatencies
from stillhouse.sweep.run_context import RunContext

_SHARE, _LEAST_S, _MOST_S = 0.25, 5.0, 120.0
"""The measuring of exported forms may take this share of the time that the trials trained, and at most two minutes. Exporting
one network takes about a second after some seconds of imports; sweeps that trained for less than 20 s are not measured."""

Records = MutableMapping[str, TrialRecord]
"""Records by trial key."""


def measure_winners(cluster: Cluster, context: RunContext, facts: SweepFacts, records: Records) -> dict[str, TrialRecord]:
    """Adds what winners lack to their records, in `records` and in the ledger. Returns the new records, by trial key.

    Raises:
        InfrastructureError: a worker died.
    """
    if context.shutdown.requested:
        return {}
    changed = _store(context, records, _with_exported_latencies(cluster, context, facts, records))
    return changed | measure_robustness(cluster, context, facts, records)


def measure_robustness(cluster: Cluster, context: RunContext, facts: SweepFacts, records: Records) -> dict[str, TrialRecord]:
    """`measure_winners` for the accuracy on degraded images alone."""
    owed = lacking_robustness(context, facts, records)
    if not owed:
        return {}
    context.progress.note(f"evaluating {len(owed)} students on degraded test images")
    found, reasons = cluster.measure_robustness(owed, context.spec)
    _note(context, reasons, "degraded images")
    return _store(context, records, _updated(records, found))


def lacking_robustness(context: RunContext, facts: SweepFacts, records: Mapping[str, TrialRecord]) -> list[TrialRecord]:
    """The reported trials of winners without numbers on degraded images; none if the spec does not request them."""
    if not context.spec.report.robustness or not can_degrade(context.data):
        return []
    return [
        record for record in _reported(facts, records) if record.weights is not None and not set(NAMES) <= set(record.metrics)
    ]


def _with_exported_latencies(
    cluster: Cluster, context: RunContext, facts: SweepFacts, records: Records
) -> dict[str, TrialRecord]:
    sweep_home = context.sweep_home
    place, stored = sweep_home.latency_place(), sweep_home.read_exported_latencies()
    known = dict(stored.networks) if stored.place == place else {}
    wanted = _networks(facts, records)
    missing = {name: network for name, network in wanted.items() if name not in known}
    allowed_s = min(_MOST_S, _SHARE * sum(record.metrics.get("train_seconds", 0.0) for record in records.values()))
    if missing and place and allowed_s >= _LEAST_S:
        context.progress.note(f"measuring the exported forms of {len(missing)} networks")
        found, reasons = cluster.measure_exported(missing, context.data, place=place, total_s=allowed_s)
        _note(context, reasons, "exported forms")
        known |= found
        sweep_home.write_exported_latencies(MeasuredLatencies(place=place, networks=known))
    winners = {record.trial.key for record in _reported(facts, records)}
    values = {}
    for key, record in records.items():
        measured = known.get(student_key(record.trial.student), {})
        held = any(name in record.metrics for name in EXPORTED_LATENCIES)
        values[key] = measured if key in winners or held else {}
    return _updated(records, values, EXPORTED_LATENCIES)


def _networks(facts: SweepFacts, records: Mapping[str, TrialRecord]) -> dict[str, StudentChoice]:
    """The distinct networks of winners by `student_key`, those of the Pareto front first."""
    listed = list(records.values())
    ordered = [*sweep_front(facts, listed), *sweep_winners(facts, listed)]
    choices = [record.trial.student for each in ordered for record in each.reported]
    return {student_key(choice): choice for choice in choices}


def _reported(facts: SweepFacts, records: Mapping[str, TrialRecord]) -> Iterator[TrialRecord]:
    for each in sweep_winners(facts, list(records.values())):
        yield from each.reported


def _updated(
    records: Mapping[str, TrialRecord], values: Mapping[str, Mapping[str, float]], names: Sequence[str] = ()
) -> dict[str, TrialRecord]:
    """The records that `values` changes, by key; the metrics `names` are replaced, others only added."""
    changed = {}
    for key, found in values.items():
        record = records[key]
        metrics = {name: value for name, value in record.metrics.items() if name not in names} | dict(found)
        if metrics != record.metrics:
            changed[key] = record.model_copy(update={"metrics": metrics})
    return changed


def _store(context: RunContext, records: Records, changed: dict[str, TrialRecord]) -> dict[str, TrialRecord]:
    for record in changed.values():
        context.sweep_home.ledger.write(record)
    records.update(changed)
    return changed


def _note(context: RunContext, reasons: Sequence[str], what: str) -> None:
    if reasons:
        more = f", and {len(reasons) - 1} more" if len(reasons) > 1 else ""
        context.progress.note(f"not every winner has numbers of {what}: {reasons[0]}{more}")
