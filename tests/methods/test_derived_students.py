"""A student that began as its teacher is compared with the teacher's own channels, without a layer between."""

import copy
from collections.abc import Mapping
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from stillhouse import methods
from stillhouse.compress.chain import Chain
from stillhouse.compress.operator import Context
from stillhouse.compress.students import describe_student
from stillhouse.distill.hyperparameters import make_method
from stillhouse.distill.maps import ChannelMethod, KnownChannels
from stillhouse.distill.method import Helper, Setup, Step
from stillhouse.distill.sources import compute_knowledge, layers_of
from stillhouse.models.architecture import Architecture, describe
from stillhouse.models.features import FeatureReader
from stillhouse.models.registry import build_model
from stillhouse.testing import make_step

SHAPE = (3, 16, 16)
IMAGES = torch.randn(4, *SHAPE, generator=torch.Generator().manual_seed(0))
PRUNED = [{"prune": {"ratio": 0.5}}]
LAYER = "layer2"
CHANNELWISE = [*sorted(name for name in methods.names() if issubclass(methods.find(name), ChannelMethod)), "fitnets"]
NAMED: Mapping[str, dict[str, Any]] = {"fitnets": {"hint_layer": LAYER}}
"""Each method is tried on one pair of maps."""


class Case:
    """A teacher, and a student that began as the teacher and lost what operators removed."""

    def __init__(self, name: str, operators: list[dict[str, Any]], **hyperparameters: Any) -> None:
        torch.manual_seed(0)
        self.teacher = build_model("resnet8", num_classes=5, input_shape=SHAPE).eval()
        context = Context(num_classes=5, input_shape=SHAPE, trained=True)
        converted = Chain.of(operators).convert(copy.deepcopy(self.teacher), context)
        self.student, self.kept = converted.model.eval(), converted.kept_channels
        self.architecture = describe(self.teacher, name="teacher", input_shape=SHAPE)
        ours = describe_student(self.student, self.kept, name="student", input_shape=SHAPE)
        settings = NAMED.get(name, {"teacher_maps": LAYER}) | hyperparameters
        self.method = make_method(name, settings)
        self.setup = Setup(teacher=self.architecture, student=ours, new_student=nn.Identity, num_samples=100, epochs=8)
        self.layers = list(self.method.student_layers(self.architecture, ours))
        self.helpers: Mapping[str, Helper] = self.method.modules(self.setup)
        self.knowledge = self._knowledge(ours)

    def _knowledge(self, ours: Architecture) -> dict[str, Tensor]:
        needed = dict(self.method.knowledge(self.architecture, ours))
        reader = FeatureReader(self.teacher, layers_of(needed))
        return compute_knowledge(reader, needed, IMAGES)

    def loss(self, knowledge: Mapping[str, Tensor]) -> float:
        reader = FeatureReader(self.student, self.layers)
        with torch.no_grad():
            logits, features = reader(IMAGES)
            step: Step = make_step(
                student_logits=logits,
                labels=torch.zeros(4, dtype=torch.int64),
                student_features=features,
                teacher=knowledge,
                modules={name: helper.module for name, helper in self.helpers.items()},
                stage=self.method.stages(self.setup)[0],
            )
            terms = self.method.loss(step)
        return float(sum(term for name, term in terms.items() if name != "cross_entropy"))


@pytest.mark.parametrize("name", CHANNELWISE)
def test_channels_that_were_removed_are_not_compared_and_those_that_remain_are(name: str) -> None:
    case = Case(name, PRUNED)
    kept = torch.tensor(case.kept["layer2.0.bn2"])
    removed = torch.tensor([channel for channel in range(32) if channel not in kept])
    assert len(kept) == len(removed) == 16
    before = case.loss(case.knowledge)
    for channels, is_compared in ((removed, False), (kept[:1], True)):
        changed = {key: value.clone() for key, value in case.knowledge.items()}
        for value in changed.values():
            for dimension in (1, 2):
                if value.ndim > dimension and value.shape[dimension] == 32:
                    value.index_fill_(dimension, channels, 7.0)
        assert (case.loss(changed) != before) is is_compared


@pytest.mark.parametrize("name", CHANNELWISE)
def test_nothing_is_trained_between_the_maps_unless_the_user_asks_for_it(name: str) -> None:
    def trained(**settings: Any) -> int:
        return sum(
            weight.numel()
            for helper in Case(name, PRUNED, **settings).helpers.values()
            for weight in helper.module.parameters()
        )

    assert trained() == 0
    assert trained(regressor="always") > 0


@pytest.mark.parametrize("name", [name for name in CHANNELWISE if name != "activation_boundaries"])
def test_a_student_that_still_is_its_teacher_has_no_loss(name: str) -> None:
    case = Case(name, [])
    assert case.loss({**case.knowledge}) == pytest.approx(0, abs=1e-9)


@pytest.mark.parametrize("name", CHANNELWISE)
def test_a_student_of_another_origin_has_the_layer_as_before(name: str) -> None:
    case = Case(name, PRUNED)
    ours = describe(case.student, name="student", input_shape=SHAPE)
    setup = Setup(teacher=case.architecture, student=ours, new_student=nn.Identity, num_samples=100, epochs=8)
    settings = (
        {"hint_layer": LAYER, "guided_layer": LAYER} if name == "fitnets" else {"teacher_maps": LAYER, "student_maps": LAYER}
    )
    helpers = make_method(name, settings).modules(setup)
    modules = [module for helper in helpers.values() for module in helper.module.modules()]
    assert not any(isinstance(module, KnownChannels) for module in modules)
    assert any(isinstance(module, nn.Conv2d) for module in modules)
