import math

import pytest
import torch

from stillhouse.distill.method import Setup
from stillhouse.methods.orthogonal_projection import OrthogonalProjection, VkD, projection_loss
from stillhouse.testing import MethodTrial, make_step

SHAPES = [(3, 5), (5, 3), (4, 4), (1, 6)]


def test_the_distance_to_the_normalised_teacher_by_hand() -> None:
    # The teacher's row (1, 3) has mean 2 and variance 1: normalised it is (-1, 1) / sqrt(1 + 1e-5).
    teacher = torch.tensor([[1.0, 3.0]], dtype=torch.float64)
    projected = torch.tensor([[-0.5, 3.0]], dtype=torch.float64)
    one = 1 / math.sqrt(1 + 1e-5)
    expected = ((one - 0.5) ** 2 / 2 + (3 - one - 0.5)) / 2  # a square below 1, linear beyond
    assert float(projection_loss(projected, teacher)) == pytest.approx(expected)


@pytest.mark.parametrize(("num_inputs", "num_outputs"), SHAPES)
def test_the_projection_is_orthogonal_for_any_free_matrix(num_inputs: int, num_outputs: int) -> None:
    projection = OrthogonalProjection(num_inputs, num_outputs).double()
    torch.manual_seed(0)
    with torch.no_grad():
        projection.free.normal_()
    weight = projection.weight
    assert tuple(weight.shape) == (num_outputs, num_inputs)
    gram = weight.T @ weight if num_outputs >= num_inputs else weight @ weight.T
    torch.testing.assert_close(gram, torch.eye(min(num_inputs, num_outputs), dtype=torch.float64), atol=1e-12, rtol=0)


def test_a_projection_to_a_wider_space_keeps_lengths_and_angles() -> None:
    projection = OrthogonalProjection(3, 7).double()
    features = torch.randn(5, 3, dtype=torch.float64)
    projected = projection(features)
    torch.testing.assert_close(projected @ projected.T, features @ features.T)


def test_the_projection_begins_at_its_free_matrix_and_does_not_depend_on_its_size() -> None:
    projection = OrthogonalProjection(3, 5).double()
    begun = projection.weight.clone()
    # An orthonormal matrix is its own factor, once its columns have the signs of a positive diagonal.
    torch.testing.assert_close(begun.abs(), projection.free.abs())
    with torch.no_grad():
        projection.free.mul_(7.5)
    torch.testing.assert_close(projection.weight, begun)


@pytest.mark.parametrize(("num_inputs", "num_outputs"), SHAPES)
def test_the_gradient_of_the_free_matrix_by_finite_differences(num_inputs: int, num_outputs: int) -> None:
    torch.manual_seed(1)
    projection = OrthogonalProjection(num_inputs, num_outputs).double()
    with torch.no_grad():
        projection.free.normal_()
    student = torch.randn(4, num_inputs, dtype=torch.float64)
    teacher = torch.randn(4, num_outputs, dtype=torch.float64)
    projection_loss(projection(student), teacher).backward()
    gradient = projection.free.grad
    assert gradient is not None
    direction = torch.randn_like(projection.free)
    values = []
    for shift in (1e-6, -1e-6):
        with torch.no_grad():
            projection.free.add_(shift * direction)
            values.append(float(projection_loss(projection(student), teacher)))
            projection.free.sub_(shift * direction)
    assert float((gradient * direction).sum()) == pytest.approx((values[0] - values[1]) / 2e-6, rel=1e-6, abs=1e-9)


def test_maps_are_averaged_and_the_weight_scales_the_term() -> None:
    projection = OrthogonalProjection(3, 3)
    maps, teacher = torch.randn(2, 3, 4, 4), torch.randn(2, 3, 2, 2)
    step = make_step(
        student_logits=torch.randn(2, 10),
        student_features={"map": maps},
        teacher={"embedding": teacher},
        modules={"projection": projection},
    )
    expected = projection_loss(projection(maps.mean((2, 3))), teacher.mean((2, 3)))
    torch.testing.assert_close(VkD(feature_weight=3.0).loss(step)["projection"], 3 * expected)


def test_a_trained_projection_is_still_orthogonal() -> None:
    trainer = MethodTrial(VkD(feature_weight=10.0), epochs=2).trainer()
    projection = trainer._modules["projection"]
    assert isinstance(projection, OrthogonalProjection)
    before = projection.weight.detach().clone()
    trainer.fit()
    weight = projection.weight.detach()
    assert not torch.allclose(weight, before, atol=1e-4)
    gram = weight.T @ weight if weight.shape[0] >= weight.shape[1] else weight @ weight.T
    torch.testing.assert_close(gram, torch.eye(len(gram)), atol=1e-5, rtol=0)


def test_the_free_matrix_has_no_weight_decay_and_weight_0_makes_none() -> None:
    trial = MethodTrial(VkD())
    setup = Setup(
        teacher=trial.teacher_architecture,
        student=trial.student_architecture,
        new_student=torch.nn.Identity,
        num_samples=8,
        epochs=1,
    )
    (helper,) = VkD().modules(setup).values()
    assert helper.training["weight_decay"] == 0.0
    assert VkD(feature_weight=0).modules(setup) == {}
