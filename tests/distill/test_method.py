"""The supervised loss that a step gives to methods, and the tasks that a method serves."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar

import pytest
import torch
from torch import Tensor, nn

from stillhouse import methods, tasks
from stillhouse.data.targets import TargetRule
from stillhouse.distill.method import ANY_TASK, Card, Method, Stage, Step
from stillhouse.spec.metric import Metric
from stillhouse.tasks import Evaluator, Reduction, Task
from stillhouse.tasks.classification import Classification
from stillhouse.testing import make_step


class TwoTerms(Task):
    """Regression whose loss has two terms."""

    metric: ClassVar[Metric] = Metric(name="error", direction="min", label="error")
    targets: ClassVar[TargetRule] = tasks.find().targets

    def losses(self, outputs: Mapping[str, Tensor], targets: Tensor, reduction: Reduction = "mean") -> dict[str, Tensor]:
        difference = outputs["prediction"] - targets
        return {"squared": difference.square().mean(), "absolute": difference.abs().mean()}

    def evaluator(self) -> Evaluator:
        raise NotImplementedError


def regression_step() -> Step:
    predictions, targets = torch.tensor([[1.0], [3.0]]), torch.tensor([[2.0], [0.0]])
    return make_step(outputs={"prediction": predictions}, labels=torch.zeros(2), targets=targets, task=TwoTerms())


def test_for_classes_the_supervised_loss_is_cross_entropy_under_its_name() -> None:
    logits = torch.tensor([[2.0, 0.0], [0.0, 1.0]])
    step = make_step(student_logits=logits, labels=torch.tensor([0, 0]))
    expected = (torch.log1p(torch.exp(torch.tensor(-2.0))) + torch.log1p(torch.exp(torch.tensor(1.0)))) / 2
    assert step.supervised_terms().keys() == {"cross_entropy"}
    torch.testing.assert_close(step.supervised(), expected)


def test_the_terms_are_those_of_the_task_and_the_supervised_loss_is_their_sum() -> None:
    step = regression_step()
    assert {name: float(term) for name, term in step.supervised_terms().items()} == {"squared": 5.0, "absolute": 2.0}
    assert float(step.supervised()) == 7.0


def test_the_base_class_and_the_control_minimise_the_terms_of_the_task() -> None:
    for method in (Method(), methods.find("scratch")()):
        assert {name: float(term) for name, term in method.loss(regression_step()).items()} == {"squared": 5.0, "absolute": 2.0}


def test_a_stage_without_outputs_has_no_supervised_loss() -> None:
    step = make_step(student_logits=None, labels=torch.tensor([0]))
    with pytest.raises(AssertionError, match="does not run the student to its end"):
        step.supervised()


@dataclass(frozen=True, kw_only=True)
class ForDetection(Method):
    card: ClassVar[Card] = Card(title="A method of one task")
    tasks: ClassVar[tuple[str, ...]] = ("detection",)


def test_a_method_serves_the_tasks_that_it_names_by_default_the_default_task() -> None:
    assert ForDetection().serves("detection")
    assert not ForDetection().serves(tasks.default())
    assert Method().serves(tasks.default())
    assert not Method().serves("detection")


ANY = [
    *("attention_transfer", "correlation", "darkrank", "factor_transfer", "fsp", "inter_channel", "kd_svd", "mgd", "nst"),
    *(
        "orthogonal_projection",
        "overhaul",
        "probabilistic",
        "quantization_mimic",
        "relational",
        "review",
        "scratch",
        "similarity",
        "variational",
    ),
]


OF_DETECTION = {"detection_hints", "detection_hints_own", "feature_mimic", "focal_global"}


def test_the_methods_for_any_task_are_those_that_read_neither_logits_nor_labels() -> None:
    assert [name for name in methods.names() if ANY_TASK in methods.find(name).tasks] == ANY
    for name in methods.names():
        assert methods.find(name)().serves("detection") == (name in {*ANY, *OF_DETECTION})
        assert methods.find(name)().serves(tasks.default()) == (name not in {*OF_DETECTION, "gan_compression", "hidden_states"})


@pytest.mark.parametrize(
    ("name", "settings", "expected"),
    [
        ("attention_transfer", {"kd_weight": 0.5}, False),
        ("scratch", {"label_smoothing": 0.1}, False),
        ("fitnets", {"kd_weight": 0.0, "final_kd_weight": 0.0}, True),
    ],
)
def test_hyper_parameters_decide_where_a_part_of_a_method_needs_classes(
    name: str, settings: dict[str, float], expected: bool
) -> None:
    method = methods.find(name)(**settings)
    assert method.serves("detection") is expected
    assert method.serves(tasks.default())


# Gradients in float16


class Underflow(nn.Module):
    """Logits whose gradient is 1e-8 in float16: below its smallest number, 6e-8."""

    def forward(self, images: Tensor) -> Tensor:
        return images.half().float().flatten(1) * 1e-8


@pytest.mark.parametrize(("scale", "expected"), [(1.0, 0.0), (1024.0, 1e-8)])
def test_input_gradients_of_a_float16_student_are_scaled_above_the_smallest_number(scale: float, expected: float) -> None:
    class Sum(Classification):
        def losses(self, outputs: Any, targets: Tensor, reduction: Any = "mean") -> dict[str, Tensor]:
            return {"sum": outputs["logits"].sum()}

    images = torch.ones(2, 1, 2, 2, requires_grad=True)
    none: dict[str, Tensor] = {}
    labels = torch.zeros(2, dtype=torch.int64)
    step = Step(
        images=images, labels=labels, targets=labels, indices=labels, student=Underflow(), stage=Stage(epochs=1),
        outputs={"logits": Underflow()(images)}, student_features=none, teacher=none, modules={}, epoch=0, progress=0.0,
        seed=0, task=Sum(), gradient_scale=scale,
    )  # fmt: skip
    assert step.input_gradient().flatten().tolist() == pytest.approx([expected] * 8, rel=1e-2)
