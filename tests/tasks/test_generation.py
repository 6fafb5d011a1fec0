"""Generation: losses by hand, inputs and targets, the evaluator, what is found beside the metric, the conformance suite."""

import dataclasses
import math
from collections.abc import Mapping
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from stillhouse import tasks
from stillhouse.data.datasets import ImageData
from stillhouse.data.views import Views
from stillhouse.distill.evaluation import evaluate, split_outputs, value_of
from stillhouse.distill.method import Method
from stillhouse.distill.trainer import Trainer
from stillhouse.models.architecture import describe
from stillhouse.models.gan import Generator, dcgan
from stillhouse.models.registry import sketch_model
from stillhouse.spec.training import Training
from stillhouse.tasks import SplitOutputs
from stillhouse.tasks.generation import critic_loss
from stillhouse.testing import TASK_CHECKS, TaskTrial
from stillhouse.testing.checks import train_resumed
from stillhouse.testing.grounds.generation import data as digits

TASK = tasks.find("generation")
CONDITIONAL = tasks.find("conditional_generation")
RECIPE = Training(batch_size=64, optimizer="adam", learning_rate=2e-4, adam_beta1=0.5, weight_decay=0.0)


@pytest.fixture(scope="module")
def data() -> ImageData:
    return digits()


@pytest.fixture(scope="module")
def conditional(data: ImageData) -> ImageData:
    return dataclasses.replace(data, task="conditional_generation")


@pytest.mark.parametrize("name", TASK_CHECKS)
@pytest.mark.parametrize("task", ["generation", "conditional_generation"])
def test_it_passes_the_conformance_suite(task: str, name: str, data: ImageData) -> None:
    found = tasks.find(task)
    own = dataclasses.replace(data, task=task)
    TASK_CHECKS[name](TaskTrial(found, own, "dcgan", options={"conditional": task != "generation", "width": 0.125}))


def test_the_critics_loss_is_worked_out_by_hand() -> None:
    """log(1 + e^-r) + log(1 + e^m); 2 log 2 for a critic that cannot tell, 0 in the limit of one that always can."""
    assert critic_loss(torch.zeros(3), torch.zeros(5)).item() == pytest.approx(2 * math.log(2))
    expected = (math.log(1 + math.exp(-1)) + math.log(1 + math.exp(2))) / 2 + math.log(1 + math.exp(0.5))
    assert critic_loss(torch.tensor([1.0, -2.0]), torch.tensor([0.5])).item() == pytest.approx(expected)
    assert critic_loss(torch.tensor([60.0]), torch.tensor([-60.0])).item() == pytest.approx(0)


def test_the_generators_loss_is_worked_out_by_hand() -> None:
    losses = TASK.losses({"verdict": torch.tensor([0.0, 1.0])}, torch.zeros(2))
    assert losses["adversarial"].item() == pytest.approx((math.log(2) + math.log(1 + math.exp(-1))) / 2)


class Verdict(nn.Module):
    """A critic that returns the mean of each image, and notes which classes it was given."""

    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(1))
        self.classes: list[Tensor | None] = []

    def forward(self, images: Tensor, classes: Tensor | None = None) -> Tensor:
        self.classes.append(classes)
        return self.weight * images.flatten(1).mean(1)


@dataclasses.dataclass
class Seen:
    images: Tensor
    labels: Tensor
    targets: Tensor
    outputs: Mapping[str, Tensor]
    modules: Mapping[str, nn.Module]
    student: nn.Module = dataclasses.field(default_factory=nn.Identity)


def test_the_generators_step_moves_no_weight_of_the_critic_and_the_critics_none_of_the_generator() -> None:
    made = torch.zeros(2, 1, 4, 4, requires_grad=True)
    critic = Verdict()
    step = Seen(torch.zeros(2, 100), torch.zeros(2), torch.ones(2, 1, 4, 4), {"image": made}, {"critic": critic})
    TASK.step_terms(step)["adversarial"].backward()
    assert critic.weight.grad is None
    assert critic.weight.requires_grad
    assert made.grad is not None
    made.grad = None
    TASK.helper_terms(step)["critic"].backward()
    assert critic.weight.grad is not None
    assert made.grad is None


