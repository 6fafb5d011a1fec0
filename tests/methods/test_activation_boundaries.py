from collections.abc import Callable

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from stillhouse.distill.maps import Connectors, make_connector
from stillhouse.distill.method import MethodError, Setup, Stage, Unsuitable
from stillhouse.methods.activation_boundaries import ActivationBoundaries, activated, boundary_loss
from stillhouse.methods.kd import kd_loss
from stillhouse.models.architecture import Architecture
from stillhouse.testing import ReferenceCase, make_step

Open = Callable[[str], ReferenceCase]
STAGE = Stage(name="boundaries", epochs=1, until="stage2")


def architecture(*shapes: tuple[int, ...], before: bool = False) -> Architecture:
    stages = {f"stage{number}": shape for number, shape in enumerate(shapes)}
    preactivations = {f"before{number}": shape for number, shape in enumerate(shapes)} if before else {}
    return Architecture(
        name="net",
        num_classes=10,
        input_shape=(3, 32, 32),
        shapes=stages | preactivations,
        stages=tuple(stages),
        preactivations=tuple(preactivations),
    )


def setup(teacher: Architecture, student: Architecture, epochs: int) -> Setup:
    return Setup(teacher=teacher, student=student, new_student=nn.Identity, num_samples=100, epochs=epochs)


def first_stage(students: list[Tensor], teachers: list[Tensor], connectors: nn.Module) -> Tensor:
    """The method's whole first stage at its default weights."""
    features = {f"stage{number}": maps for number, maps in enumerate(students)}
    step = make_step(
        student_logits=None,
        labels=torch.zeros(len(students[0]), dtype=torch.int64),
        student_features=features,
        teacher={
            f"active.stage{number}": activated(maps, height=maps.shape[2], width=maps.shape[3])
            for number, maps in enumerate(teachers)
        },
        modules={"connectors": connectors},
        stage=STAGE,
    )
    loss: Tensor = ActivationBoundaries().loss(step)["boundaries"]
    return loss


def test_the_first_stage_with_its_connectors_equals_the_authors_code(open_case: Open) -> None:
    case = open_case("ab-official")
    students, teachers = ([case[f"in.{who}_feat{layer}"] for layer in case.numbers("in.s_feat")] for who in "st")
    weights = {}
    for number in range(len(students)):
        for name, source in (("0.weight", "c{}.weight"), ("1.weight", "bn{}.weight"), ("1.bias", "bn{}.bias")):
            weights[f"{number}.{name}"] = case["w." + source.format(number + 1)]
    connectors = Connectors(
        make_connector(ours.shape[1], theirs.shape[1]) for ours, theirs in zip(students, teachers, strict=True)
    ).to(students[0].dtype)

    class Reference(nn.Module):
        def forward(self, maps: list[Tensor]) -> list[Tensor]:
            return list(torch.func.functional_call(connectors, weights, (maps,)))

    loss = first_stage(students, teachers, Reference())
    case.check(loss)
    case.check_gradients(loss, "s_feat1", "s_feat2", "s_feat3")
    gradients = torch.autograd.grad(loss, [case["w.c1.weight"], case["w.bn2.weight"], case["w.bn3.bias"]])
    for name, gradient in zip(("c1.weight", "bn2.weight", "bn3.bias"), gradients, strict=True):
        case.check(gradient, f"grad.w.{name}")


def test_the_first_stage_equals_a_published_implementation(open_case: Open) -> None:
    case = open_case("ab-repdistiller")
    students, teachers = ([case[f"in.{who}_feat{layer}"] for layer in case.numbers("in.s_feat")] for who in "st")
    loss = first_stage(students, teachers, Connectors(nn.Identity() for _ in students))
    case.check(loss)
    case.check_gradients(loss, "s_feat0", "s_feat1", "s_feat2")


def test_the_mean_over_all_elements_is_the_same_up_to_its_scale(open_case: Open) -> None:
    case = open_case("ab-kdzoo")
    student, teacher = case["in.s_feat"], case["in.t_feat"]
    loss = (
        boundary_loss(student, activated(teacher, height=student.shape[2], width=student.shape[3]), case.number("margin"))
        / teacher[0].numel()
    )
    case.check(loss)
    case.check_gradients(loss, "s_feat")


