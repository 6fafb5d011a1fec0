"""Latencies of two machines never stand in one table unsaid: all are measured again, or the page names the machines."""

from collections.abc import Callable, Collection, Mapping
from pathlib import Path
from typing import Any

import pytest
import ray
import torch

from stillhouse.data.datasets import ImageData, load_dataset
from stillhouse.models.size import Latency
from stillhouse.provenance import place_of
from stillhouse.report import Source, write_comparison, write_report
from stillhouse.report.comparison import latency_places
from stillhouse.spec.load import validate
from stillhouse.spec.records import StudentChoice, SweepFacts, Trial, TrialRecord
from stillhouse.sweep.execution.latency import measure_models
from stillhouse.sweep.execution.students import student_key
from stillhouse.sweep.home.sweep_home import SweepHome
from stillhouse.sweep.latency_limit import Latencies, measure_latencies, store_latencies
from stillhouse.sweep.phases import Phases
from stillhouse.sweep.planning.plan import make_plan
from stillhouse.sweep.progress import Progress
from stillhouse.sweep.reuse import take_over_trials
from stillhouse.sweep.run_context import RunContext
from stillhouse.sweep.shutdown import ShutdownRequest

SMALL, WIDE = (StudentChoice(name="mlp", model="mlp", options={"hidden": [size]}) for size in (8, 16))
NEAR, FAR = "processor near, 1 thread", "processor far, 1 thread"
MILLISECONDS = {NEAR: 1.0, FAR: 3.0}


class Machine:
    """Measures as the worker of a cluster does, on a machine of its own, whose every network takes the same time."""

    def __init__(self, place: str, monkeypatch: pytest.MonkeyPatch) -> None:
        self.measured: list[str] = []
        self._place = place
        self._patch = monkeypatch

    def measure_latency(
        self, models: Mapping[str, Any], data: ImageData, *, known: Collection[str] = (), place: str = ""
    ) -> tuple[dict[str, dict[str, float]], str]:
        milliseconds = MILLISECONDS[self._place]
        with self._patch.context() as patch:
            patch.setattr(ray, "get_gpu_ids", list)
            patch.setattr("stillhouse.sweep.execution.latency.place_of", lambda *_: self._place)
            patch.setattr(
                "stillhouse.sweep.execution.latency.measure_latency",
                lambda *_, **__: {size: Latency(size, milliseconds, milliseconds) for size in (1, 64)},
            )
            found, _, here = measure_models(
                dict(models), data.num_classes, data.input_shape, torch.get_num_threads(), [], known=known, place=place
            )
        self.measured += found
        return found, here


class Notes(Progress):
    def __init__(self) -> None:
        super().__init__("s", quiet=True)
        self.notes: list[str] = []

    def note(self, text: str) -> None:
        self.notes.append(text)


@pytest.fixture(scope="module")
def digits() -> ImageData:
    return load_dataset("digits", options={"limit": 200}, validation=40)


@pytest.fixture
def make_context(digits: ImageData, tmp_path: Path) -> Callable[..., RunContext]:
    def make(*students: StudentChoice, name: str = "s") -> RunContext:
        spec = {
            "name": name,
            "dataset": {"name": "digits"},
            "students": [{"model": each.model, **each.options, "name": f"mlp{number}"} for number, each in enumerate(students)],
            "methods": {"scratch": {}},
            "search": {"trials_per_method": len(students), "max_epochs": 1},
        }
        home = SweepHome(tmp_path / "home", name)
        home.ledger.folder.mkdir(parents=True, exist_ok=True)
        return RunContext(
            plan=make_plan(validate(spec), digits),
            data=digits,
            sweep_home=home,
            progress=Notes(),
            shutdown=ShutdownRequest(home.stop_request),
        )

    return make


def keys(context: RunContext) -> list[str]:
    return [student_key(planned.student) for planned in context.plan.students]


def milliseconds(latencies: Latencies) -> dict[str, float]:
    return {name: metrics["latency_ms"] for name, metrics in latencies.items()}


def record_of(context: RunContext, **metrics: float) -> TrialRecord:
    trial: Trial = context.plan.trials[0]
    record = TrialRecord(trial=trial, status="finished", metrics={"parameters": 10.0, **metrics})
    context.sweep_home.ledger.write(record)
    return record


def test_a_network_that_is_added_on_another_machine_makes_all_be_measured_there(
    make_context: Callable[..., RunContext], monkeypatch: pytest.MonkeyPatch
) -> None:
    first = make_context(SMALL)
    measure_latencies(Machine(NEAR, monkeypatch), first, {})  # type: ignore[arg-type]
    assert first.sweep_home.latency_place() == NEAR
    more, machine = make_context(SMALL, WIDE), Machine(FAR, monkeypatch)
    latencies = measure_latencies(machine, more, {})  # type: ignore[arg-type]
    assert milliseconds(latencies) == dict.fromkeys(keys(more), 3.0)
    assert machine.measured == keys(more)
    assert (more.sweep_home.read_latencies(), more.sweep_home.latency_place()) == (latencies, FAR)
    assert isinstance(more.progress, Notes)
    assert f"earlier latencies were measured on {NEAR}; all are measured again on {FAR}" in more.progress.notes


def test_on_the_same_machine_only_what_is_missing_is_measured(
    make_context: Callable[..., RunContext], monkeypatch: pytest.MonkeyPatch
) -> None:
    measure_latencies(Machine(NEAR, monkeypatch), make_context(SMALL), {})  # type: ignore[arg-type]
    more, machine = make_context(SMALL, WIDE), Machine(NEAR, monkeypatch)
    measure_latencies(machine, more, {})  # type: ignore[arg-type]
    assert machine.measured == [key for key in keys(more) if key not in keys(make_context(SMALL))]