def test_a_conditional_critic_sees_real_images_with_their_class_and_generated_ones_with_the_drawn_one() -> None:
    drawn = torch.eye(3)[[2, 0]]
    critic = Verdict()
    step = Seen(
        torch.cat([torch.zeros(2, 100), drawn], 1),
        torch.tensor([1, 1]),
        torch.ones(2, 1, 4, 4),
        {"image": torch.zeros(2, 1, 4, 4)},
        {"critic": critic},
    )
    CONDITIONAL.helper_terms(step)
    real, made = critic.classes
    assert real is not None
    assert made is not None
    assert torch.equal(real, torch.eye(3)[[1, 1]])
    assert torch.equal(made, drawn)


def test_training_targets_are_the_real_images_of_the_batch_between_minus_one_and_one(data: ImageData) -> None:
    places = torch.tensor([5, 2])
    views = Views((), 3, data.input_shape, len(data.train), drawn=True)
    targets = TASK.training_targets(data, views, data.train.images, places, 1, data.train.labels[places])
    assert torch.allclose((targets + 1) * 127.5, data.train.images[places].float(), atol=1e-4)


def test_views_differ_although_nothing_is_augmented(data: ImageData) -> None:
    views = Views((), 3, data.input_shape, len(data.train), drawn=True)
    one, two = (TASK.inputs(data, views, data.train.images, torch.arange(4), view) for view in (0, 2))
    assert views.count == 3
    assert one.shape == (4, 100)
    assert not torch.equal(one, two)


def test_validation_and_test_noise_are_reserved_and_differ(data: ImageData) -> None:
    validation, test, train = (TASK.first_inputs(data, split, 8) for split in (data.validation, data.test, data.train))
    views = Views((), 2, data.input_shape, len(data.train), drawn=True)
    seen = [TASK.inputs(data, views, data.train.images, torch.arange(8), view) for view in (0, 1)]
    whole = [validation, test, train, *seen]
    assert len({tuple(each.flatten().tolist()) for each in whole}) == len(whole)


class Replaying(Generator):
    """Returns real images of the training split, whatever it reads."""

    def __init__(self, images: Tensor) -> None:
        super().__init__(num_classes=10)
        self._images = images
        self._next = 0

    def forward(self, noise: Tensor) -> Tensor:
        first, self._next = self._next, self._next + len(noise)
        return self._images[first : self._next].float() / 127.5 - 1


def test_a_generator_of_real_images_is_better_than_an_untrained_one(data: ImageData) -> None:
    torch.manual_seed(0)
    untrained = evaluate(dcgan(num_classes=10, input_shape=(1, 8, 8), width=0.125), data, data.validation, "cpu")
    real = evaluate(Replaying(data.train.images), data, data.validation, "cpu")
    assert TASK.metric.better(real, untrained)
    assert real < untrained / 5


def test_the_metric_of_stored_outputs_is_that_of_the_model(data: ImageData) -> None:
    torch.manual_seed(0)
    model = dcgan(num_classes=10, input_shape=(1, 8, 8), width=0.125)
    stored = split_outputs(model, data, data.test, "cpu")
    assert value_of(stored, data) == pytest.approx(evaluate(model, data, data.test, "cpu"), rel=1e-6)
    assert stored.outputs["image"].shape == (64, 1, 8, 8)
    assert len(stored.outputs["features"]) == len(data.test)


def test_evidence_compares_the_images_with_the_teachers_and_shows_both(data: ImageData) -> None:
    outputs = {
        "probabilities": torch.eye(10),
        "sharpness": torch.tensor([1.0, 3.0]),
        "image": torch.zeros(20, 1, 8, 8),
    }
    student = SplitOutputs(outputs=outputs, targets=torch.zeros(10))
    teacher = SplitOutputs(outputs={**outputs, "image": torch.full((20, 1, 8, 8), 0.5)}, targets=torch.zeros(10))
    found = TASK.evidence(student, student, teacher)
    assert found.numbers == {"inception_score": pytest.approx(10), "sharpness": 2.0, "teacher_mse": pytest.approx(0.25)}
    assert [what for what, _ in found.details["pictures"]] == ["teacher", "student"]
    assert "teacher_mse" not in TASK.evidence(student, student, None).numbers


