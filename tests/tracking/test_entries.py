import math
from collections.abc import Callable
from typing import Any

import pytest

from stillhouse.spec.metric import ACCURACY, Metric
from stillhouse.spec.records import SweepFacts, TeacherFacts, TrialRecord
from stillhouse.tracking.entries import (
    clean_name,
    clean_params,
    comparison,
    milliseconds,
    record_digest,
    sweep_note,
    sweep_points,
    sweep_tags,
    trial_entry,
)

RecordMaker = Callable[..., TrialRecord]
FactsMaker = Callable[..., SweepFacts]
FACTS = SweepFacts(name="s", spec={}, dataset={}, baseline="scratch", planned=1)


def test_the_end_state_and_the_curve_have_names_of_their_own(make_record: RecordMaker) -> None:
    points = trial_entry(make_record(epochs=3), FACTS).points
    end = {point.name: point.value for point in points if point.step == 0}
    curves = {point.name for point in points if point.step > 0}
    assert end["validation_accuracy"] == 0.5
    assert [(p.step, p.value) for p in points if p.name == "epoch_validation_accuracy"] == [(1, 0.1), (2, 0.2), (3, 0.3)]
    assert not curves & set(end)


def test_stages_that_count_their_epochs_again_do_not_write_over_each_other(make_record: RecordMaker) -> None:
    curve = [{"epoch": epoch, "stage": stage, "train_loss": 1.0} for stage in ("hint", "distil") for epoch in (1, 2)]
    points = trial_entry(make_record(curve=curve), FACTS).points
    assert [point.step for point in points if point.name == "epoch_train_loss"] == [1, 2, 3, 4]


def test_tags_say_what_a_trial_is(make_record: RecordMaker) -> None:
    tags = trial_entry(make_record(7), FACTS.model_copy(update={"name": "tiny"})).tags
    expected = {
        "sweep": "tiny",
        "role": "trial",
        "trial_key": "00000007cafe",
        "method": "kd",
        "student": "small",
        "teacher": "big",
        "seed": "7",
        "phase": "search",
        "status": "finished",
    }
    assert expected.items() <= tags.items()


def test_a_failed_trial_is_a_failed_run_with_its_reason(make_record: RecordMaker) -> None:
    entry = trial_entry(make_record(status="failed", reason="the loss became NaN in epoch 2"), FACTS)
    assert (entry.status, entry.tags["reason"]) == ("FAILED", "the loss became NaN in epoch 2")


def test_a_trial_stopped_by_the_scheduler_did_not_fail(make_record: RecordMaker) -> None:
    assert trial_entry(make_record(status="stopped"), FACTS).status == "FINISHED"


def test_params_are_hyperparameters_and_student_options(make_record: RecordMaker) -> None:
    params = trial_entry(make_record(2), FACTS).params
    assert params == {
        "temperature": "4.0",
        "kd_weight": "0.9",
        "student.width": "0.5",
        "student": "small",
        "method": "kd",
        "teacher": "big",
        "seed": "2",
        "epochs": "3",
    }


def test_a_hyperparameter_named_like_one_of_ours_keeps_its_value(make_record: RecordMaker) -> None:
    record = make_record()
    trial = record.trial.model_copy(update={"hyperparameters": {"seed": 99}})
    params = trial_entry(record.model_copy(update={"trial": trial}), FACTS).params
    assert (params["seed"], params["kd.seed"]) == ("0", "99")


def test_a_record_read_back_has_the_same_digest(make_record: RecordMaker) -> None:
    record = make_record(teaching={"way": "inline", "shape": (1, 2), "ratio": math.inf})
    assert record_digest(TrialRecord.model_validate_json(record.model_dump_json())) == record_digest(record)


def test_any_change_of_a_record_changes_its_digest(make_record: RecordMaker) -> None:
    assert record_digest(make_record()) != record_digest(make_record(device="cuda"))


def test_long_values_are_clipped_to_what_mlflow_takes() -> None:
    assert len(clean_params({"text": "x" * 7000})["text"]) == 6000


def test_secrets_in_hyperparameters_are_masked() -> None:
    assert clean_params({"url": "s3://me:hush@bucket/x"}) == {"url": "s3://***@bucket/x"}


