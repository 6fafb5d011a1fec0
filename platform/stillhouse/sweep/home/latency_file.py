"""The file of a sweep with the latencies of its networks, and the place where all of them were measured."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

from pydantic import TypeAdapter, ValidationError

from stillhouse.durable import Damaged, read_json, write_json


@dataclass(frozen=True, kw_only=True)
class MeasuredLatencies:
    """Latency metrics by `student_key`, and where they were measured, as `provenance.place_of`; empty if not recorded."""

    place: str = ""
    networks: dict[str, dict[str, float]] = field(default_factory=dict)


_NETWORKS = TypeAdapter(dict[str, dict[str, float]])
_MEASURED = TypeAdapter(MeasuredLatencies)


def write_latency_file(path: Path, latencies: Mapping[str, Mapping[str, float]], place: str) -> None:
    """Stores the latencies."""
    write_json(path, {"place": place, "networks": latencies})


def read_latency_file(path: Path) -> MeasuredLatencies:
    """What was stored; empty when nothing was measured, or the file is damaged. The first release stored no place."""
    try:
        document = read_json(path)
        if isinstance(document, dict) and document.keys() == {"place", "networks"}:
            return _MEASURED.validate_python(document)
        return MeasuredLatencies(networks=_NETWORKS.validate_python(document))
    except (OSError, Damaged, ValidationError):
        return MeasuredLatencies()
