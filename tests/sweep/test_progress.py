"""What is shown while a sweep runs."""

import io
import re
from collections.abc import Callable

import pytest
from rich.console import Console

from stillhouse.spec.metric import ACCURACY, Metric
from stillhouse.spec.records import Trial, TrialRecord
from stillhouse.sweep.progress import Progress, Tally, describe_record, metric_of_state, render_status

MakeRecord = Callable[..., TrialRecord]


def shown(*, terminal: bool = False) -> tuple[Progress, io.StringIO]:
    stream = io.StringIO()
    return Progress("s", console=Console(file=stream, force_terminal=terminal, width=120)), stream


def untimed(stream: io.StringIO) -> list[str]:
    """The lines without the clock time with which each must begin."""
    timed = [re.fullmatch(r"([01]\d|2[0-3]):[0-5]\d:[0-5]\d (.*)", line) for line in stream.getvalue().splitlines()]
    return [line[2] for line in timed if line is not None] if all(timed) else ["a line without a time"]


def test_without_a_terminal_there_is_one_line_per_event(make_trial: Callable[..., Trial], make_record: MakeRecord) -> None:
    progress, stream = shown()
    with progress:
        progress.teacher("big", "teacher big: epoch 1/2")
        progress.teacher("big", "teacher big: epoch 1/2")
        progress.plan(3, [make_record("z")])
        progress.trial_started(make_trial("a"))
        progress.trial_epoch("a", 1, 0.5)
        progress.trial_epoch("unknown", 1, 0.5)
        progress.trial_done(make_record("a", (0.5, 0.75)))
        progress.trial_done(make_record("b", (), status="failed", reason="diverged"))
    assert untimed(stream) == [
        "teacher big: epoch 1/2",
        "[2/3] a scratch mlp seed 0 finished after 2 epochs, validation accuracy 0.7500",
        "[3/3] b scratch mlp seed 0 FAILED: diverged",
    ]


def test_brackets_in_texts_are_no_markup() -> None:
    progress, stream = shown()
    progress.note("[red]layer[0] of 'x' [/nothing]")
    assert untimed(stream) == ["[red]layer[0] of 'x' [/nothing]"]


def test_a_terminal_gets_a_table_of_what_runs_and_what_is_best(
    make_trial: Callable[..., Trial], make_record: MakeRecord
) -> None:
    progress, stream = shown(terminal=True)
    with progress:
        progress.plan(4, [make_record("z", (0.9,))])
        progress.trial_started(make_trial("running-one"))
        progress.trial_epoch("running-one", 1, 0.625)
        progress.trial_done(make_record("f", (), status="failed", reason="diverged"))
        live = progress._live
        assert live is not None
        live.refresh()
        text = stream.getvalue()
    assert "2/4 trials" in text
    assert "0.00 CPU-hours of trials" in text
    assert "512 to 2.05k" in text
    assert "1 running" in text
    assert "1 failed" in text
    assert "0.6250" in text
    assert "0.9000" in text


def test_quiet_shows_nothing(make_record: MakeRecord) -> None:
    stream = io.StringIO()
    with Progress("s", console=Console(file=stream, force_terminal=True), quiet=True) as progress:
        progress.note("note")
        progress.teacher("big", "text")
        progress.trial_done(make_record())
    assert stream.getvalue() == ""


def test_the_best_of_each_size_counts_finished_trials_alone(make_record: MakeRecord) -> None:
    def sized(parameters: float, accuracy: float) -> dict[str, float]:
        return {"parameters": parameters, "validation_accuracy": accuracy}

    tally = Tally()
    for record in [
        make_record("a", metrics=sized(1000, 0.5)),
        make_record("b", metrics=sized(1100, 0.7)),
        make_record("c", metrics=sized(1200, 0.9), status="stopped"),
        make_record("d", (), status="failed"),
        make_record("e", metrics=sized(100_000, 0.6)),
        make_record("e", metrics=sized(100_000, 0.9)),
    ]:
        tally.add(record)
    best = [(each["parameters_within"], each["trial"], each["validation_accuracy"]) for each in tally.best()]
    assert best == [("512 to 2.05k", "b", 0.7), ("32.8k to 131k", "e", 0.6)]
    assert tally.counts == {"finished": 3, "stopped": 1, "failed": 1}


