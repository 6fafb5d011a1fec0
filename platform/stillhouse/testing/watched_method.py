"""Wrappers that train as a method does, and inspect its steps or hide a part of them."""

import dataclasses
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from stillhouse.distill.method import Method, Setup, Stage, StageStart, Step, Update
from stillhouse.knowledge.kinds import Knowledge
from stillhouse.models.architecture import Architecture


@dataclass(frozen=True, kw_only=True)
class _Wrapper(Method):
    """Trains exactly as the method `inner` does."""

    inner: Method

    def knowledge(self, teacher: Architecture, student: Architecture) -> Mapping[str, Knowledge]:
        return self.inner.knowledge(teacher, student)

    def student_layers(self, teacher: Architecture | None, student: Architecture) -> Sequence[str]:
        return self.inner.student_layers(teacher, student)

    @property
    def calls_teacher(self) -> bool:  # type: ignore[override]
        return self.inner.calls_teacher

    @property
    def differentiates_images(self) -> bool:
        return self.inner.differentiates_images

    def stages(self, setup: Setup) -> Sequence[Stage]:
        return self.inner.stages(setup)

    def modules(self, setup: Setup) -> Mapping[str, Any]:
        return self.inner.modules(setup)

    def classifiers(self, student: nn.Module, modules: Mapping[str, nn.Module]) -> Mapping[str, nn.Module]:
        return self.inner.classifiers(student, modules)

    def begin_stage(self, start: StageStart) -> None:
        self.inner.begin_stage(start)

    def loss(self, step: Step) -> dict[str, Tensor]:
        return self.inner.loss(step)

    def step(self, step: Step, update: Update) -> dict[str, Tensor]:
        return self.inner.step(step, update)


@dataclass(frozen=True, kw_only=True)
class WatchedMethod(_Wrapper):
    """Checks each step of the method `inner`.

    Raises:
        AssertionError: in training, when a loss, a term or a gradient is not as it must be, or the step's tensors are modified.
    """

    def step(self, step: Step, update: Update) -> dict[str, Tensor]:
        given = {"images": step.images, "labels": step.labels, "targets": step.targets, **step.teacher}
        before = {name: tensor.clone() for name, tensor in given.items()}
        watched = _WatchedUpdate(step, update)
        terms = self.inner.step(step, watched)
        assert watched.updates, "step() must call update.minimise() at least once"
        assert terms, "step() must return at least one term to log"
        for name, term in terms.items():
            assert term.ndim == 0, f"term '{name}' must be a scalar, got shape {tuple(term.shape)}"
            assert bool(term.isfinite()), f"term '{name}' is {term.item()} in stage '{step.stage.name}'"
        for name, tensor in given.items():
            assert torch.equal(tensor, before[name]), f"the method modified '{name}' of the step, which other code reads"
        return terms


@dataclass(frozen=True, kw_only=True)
class UnlabelledMethod(_Wrapper):
    """Hides the labels from the method `inner`, which receives nothing of them but the supervised loss."""

    def step(self, step: Step, update: Update) -> dict[str, Tensor]:
        fields = {field.name: getattr(step, field.name) for field in dataclasses.fields(step)}
        hidden = torch.full_like(step.labels, -1)
        terms = step.supervised_terms() if step.stage.until is None and not step.stage.data_free else {}
        return super().step(_UnlabelledStep(**fields | {"labels": hidden, "targets": hidden, "known_terms": terms}), update)


@dataclass(kw_only=True, slots=True)
class _UnlabelledStep(Step):
    known_terms: dict[str, Tensor]

    def supervised_terms(self) -> dict[str, Tensor]:
        return dict(self.known_terms)


class _WatchedUpdate:
    """Passes losses on, and checks them and the gradients that they leave."""

    def __init__(self, step: Step, update: Update) -> None:
        self._networks = {"student": step.student, **step.modules}
        self._stage = step.stage.name
        self._update = update
        self.updates = 0

    def minimise(self, loss: Tensor, *groups: str) -> None:
        self._check_loss(loss)
        self._update.minimise(loss, *groups)
        self._check_gradients(groups)

    def minimise_separately(self, losses: Mapping[str, Tensor], momentum_shifts: Mapping[str, float]) -> None:
        for loss in losses.values():
            self._check_loss(loss)
        self._update.minimise_separately(losses, momentum_shifts)
        self._check_gradients(())

    def _check_loss(self, loss: Tensor) -> None:
        assert loss.ndim == 0, f"a loss must be a scalar, got shape {tuple(loss.shape)}"
        assert bool(loss.isfinite()), f"the loss is {loss.item()} in stage '{self._stage}'"

    def _check_gradients(self, groups: Sequence[str]) -> None:
        self.updates += 1
        for group in groups or self._networks:
            gradients = {name: p.grad for name, p in self._networks[group].named_parameters() if p.grad is not None}
            assert gradients or not groups, (
                f"the loss that is minimised for '{group}' does not depend on its weights, in stage '{self._stage}'"
            )
            for name, gradient in gradients.items():
                assert bool(gradient.isfinite().all()), (
                    f"the gradient of {group}.{name} is not finite, in stage '{self._stage}'"
                )
