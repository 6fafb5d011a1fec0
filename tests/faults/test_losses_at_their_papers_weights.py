"""Losses whose paper's weight diverged at the usual learning rate train at that weight, also if the spec bounds no gradient."""

from typing import Any

import pytest
from torch import nn

from stillhouse import methods
from stillhouse.data.datasets import ImageData, load_dataset
from stillhouse.data.views import Views
from stillhouse.distill.method import Method
from stillhouse.distill.sources import InlineKnowledge
from stillhouse.distill.trainer import Trainer
from stillhouse.models.architecture import describe
from stillhouse.models.registry import build_model
from stillhouse.spec.priors import LogUniform
from stillhouse.spec.training import Training

PAPERS_WEIGHTS = {"noisy_teacher": "logit_weight", "logit_regression": "logit_weight", "fsp": "flow_weight"}


@pytest.fixture(scope="module")
def digits() -> ImageData:
    return load_dataset("digits", validation=0.3)


def train(digits: ImageData, model: str, options: dict[str, Any], method: Method, epochs: int, **fields: Any) -> Trainer:
    def build() -> nn.Module:
        return build_model(model, num_classes=digits.num_classes, input_shape=digits.input_shape, **options)

    trainer = Trainer(
        new_student=build,
        method=method,
        data=digits,
        views=Views((), 1, digits.input_shape, len(digits.train)),
        training=Training(batch_size=64),
        epochs=epochs,
        student_name=model,
        **fields,
    )
    trainer.fit()
    return trainer


@pytest.fixture(scope="module")
def teacher(digits: ImageData) -> nn.Module:
    trainer = train(digits, "lenet", {}, Method(), 6)
    assert trainer.curve[-1]["validation_accuracy"] > 0.8
    return trainer.student.eval().requires_grad_(False)


@pytest.mark.parametrize(("name", "weight"), PAPERS_WEIGHTS.items())
def test_the_papers_weight_of_one_is_the_default_and_the_prior_reaches_it_and_a_tenth(name: str, weight: str) -> None:
    kind = methods.find(name)
    prior = kind.hyperparameters()[weight].prior
    assert isinstance(prior, LogUniform)
    assert kind.defaults()[weight] == 1.0
    assert prior.low <= 0.1 < 1 <= prior.high
    assert kind.revision > 1, "results of the earlier weight have other keys"


@pytest.mark.parametrize(
    ("name", "student", "options"),
    [
        ("noisy_teacher", "mlp", {}),
        ("logit_regression", "mlp", {}),
        ("logit_regression", "lenet", {}),
        ("fsp", "lenet", {"width": 0.5}),
    ],
)
def test_a_student_trains_at_the_papers_weight_without_a_bound_in_the_spec(
    name: str, student: str, options: dict[str, Any], digits: ImageData, teacher: nn.Module
) -> None:
    method = methods.find(name)(**{PAPERS_WEIGHTS[name]: 1.0})
    known = describe(teacher, name="lenet", input_shape=digits.input_shape)
    own = build_model(student, num_classes=digits.num_classes, input_shape=digits.input_shape, **options)
    needed = method.knowledge(known, describe(own, name=student, input_shape=digits.input_shape))
    source = InlineKnowledge(teacher, needed, digits.train.labels)
    trainer = train(digits, student, options, method, 8, teacher=source, teacher_architecture=known)
    # Nine classes of ten are wrong at chance; a student that learns anything has most digits after 8 epochs.
    assert trainer.curve[-1]["validation_accuracy"] > 0.6