def test_hours_are_what_trials_held_of_the_cluster(make_record: MakeRecord) -> None:
    progress, _ = shown()
    progress.claims(cpu=2, gpu=0.25)
    metrics = {"parameters": 10.0, "validation_accuracy": 0.5, "train_seconds": 7200.0}
    curve = [{"epoch": epoch, "validation_accuracy": 0.5, "seconds": 1800.0} for epoch in (1, 2)]
    progress.plan(2, [make_record("a", metrics=metrics), make_record("b", status="failed", metrics={}, curve=curve)])
    state = progress.snapshot()
    assert state["gpu_hours"] == pytest.approx(0.25 * 3)
    assert state["cpu_hours"] == pytest.approx(2 * 3)


def test_the_time_left_counts_the_epochs_of_trials_under_way(
    make_trial: Callable[..., Trial], make_record: MakeRecord, monkeypatch: pytest.MonkeyPatch
) -> None:
    clock = [100.0]
    monkeypatch.setattr("stillhouse.sweep.progress.time.monotonic", lambda: clock[0])
    progress, _ = shown()
    progress.plan(5, [make_record("z")])
    assert progress.snapshot()["eta_seconds"] is None, "nothing ran yet"
    progress.trial_started(make_trial("a", epochs=4))
    progress.trial_epoch("a", 2, 0.5)
    progress.trial_done(make_record("b"))
    clock[0] += 30.0
    # One and a half trials took 30 s, two and a half are left.
    assert progress.snapshot()["eta_seconds"] == pytest.approx(50.0)


def test_settings_are_shown_short(make_record: MakeRecord) -> None:
    record = make_record("a", trial={"hyperparameters": {"temperature": 2.123456, "layer": None, "variant": "x"}, "seed": 3})
    assert describe_record(record).startswith("a scratch mlp seed 3 (temperature=2.123 variant=x) finished")


ERROR = Metric(name="error", direction="min", label="mean error")


def test_where_lower_is_better_the_best_is_the_lowest(make_record: MakeRecord) -> None:
    tally = Tally(ERROR)
    for key, error in (("a", 3.0), ("b", 1.5), ("c", 2.0)):
        tally.add(make_record(key, metrics={"parameters": 1000.0, "validation_error": error}))
    (best,) = tally.best()
    assert (best["trial"], best["validation_error"]) == ("b", 1.5)
    assert "validation_accuracy" not in best


def test_another_metric_is_shown_under_its_own_name(make_trial: Callable[..., Trial], make_record: MakeRecord) -> None:
    progress, stream = shown()
    progress.use_metric(ERROR)
    progress.plan(2)
    progress.trial_started(make_trial("a"))
    progress.trial_epoch("a", 1, 2.5)
    progress.trial_done(make_record("b", metrics={"parameters": 10.0, "validation_error": 1.25}))
    assert "finished after 1 epochs, validation mean error 1.2500" in stream.getvalue()
    state = progress.snapshot()
    assert state["running"][0]["validation_error"] == 2.5
    assert metric_of_state(state) == ERROR
    screen = io.StringIO()
    Console(file=screen, width=120).print(render_status(state))
    assert "mean error" in screen.getvalue()
    assert "2.5000" in screen.getvalue()


def test_a_state_of_the_first_release_means_accuracy() -> None:
    assert metric_of_state({"sweep": "old"}) == ACCURACY


def test_a_collapsed_trial_is_named_with_the_value_that_it_did_not_exceed(make_record: MakeRecord) -> None:
    progress, stream = shown()
    progress.use_metric(ACCURACY, trivial=0.125)
    progress.plan(2)
    progress.trial_done(make_record("a", (0.5, 0.125)))
    progress.trial_done(make_record("b", (0.5, 0.25)))
    assert untimed(stream) == [
        "[1/2] a scratch mlp seed 0 finished after 2 epochs, validation accuracy 0.1250; "
        "COLLAPSED: no better than a model that ignores the image (accuracy 0.1250), or better by chance alone",
        "[2/2] b scratch mlp seed 0 finished after 2 epochs, validation accuracy 0.2500",
    ]
    assert progress.snapshot()["collapsed"] == 1
