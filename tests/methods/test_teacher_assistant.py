import pytest
import torch
import torch.nn.functional as F
from torch import nn

from stillhouse.distill.method import MethodError, Setup, Stage
from stillhouse.methods.kd import kd_loss
from stillhouse.methods.teacher_assistant import TeacherAssistant
from stillhouse.models.architecture import Architecture
from stillhouse.models.registry import build_model
from stillhouse.testing import MethodTrial, make_step


def architecture(name: str) -> Architecture:
    return Architecture(name=name, num_classes=10, input_shape=(1, 8, 8), shapes={"first": (4, 8, 8)})


def setup(epochs: int = 4, teacher: str = "resnet8") -> Setup:
    return Setup(
        teacher=architecture(teacher), student=architecture("label"), new_student=nn.Identity, num_samples=10, epochs=epochs
    )


def num_parameters(module: nn.Module) -> int:
    return sum(parameter.numel() for parameter in module.parameters())


def test_the_assistant_learns_from_the_teacher_and_the_student_from_the_assistant() -> None:
    assistant = nn.Linear(4, 10)
    images, teacher, student = torch.randn(5, 4), torch.randn(5, 10), torch.randn(5, 10)
    method = TeacherAssistant(temperature=3.0, kd_weight=0.75)
    answered = assistant(images)
    for stage, logits, learner, teaching in (
        ("assistant", None, answered, teacher),
        ("student", student, student, answered.detach()),
    ):
        step = make_step(
            student_logits=logits,
            labels=torch.arange(5),
            images=images,
            teacher={"logits": teacher},
            modules={"assistant": assistant},
            stage=Stage(name=stage, epochs=1),
        )
        terms = method.loss(step)
        torch.testing.assert_close(terms["kd"], 0.75 * kd_loss(learner, teaching, 3.0))
        torch.testing.assert_close(terms["cross_entropy"], 0.25 * F.cross_entropy(learner, torch.arange(5)))


def test_each_stage_trains_its_own_network_and_the_assistant_teaches_as_it_is_evaluated() -> None:
    trainer = MethodTrial(TeacherAssistant(), epochs=2).trainer()
    networks = {"student": trainer.student, "assistant": trainer._modules["assistant"]}

    def snapshot() -> dict[str, torch.Tensor]:
        return {name: nn.utils.parameters_to_vector(network.parameters()).detach() for name, network in networks.items()}

    begin = snapshot()
    (first, between) = trainer.run_epoch(), snapshot()
    statistics = {name: buffer.clone() for name, buffer in networks["assistant"].named_buffers()}
    (second, end) = trainer.run_epoch(), snapshot()
    assert {name for name in networks if not torch.equal(begin[name], between[name])} == {"assistant"}
    assert {name for name in networks if not torch.equal(between[name], end[name])} == {"student"}
    assert all(torch.equal(buffer, statistics[name]) for name, buffer in networks["assistant"].named_buffers())
    assert first["validation_accuracy_assistant"] == second["validation_accuracy_assistant"]


def test_by_default_the_assistant_is_the_teachers_model_at_half_its_width() -> None:
    assistant = TeacherAssistant().modules(setup())["assistant"]
    expected = build_model("resnet8", num_classes=10, input_shape=(1, 8, 8), width=0.5)
    assert num_parameters(assistant.module) == num_parameters(expected)
    assert assistant.evaluate


@pytest.mark.parametrize(("width", "expected"), [(None, 1.0), (0.25, 0.25)])
def test_a_named_assistant_has_its_own_width_unless_another_is_set(width: float | None, expected: float) -> None:
    assistant = TeacherAssistant(assistant="lenet", assistant_width=width).modules(setup())["assistant"].module
    built = build_model("lenet", num_classes=10, input_shape=(1, 8, 8), width=expected)
    assert num_parameters(assistant) == num_parameters(built)


def test_an_assistant_that_does_not_exist_is_named() -> None:
    with pytest.raises(MethodError, match="cannot make the assistant: model 'lenet9' can"):
        TeacherAssistant(assistant="lenet9").modules(setup())


def test_a_teacher_whose_model_cannot_be_made_smaller_needs_a_named_assistant() -> None:
    with pytest.raises(MethodError, match=r"; set assistant$"):
        TeacherAssistant().modules(setup(teacher="somebodys"))


def test_the_stages_share_the_epochs() -> None:
    first, second = TeacherAssistant(assistant_fraction=0.25).stages(setup(8))
    assert (first.epochs, first.until, first.comparable) == (2, "first", False)
    assert (second.epochs, second.until, second.comparable) == (6, None, True)
    with pytest.raises(MethodError, match="each of its 2 stages, has 1"):
        TeacherAssistant().stages(setup(1))


def test_a_weight_of_0_makes_no_assistant_and_needs_nothing() -> None:
    method = TeacherAssistant(kd_weight=0.0)
    assert method.knowledge(architecture("a"), architecture("b")) == {}
    assert method.modules(setup()) == {}
    assert [stage.epochs for stage in method.stages(setup(4))] == [4]
    assert list(method.loss(make_step(student_logits=torch.randn(4, 10)))) == ["cross_entropy"]
