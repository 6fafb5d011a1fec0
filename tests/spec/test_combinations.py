"""Keys that are fine alone: settings without effect, objectives in the wrong direction. Impossible ones: test_load.py."""

from typing import Any

import pytest

from stillhouse.errors import SpecError
from stillhouse.spec.combinations import Soundness, idle_settings, objective_problems
from stillhouse.spec.load import validate
from stillhouse.spec.metric import ACCURACY, Metric

ERROR = Metric(name="mean_absolute_error", direction="min", label="mean absolute error")


def notes(**sections: Any) -> list[str]:
    return idle_settings(
        validate({"name": "s", "dataset": {"name": "digits"}, "students": ["mlp"], "methods": ["scratch"], **sections})
    )


@pytest.mark.parametrize(
    ("sections", "note"),
    [
        ({"search": {"grace_epochs": 3}}, "search.grace_epochs has no effect without search.scheduler: asha or median"),
        (
            {"search": {"reduction_factor": 2.0, "scheduler": "median"}},
            "search.reduction_factor has no effect without search.scheduler: asha",
        ),
        ({"search": {"trials_ahead": 2}}, "search.trials_ahead has no effect without search.algorithm: tpe or nsga2"),
        (
            {"search": {"algorithm": "grid", "trials_per_method": 3}},
            "search.trials_per_method has no effect with search.algorithm: grid, which runs every combination",
        ),
        ({"training": {"optimizer": "adam", "nesterov": True}}, "training.nesterov has no effect with optimizer: adam"),
        ({"training": {"gamma": 0.5}}, "training.gamma has no effect with schedule: one_cycle"),
        (
            {"training": {"schedule": "one_cycle", "warmup_epochs": 0.5}},
            "training.warmup_epochs has no effect with schedule: one_cycle, which includes a warm-up",
        ),
        (
            {"teachers": {"big": {"model": "mlp", "weights": "torchvision:X", "train": {"epochs": 3}}}},
            "teachers.big.train has no effect with teachers.big.weights; to train them further, write teachers.big.head: kept",
        ),
    ],
)
def test_a_setting_without_effect_is_reported(sections: dict[str, Any], note: str) -> None:
    assert notes(**sections) == [note]


def test_an_adaptive_search_that_ends_before_it_looks_at_results_is_reported() -> None:
    (note,) = notes(search={"algorithm": "tpe", "trials_per_method": 4, "startup_trials": 4})
    assert note.startswith("search.algorithm = tpe has no effect: each method and student gets 4 trials")
    assert notes(search={"algorithm": "tpe", "trials_per_method": 5, "startup_trials": 4}) == []


@pytest.mark.parametrize("metric", [ACCURACY, ERROR])
def test_objectives_are_sizes_and_the_metric_on_validation_data_in_its_direction(metric: Metric) -> None:
    column, opposite = metric.column("validation"), {"max": "min", "min": "max"}[metric.direction]
    assert list(objective_problems({column: metric.direction, "macs": "min"}, metric)) == []
    problems = objective_problems({column: opposite, "macs": "max", metric.column("test"): "max", "speed": "max"}, metric)
    found = {problem.key: str(problem) for problem in problems}
    assert found[f"objectives.{column}"] == f"objectives.{column} must be {metric.direction}, got {opposite}"
    assert found["objectives.macs"] == "objectives.macs must be min, got max"
    assert "the test split is read once" in found[f"objectives.{metric.column('test')}"]
    assert "is not an objective" in found["objectives.speed"]


def test_a_key_is_sound_unless_it_or_its_section_has_a_problem() -> None:
    sound = Soundness(["search", "training.warmup_epochs", "students[1].width"])
    assert sound("objectives", "training.momentum")
    assert not sound("objectives", "search.max_epochs")
    assert not sound("training.warmup_epochs")
    assert sound.touched("students")
    assert sound.touched("training")
    assert not sound.touched("methods")


@pytest.mark.parametrize(
    ("resources", "training", "sentence"),
    [
        ({"gpu": 2}, {}, None),
        ({"gpu": 1}, {}, "got true with trial_resources.gpu: 1 and 1 workers; PyTorch's SyncBatchNorm needs GPUs"),
        (
            {"cpu": 4, "workers": 2},
            {},
            "got true with trial_resources.gpu: 0 and 2 workers; PyTorch's SyncBatchNorm needs GPUs",
        ),
        ({"gpu": 2}, {"sync_batchnorm": True}, "teachers.big.train.sync_batchnorm must be false, got true: one process trains"),
    ],
)
def test_pytorchs_batchnorm_of_several_workers_needs_a_gpu_for_each(
    resources: dict[str, Any], training: dict[str, Any], sentence: str | None
) -> None:
    spec = {
        "name": "s",
        "dataset": {"name": "digits"},
        "students": ["mlp"],
        "methods": ["kd"],
        "teachers": {"big": {"model": "lenet", "train": training}},
        "trial_resources": resources,
        "training": {"sync_batchnorm": True},
    }
    if sentence is None:
        validate(spec)
        return
    with pytest.raises(SpecError) as caught:
        validate(spec)
    assert sentence in str(caught.value)
    assert len(caught.value.problems) == 1
