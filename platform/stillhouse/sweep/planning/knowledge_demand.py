"""What planned trials ask of each teacher, and in which views of the data some trial reads it."""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import nn

from stillhouse.data.datasets import ImageData
from stillhouse.data.views import Views
from stillhouse.distill.hyperparameters import make_method
from stillhouse.distill.method import Method, Setup
from stillhouse.distill.sources import is_named
from stillhouse.knowledge.kinds import Knowledge
from stillhouse.models.architecture import Architecture
from stillhouse.models.blueprint import blueprint, sketch
from stillhouse.spec.records import Trial
from stillhouse.spec.schema import SweepSpec
from stillhouse.sweep.planning.knowledge_delivery import KnowledgeDemand, form_of_logits
from stillhouse.teachers.service import kind_id


def knowledge_demand(
    spec: SweepSpec, trials: Iterable[Trial], data: ImageData, views: Views, *, adaptive: bool
) -> dict[str, dict[str, KnowledgeDemand]]:
    """By teacher, every kind that one of the trials asks of it, by its text; one forward pass of a view gives them all.

    A trial reads a kind in the epochs of the stages that need it. Which trials are confirmed is not known yet, so each counts
    with the seeds of the confirm phase too.

    Args:
        adaptive: whether other trials are chosen as the search goes, with stages of any length: a kind counts in every epoch.
    """
    found: dict[str, dict[str, _Reading]] = {}
    top_k = form_of_logits(spec.knowledge)
    stretches = _Stretches(views)
    for trial in trials:
        seeds = range(trial.seed, trial.seed + spec.search.confirm_seeds + 1)
        for name in trial.teachers:
            kinds = found.setdefault(name, {})
            teacher = _describe(spec.teachers[name].model, spec.teachers[name].options, data)
            student = _describe(trial.student.model, trial.student.options, data)
            method = make_method(trial.method, trial.hyperparameters)
            asked = method.knowledge(teacher, student)
            epochs = _epochs_of(method, asked, trial, teacher, student, data) if not adaptive else {}
            for key, kind in asked.items():
                form = kind if top_k is None else top_k.of(kind, data.num_classes)
                reading = kinds.setdefault(kind_id(form), _Reading(form))
                reading.trials.add(trial.key)
                read = epochs.get(key, [(0, trial.epochs)])
                reading.views.update(*(stretches.views(seed, *stretch) for stretch in read for seed in seeds))
    return {
        name: {text: KnowledgeDemand(each.kind, frozenset(each.views), len(each.trials)) for text, each in kinds.items()}
        for name, kinds in found.items()
    }


@dataclass(frozen=True)
class _Reading:
    kind: Knowledge
    views: set[int] = field(default_factory=set)
    trials: set[str] = field(default_factory=set)


class _Stretches:
    """The views of stretches of epochs, each worked out once."""

    def __init__(self, views: Views) -> None:
        self._views = views
        self._orders: dict[int, list[int]] = {}
        self._known: dict[tuple[int, int, int], frozenset[int]] = {}

    def views(self, seed: int, first: int, last: int) -> frozenset[int]:
        """Those that a trial with this seed sees in the epochs [first, last)."""
        known = self._known.get((seed, first, last))
        if known is None:
            order = self._orders.setdefault(seed, self._views.order(seed).tolist())
            known = frozenset(order[epoch % len(order)] for epoch in range(first, min(last, first + len(order))))
            self._known[seed, first, last] = known
        return known


def _epochs_of(
    method: Method, names: Iterable[str], trial: Trial, teacher: Architecture, student: Architecture, data: ImageData
) -> dict[str, list[tuple[int, int]]]:
    """By the method's name of a kind, the stretches [first, last) of epochs whose stages need it."""

    def new_student() -> nn.Module:
        return sketch(trial.student.model, trial.student.options, data.num_classes, data.input_shape)

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
