import math
from collections.abc import Sequence
from functools import partial
from pathlib import Path

import pytest
import torch

from stillhouse.data.views import Views
from stillhouse.distill.method import Unsuitable
from stillhouse.distill.sources import InlineKnowledge
from stillhouse.distill.trainer import Trainer
from stillhouse.export import program
from stillhouse.methods.distillation_token import DistillationToken, SecondHead, TwoHeads
from stillhouse.methods.kd import kd_loss
from stillhouse.models.architecture import Architecture, describe
from stillhouse.models.features import FeatureReader
from stillhouse.models.registry import build_model
from stillhouse.spec.training import Training
from stillhouse.testing import MethodTrial, make_step
from stillhouse.testing.method_trial import digits, trained_teacher

SMALL_VIT = {"width": 0.125, "patch": 4, "depth": 2, "heads": 2, "distilled": True}


def logs(*rows: Sequence[float]) -> torch.Tensor:
    return torch.tensor(rows, dtype=torch.float64).log()


def step_by_hand() -> dict[str, torch.Tensor]:
    """One sample of class 0; the class head has 1/2 for it, the distillation head 1/4 for class 1, the teacher's argmax."""
    return {
        "student": logs([1 / 2, 1 / 4, 1 / 4]),
        "distillation": logs([1 / 2, 1 / 4, 1 / 4]),
        "teacher": logs([0.1, 0.6, 0.3]),
    }


def test_the_hard_form_by_hand() -> None:
    given = step_by_hand()
    step = make_step(
        student_logits=torch.zeros(1, 3, dtype=torch.float64),  # the mean of both heads is not what is trained
        student_features={"head": given["student"], "head_dist": given["distillation"]},
        teacher={"logits": given["teacher"]},
    )
    terms = DistillationToken(teacher_weight=0.25).loss(step)
    assert float(terms["cross_entropy"]) == pytest.approx(0.75 * math.log(2))
    assert float(terms["distillation_head"]) == pytest.approx(0.25 * math.log(4))


def test_the_soft_form_is_the_divergence_of_kd_at_the_second_head() -> None:
    given = step_by_hand()
    step = make_step(
        student_logits=given["student"],
        student_features={"head": given["student"], "head_dist": given["distillation"]},
        teacher={"logits": given["teacher"]},
    )
    terms = DistillationToken(form="soft", teacher_weight=0.1, temperature=2.0).loss(step)
    torch.testing.assert_close(terms["distillation_head"], 0.1 * kd_loss(given["distillation"], given["teacher"], 2.0))


def test_a_student_without_a_token_has_the_second_head_on_its_embedding() -> None:
    embedding, student = torch.randn(4, 6), torch.randn(4, 10)
    head = SecondHead("pool", 6, 10)
    step = make_step(
        student_logits=student,
        student_features={"pool": embedding},
        teacher={"logits": torch.randn(4, 10)},
        modules={"distillation_head": head},
    )
    terms = DistillationToken(form="soft", temperature=1.0).loss(step)
    torch.testing.assert_close(terms["cross_entropy"], 0.5 * step.supervised())
    torch.testing.assert_close(terms["distillation_head"], 0.5 * kd_loss(head(embedding), step.teacher["logits"], 1.0))


def test_both_heads_answer_together_and_share_the_trained_weights() -> None:
    torch.manual_seed(0)
    student = build_model("resnet8", num_classes=10, input_shape=(1, 8, 8))
    head = SecondHead("pool", 64, 10)
    both = TwoHeads(student, head, "pool").eval()
    assert student.training
    student.eval()
    images = torch.randn(3, 1, 8, 8)
    with FeatureReader(student, ["pool"]) as reader, torch.no_grad():
        own, outputs = reader(images)
        assert own is not None
        torch.testing.assert_close(both(images), (own + head(outputs["pool"])) / 2)
        student.get_parameter("fc.bias").add_(2.0)
        torch.testing.assert_close(both(images), (own + 2 + head(outputs["pool"])) / 2)


def test_a_vit_with_a_distillation_token_uses_its_own_heads() -> None:
    with_token, without = (
        describe(
            build_model("vit", num_classes=10, input_shape=(1, 8, 8), **SMALL_VIT | changes), name="vit", input_shape=(1, 8, 8)
        )
        for changes in ({}, {"distilled": False})
    )
    assert DistillationToken().student_layers(None, with_token) == ("head", "head_dist")
    assert DistillationToken().student_layers(None, without) == ("embedding",)


def vit_trainer(method: DistillationToken) -> Trainer:
    data, teacher = digits(), trained_teacher("resnet8")
    new_student = partial(build_model, "vit", num_classes=10, input_shape=data.input_shape, **SMALL_VIT)
    of_teacher = describe(teacher, name="resnet8", input_shape=data.input_shape)
    return Trainer(
        new_student=new_student,
        method=method,
        data=data,
        views=Views((), 1, data.input_shape, len(data.train.labels)),
        training=Training(batch_size=64, optimizer="adamw", learning_rate=3e-3),
        epochs=3,
        teacher=InlineKnowledge(teacher, method.knowledge(of_teacher, of_teacher), data.train.labels),
        teacher_architecture=of_teacher,
    )


@pytest.mark.parametrize("form", ["hard", "soft"])
def test_a_vit_trains_each_head_with_its_own_teaching(form: str) -> None:
    trainer = vit_trainer(DistillationToken(form=form))
    assert trainer._modules == {}
    assert trainer.classifier is trainer.student
    before = {name: trainer.student.get_parameter(name).detach().clone() for name in ("head.weight", "head_dist.weight")}
    curve = trainer.fit()
    assert curve[-1]["distillation_head"] < curve[0]["distillation_head"]
    assert curve[-1]["cross_entropy"] < curve[0]["cross_entropy"]
    assert all(not torch.equal(trainer.student.get_parameter(name), weight) for name, weight in before.items())


def test_labels_reach_only_the_class_head_of_a_vit_and_the_teacher_only_the_other() -> None:
    torch.manual_seed(0)
    student = build_model("vit", num_classes=10, input_shape=(1, 8, 8), **SMALL_VIT)
    with FeatureReader(student, ["head", "head_dist"]) as reader:
        logits, features = reader(torch.randn(4, 1, 8, 8))
    terms = DistillationToken().loss(
        make_step(student_logits=logits, student_features=features, teacher={"logits": torch.randn(4, 10)})
    )
    for name, reached, other in (("cross_entropy", "head", "head_dist"), ("distillation_head", "head_dist", "head")):
        weights = [student.get_parameter(f"{head}.weight") for head in (reached, other)]
        gradients = torch.autograd.grad(terms[name], weights, retain_graph=True, allow_unused=True)
        assert gradients[0] is not None
        assert gradients[1] is None


def test_a_trained_student_of_two_heads_is_exported_as_a_program(tmp_path: Path) -> None:
    trainer = MethodTrial(DistillationToken(), student="resnet8", epochs=1).trainer()
    trainer.fit()
    answers = trainer.classifier.eval()
    traced = program.make_program(answers, digits().input_shape)
    images = torch.randn(3, *digits().input_shape)
    with torch.no_grad():
        torch.testing.assert_close(traced.module()(images), answers(images))


def test_a_student_without_an_embedding_is_unsuitable() -> None:
    bare = Architecture(name="net", num_classes=10, input_shape=(1, 8, 8), shapes={"answer": (10,)})
    with pytest.raises(Unsuitable, match="needs an embedding before the classifier, student net has none"):
        DistillationToken().student_layers(None, bare)
    assert DistillationToken(teacher_weight=0).student_layers(None, bare) == ()