@pytest.mark.parametrize(
    ("name", "clean"), [("a/b", "a.b"), ("a=b", "a_b"), ("..", "_.."), ("", "_"), ("loss (hint)", "loss _hint_")]
)
def test_names_are_made_such_that_mlflow_takes_them(name: str, clean: str) -> None:
    from mlflow.utils.validation import _validate_metric_name

    assert clean_name(name) == clean
    _validate_metric_name(clean)  # type: ignore[no-untyped-call]


def _teacher(name: str, parameters: int, test_accuracy: float | None) -> TeacherFacts:
    return TeacherFacts(
        name=name, model="m", key=name, parameters=parameters, size_bytes=1, macs=1, test_accuracy=test_accuracy
    )


def test_a_student_is_compared_with_its_own_teacher() -> None:
    teachers = [_teacher("a", 1000, 0.5), _teacher("b", 4000, 0.75)]
    metrics = {"parameters": 100.0, "test_accuracy": 0.25}
    assert comparison(metrics, ("a",), teachers, ACCURACY) == {"compression_ratio": 10.0, "accuracy_drop": 0.25}


def test_a_student_without_a_teacher_is_compared_with_the_best_one() -> None:
    teachers = [_teacher("a", 1000, 0.5), _teacher("b", 4000, 0.75)]
    assert comparison({"parameters": 100.0}, (), teachers, ACCURACY) == {"compression_ratio": 40.0}


def test_a_student_of_several_teachers_is_compared_with_the_best_of_them() -> None:
    teachers = [_teacher("a", 1000, 0.5), _teacher("b", 2000, 0.75), _teacher("c", 4000, 0.875)]
    metrics = {"parameters": 100.0, "test_accuracy": 0.5}
    assert comparison(metrics, ("a", "b"), teachers, ACCURACY) == {"compression_ratio": 20.0, "accuracy_drop": 0.25}


def test_nothing_is_compared_before_the_teacher_is_known() -> None:
    assert comparison({"parameters": 100.0, "test_accuracy": 0.5}, ("a",), [], ACCURACY) == {}


def test_the_summary_has_the_best_student_as_the_report_names_it(make_facts: FactsMaker) -> None:
    best = {"validation_accuracy": 0.9, "test_accuracy": 0.5}
    points = {point.name: point.value for point in sweep_points(make_facts(), ["finished", "finished", "failed"], best)}
    assert (points["best_test_accuracy"], points["trials_finished"], points["trials_failed"]) == (0.5, 2, 1)
    assert points["teacher_big_test_accuracy"] == 0.875


def test_the_summary_of_another_metric_has_its_name(make_facts: FactsMaker) -> None:
    metric = Metric(name="mae", direction="min", label="mean error")
    teacher = make_facts().teachers[0].model_copy(update={"test_accuracy": None, "metrics": {"test_mae": 2.0}})
    best = {"validation_mae": 3.0, "test_mae": 6.0}
    points = {
        point.name: point.value
        for point in sweep_points(make_facts(metric=metric, teachers=[teacher]), ["finished", "finished"], best)
    }
    assert (points["best_validation_mae"], points["best_test_mae"], points["teacher_big_test_mae"]) == (3.0, 6.0, 2.0)
    assert not [name for name in points if "accuracy" in name]


def test_a_run_of_another_metric_has_its_drop(make_record: RecordMaker, make_facts: FactsMaker) -> None:
    metric = Metric(name="mae", direction="min", label="mean error")
    teacher = make_facts().teachers[0].model_copy(update={"test_accuracy": None, "metrics": {"test_mae": 2.0}})
    record = make_record().model_copy(update={"metrics": {"parameters": 100.0, "validation_mae": 2.5, "test_mae": 2.75}})
    points = {
        point.name: point.value
        for point in trial_entry(record, make_facts("s", teachers=[teacher], metric=metric)).points
        if point.step == 0
    }
    assert (points["test_mae"], points["mae_drop"]) == (2.75, 0.75)


def test_a_command_with_credentials_is_tagged_without_them(make_facts: FactsMaker) -> None:
    facts = make_facts(command="stillhouse sweep a.yaml --set tracking.uri=http://me:hush@host")
    assert "hush" not in str(sweep_tags(facts, home_id="h"))


@pytest.mark.parametrize(
    ("moment", "expected"),
    [
        ("1970-01-01T00:00:01+00:00", 1000),
        ("1970-01-01T01:00:01+01:00", 1000),
        ("1970-01-01T00:00:01", 1000),
        ("", 0),
        ("noon", 0),
    ],
)
def test_moments_become_unix_time(moment: str, expected: Any) -> None:
    assert milliseconds(moment) == expected