def test_with_nothing_missing_nothing_is_measured_and_the_machine_stays_named(
    make_context: Callable[..., RunContext], monkeypatch: pytest.MonkeyPatch
) -> None:
    measure_latencies(Machine(NEAR, monkeypatch), make_context(SMALL), {})  # type: ignore[arg-type]
    machine = Machine(FAR, monkeypatch)
    context = make_context(SMALL)
    assert milliseconds(measure_latencies(machine, context, {})) == dict.fromkeys(keys(context), 1.0)  # type: ignore[arg-type]
    assert not machine.measured
    assert context.sweep_home.latency_place() == NEAR


def test_latencies_of_the_first_release_are_measured_again_as_soon_as_one_is_missing(
    make_context: Callable[..., RunContext], monkeypatch: pytest.MonkeyPatch
) -> None:
    context = make_context(SMALL, WIDE)
    (context.sweep_home.folder / "latencies.json").write_text(f'{{"{keys(context)[0]}": {{"latency_ms": 0.5}}}}')
    assert milliseconds(context.sweep_home.read_latencies()) == {keys(context)[0]: 0.5}
    found = measure_latencies(Machine(NEAR, monkeypatch), context, {})  # type: ignore[arg-type]
    assert milliseconds(found) == dict.fromkeys(keys(context), 1.0)


def test_stored_records_take_the_latencies_of_the_machine_that_measures_now(
    make_context: Callable[..., RunContext], monkeypatch: pytest.MonkeyPatch
) -> None:
    context = make_context(SMALL)
    record = record_of(context, latency_ms=9.0, latency_p95_ms=9.0, latency_batch64_ms=9.0, test_accuracy=0.5)
    records = {record.trial.key: record}
    latencies = measure_latencies(Machine(NEAR, monkeypatch), context, {})  # type: ignore[arg-type]
    (renewed,) = store_latencies(context, records, latencies).values()
    measured = latencies[student_key(record.trial.student)]
    assert [measured[name] for name in ("latency_ms", "latency_p95_ms", "latency_batch64_ms")] == [1.0, 1.0, 1.0]
    assert renewed.metrics == {"parameters": 10.0, "test_accuracy": 0.5, **measured}
    assert records == {record.trial.key: renewed}
    assert context.sweep_home.ledger.read(record.trial.key) == renewed
    assert not store_latencies(context, records, latencies), "once is enough"
    (without,) = store_latencies(context, records, {}).values()
    assert without.metrics == {"parameters": 10.0, "test_accuracy": 0.5}


def test_a_fork_takes_the_latencies_with_the_trials(
    make_context: Callable[..., RunContext], monkeypatch: pytest.MonkeyPatch
) -> None:
    origin = make_context(SMALL, name="origin")
    measure_latencies(Machine(NEAR, monkeypatch), origin, {})  # type: ignore[arg-type]
    record_of(origin, latency_ms=1.0)
    fork = make_context(SMALL, name="fork")
    phases = Phases(plan=fork.plan, read_latencies=fork.sweep_home.read_latencies)
    records: dict[str, TrialRecord] = {}
    take_over_trials(origin.sweep_home, fork, phases, records)
    assert len(records) == 1
    assert (fork.sweep_home.read_latencies(), fork.sweep_home.latency_place()) == (origin.sweep_home.read_latencies(), NEAR)


def facts_of(name: str, place: str = "", **environment: Any) -> SweepFacts:
    return SweepFacts(
        name=name,
        spec={},
        dataset={"name": "digits", "fingerprint": "f"},
        baseline="scratch",
        planned=1,
        latency_place=place,
        environment=environment,
    )


def test_the_page_of_a_sweep_names_the_machine(make_context: Callable[..., RunContext], tmp_path: Path) -> None:
    record = record_of(make_context(SMALL), latency_ms=1.0, test_accuracy=0.5, validation_accuracy=0.5)
    page = write_report(facts_of("s", NEAR), [record], tmp_path).page.read_text()
    assert f"Latency was measured on {NEAR}." in page


def test_a_comparison_names_the_machines_where_they_differ(make_context: Callable[..., RunContext], tmp_path: Path) -> None:
    record = record_of(make_context(SMALL), latency_ms=1.0, test_accuracy=0.5, validation_accuracy=0.5)
    sources = [Source(facts=facts_of(name, place), records=[record]) for name, place in (("p", NEAR), ("q", FAR))]
    sentence = (
        f"Latencies were measured on different hardware and cannot be compared: those of p on {NEAR} and those of q on {FAR}."
    )
    assert latency_places(source.facts for source in sources) == sentence
    assert sentence in write_comparison(sources, tmp_path).page.read_text()


@pytest.mark.parametrize(
    ("one", "other", "differ"),
    [
        (facts_of("p", NEAR), facts_of("q", NEAR), False),
        (facts_of("p", processor="x"), facts_of("q", processor="x"), False),
        (facts_of("p", processor="x"), facts_of("q", processor="y"), True),
        (facts_of("p", NEAR), facts_of("q", processor="processor near"), True),
    ],
)
def test_sweeps_that_record_no_machine_are_told_apart_by_their_hardware(
    one: SweepFacts, other: SweepFacts, differ: bool
) -> None:
    assert bool(latency_places([one, other])) == differ


def test_a_place_is_the_processor_with_its_threads() -> None:
    one, two = place_of("cpu", 1), place_of("cpu", 2)
    assert one.endswith(", 1 thread")
    assert two == one.removesuffix("1 thread") + "2 threads"
