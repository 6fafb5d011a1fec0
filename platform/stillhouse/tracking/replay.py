"""Writes the ledger into MLflow after an outage."""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from types import MappingProxyType

from stillhouse.errors import InfrastructureError
from stillhouse.spec.records import SweepFacts, TrialRecord
from stillhouse.tracking.locations import locate
from stillhouse.tracking.store import RejectedError, UnreachableError, settings
from stillhouse.tracking.writer import SweepWriter


@dataclass(frozen=True, kw_only=True)
class SyncResult:
    """What `sync` wrote.

    Attributes:
        created: runs that were written, including those completed, and those replaced because their record differs.
        skipped: runs that were there already.
        failed: records that are still not in the store, for the `reasons`.
        run_id: the parent run.
        addresses: the page of each run, by trial key, and of the parent by the empty key.
    """

    created: int
    skipped: int
    failed: int
    reasons: tuple[str, ...] = ()
    run_id: str | None = None
    addresses: Mapping[str, str] = field(default_factory=dict)


def sync(
    uri: str | None,
    home: Path,
    experiment: str,
    facts: SweepFacts,
    records: Iterable[TrialRecord],
    artifacts: Mapping[str, Path],
    best: Mapping[str, float] = MappingProxyType({}),
) -> SyncResult:
    """Makes the store agree with `records`; a second call changes nothing.

    Args:
        artifacts: as for `SweepWriter.finish`.
        best: numbers of the best student of all sizes; see `sweep_points`.

    Raises:
        InfrastructureError: the store cannot be opened.
    """
    location = locate(uri, home)
    records = list(records)
    counts = {"created": 0, "skipped": 0}
    reasons: list[str] = []
    with settings():
        try:
            writer = SweepWriter(location, experiment, facts)
        except (UnreachableError, RejectedError) as error:
            raise InfrastructureError(f"cannot write to the tracking store {location.shown}: {error}") from error
        try:
            for record in records:
                try:
                    counts[writer.write_trial(record)] += 1
                except RejectedError as error:
                    reasons.append(f"trial {record.trial.key}: {error}")
            reasons += writer.finish(facts, artifacts, best)
        except (UnreachableError, RejectedError) as error:
            reasons.append(str(error))
    failed = len(records) - sum(counts.values())
    return SyncResult(**counts, failed=failed, reasons=tuple(reasons), run_id=writer.run_id, addresses=writer.addresses())
