import math

import pytest
import torch
import torch.nn.functional as F

from stillhouse.methods.hard_labels import HardLabels
from stillhouse.models.architecture import Architecture
from stillhouse.testing import make_step

NET = Architecture(name="net", num_classes=3, input_shape=(1, 8, 8), shapes={})


def test_only_the_teachers_class_is_learned_by_hand() -> None:
    # Probabilities (1/2, 1/4, 1/4) for a sample that the teacher puts into class 1, whatever its label and how sure it is.
    student = torch.tensor([[0.5, 0.25, 0.25]], dtype=torch.float64).log()
    for teacher in ([0.0, 0.1, 0.0], [-5.0, 9.0, 2.0]):
        step = make_step(student_logits=student, labels=torch.tensor([0]), teacher={"logits": torch.tensor([teacher])})
        (loss,) = HardLabels().loss(step).values()
        assert float(loss) == pytest.approx(math.log(4))


def test_half_of_the_labels_is_the_hard_distillation_of_the_paper() -> None:
    student, teacher, labels = torch.randn(6, 3), torch.randn(6, 3), torch.arange(6) % 3
    terms = HardLabels(label_weight=0.5).loss(make_step(student_logits=student, labels=labels, teacher={"logits": teacher}))
    of_teacher = F.one_hot(teacher.argmax(dim=1), 3)
    expected = -((of_teacher + F.one_hot(labels, 3)) / 2 * student.log_softmax(1)).sum(1).mean()
    torch.testing.assert_close(sum(terms.values()), expected)


def test_a_teacher_that_is_always_right_teaches_the_labels() -> None:
    student, labels = torch.randn(6, 3), torch.arange(6) % 3
    step = make_step(student_logits=student, labels=labels, teacher={"logits": 4.0 * F.one_hot(labels, 3).float()})
    torch.testing.assert_close(HardLabels().loss(step)["hard_label"], F.cross_entropy(student, labels))


def test_labels_alone_need_no_teacher() -> None:
    method = HardLabels(label_weight=1)
    assert method.knowledge(NET, NET) == {}
    assert list(method.loss(make_step(student_logits=torch.randn(2, 3)))) == ["cross_entropy"]
