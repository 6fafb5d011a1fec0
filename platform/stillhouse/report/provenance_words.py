"""Where the numbers of a page come from: command, data, environment, tracking."""

from collections.abc import Mapping
from typing import Any
from urllib.parse import urlsplit

from stillhouse.report.formatting import (
    duration,
    moment,
    value_text,
)
from stillhouse.spec.records import RunFacts, SweepFacts
from stillhouse.spec.secret_masking import mask_data, mask_text


def provenance(facts: SweepFacts) -> list[tuple[str, str]]:
    """Terms and their values, without secrets."""
    rows = [("Command", facts.command or "n/a"), ("Started", facts.started or "n/a"), ("Duration", duration(facts.seconds))]
    rows += [(f"Continued {moment(run.started)}", _continued(run)) for run in facts.later_runs]
    rows += [(f"Data: {name}", _flat(value)) for name, value in mask_data(facts.dataset).items()]
    rows += [(name, _flat(value)) for name, value in mask_data(facts.environment).items()]
    rows += [("Latency measured on", facts.latency_place)] if facts.latency_place else []
    rows += [(f"Teacher {teacher.name}", f"{teacher.model}, key {teacher.key}") for teacher in facts.teachers]
    rows += [(f"Tracking: {name}", _flat(value)) for name, value in mask_data(facts.tracking).items() if value]
    if any(facts.tracking.values()):
        rows.append(("Open tracking", "stillhouse ui"))
    return [(name, mask_text(text)) for name, text in rows]


def _continued(run: RunFacts) -> str:
    """A later run: its command, its time, and what had changed in its environment."""
    changed = f"; with {_flat(mask_data(run.environment))}" if run.environment else ""
    return f"{run.command or 'called from Python'} ({duration(run.seconds)}){changed}"


def tracked(facts: SweepFacts, addresses: Mapping[str, str]) -> str:
    """Where links to MLflow lead, and what must run for them; nothing without links."""
    if not addresses:
        return ""
    served = any(urlsplit(address).hostname == "127.0.0.1" for address in addresses.values())
    how = f"; they work while `stillhouse ui {facts.name}` runs on this machine" if served else ""
    return f"The links of trials open their runs in MLflow{how}."


def _flat(value: Any) -> str:
    if isinstance(value, dict):
        return ", ".join(f"{name} {_flat(each)}" for name, each in value.items())
    if isinstance(value, list | tuple):
        return ", ".join(_flat(each) for each in value)
    return value_text(value)
