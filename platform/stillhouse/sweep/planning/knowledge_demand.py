"""What planned trials read of each teacher, and in which views of the data."""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import nn

from stillhouse.compress.students import sketch_student, student_architecture
from stillhouse.data.datasets import ImageData
from stillhouse.data.views import Views
from stillhouse.distill.hyperparameters import make_method
from stillhouse.distill.method import Method, Setup
from stillhouse.distill.sources import is_named
from stillhouse.knowledge.kinds import Knowledge
from stillhouse.knowledge.top_k import TopK
from stillhouse.models.architecture import Architecture
from stillhouse.models.blueprint import blueprint
from stillhouse.spec.controls import teacher_spec
from stillhouse.spec.records import Trial
from stillhouse.spec.schema import KnowledgeSpec, SweepSpec
from stillhouse.sweep.planning.method_fit import fit_method
from stillhouse.sweep.planning.plan import Plan
from stillhouse.sweep.planning.trial_keys import make_views


@dataclass(frozen=True)
class KnowledgeDemand:
    """A kind of knowledge, the views in which some trial reads it, and how many trials do."""

    kind: Knowledge
    views: frozenset[int]
    trials: int = 1


def knowledge_demand(
    spec: SweepSpec, trials: Iterable[Trial], data: ImageData, views: Views, *, adaptive: bool
) -> dict[str, dict[str, KnowledgeDemand]]:
    """By teacher and id of the kind: everything that the trials read of it. One forward pass of a view gives all of it.

    A trial reads a kind in the epochs of the stages that need it. Which trials are confirmed is not known yet, so each counts
    with the seeds of the confirm phase too.

    Args:
        adaptive: whether further trials are chosen during the search, with stages of any length: a kind counts in every epoch.
    """
    found: dict[str, dict[str, _Reading]] = {}
    top_k = stored_form_of_logits(spec.knowledge)
    ranges = _ViewsOfEpochs(views)
    for trial in trials:
        if not trial.teachers:
            continue
        seeds = range(trial.seed, trial.seed + spec.search.confirm_seeds + 1)
        student = student_architecture(trial.student, trial.teachers, data.num_classes, data.input_shape)
        taught_by = [teacher_spec(spec, name) for name in trial.teachers]
        teachers = [_describe(each.model, each.options, data) for each in taught_by]
        fit = fit_method(make_method(trial.method, trial.hyperparameters), student, teachers)
        for name, teacher, knowledge in zip(trial.teachers, teachers, fit.knowledge, strict=True):
            kinds = found.setdefault(name, {})
            epochs = _epochs_of(fit.method, knowledge, trial, teacher, student, data) if not adaptive else {}
            for key, kind in knowledge.items():
                form = kind if top_k is None else top_k.of(kind, data.num_classes)
                reading = kinds.setdefault(form.id, _Reading(form))
                reading.trials.add(trial.key)
                read = epochs.get(key, [(0, trial.epochs)])
                reading.views.update(*(ranges.views(seed, *stretch) for stretch in read for seed in seeds))
    return {
        name: {key: KnowledgeDemand(each.kind, frozenset(each.views), len(each.trials)) for key, each in kinds.items()}
        for name, kinds in found.items()
    }


def plan_demand(plan: Plan, data: ImageData) -> dict[str, dict[str, KnowledgeDemand]]:
    """What the trials of a plan read of each teacher; see `knowledge_demand`."""
    views = make_views(plan.spec, data)
    return knowledge_demand(plan.spec, plan.representative_trials, data, views, adaptive=plan.search is not None)


def stored_form_of_logits(spec: KnowledgeSpec) -> TopK | None:
    """How the spec wants logits stored; None stores them whole."""
    return None if spec.top_k is None else TopK(spec.top_k, spec.tail_draws)


@dataclass(frozen=True)
class _Reading:
    kind: Knowledge
    views: set[int] = field(default_factory=set)
    trials: set[str] = field(default_factory=set)


class _ViewsOfEpochs:
    """The views that ranges of epochs show, each computed once."""

    def __init__(self, views: Views) -> None:
        self._views = views
        self._orders: dict[int, list[int]] = {}
        self._known: dict[tuple[int, ...], frozenset[int]] = {}

    def views(self, seed: int, first: int, last: int) -> frozenset[int]:
        """Those that a trial with this seed sees in epochs [first, last)."""
        known = self._known.get((seed, first, last))
        if known is None:
            order = self._orders.setdefault(seed, self._views.order(seed).tolist())
            known = frozenset(order[epoch % len(order)] for epoch in range(first, min(last, first + len(order))))
            self._known[seed, first, last] = known
        return known


def _epochs_of(
    method: Method, names: Iterable[str], trial: Trial, teacher: Architecture, student: Architecture, data: ImageData
) -> dict[str, list[tuple[int, int]]]:
    """By the method's name of a kind, the ranges [first, last) of epochs whose stages read it."""

    def new_student() -> nn.Module:
        return sketch_student(trial.student, data.num_classes, data.input_shape)

    setup = Setup(
        teacher=teacher, student=student, new_student=new_student, num_samples=len(data.train.labels), epochs=trial.epochs
    )
    with torch.device("meta"):
        stages = method.stages(setup)
    needed: dict[str, list[tuple[int, int]]] = {name: [] for name in names}
    first = 0
    for stage in stages:
        for name, epochs in needed.items():
            if is_named(name, stage.knowledge) and not stage.data_free:
                epochs.append((first, first + stage.epochs))
        first += stage.epochs
    return needed


def _describe(model: str, options: Mapping[str, Any], data: ImageData) -> Architecture:
    return blueprint(model, options, data.num_classes, data.input_shape).architecture
