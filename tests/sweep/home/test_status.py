"""The state of a sweep that other processes read: what its driver wrote, and what the ledger alone tells."""

import json
from collections.abc import Callable
from pathlib import Path

from stillhouse.spec.metric import Metric
from stillhouse.spec.records import SweepFacts, TrialRecord
from stillhouse.sweep.home.status import StatusReader, publish_status
from stillhouse.sweep.home.sweep_home import SweepHome
from stillhouse.sweep.progress import Progress

MakeRecord = Callable[..., TrialRecord]
ERROR = Metric(name="error", direction="min", label="error")


def started(home: Path) -> SweepHome:
    sweep_home = SweepHome(home, "s")
    with sweep_home.locked():
        sweep_home.write_spec({"name": "s"})
    return sweep_home


def test_the_published_state_has_the_process_and_the_metric(tmp_path: Path) -> None:
    sweep_home, progress = started(tmp_path), Progress("s", quiet=True)
    progress.use_metric(ERROR)
    progress.plan(3)
    with publish_status(progress, sweep_home):
        state = json.loads((sweep_home.folder / "state.json").read_text())
    assert (state["planned"], state["complete"], state["metric"]["direction"]) == (3, False, "min")
    assert json.loads((sweep_home.folder / "state.json").read_text())["complete"] is True


def test_a_ledger_without_a_published_state_is_judged_by_the_facts(tmp_path: Path, make_record: MakeRecord) -> None:
    sweep_home = started(tmp_path)
    for key, error in (("a", 2.0), ("b", 1.0)):
        sweep_home.ledger.write(make_record(key, metrics={"parameters": 1000.0, "validation_error": error}))
    sweep_home.write_facts(SweepFacts(name="s", spec={}, dataset={}, baseline="scratch", planned=2, metric=ERROR))
    state = StatusReader(sweep_home).read()
    assert (state["state"], state["done"]) == ("finished", 2)
    assert [(each["trial"], each["validation_error"]) for each in state["best"]] == [("b", 1.0)]


def test_a_second_reading_finds_new_records_and_forgets_removed_ones(tmp_path: Path, make_record: MakeRecord) -> None:
    sweep_home = started(tmp_path)
    sweep_home.ledger.write(make_record("a"))
    reader = StatusReader(sweep_home)
    assert reader.read()["done"] == 1
    sweep_home.ledger.write(make_record("b"))
    assert reader.read()["done"] == 2
    sweep_home.ledger.set_aside("a")
    assert reader.read()["done"] == 1


def test_a_damaged_state_is_ignored(tmp_path: Path, make_record: MakeRecord) -> None:
    sweep_home = started(tmp_path)
    sweep_home.ledger.write(make_record("a", (0.75,)))
    (sweep_home.folder / "state.json").write_text("{")
    state = StatusReader(sweep_home).read()
    assert (state["state"], state["planned"], state["done"]) == ("unfinished", None, 1)
    assert state["best"][0]["validation_accuracy"] == 0.75
