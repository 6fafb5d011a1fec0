from collections.abc import Callable
from dataclasses import replace

import pytest
import torch
from torch import nn

from stillhouse.distill.method import MethodError, Setup
from stillhouse.knowledge.kinds import logits, reduced
from stillhouse.methods.simkd import (
    Copied,
    Projector,
    ReusedClassifier,
    SimKD,
    as_map,
    feature_loss,
    mean_over_positions,
)
from stillhouse.models.architecture import Architecture, UnknownLayer, describe
from stillhouse.models.registry import build_model, model_names, sketch_model
from stillhouse.models.size import measure_size
from stillhouse.testing import MethodTrial, ReferenceCase, make_step

Open = Callable[[str], ReferenceCase]
SHAPE = (1, 8, 8)


def architecture(name: str) -> Architecture:
    return describe(sketch_model(name, num_classes=10, input_shape=SHAPE), name=name, input_shape=SHAPE)


def test_loss_logits_and_gradients_equal_the_authors_code(open_case: Open) -> None:
    case = open_case("simkd-official")
    (_, num_inputs, *_), (_, num_outputs, height, width) = case["in.s_feat"].shape, case["in.t_feat"].shape
    projector = Projector(num_inputs, num_outputs // int(case.number("factor")), num_outputs, (height, width))
    projector.to(case["in.s_feat"].dtype)
    names = {f"layers.{number}.weight": f"w.p{number}.weight" for number in (0, 1, 3, 4, 6, 7)}
    names |= {f"layers.{number}.bias": f"w.p{number}.bias" for number in (1, 4, 7)}
    projector.load_state_dict({ours: case[theirs].detach() for ours, theirs in names.items()}, strict=False)
    projected = projector(case["in.s_feat"])
    loss = feature_loss(projected, case["in.t_feat"])
    case.check(projected, "aux.trans_s")
    case.check(loss)
    case.check_gradients(loss, "s_feat")
    gradients = torch.autograd.grad(loss, [projector.get_parameter(name) for name in names], retain_graph=True)
    for theirs, gradient in zip(names.values(), gradients, strict=True):
        case.check(gradient, f"grad.{theirs}")
    classifier = nn.Linear(num_outputs, len(case["w.cls_t.bias"]), dtype=projected.dtype)
    classifier.load_state_dict({"weight": case["w.cls_t.weight"], "bias": case["w.cls_t.bias"]})
    answer = ReusedClassifier(nn.Identity(), lambda_module(projected), classifier)(case["in.s_feat"])
    case.check(answer, "aux.pred_logits")


def lambda_module(output: torch.Tensor) -> nn.Module:
    """A module that returns `output`: the case has the numbers of BatchNorm in training mode, run once."""
    module = nn.Identity()
    module.register_forward_hook(lambda _module, _inputs, _output: output)
    return module


@pytest.mark.parametrize("teacher", model_names())
def test_the_copied_classifier_of_every_shipped_teacher_gives_the_teachers_logits(teacher: str) -> None:
    model = build_model(teacher, num_classes=10, input_shape=SHAPE).eval()
    described = describe(model, name=teacher, input_shape=SHAPE)
    layer, _ = SimKD().layers(described, architecture("lenet"))
    outputs: dict[str, torch.Tensor] = {}
    model.get_submodule(layer).register_forward_hook(lambda _module, _inputs, output: outputs.update(layer=output))
    with torch.no_grad():
        answered = model(torch.randn(3, *SHAPE))
        copied = Copied(described, described, layer, model.state_dict())(mean_over_positions(outputs["layer"]))
    torch.testing.assert_close(copied, answered, rtol=1e-4, atol=1e-5)


def test_a_perfect_student_has_the_teachers_logits() -> None:
    # With a projector that returns the teacher's map, the logits are the teacher's.
    teacher = build_model("resnet8", num_classes=10, input_shape=SHAPE).eval()
    described = describe(teacher, name="resnet8", input_shape=SHAPE)
    setup = Setup(
        teacher=described,
        student=described,
        new_student=nn.Identity,
        num_samples=10,
        epochs=1,
        teacher_weights=teacher.state_dict,
    )
    helpers = SimKD().modules(setup)
    modules = {"projector": nn.Identity(), "classifier": helpers["classifier"].module}
    answer = SimKD().classifiers(teacher, modules)["student"].eval()
    images = torch.randn(3, *SHAPE)
    torch.testing.assert_close(answer(images), teacher(images))
    assert not helpers["classifier"].trainable


def test_the_evaluated_network_has_projector_and_copied_classifier_but_not_the_students_own() -> None:
    trainer = MethodTrial(SimKD(), teacher="resnet8", student="lenet").trainer()
    size = measure_size(trainer.classifier, SHAPE)
    student = {name: weight.numel() for name, weight in trainer.student.named_parameters()}
    trunk = sum(number for name, number in student.items() if name.startswith("conv"))
    projector = 16 * 32 + 32 * 32 * 9 + 32 * 64 + 2 * (32 + 32 + 64)
    assert size.parameters == trunk + projector + 64 * 10 + 10


def test_it_learns_without_labels_and_the_projected_student_is_evaluated() -> None:
    trainer = MethodTrial(SimKD(feature_weight=10.0), epochs=4).trainer()
    curve = trainer.fit()
    assert curve[-1]["features"] < curve[0]["features"]
    assert curve[-1]["validation_accuracy"] == trainer.evaluate(trainer._data.validation, trainer.classifier)
    assert trainer.classifier is not trainer.student


def test_maps_are_compared_at_the_smaller_size_and_pooled_at_the_teacher() -> None:
    teacher, student = architecture("resnet8"), architecture("lenet")
    assert SimKD().layers(teacher, student)[0] == "layer3"
    assert SimKD().knowledge(teacher, student) == {
        "features": reduced(as_map, "layer3", height=2, width=2),
        "embedding": reduced(mean_over_positions, "layer3"),
        "logits": logits(),
    }


@pytest.mark.parametrize(("teacher", "student"), [("lenet", "resnet8"), ("resnet8", "mlp"), ("mlp", "mlp")])
def test_if_maps_do_not_fit_the_embedding_is_matched(teacher: str, student: str) -> None:
    assert SimKD().size(architecture(teacher), architecture(student)) == (1, 1)


def test_wrong_layers_are_rejected() -> None:
    teacher, student = architecture("resnet8"), architecture("lenet")
    with pytest.raises(UnknownLayer, match="no layer 'layer9'"):
        SimKD(teacher_layer="layer9").layers(teacher, student)
    with pytest.raises(MethodError, match="'layer2' must have 64 channels"):
        SimKD(teacher_layer="layer2").layers(teacher, student)
    with pytest.raises(MethodError, match="needs an embedding before the classifier"):
        SimKD().layers(replace(teacher, pooled=None), student)


def test_a_teacher_without_such_a_classifier_is_rejected() -> None:
    described = architecture("resnet8")
    with pytest.raises(MethodError, match=r"has no weights of shape \(10, 64\)"):
        Copied(described, described, "layer3", {"fc.weight": torch.zeros(10, 63)})


def test_a_classifier_that_does_not_give_the_teachers_logits_is_found_at_the_first_step() -> None:
    classifier = nn.Linear(4, 3)
    embedding = torch.randn(5, 4)
    step = make_step(
        student_logits=None,
        labels=torch.zeros(5, dtype=torch.int64),
        student_features={"relu": torch.randn(5, 2, 3, 3)},
        teacher={
            "features": torch.randn(5, 4, 3, 3),
            "embedding": embedding,
            "logits": classifier(embedding).detach() + torch.randn(5, 3),
        },
        modules={"classifier": classifier, "projector": Projector(2, 2, 4, (3, 3))},
    )
    with pytest.raises(MethodError, match="does not turn the mean of the teacher's layer into the teacher's logits"):
        SimKD().loss(step)


def test_a_trainer_without_the_teachers_weights_raises() -> None:
    trial = MethodTrial(SimKD())
    setup = trial.trainer()._setup

    def none() -> dict[str, torch.Tensor]:
        raise MethodError("no weights")

    with pytest.raises(MethodError, match="no weights"):
        SimKD().modules(replace(setup, teacher_weights=none))
