import json

import pytest

from stillhouse.spec.metric import ACCURACY, Metric
from stillhouse.tracking.view import experiment_view, sweep_view, sweep_view_id, view_address


def test_the_view_is_an_envelope_whose_state_is_text() -> None:
    view = sweep_view("tiny", ACCURACY)
    envelope = json.loads(view.value)
    assert view.tag == "mlflow.sharedViewState.stillhouse-tiny"
    assert envelope["name"].startswith("tiny")
    assert json.loads(envelope["state"])["searchFilter"] == "tags.role = 'trial' and tags.sweep = 'tiny'"


def test_a_scatter_shows_test_accuracy_against_parameters_and_all_runs_are_visible() -> None:
    state = json.loads(json.loads(experiment_view(ACCURACY).value)["state"])
    scatter = [chart for chart in state["compareRunCharts"] if chart["type"] == "SCATTER"]
    axes = [(chart["xaxis"], chart["yaxis"]) for chart in scatter]
    assert ({"key": "parameters", "type": "METRIC"}, {"key": "test_accuracy", "type": "METRIC"}) in axes
    assert "PARALLEL" in [chart["type"] for chart in state["compareRunCharts"]]
    assert state["runsHiddenMode"] == "SHOW_ALL"


def test_a_metric_where_lower_is_better_is_shown_and_sorted_from_the_lowest() -> None:
    view = json.loads(sweep_view("tiny", Metric(name="mae", direction="min", label="mean error")).value)
    state = json.loads(view["state"])
    assert view["name"] == "tiny: mean error against size"
    assert (state["orderByKey"], state["orderByAsc"]) == ("metrics.`test_mae`", True)
    assert "accuracy" not in json.dumps(state).lower()


def test_every_chart_stands_in_a_section_that_exists() -> None:
    state = json.loads(json.loads(experiment_view(ACCURACY).value)["state"])
    sections = {section["uuid"] for section in state["compareRunSections"]}
    assert {chart["metricSectionId"] for chart in state["compareRunCharts"]} <= sections


def test_a_view_fits_into_an_experiment_tag() -> None:
    assert len(sweep_view("x" * 200, ACCURACY).value) < 5000  # the width of the column in MLflow's first schema


@pytest.mark.parametrize(("one", "other"), [("a b", "a-b"), ("Ü", "Ö"), ("x" * 70, "x" * 71)])
def test_two_sweeps_never_share_a_view(one: str, other: str) -> None:
    assert sweep_view_id(one) != sweep_view_id(other)


def test_the_address_opens_the_chart_page_with_the_view() -> None:
    address = view_address("http://127.0.0.1:5000/", "1", "stillhouse-tiny")
    assert address.startswith("http://127.0.0.1:5000/#/experiments/1/runs?")
    assert "viewStateShareKey=stillhouse-tiny" in address
    assert "compareRunsMode=CHART" in address