def test_the_second_stage_is_the_authors_times_the_squared_temperature(open_case: Open) -> None:
    case = open_case("kd-abdistill-stage2")
    step = make_step(
        student_logits=case["in.s_logits"],
        labels=case["in.labels"],
        teacher={"logits": case["in.t_logits"]},
        stage=Stage(name="distill", epochs=1),
    )
    terms = ActivationBoundaries(temperature=case.number("T")).loss(step)
    assert float(terms["cross_entropy"].detach()) == 0.0
    loss = terms["kd"] / case.number("T") ** 2
    case.check(loss)
    case.check_gradients(loss, "s_logits")


def test_the_loss_of_a_neuron_is_the_squared_distance_to_the_margin() -> None:
    student = torch.tensor([1.5, 0.25, -0.5, -2.0]).reshape(1, 4, 1, 1)
    active = torch.tensor([1.0, 0.0, 1.0, 0.0]).reshape(1, 4, 1, 1)
    # 0, (1 + 0.25)^2, (1 + 0.5)^2, 0
    assert float(boundary_loss(student, active)) == 1.25**2 + 1.5**2
    assert float(boundary_loss(student, 1 - active, margin=0.5)) == 2.0**2 + 0.25**2 + 0.0 + 2.5**2


def test_neurons_beyond_the_margin_on_the_teachers_side_have_no_loss() -> None:
    teacher = torch.randn(3, 4, 5, 5)
    active = activated(teacher, height=5, width=5)
    assert float(boundary_loss(teacher.sign() * 1.001, active)) == 0.0
    assert bool((active == activated(100 * teacher, height=5, width=5)).all())


def test_a_stage_after_its_relu_gives_the_same_signs_of_the_teacher() -> None:
    teacher = torch.randn(3, 4, 5, 5)
    assert torch.equal(activated(F.relu(teacher), height=5, width=5), activated(teacher, height=5, width=5))


def test_maps_before_the_relu_are_read_where_a_network_has_them() -> None:
    teacher, student = architecture((16, 8, 8), (32, 4, 4), before=True), architecture((6, 8, 8), (12, 4, 4))
    assert ActivationBoundaries().pairs(teacher, student) == {"stage0": "before0", "stage1": "before1"}
    assert ActivationBoundaries(teacher_maps="stage0").pairs(teacher, student) == {"stage1": "stage0"}


def test_a_larger_student_map_is_averaged_down() -> None:
    student, active = torch.randn(2, 4, 8, 8), torch.ones(2, 4, 4, 4)
    step = make_step(
        student_logits=None,
        labels=torch.zeros(2, dtype=torch.int64),
        student_features={"a": student},
        teacher={"active.a": active},
        modules={"connectors": Connectors([nn.Identity()])},
        stage=STAGE,
    )
    expected = 0.003 * boundary_loss(F.avg_pool2d(student, 2), active)
    torch.testing.assert_close(ActivationBoundaries().loss(step)["boundaries"], expected)


def test_the_stages_and_the_knowledge_that_they_need() -> None:
    teacher, student = architecture((16, 8, 8), (32, 4, 4)), architecture((6, 8, 8), (12, 2, 2))
    first, second = ActivationBoundaries().stages(setup(teacher, student, 8))
    assert (first.epochs, first.until, first.comparable, second.epochs, second.until) == (2, "stage1", False, 6, None)
    needed = ActivationBoundaries().knowledge(teacher, student)
    assert sorted(needed) == ["active.stage0", "active.stage1", "logits"]
    assert needed["active.stage1"].compute(torch.zeros(2, 10), {"stage1": torch.randn(2, 32, 4, 4)}).shape == (2, 32, 2, 2)
    assert "logits" not in ActivationBoundaries(kd_weight=0).knowledge(teacher, student)


def test_labels_have_the_remaining_weight_in_the_second_stage() -> None:
    step = make_step(
        student_logits=torch.randn(4, 10), teacher={"logits": torch.randn(4, 10)}, stage=Stage(name="distill", epochs=1)
    )
    terms = ActivationBoundaries(kd_weight=0.25).loss(step)
    torch.testing.assert_close(terms["cross_entropy"], 0.75 * F.cross_entropy(step.logits, step.labels))
    torch.testing.assert_close(terms["kd"], 0.25 * kd_loss(step.logits, step.teacher["logits"], 3.0))


def test_a_student_without_maps_does_not_suit_and_one_epoch_is_too_short() -> None:
    with pytest.raises(Unsuitable, match="needs feature maps"):
        ActivationBoundaries().knowledge(architecture((16, 8, 8)), architecture())
    maps = architecture((16, 8, 8))
    with pytest.raises(MethodError, match="each of its 2 stages"):
        ActivationBoundaries().stages(setup(maps, maps, 1))
