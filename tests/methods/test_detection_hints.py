"""Two true boxes and three proposals, worked out by hand; everything else against the supervised loss."""

import math

import pytest
import torch
from torch import Tensor

from stillhouse.distill.calls import InlineTeacher
from stillhouse.distill.method import MethodError, sum_of_terms
from stillhouse.methods.detection_hints import DetectionHints, bounded_losses, soft_class_losses, soft_score_losses
from stillhouse.methods.detection_hints_own import DetectionHintsOwn, judge
from stillhouse.models.architecture import describe
from stillhouse.models.detector import BOX_OUTPUT, unpacked
from stillhouse.models.features import FeatureReader
from stillhouse.models.registry import build_model
from stillhouse.testing import suiting_trial

OFF = dict.fromkeys(
    ("hint_weight", "proposal_soft_weight", "box_soft_weight", "proposal_bound_weight", "box_bound_weight"), 0.0
)


def test_soft_classes_by_hand() -> None:
    # Probabilities of the student 2/4, 1/4, 1/4 and 1/3 each; of the teacher 1/3 each and 1/2, 1/4, 1/4. The third box is none.
    student = torch.tensor([[[math.log(2), 0.0, 0.0], [0.0, 0.0, 0.0], [9.0, 0.0, 0.0]]], requires_grad=True)
    teacher = torch.tensor([[[0.0, 0.0, 0.0], [math.log(2), 0.0, 0.0], [0.0, 9.0, 0.0]]])
    meant = torch.tensor([[True, True, False]])
    loss = soft_class_losses(student, teacher, meant, 1.5)
    first = 1.5 * math.log(2) / 3 + 2 * math.log(4) / 3
    second = 1.5 * math.log(3) / 2 + math.log(3) / 2
    torch.testing.assert_close(loss, torch.tensor([(first + second) / 2]))
    (gradient,) = torch.autograd.grad(loss.sum(), student)
    # sum_c w_c t_c times the student's probability, less w_c t_c; half of it, for there are two boxes.
    total = 1.5 / 3 + 2 / 3
    expected = torch.tensor([total / 2 - 0.5, total / 4 - 1 / 3, total / 4 - 1 / 3]) / 2
    torch.testing.assert_close(gradient[0, 0], expected)
    assert bool((gradient[0, 2] == 0).all())


def test_soft_scores_by_hand() -> None:
    # The teacher gives an object the probability 3/4, the student 1/2; and 1/2 and 1/4. Weights 1/2 and 1/4.
    student, teacher = torch.tensor([[0.0, -math.log(3)]]), torch.tensor([[math.log(3), 0.0]])
    loss = soft_score_losses(student, teacher, torch.tensor([[0.5, 0.25]]), 1.5)
    first = 0.75 * math.log(2) + 1.5 * 0.25 * math.log(2)
    second = 0.5 * math.log(4) + 1.5 * 0.5 * math.log(4 / 3)
    torch.testing.assert_close(loss, torch.tensor([first / 2 + second / 4]))


def test_boxes_are_bounded_by_the_teacher_by_hand() -> None:
    # Squared errors of the student 4, 1 and 9; of the teacher 1, 4 and 9.5. The second is better; the third is too, by 0.5.
    student = torch.tensor([[[2.0, 0, 0, 0], [0, 1, 0, 0], [0, 0, 3, 0]]], requires_grad=True)
    teacher = torch.tensor([[[1.0, 0, 0, 0], [0, 2, 0, 0], [0, 0, math.sqrt(9.5), 0]]])
    wanted, weights = torch.zeros(1, 3, 4), torch.tensor([[0.5, 0.25, 0.25]])
    assert bounded_losses(student, teacher, wanted, weights, 0.0).tolist() == [2.0]
    loss = bounded_losses(student, teacher, wanted, weights, 0.75)
    assert loss.tolist() == [2.0 + 9 / 4]
    (gradient,) = torch.autograd.grad(loss.sum(), student)
    assert gradient[0].tolist() == [[2.0, 0, 0, 0], [0, 0, 0, 0], [0, 0, 1.5, 0]]