def test_a_student_with_operators_has_their_numbers_and_its_origin(make_record: RecordMaker) -> None:
    plain = make_record()
    student = plain.trial.student.model_copy(update={"compress": [{"cut": {"ratio": 0.5}}], "derived_from": "big"})
    record = plain.model_copy(
        update={
            "trial": plain.trial.model_copy(update={"student": student}),
            "compression": "cut(ratio=0.5)",
            "metrics": {**plain.metrics, "weight_bits": 4.0, "activation_bits": 8.0, "nonzero_parameters": 500.0},
        }
    )
    entry = trial_entry(record, FACTS)
    assert entry.params["compression"] == "cut(ratio=0.5)"
    assert entry.params["student.from"] == "big"
    points = {point.name: point.value for point in entry.points if point.step == 0}
    assert (points["weight_bits"], points["activation_bits"], points["nonzero_parameters"]) == (4, 8, 500)
    points = {point.name: point.value for point in trial_entry(plain, FACTS).points}
    assert (points["weight_bits"], points["activation_bits"]) == (32, 32)
    assert "nonzero_parameters" not in points


def test_params_have_the_training_settings_and_the_data(make_record: RecordMaker, make_facts: FactsMaker) -> None:
    spec = {"dataset": {"name": "digits", "root": "/data/digits"}, "training": {"optimizer": "sgd", "learning_rate": 0.05}}
    dataset = {"name": "digits", "fingerprint": "0123", "test_samples": 360}
    params = trial_entry(make_record(), make_facts(spec=spec, dataset=dataset)).params
    expected = {"training.optimizer": "sgd", "training.learning_rate": "0.05"}
    expected |= {"dataset.name": "digits", "dataset.root": "/data/digits", "dataset.test_samples": "360"}
    assert {name: value for name, value in params.items() if name.startswith(("training.", "dataset."))} == expected
    tags = sweep_tags(make_facts(spec=spec, dataset=dataset), home_id="h")
    assert (tags["dataset_root"], tags["dataset_test_samples"]) == ("/data/digits", "360")


def test_a_secret_in_the_address_of_the_data_is_hidden(make_record: RecordMaker, make_facts: FactsMaker) -> None:
    spec = {"dataset": {"name": "digits", "root": "s3://reader:hunter2@bucket/digits"}, "training": {}}
    facts = make_facts(spec=spec)
    texts = [str(trial_entry(make_record(), facts)), str(sweep_tags(facts, home_id="h")), sweep_note(facts)]
    assert not any("hunter2" in text for text in texts)


@pytest.mark.parametrize(
    ("changes", "ending"),
    [
        ({}, "seed 0, 3 of 3 epochs: test accuracy 75.00 %, validation accuracy 50.00 %."),
        ({"status": "failed", "reason": "out of memory"}, "seed 0, 3 of 3 epochs: failed, out of memory"),
        ({"status": "stopped"}, "seed 0, 3 of 3 epochs: stopped"),
    ],
)
def test_a_run_describes_what_was_trained_and_what_came_out(
    changes: dict[str, Any], ending: str, make_record: RecordMaker, make_facts: FactsMaker
) -> None:
    note = trial_entry(make_record(**changes), make_facts()).tags["mlflow.note.content"]
    assert note == f"**small** (1,000 parameters) trained with **kd** by big on digits, {ending}"


def test_samples_of_the_machine_are_system_metrics_with_their_own_times(make_record: RecordMaker) -> None:
    samples = [{"time_ms": 1000.0 * second, "process_cpu_percentage": 50.0 + second} for second in (10, 20)]
    record = make_record(system=samples)
    points = [point for point in trial_entry(record, FACTS).points if point.name.startswith("system/")]
    assert [(point.name, point.step, point.value, point.when_ms) for point in points] == [
        ("system/process_cpu_percentage", 1, 60.0, 10_000),
        ("system/process_cpu_percentage", 2, 70.0, 20_000),
    ]
    # A record without samples keeps the digest by which its run is known.
    assert "system" not in make_record().model_dump(mode="json")


def test_a_note_leads_to_the_trials(make_facts: FactsMaker) -> None:
    assert "(http://127.0.0.1:5000/#/x)" in sweep_note(make_facts(), "http://127.0.0.1:5000/#/x")
    assert "http" not in sweep_note(make_facts())
