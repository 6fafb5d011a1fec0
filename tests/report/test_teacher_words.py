"""What the page reports of each teacher."""

from typing import Any

from stillhouse.report.teacher_costs import TeacherCost
from stillhouse.report.teacher_words import delivery_reasons, teacher_facts, teacher_sentences
from stillhouse.spec.metric import ACCURACY
from stillhouse.spec.records import TeacherFacts


def cost(*, forward_seconds: float = 10.0, inside_seconds: float | None = 40.0, **fields: Any) -> TeacherCost:
    known = {"parameters": 12_345, "size_bytes": 50_000, "macs": 1e6, "samples_forwarded": 1000, "seconds_per_sample": 0.01}
    teacher = TeacherFacts(name="large", model="resnet8", key="k", **{**known, **fields})
    return TeacherCost(
        teacher=teacher, trials=4, samples_used=4000, forward_seconds=forward_seconds, inside_seconds=inside_seconds
    )


def test_sharing_a_teacher_saves_what_it_would_have_cost_inside_every_trial() -> None:
    spent, inside = teacher_sentences(cost())
    assert spent == "Its forward passes took 10 s (1,000 samples). It was not trained in this sweep."
    assert "it would have computed 4,000 samples in 4 trials: 40 s of forward passes at 10 ms each" in inside
    assert "Sharing saved 30 s of device time: the shared teacher worked 4" in inside


def test_a_teacher_that_saved_nothing_is_reported_so() -> None:
    assert teacher_sentences(cost(forward_seconds=40.0))[1].endswith("Sharing it saved nothing here.")


def test_without_its_time_per_sample_the_saving_is_unknown() -> None:
    _, unknown = teacher_sentences(cost(inside_seconds=None, seconds_per_sample=None))
    assert "is not known" in unknown


def test_training_is_named_where_this_sweep_did_it() -> None:
    assert "It was trained in this sweep, in 1 min 30 s." in teacher_sentences(cost(trained_now=True, train_seconds=90.0))[0]


def test_facts_name_the_metric_of_the_task() -> None:
    rows = dict(teacher_facts(cost(test_accuracy=0.9375, validation_accuracy=0.95), ACCURACY))
    assert rows["Accuracy"] == "test 93.75%, validation 95.00%"
    assert rows["Size"].startswith("12,345 parameters, 50 kB, 1M MACs")


def test_the_reason_of_a_first_release_is_shown_as_it_is() -> None:
    assert delivery_reasons(cost(reason="logits cached: it is cheap")) == ["logits cached: it is cheap"]
    assert delivery_reasons(cost()) == []
