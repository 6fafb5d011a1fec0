"""What a plan says of a sweep over texts: models of images, methods without texts, views, and the number of tokens."""

import warnings
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
import torch

pytest.importorskip("tokenizers")

from stillhouse.data.views import Views
from stillhouse.models.registry import build_model
from stillhouse.models.weights import save_weights
from stillhouse.spec.load import validate
from stillhouse.sweep.planning.plan import make_plan
from stillhouse.sweep.planning.spec_check import survey
from stillhouse.sweep.teacher_setup import teacher_definition
from stillhouse.teachers.library import TeacherLibrary
from stillhouse.testing.grounds.text_classification import texts


def spec(**changes: Any) -> dict[str, Any]:
    return {
        "name": "reviews",
        "dataset": {"name": "text_table", "root": "."},
        "teachers": {"big": {"model": "text_transformer", "width": 0.5}},
        "students": [{"model": "text_cnn", "width": 0.25}, {"model": "bilstm", "width": 0.125}],
        "methods": {"scratch": {}, "kd": {}},
        "search": {"trials_per_method": 2, "max_epochs": 2},
        **changes,
    }


def problems(changes: Mapping[str, Any]) -> list[str]:
    found = survey(spec(**changes), texts())
    return [str(problem) for problem in found.problems]


def test_models_have_as_many_tokens_as_the_texts_unless_the_spec_says_otherwise() -> None:
    vocabulary = texts().model_options["vocabulary"]
    students = [{"model": "text_cnn", "width": 0.25}, {"model": "text_cnn", "width": 0.25, "vocabulary": 500, "name": "more"}]
    plan = make_plan(validate(spec(students=students)), texts())
    assert plan.spec.teachers["big"].options["vocabulary"] == vocabulary
    assert {trial.student.name: trial.student.options["vocabulary"] for trial in plan.trials} == {
        "text_cnn": vocabulary,
        "more": 500,
    }
    sizes = {each.student.name: each.size.parameters for each in plan.students}
    assert sizes["more"] - sizes["text_cnn"] == (500 - vocabulary) * 32


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"students": ["mlp"]}, "students[0] cannot be used: mlp reads images, and the samples of this data set are texts"),
        ({"teachers": {"big": {"model": "resnet8"}}}, "teachers.big cannot be used: resnet8 reads images"),
        ({"views": {"policy": ["crop"]}}, "views.policy must be empty for samples that are no images"),
        ({"methods": {"boundary_samples": {}}}, "methods.boundary_samples does not serve task text_classification; these do: "),
        ({"methods": {"gradient_attention": {}}}, "methods.gradient_attention does not serve task text_classification"),
        (
            {"methods": {"attention_transfer": {}}},
            "methods.attention_transfer fits no student: for text_cnn with big it needs feature maps, student text_cnn has",
        ),
    ],
)
def test_what_texts_cannot_have_is_refused_in_one_sentence(changes: dict[str, Any], message: str) -> None:
    (found,) = [each for each in problems(changes) if message in each]
    assert "\n" not in found


def test_a_model_of_texts_is_refused_for_images() -> None:
    found = survey(
        {
            "name": "digits",
            "dataset": {"name": "digits"},
            "students": [{"model": "text_cnn"}],
            "methods": {"scratch": {}},
            "search": {"trials_per_method": 1, "max_epochs": 1},
        }
    )
    assert any("text_cnn reads texts, and the samples of this data set are images" in str(each) for each in found.problems)


def test_hidden_states_is_refused_for_images() -> None:
    found = survey(
        {
            "name": "digits",
            "dataset": {"name": "digits"},
            "teachers": {"big": {"model": "resnet8"}},
            "students": ["lenet"],
            "methods": {"hidden_states": {}},
            "search": {"trials_per_method": 1, "max_epochs": 1},
        }
    )
    assert any("methods.hidden_states does not serve task classification" in str(each) for each in found.problems)


def test_given_weights_of_a_teacher_of_texts_are_used_as_they_are(tmp_path: Path) -> None:
    """Token ids are no pixels: nothing normalises them, and no normalisation is recommended."""
    data = texts()
    torch.manual_seed(0)
    model = build_model("bilstm", num_classes=2, input_shape=data.input_shape, **data.model_options).eval()
    save_weights(model, tmp_path / "weights.safetensors", {})
    given = {"model": "bilstm", "weights": str(tmp_path / "weights.safetensors")}
    found = survey(validate(spec(teachers={"big": given})), data)
    assert not found.problems
    assert found.spec is not None
    definition = teacher_definition("big", found.spec, data, tmp_path / "home")
    assert definition.normalisation is None
    views = Views((), 1, data.input_shape, len(data.train))
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        taught = TeacherLibrary(tmp_path / "home" / "teachers").obtain(definition, data, views)
    ids = data.test.images[:9].long()
    with torch.no_grad():
        torch.testing.assert_close(taught.model.eval()(ids), model(ids))
    (problem,) = problems({"teachers": {"big": {**given, "normalization": "imagenet"}}})
    assert "teachers.big.normalization cannot be used: normalization is of pixels, and texts have none; remove it" in problem