def _terms(method: DetectionHints) -> dict[str, Tensor]:
    """Of the first batch of the first epoch."""
    trainer = suiting_trial(method).trainer()
    found: dict[str, Tensor] = {}
    with pytest.MonkeyPatch.context() as patch:
        original = type(method).loss

        def note(self: DetectionHints, step: object) -> dict[str, Tensor]:
            terms: dict[str, Tensor] = original(self, step)
            if not found:
                found.update({name: term.detach() for name, term in terms.items()})
                found["supervised"] = sum_of_terms(step.supervised_terms()).detach()  # type: ignore[attr-defined]
            return terms

        patch.setattr(type(method), "loss", note)
        trainer.run_epoch()
    return found


def test_without_its_terms_it_is_supervised_training() -> None:
    terms = _terms(DetectionHints(**OFF))
    supervised = terms.pop("supervised")
    assert set(terms) == {"proposal_score", "proposal_box", "box_class", "box_position"}
    torch.testing.assert_close(sum_of_terms(terms), supervised)


@pytest.mark.parametrize(
    ("weight", "term"),
    [
        ("hint_weight", "hint"),
        ("proposal_soft_weight", "proposal_soft"),
        ("box_soft_weight", "box_soft"),
        ("proposal_bound_weight", "proposal_bound"),
        ("box_bound_weight", "box_bound"),
    ],
)
def test_every_term_can_be_used_alone(weight: str, term: str) -> None:
    method = DetectionHints(**OFF | {weight: 0.25})
    assert _terms(method).keys() - {"supervised"} == {"proposal_score", "proposal_box", "box_class", "box_position", term}


def test_what_is_switched_off_is_not_requested_from_the_teacher() -> None:
    trial = suiting_trial(DetectionHints(**OFF))
    assert trial.knowledge() == {}
    assert trial.method.student_layers(trial.teacher_architecture, trial.student_architecture) == ()


def test_a_teacher_with_other_anchors_is_named_with_the_remedy() -> None:
    trial = suiting_trial(DetectionHints())
    other = describe(
        build_model("fasterrcnn", num_classes=2, input_shape=(3, 32, 48), stride=8, neck_channels=8),
        name="coarse",
        input_shape=(3, 32, 48),
    )
    with pytest.raises(MethodError, match=r"coarse .* give both the same stride"):
        trial.method.knowledge(other, trial.student_architecture)


def test_a_classifier_is_no_teacher_of_boxes() -> None:
    trial = suiting_trial(DetectionHints())
    other = describe(build_model("resnet8", num_classes=2, input_shape=(3, 32, 48)), name="resnet8", input_shape=(3, 32, 48))
    with pytest.raises(MethodError, match="resnet8 is no Faster R-CNN"):
        trial.method.knowledge(other, trial.student_architecture)


def test_the_teacher_judges_the_proposals_of_the_student() -> None:
    trial = suiting_trial(DetectionHintsOwn())
    teacher = trial.teacher_model
    images = torch.randn(2, 3, 32, 48, generator=torch.Generator().manual_seed(0))
    with torch.no_grad(), FeatureReader(teacher, [BOX_OUTPUT]) as reader:
        own = reader(images)[1][BOX_OUTPUT]
    boxes, _, _ = unpacked(own)
    # Of its own proposals it says what it says by itself.
    (judged,) = InlineTeacher(teacher).run(judge, images, boxes)
    torch.testing.assert_close(judged, own)
    other = torch.tensor([[1.0, 2, 20, 30]]).expand(2, 1, 4)
    (judged,) = InlineTeacher(teacher).run(judge, images, other)
    assert torch.equal(unpacked(judged)[0], other)
    assert "boxes" not in trial.knowledge()
