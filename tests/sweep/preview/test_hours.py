"""Hours from seconds per sample: the sums by hand."""

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import pytest
import yaml

from stillhouse.sweep.preview import hours, speed
from stillhouse.sweep.preview.hours import estimate
from stillhouse.sweep.preview.speed import Speed
from stillhouse.sweep.sweep import Sweep

MakeSweep = Callable[..., Sweep]


@pytest.fixture
def make_sweep(measured_spec: dict[str, Any], tmp_path: Path) -> MakeSweep:
    def make(**changes: Any) -> Sweep:
        path = tmp_path / "measured.yaml"
        path.write_text(yaml.safe_dump(measured_spec | changes))
        return Sweep.from_yaml(path, home=tmp_path / "home")

    return make


def pretend(patch: pytest.MonkeyPatch, speeds: Mapping[str, Speed]) -> None:
    """Stands in for the clock: speeds by model, or by model and first hidden width."""

    def measure(jobs: Any, *_rest: Any) -> tuple[str, list[Speed]]:
        return "paper", [speeds[f"{network.model} {network.options.get('hidden', [''])[0]}".strip()] for network, _ in jobs]

    patch.setattr(speed, "measure_speeds", measure)


def test_the_hours_are_those_of_a_sum_by_hand(make_sweep: MakeSweep, monkeypatch: pytest.MonkeyPatch) -> None:
    pretend(
        monkeypatch,
        {
            "mlp 16": Speed(train=1, forward=0.5),
            "mlp 64": Speed(train=2, forward=1),
            "lenet": Speed(train=8, forward=3, teach=4),
        },
    )
    sweep = make_sweep()
    plan = sweep.plan()
    found = estimate(plan, sweep.data())
    # An epoch trains 400 samples, passes them once more for the statistics of BatchNorm, and evaluates 100. The control is one
    # trial of each student, kd has each twice.
    trials = {planned.student.name: planned.trials for planned in plan.students}
    trial_s = {"mlp": 3 * (400 * 1 + 500 * 0.5), "wide": 3 * (400 * 2 + 500 * 1)}
    trials_s = sum(count * trial_s[name] for name, count in trials.items())
    training_s, shared_s = 5 * (400 * 8 + 500 * 3), 2 * 400 * 4
    taught = sum(trial.teacher is not None for trial in plan.trials)
    assert found.trial_hours == pytest.approx(trials_s / 3600)
    assert found.teacher_training_hours == pytest.approx(training_s / 3600)
    assert found.teacher_hours == pytest.approx(shared_s / 3600)
    assert found.inside_hours == pytest.approx(taught * 3 * 400 * 3 / 3600)
    assert found.gpu_hours == pytest.approx((0.25 * trials_s + training_s + shared_s) / 3600)
    assert (found.students, found.measured, found.where) == (2, 2, "paper")


def test_a_trial_that_needs_gradients_pays_for_the_backward_pass_wherever_the_teacher_runs(
    make_sweep: MakeSweep, measured_spec: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    student = Speed(train=1, forward=0.5)
    pretend(monkeypatch, {"mlp 16": student, "mlp 64": student, "lenet": Speed(train=8, forward=3, teach=7)})
    methods = {"kd": {"temperature": 4.0}, "gradient_attention": {}}
    sweep = make_sweep(methods=methods, students=[measured_spec["students"][0]])
    plan = sweep.plan()
    found = estimate(plan, sweep.data())
    trials = plan.trials_per_method
    assert found.teacher_hours == pytest.approx(2 * 400 * 7 / 3600)
    assert found.inside_hours == pytest.approx(3 * 400 * (trials["kd"] * 3 + trials["gradient_attention"] * 7) / 3600)


def test_a_trial_without_data_takes_as_long_as_its_generator_steps(
    make_sweep: MakeSweep, measured_spec: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    pretend(monkeypatch, {"mlp 16": Speed(train=1, forward=0.5), "lenet": Speed(train=8, forward=3, teach=4)})
    own = {"generator_steps": 10, "generated_batch": 32, "student_steps": 5}
    search = {"trials_per_method": 1, "max_epochs": 3, "start": "defaults"}
    sweep = make_sweep(methods={"data_free_adversarial": own}, students=[measured_spec["students"][0]], search=search)
    found = estimate(sweep.plan(), sweep.data())
    # Scratch as ever; the other trial passes 4 steps of 6 batches of 32 in each epoch, recomputes no statistics and evaluates.
    samples = 3 * 4 * 6 * 32
    assert found.trial_hours == pytest.approx((3 * (400 + 500 * 0.5) + samples + 3 * 100 * 0.5) / 3600)
    assert found.teacher_hours == pytest.approx(samples * 3 / 3600)
    assert found.inside_hours == pytest.approx(samples * 3 / 3600)


def test_students_that_are_not_measured_are_scaled_by_their_macs(
    make_sweep: MakeSweep, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(hours, "_MAX_STUDENTS", 2)
    widths = [8, 16, 64]
    pretend(monkeypatch, {"mlp 8": Speed(train=1, forward=0), "mlp 64": Speed(train=8, forward=0)})
    students = [{"model": "mlp", "hidden": [width], "name": f"mlp{width}"} for width in widths]
    sweep = make_sweep(students=students, teachers={}, methods=["scratch"], trial_resources={"cpu": 1})
    plan = sweep.plan()
    macs = {planned.student.name: planned.size.macs for planned in plan.students}
    trials = {planned.student.name: planned.trials for planned in plan.students}
    # The nearest measured one in MACs is that of width 8.
    seconds = {"mlp8": 1.0, "mlp16": macs["mlp16"] / macs["mlp8"], "mlp64": 8.0}
    found = estimate(plan, sweep.data())
    assert found.trial_hours == pytest.approx(sum(trials[name] * 3 * 400 * seconds[name] for name in seconds) / 3600)
    assert (found.students, found.measured, found.gpu_hours, found.teacher_hours) == (3, 2, 0, 0)


@pytest.mark.parametrize(("gpu", "scaled"), [(0, True), (0.25, False)])
def test_a_smaller_student_is_not_expected_to_be_faster_on_a_gpu(
    make_sweep: MakeSweep, monkeypatch: pytest.MonkeyPatch, gpu: float, scaled: bool
) -> None:
    """There, a step of a small student is the start of its kernels, however little each computes."""
    monkeypatch.setattr(hours, "_MAX_STUDENTS", 2)
    pretend(monkeypatch, {"mlp 8": Speed(train=1, forward=0), "mlp 64": Speed(train=8, forward=0)})
    students = [{"model": "mlp", "hidden": [width], "name": f"mlp{width}"} for width in (8, 56, 64)]
    sweep = make_sweep(students=students, teachers={}, methods=["scratch"], trial_resources={"cpu": 1, "gpu": gpu})
    plan = sweep.plan()
    macs = {planned.student.name: planned.size.macs for planned in plan.students}
    trials = {planned.student.name: planned.trials for planned in plan.students}
    # The nearest measured one in MACs is that of width 64.
    seconds = {"mlp8": 1.0, "mlp56": 8.0 * (macs["mlp56"] / macs["mlp64"] if scaled else 1), "mlp64": 8.0}
    found = estimate(plan, sweep.data())
    assert found.trial_hours == pytest.approx(sum(trials[name] * 3 * 400 * seconds[name] for name in seconds) / 3600)
    shared = "each trial was measured alone on its GPU; 4 that share one may each take up to 4 times as long"
    assert (shared in found.lines(None)) == (gpu == 0.25)