def test_the_note_names_the_classifier_its_accuracy_and_the_numbers_of_samples(data: ImageData) -> None:
    (note,) = TASK.prepared_notes(data)
    assert "features of a LeNet with 0.00 % validation accuracy" in note
    assert f"{len(data.test):,} generated images for test values, of {len(data.validation):,} for validation" in note
    assert f"the {len(data.train):,} real images of the training split" in note


@pytest.mark.parametrize(
    ("model", "options", "words"),
    [
        ("lenet", {}, "reads images, and a generator makes them from noise; name a generator, such as dcgan"),
        ("dcgan", {"conditional": True}, "reads 110 numbers of each sample, task generation gives 100 numbers"),
        ("dcgan", {}, None),
    ],
)
def test_models_that_are_no_generators_of_the_task_are_named(model: str, options: dict[str, bool], words: str | None) -> None:
    sketch = sketch_model(model, num_classes=10, input_shape=(1, 8, 8), **options)
    problem = TASK.model_problem(describe(sketch, name=model, input_shape=(1, 8, 8)))
    assert problem is None if words is None else words in (problem or "")


def test_a_generator_of_images_of_another_shape_is_named() -> None:
    wide = describe(dcgan(num_classes=10, input_shape=(1, 8, 16)), name="wide", input_shape=(1, 8, 8))
    assert TASK.model_problem(wide) == "makes images of 1x8x16, those of the data set are 1x8x8; correct what it returns"


def test_a_generator_is_no_classifier() -> None:
    sketch = sketch_model("dcgan", num_classes=10, input_shape=(1, 8, 8))
    problem = tasks.find().model_problem(describe(sketch, name="dcgan", input_shape=(1, 8, 8)))
    assert problem == "reads 100 numbers of each sample, task classification gives 1x8x8 numbers"


def test_splits_with_fewer_samples_than_features_are_refused_in_one_sentence(data: ImageData) -> None:
    few = dataclasses.replace(data.validation, images=data.validation.images[:84], labels=data.validation.labels[:84])
    assert TASK.split_problem(data, few) == (
        "the validation split has 84 samples, and the classifier FID needs more than its 84 features; "
        "set dataset.validation to 85 or more"
    )
    assert TASK.split_problem(data, data.validation) is None


def trainer(data: ImageData, method: Method | None = None) -> Trainer:
    return Trainer(
        new_student=lambda: dcgan(num_classes=10, input_shape=(1, 8, 8), width=0.125, conditional=data.task != "generation"),
        method=method or Method(),
        data=data,
        views=Views((), 2, data.input_shape, len(data.train), drawn=True),
        training=RECIPE,
        epochs=2,
        seed=3,
    )


@pytest.mark.parametrize("named", ["data", "conditional"])
def test_adversarial_training_resumes_bitwise_with_its_critic(
    named: str, request: pytest.FixtureRequest, tmp_path: Path
) -> None:
    own: ImageData = request.getfixturevalue(named)
    straight = trainer(own)
    straight.fit()
    resumed = train_resumed(lambda: trainer(own), tmp_path / "checkpoint")
    for name in ("student", "critic"):
        one, other = (each.student if name == "student" else each._modules["critic"] for each in (straight, resumed))
        for weight, value in one.state_dict().items():
            assert torch.equal(value, other.state_dict()[weight]), weight
    assert straight.curve[-1]["critic"] != straight.curve[0]["critic"]


class NoCritic(Method):
    """A method without the task's loss."""

    @property
    def uses_supervised_loss(self) -> bool:
        return False

    def loss(self, step: object) -> dict[str, Tensor]:
        return {"dark": step.output("image").square().mean()}  # type: ignore[attr-defined]


def test_a_method_without_the_tasks_loss_trains_no_critic(data: ImageData) -> None:
    trained = trainer(data, NoCritic())
    trained.fit()
    assert trained.helper_bytes == 0
    assert "critic" not in trained.curve[0]


def test_the_prepared_judge_travels_with_the_data_to_every_process(data: ImageData) -> None:
    copied = ImageData.from_arrays(*data.to_arrays())
    assert copied.prepared.keys() == data.prepared.keys()
    assert all(np.array_equal(copied.prepared[name], value) for name, value in data.prepared.items())
    torch.manual_seed(0)
    model = dcgan(num_classes=10, input_shape=(1, 8, 8), width=0.125)
    assert evaluate(model, copied, copied.test, "cpu") == evaluate(model, data, data.test, "cpu")
