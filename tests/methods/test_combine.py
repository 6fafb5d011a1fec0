import pytest
import torch
import torch.nn.functional as F

from stillhouse import methods
from stillhouse.distill.method import Method, MethodError, Unsuitable
from stillhouse.methods.attention_transfer import AttentionTransfer
from stillhouse.methods.combine import Combine, Layers
from stillhouse.methods.kd import KD, kd_loss
from stillhouse.methods.noisy_teacher import NoisyTeacher
from stillhouse.models.architecture import Architecture
from stillhouse.testing import MethodTrial, make_step


def architecture(*shapes: tuple[int, ...]) -> Architecture:
    layers = {f"stage{number}": shape for number, shape in enumerate(shapes)}
    return Architecture(name="net", num_classes=10, input_shape=(1, 8, 8), shapes=layers, stages=tuple(layers))


def test_cross_entropy_counts_once_and_each_part_by_its_weight() -> None:
    student, logits = torch.randn(4, 10), torch.randn(4, 10)
    features, attention = torch.randn(4, 3, 8, 8), torch.rand(4, 8, 8)
    step = make_step(
        student_logits=student,
        student_features={"stage0": features, "of_another": torch.randn(4, 3, 8, 8)},
        teacher={"kd.logits": logits, "attention_transfer.attention.stage0": attention},
        modules={"layers": Layers({"kd": (), "attention_transfer": ("stage0",)})},
    )
    terms = Combine(weights=(2.0, 0.5)).loss(step)
    alone = make_step(
        student_logits=student, student_features={"stage0": features}, teacher={"attention.stage0": attention, "logits": logits}
    )
    assert list(terms) == ["cross_entropy", "kd.kd", "attention_transfer.attention"]
    torch.testing.assert_close(terms["cross_entropy"], F.cross_entropy(student, step.labels))
    torch.testing.assert_close(terms["kd.kd"], 2.0 * KD().kd_weight * kd_loss(student, logits, KD().temperature))
    torch.testing.assert_close(terms["attention_transfer.attention"], 0.5 * AttentionTransfer().loss(alone)["attention"])


def test_one_part_trains_as_the_method_does_alone() -> None:
    # kd at a weight of 1 has no labels' part, so cross-entropy at a weight of 1 and the soft targets are all there is.
    combined = MethodTrial(Combine(methods=("kd",), settings=("kd.kd_weight=1",)), epochs=1).trainer()
    (entry,) = combined.fit()
    assert entry["train_loss"] == pytest.approx(entry["cross_entropy"] + entry["kd.kd"])


def test_knowledge_and_helpers_bear_the_parts_names() -> None:
    maps = architecture((4, 8, 8), (8, 4, 4))
    asked = Combine().knowledge(maps, maps)
    assert set(asked) == {"kd.logits", "attention_transfer.attention.stage0", "attention_transfer.attention.stage1"}
    assert asked["kd.logits"] == KD().knowledge(maps, maps)["logits"]
    trainer = MethodTrial(Combine(methods=("kd", "variational"))).trainer()
    names = {name for name in trainer._modules if name != "layers"}
    assert names
    assert all(name.startswith("variational.regressor.") for name in names)


def test_helpers_of_the_parts_are_trained_and_two_parts_may_read_the_same_layers() -> None:
    method = Combine(methods=("attention_transfer", "variational"), weights=(0.1, 1.0))
    trainer = MethodTrial(method, epochs=1).trainer()
    before = {name: weight.clone() for name, weight in trainer._modules["variational.regressor.relu2"].named_parameters()}
    (entry,) = trainer.fit()
    assert {"attention_transfer.attention", "variational.information"} <= entry.keys()
    after = dict(trainer._modules["variational.regressor.relu2"].named_parameters())
    assert not any(torch.equal(after[name], weight) for name, weight in before.items())


def test_a_part_of_weight_0_costs_nothing_and_changes_nothing() -> None:
    maps = architecture((4, 8, 8))
    method = Combine(weights=(1.0, 0.0))
    assert set(method.knowledge(maps, maps)) == {"kd.logits"}
    assert method.student_layers(maps, maps) == []


def test_parts_draw_apart() -> None:
    student, logits = torch.randn(8, 10), torch.randn(8, 10)
    modules = {"layers": Layers({"noisy_teacher": ()})}
    step = make_step(student_logits=student, teacher={"noisy_teacher.logits": logits}, modules=modules, seed=3)
    combined = Combine(methods=("noisy_teacher",)).loss(step)["noisy_teacher.logit_regression"]
    alone = NoisyTeacher().loss(make_step(student_logits=student, teacher={"logits": logits}, seed=3))["logit_regression"]
    assert float(combined) != float(alone)
    assert float(Combine(methods=("noisy_teacher",)).loss(step)["noisy_teacher.logit_regression"]) == float(combined)


def test_settings_reach_the_parts() -> None:
    parts = Combine(settings=("kd.temperature=2", "attention_transfer.form=code")).parts
    assert parts == {"kd": KD(temperature=2), "attention_transfer": AttentionTransfer(form="code")}


@pytest.mark.parametrize("name", [name for name in methods.names() if methods.find(name).step is not Method.step])
def test_a_method_with_a_step_of_its_own_is_refused(name: str) -> None:
    with pytest.raises(MethodError, match=f"can not combine '{name}', whose training is more than a loss"):
        Combine(methods=("kd", name))


def test_a_method_with_stages_is_refused() -> None:
    with pytest.raises(MethodError, match="can not combine 'fitnets', which trains in stages of its own"):
        MethodTrial(Combine(methods=("kd", "fitnets"))).trainer()


def test_a_part_that_does_not_suit_the_student_does_not_suit_in_company() -> None:
    with pytest.raises(Unsuitable):
        Combine().knowledge(architecture((4, 8, 8)), architecture())


@pytest.mark.parametrize(
    ("hyperparameters", "message"),
    [
        ({"methods": ("kd", "kd")}, "none twice"),
        ({"methods": ()}, "at least one method"),
        ({"methods": ("kdd",)}, "no method 'kdd'; did you mean 'kd'"),
        ({"methods": ("scratch",)}, "can not combine 'scratch', which adds nothing to cross-entropy"),
        ({"methods": ("combine",)}, "can not combine 'combine'"),
        ({"methods": ("ensemble",)}, "can not combine 'ensemble', which learns from all teachers together"),
        ({"weights": (1.0,)}, "one for each of 2 methods, got 1"),
        ({"weights": (1.0, -1.0)}, "weights must be >= 0, got -1.0"),
        ({"weights": (1.0, float("nan"))}, "weights must be >= 0, got nan"),
        ({"settings": ("temperature=2",)}, "must look like 'kd.hyperparameter=value'"),
        ({"settings": ("fitnets.temperature=2",)}, "for one of the methods, got 'fitnets.temperature=2'"),
        ({"settings": ("kd.temprature=2",)}, "kd has no hyper-parameter 'temprature'; did you mean 'temperature'"),
        ({"settings": ("kd.temperature=0",)}, "temperature must be > 0, got 0"),
    ],
)
def test_a_wrong_combination_is_refused(hyperparameters: dict[str, tuple[object, ...]], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        Combine(**hyperparameters)
