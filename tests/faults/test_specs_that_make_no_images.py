"""What a spec for generators can get wrong: each is one sentence with its key, before anything starts."""

import sys
import textwrap
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from stillhouse.data.datasets import load_dataset
from stillhouse.sweep.planning.spec_check import survey
from stillhouse.tasks import find

SPEC: dict[str, Any] = {
    "name": "s",
    "task": "generation",
    "dataset": {"name": "digits", "validation": 144},
    "views": {"count": 2},
    "teachers": {"big": {"model": "dcgan"}},
    "students": [{"model": "dcgan", "width": 0.25}],
    "methods": {"scratch": {}, "gan_compression": {}},
}


def problems_with(**sections: Any) -> dict[str, str]:
    raw = {**SPEC, **sections}
    wanted = raw["dataset"]
    data = load_dataset(
        wanted["name"],
        validation=wanted["validation"],
        options=wanted.get("options"),
        task="generation",
        targets=find("generation").targets,
    )
    return {problem.key: problem.message for problem in survey(raw, data).problems}


def test_the_spec_without_a_mistake_has_no_problem() -> None:
    assert problems_with() == {}
    notes = survey(SPEC).notes
    assert not any("views.count" in note for note in notes), "views of noise differ without a policy"


def test_a_classifier_is_no_generator() -> None:
    assert problems_with(students=["lenet"]) == {
        "students[0]": "must name a model of task generation: lenet reads images, and a generator makes them from noise; "
        "name a generator, such as dcgan"
    }
    assert list(problems_with(teachers={"big": {"model": "resnet8"}})) == ["teachers.big"]


def test_a_conditional_generator_needs_the_conditional_task() -> None:
    (problem,) = problems_with(students=[{"model": "dcgan", "conditional": True}]).values()
    assert problem == (
        "must name a model of task generation: dcgan reads 110 numbers of each sample, task generation gives 100 numbers; "
        "set conditional to false if it has that option"
    )


@pytest.fixture
def own_models(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    (tmp_path / "wide_generator.py").write_text(
        textwrap.dedent(
            """
            from torch import nn
            from stillhouse.models.gan import Generator

            class Wide(Generator):
                def __init__(self, num_classes):
                    super().__init__(num_classes=num_classes)
                    self.linear = nn.Linear(100, 128)

                def forward(self, noise):
                    return self.linear(noise).view(-1, 1, 8, 16).tanh()

            def wide(num_classes, input_shape):
                return Wide(num_classes)
            """
        )
    )
    monkeypatch.syspath_prepend(tmp_path)
    yield
    sys.modules.pop("wide_generator", None)


def test_images_must_have_the_data_sets_shape(own_models: None) -> None:
    assert problems_with(students=["wide_generator:wide"]) == {
        "students[0]": "must name a model of task generation: wide_generator:wide makes images of 1x8x16, those of the data "
        "set are 1x8x8; correct what it returns"
    }


def test_methods_that_read_logits_are_refused_with_those_that_serve() -> None:
    (problem,) = problems_with(methods={"kd": {}}).values()
    assert "does not serve task generation; these do:" in problem
    assert "gan_compression" in problem
    assert "scratch" in problem


def test_a_method_that_reads_gradients_of_single_samples_has_none_here() -> None:
    found = survey({**SPEC, "methods": {"gradient_attention": {}}})
    said = " ".join([problem.message for problem in found.problems] + [str(each) for each in found.skipped])
    assert "task generation" in said


def test_too_few_samples_for_the_metric_are_a_problem_of_the_split() -> None:
    assert problems_with(dataset={"name": "digits", "validation": 50}) == {
        "dataset.validation": "the validation split has 50 samples, and the classifier FID needs more than its 84 features; "
        "set dataset.validation to 85 or more"
    }


def test_a_normalisation_of_a_given_teacher_has_no_meaning(tmp_path: Path) -> None:
    teacher = {"model": "dcgan", "weights": str(tmp_path / "none.safetensors"), "normalization": "dataset"}
    assert "has no meaning for task generation" in problems_with(teachers={"big": teacher})["teachers.big.normalization"]


def test_batches_cannot_be_divided() -> None:
    found = survey({**SPEC, "training": {"micro_batch": 16}, "methods": {"scratch": {}}})
    said = " ".join([problem.message for problem in found.problems] + [str(each) for each in found.skipped])
    assert "has the loss of task generation, which must see each batch whole" in said


def test_views_that_mix_samples_are_refused() -> None:
    assert "must not mix samples" in problems_with(views={"policy": ["mixup"], "count": 2})["views.policy"]
