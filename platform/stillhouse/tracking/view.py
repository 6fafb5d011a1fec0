"""The saved view of MLflow's run page: the metric against size as scatter charts, and parallel coordinates.

MLflow stores a saved view as an experiment tag `mlflow.sharedViewState.<id>`, and `?viewStateShareKey=<id>` opens it. Its
JSON is not documented; this is what the page of mlflow 3.17 reads: an envelope with `name`, `createdAt`, `updatedAt`
and the `state` as text.
"""

import json
import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from stillhouse.durable import bytes_hash
from stillhouse.spec.metric import Metric

EXPERIMENT_VIEW_ID = "stillhouse"
_PREFIX = "mlflow.sharedViewState."
_SECTION = "stillhouse-trade-off"
# The page shows a saved view's age; a fixed moment keeps the tag the same each time it is written.
_CREATED_MS = 1735689600000

_SIZES = ("parameters", "size_bytes", "macs", "latency_ms")


@dataclass(frozen=True)
class View:
    """A saved view: its id, and the value of the tag that stores it."""

    id: str
    value: str

    @property
    def tag(self) -> str:
        return f"{_PREFIX}{self.id}"


def experiment_view(metric: Metric) -> View:
    """All trials of an experiment, against the metric of its sweeps."""
    return _view(EXPERIMENT_VIEW_ID, _title(metric), "tags.role = 'trial'", metric)


def sweep_view(sweep: str, metric: Metric) -> View:
    """The trials of one sweep."""
    quote = '"' if "'" in sweep else "'"
    return _view(
        sweep_view_id(sweep),
        f"{sweep}: {metric.label} against size",
        f"tags.role = 'trial' and tags.sweep = {quote}{sweep}{quote}",
        metric,
    )


def sweep_view_id(sweep: str) -> str:
    """The id of a sweep's view: different for different names, and only letters, digits and hyphens."""
    plain = re.sub(r"[^A-Za-z0-9-]+", "-", sweep)[:60]
    return f"stillhouse-{plain}" if plain == sweep else f"stillhouse-{plain}-{bytes_hash(sweep.encode(), digits=8)}"


def view_address(server: str, experiment_id: str, view_id: str) -> str:
    """The page of a running server that opens with the view."""
    query = f"workflowType=machine_learning&compareRunsMode=CHART&viewStateShareKey={view_id}"
    return f"{server.rstrip('/')}/#/experiments/{experiment_id}/runs?{query}"


def run_address(server: str, experiment_id: str, run_id: str) -> str:
    """The page of one run. Without the workflow in the address MLflow shows it among evaluations of language models."""
    return f"{server.rstrip('/')}/#/experiments/{experiment_id}/runs/{run_id}?workflowType=machine_learning"


def _title(metric: Metric) -> str:
    return f"{metric.heading} against size"


def _view(view_id: str, name: str, search: str, metric: Metric) -> View:
    test, validation = metric.column("test"), metric.column("validation")
    charts: list[Mapping[str, Any]] = [
        _chart(f"scatter-{size}", "SCATTER") | {"xaxis": _axis(size), "yaxis": _axis(test), "runsCountToCompare": 100}
        for size in _SIZES
    ]
    charts.append(
        _chart("parallel", "PARALLEL")
        | {
            "selectedParams": ["method", "student"],
            "selectedMetrics": ["parameters", "latency_ms", validation],
            "showAllRuns": True,
        }
    )
    state = {
        "searchFilter": search,
        # Sorted by date, the page folds children under their parent, and charts leave out folded runs.
        "orderByKey": f"metrics.`{test}`",
        "orderByAsc": metric.direction == "min",
        "startTime": "ALL",
        "lifecycleFilter": "Active",
        "datasetsFilter": [],
        "modelVersionFilter": "All Runs",
        "selectedColumns": [
            *(f"tags.`{name}`" for name in ("method", "student", "status")),
            *(f"metrics.`{name}`" for name in (test, validation, "parameters", "latency_ms")),
        ],
        "runsHiddenMode": "SHOW_ALL",
        "compareRunCharts": charts,
        # The charts that the page makes for every metric stay folded: each reads its curves from the server.
        "compareRunSections": [
            # With three side by side, parallel coordinates cannot be read. Lower charts have their best point behind the
            # toolbar of 22 pixels: above the highest point plotly leaves about 5 % of the height and 7 pixels.
            _section(_SECTION, _title(metric), unfolded=True) | {"columns": 2, "cardHeight": 640},
            _section("stillhouse-metrics", "Model metrics", unfolded=False),
        ],
        "isAccordionReordered": True,
        "viewMaximized": False,
        # In a small window beside the assistant's pane, charts next to the list are so narrow that the toolbar covers half of
        # them. A button shows the list.
        "runListHidden": True,
        "useGroupedValuesInCharts": True,
        "hideEmptyCharts": True,
        "groupBy": None,
        "globalLineChartConfig": {"xAxisKey": "step", "lineSmoothness": 0, "selectedXAxisMetricKey": ""},
    }
    text = json.dumps(state, separators=(",", ":"))
    envelope = {"name": name, "createdAt": _CREATED_MS, "updatedAt": _CREATED_MS, "state": text}
    return View(view_id, json.dumps(envelope, separators=(",", ":")))


def _chart(name: str, kind: str) -> dict[str, Any]:
    return {
        "uuid": f"stillhouse-{name}",
        "type": kind,
        "runsCountToCompare": 10,
        "metricSectionId": _SECTION,
        "deleted": False,
        "isGenerated": False,
    }


def _axis(name: str) -> dict[str, str]:
    return {"key": name, "type": "METRIC"}


def _section(uuid: str, name: str, *, unfolded: bool) -> dict[str, Any]:
    return {"uuid": uuid, "name": name, "display": unfolded, "isReordered": True, "deleted": False, "isGenerated": False}
