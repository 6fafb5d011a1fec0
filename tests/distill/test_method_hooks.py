"""What a method may bring besides a loss: classifiers of its own, models by name, a part of the teacher."""

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from stillhouse.distill.method import Helper, Method, MethodError, Setup, Stage, Step
from stillhouse.distill.sources import InlineKnowledge
from stillhouse.knowledge.kinds import Knowledge, feature, logits
from stillhouse.models.architecture import Architecture
from stillhouse.testing import MethodTrial

NET = Architecture(name="net", num_classes=10, input_shape=(1, 8, 8), shapes={})


def setup() -> Setup:
    return Setup(teacher=None, student=NET, new_student=nn.Identity, num_samples=10, epochs=1)


class Always(nn.Module):
    """Gives every image the same class."""

    def __init__(self, label: int) -> None:
        super().__init__()
        self.label = label

    def forward(self, images: Tensor) -> Tensor:
        return nn.functional.one_hot(torch.full((len(images),), self.label), 10).float()


@dataclass(frozen=True, kw_only=True)
class Replaced(Method):
    """Answers through models that are not the student."""

    def classifiers(self, student: nn.Module, modules: Mapping[str, nn.Module]) -> Mapping[str, nn.Module]:
        return {"student": Always(3), "other": Always(5)}


@dataclass(frozen=True, kw_only=True)
class Reusing(Method):
    """Copies a part of the teacher."""

    def modules(self, setup: Setup) -> Mapping[str, Helper]:
        assert setup.teacher_weights is not None
        copied = nn.Linear(64, 10)
        copied.load_state_dict({name: setup.teacher_weights()[f"fc.{name}"] for name in ("weight", "bias")})
        return {"copied": Helper(module=copied, trainable=False)}


def test_what_a_method_calls_the_student_is_what_is_evaluated_and_any_other_is_reported() -> None:
    trainer = MethodTrial(Replaced(), epochs=1).trainer()
    (entry,) = trainer.fit()
    labels = trainer._data.validation.labels
    assert entry["validation_accuracy"] == pytest.approx(float((labels == 3).float().mean()))
    assert entry["validation_accuracy_other"] == pytest.approx(float((labels == 5).float().mean()))
    assert trainer.classifier.label == 3
    assert list(trainer.peers()) == ["other"]


def test_without_the_hook_the_student_is_what_is_evaluated() -> None:
    trainer = MethodTrial(Method()).trainer()
    assert trainer.classifier is trainer.student
    assert trainer.peers() == {}


def test_a_method_can_copy_a_part_of_the_teacher() -> None:
    trainer = MethodTrial(Reusing()).trainer()
    assert trainer._setup.teacher_weights is not None
    copied = trainer._modules["copied"].get_parameter("weight")
    assert torch.equal(copied, trainer._setup.teacher_weights()["fc.weight"])
    assert not copied.requires_grad


def test_a_model_by_name_fits_the_students_images_and_classes() -> None:
    assert setup().new_model("mlp", width=0.5)(torch.zeros(2, 1, 8, 8)).shape == (2, 10)


@pytest.mark.parametrize(("model", "options"), [("resnet9", {}), ("mlp", {"depth": 3}), ("mlp", {"width": -1.0})])
def test_a_model_that_cannot_be_built_is_named(model: str, options: dict[str, float]) -> None:
    with pytest.raises(MethodError, match=f"model '{model}' cannot be used: "):
        setup().new_model(model, **options)


@dataclass(frozen=True, kw_only=True)
class Hinted(Method):
    """Asks for a map in its first stage, for logits in its second, for nothing in its third."""

    said: bool = True

    def knowledge(self, teacher: Architecture, student: Architecture) -> Mapping[str, Knowledge]:
        return {"map": feature("conv1"), "logits": logits()}

    def stages(self, setup: Setup) -> Sequence[Stage]:
        needs: tuple[tuple[str, ...] | None, ...] = (("map",), ("logits",), ()) if self.said else (None, None, None)
        return [Stage(name=f"stage_{number}", epochs=1, knowledge=need) for number, need in enumerate(needs)]

    def loss(self, step: Step) -> dict[str, Tensor]:
        terms = super().loss(step)
        if step.stage.name == "stage_0":
            terms["map"] = step.teacher["map"].mean() * step.logits.mean()
        if step.stage.name == "stage_1":
            terms["logits"] = (step.logits - step.teacher["logits"]).square().mean()
        return terms


def test_a_stage_gathers_only_what_it_says_it_needs(monkeypatch: pytest.MonkeyPatch) -> None:
    begun: list[Collection[str] | None] = []
    gathered: list[set[str]] = []
    begin, gather = InlineKnowledge.begin_epoch, InlineKnowledge.gather

    def watched_begin(self: InlineKnowledge, view: int, names: Collection[str] | None = None, *reading: Any) -> None:
        begun.append(names)
        begin(self, view, names, *reading)

    def watched_gather(self: InlineKnowledge, indices: Tensor, images: Tensor) -> dict[str, Tensor]:
        rows = gather(self, indices, images)
        gathered.append(set(rows))
        return rows

    monkeypatch.setattr(InlineKnowledge, "begin_epoch", watched_begin)
    monkeypatch.setattr(InlineKnowledge, "gather", watched_gather)
    trainer = MethodTrial(Hinted(), epochs=3).trainer()
    trainer.fit()
    assert begun == [("map",), ("logits",)]
    assert gathered == [{"map"}] * 4 + [{"logits"}] * 4
    assert isinstance(trainer._ingredients.teacher, InlineKnowledge)
    assert trainer._ingredients.teacher.samples_forwarded == 2 * 256


def test_what_a_stage_leaves_out_changes_no_bit_of_the_student() -> None:
    one, other = (MethodTrial(Hinted(said=said), epochs=3).trainer() for said in (True, False))
    one.fit()
    other.fit()
    for name, weight in one.student.state_dict().items():
        assert torch.equal(weight, other.student.state_dict()[name]), name


@dataclass(frozen=True, kw_only=True)
class Mistaken(Hinted):
    """Needs what it never asked for."""

    def stages(self, setup: Setup) -> Sequence[Stage]:
        return [Stage(epochs=setup.epochs, knowledge=("maps",))]


def test_a_stage_that_names_knowledge_which_the_method_does_not_need_is_refused() -> None:
    with pytest.raises(ValueError, match="a stage names knowledge 'maps', which the method does not need; did you mean 'map'"):
        MethodTrial(Mistaken(), epochs=3).trainer()
