import dataclasses
from pathlib import Path
from typing import Any

import pytest
import torch

from stillhouse import methods
from stillhouse.distill.calls import InlineTeacher, ServedTeacher
from stillhouse.testing import MethodTrial, grounds, method_trial, suiting_trial
from stillhouse.testing.method_trial import NUM_TRAINING, TRAINING, RemoteModel, digits, trained_teacher


def test_the_teacher_is_frozen_trained_and_the_same_for_all() -> None:
    teacher = trained_teacher("resnet8")
    assert not teacher.training
    assert not any(parameter.requires_grad for parameter in teacher.parameters())
    batches = [buffer for name, buffer in teacher.named_buffers() if name.endswith("num_batches_tracked")]
    assert {int(count) for count in batches} == {2 * 256 // 64}
    assert trained_teacher("resnet8") is teacher


def test_a_training_has_whole_batches() -> None:
    assert len(digits().train.labels) == NUM_TRAINING
    assert NUM_TRAINING % TRAINING.batch_size == 0


def test_knowledge_is_cached_under_the_given_folder(tmp_path: Path) -> None:
    trial = MethodTrial(methods.find("kd")(), epochs=1)
    trial.trainer().fit()
    assert list(tmp_path.iterdir()) == []
    trial.trainer(cached_in=tmp_path).fit()
    assert list(tmp_path.rglob("*.arrow"))


def test_a_remote_teacher_gives_the_outputs_and_gradients_of_a_local_one() -> None:
    teacher = trained_teacher("lenet")
    results = []
    for callable_teacher in (InlineTeacher(teacher), ServedTeacher(RemoteModel(teacher))):
        images = torch.linspace(-1, 1, 2 * 64).reshape(2, 1, 8, 8).requires_grad_()
        (logits,) = callable_teacher(images)
        (gradient,) = torch.autograd.grad(logits.square().sum(), images)
        results.append((logits, gradient))
    for local, remote in zip(*results, strict=True):
        assert torch.equal(local, remote)


def test_trainer_and_teacher_are_on_the_device_of_the_trial(monkeypatch: pytest.MonkeyPatch) -> None:
    """The device `meta` stands for a GPU: tensors have a place there, but no values."""
    made: dict[str, Any] = {}
    monkeypatch.setattr(method_trial, "Trainer", lambda **given: made.update(given))
    trial = MethodTrial(methods.find("data_free_adversarial")(), device="meta")
    trial.trainer()
    assert made["device"] == "meta"
    assert {weight.device.type for weight in trial.teacher_model.parameters()} == {"meta"}
    (logits,) = made["callable_teacher"](torch.zeros(2, *digits().input_shape, device="meta"))
    assert logits.device.type == "meta"
    assert {weight.device.type for weight in trained_teacher("resnet8").parameters()} == {"cpu"}


def test_knowledge_is_computed_on_the_device_of_the_trial(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    made: dict[str, Any] = {}
    devices: list[torch.device] = []

    def compute(
        _reader: Any, knowledge: Any, images: torch.Tensor, _labels: torch.Tensor, _ground: Any
    ) -> dict[str, torch.Tensor]:
        devices.append(images.device)
        return {name: torch.zeros(len(images), 10) for name in knowledge}

    monkeypatch.setattr(method_trial, "Trainer", lambda **given: made.update(given))
    monkeypatch.setattr(method_trial, "compute_in_batches", compute)
    MethodTrial(methods.find("kd")(), device="meta").trainer(cached_in=tmp_path)
    made["teacher"].begin_epoch(0)
    assert devices == [torch.device("meta")]


def test_the_student_of_a_suiting_trial_is_the_first_that_suits_the_method() -> None:
    assert suiting_trial(methods.find("kd")()) == MethodTrial(methods.find("kd")())
    needs_a_class_map = methods.find("scale_decoupled")()
    assert suiting_trial(needs_a_class_map, epochs=2) == MethodTrial(needs_a_class_map, student="resnet8", epochs=2)


def test_a_method_that_no_student_suits_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    ground = dataclasses.replace(method_trial.GROUND, students=("mlp",))
    monkeypatch.setattr(grounds, "of_method", lambda _method: ground)
    with pytest.raises(AssertionError, match="none of mlp suits AttentionTransfer; name the student that does"):
        suiting_trial(methods.find("attention_transfer")())
