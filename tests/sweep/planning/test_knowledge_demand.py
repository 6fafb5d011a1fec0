"""What planned trials read of a teacher and when: known in the plan, and seen in trainings of the very same trials."""

from collections.abc import Collection
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from torch import Tensor

from stillhouse.distill.hyperparameters import make_method
from stillhouse.distill.sources import InlineKnowledge, Reading, is_named
from stillhouse.distill.trainer import Trainer
from stillhouse.knowledge import Knowledge
from stillhouse.models.blueprint import blueprint
from stillhouse.models.registry import build_model
from stillhouse.sweep.planning.knowledge_demand import KnowledgeDemand, knowledge_demand
from stillhouse.sweep.planning.trial_keys import make_views
from stillhouse.sweep.sweep import Sweep

SPEC: dict[str, Any] = {
    "name": "asking",
    "dataset": {"name": "digits", "validation": 40, "options": {"limit": 120}},
    "views": {"policy": [{"crop": {"padding": 1}}], "count": 7},
    "teachers": {"big": {"model": "lenet"}},
    "students": [{"model": "lenet", "width": 0.5}],
    "methods": {"scratch": {}, "kd": {}, "fitnets": {}, "fsp": {}, "attention_transfer": {}},
    "search": {"trials_per_method": 2, "max_epochs": 5},
    "training": {"batch_size": 40, "learning_rate": 0.001},
}


def make_sweep(tmp_path: Path, **search: Any) -> Sweep:
    path = tmp_path / "asking.yaml"
    path.write_text(yaml.safe_dump(SPEC | {"search": SPEC["search"] | search}))
    return Sweep.from_yaml(path, home=tmp_path / "home")


def demand_of(sweep: Sweep) -> dict[str, KnowledgeDemand]:
    plan, data = sweep.plan(), sweep.data()
    views = make_views(plan.spec, data)
    return knowledge_demand(plan.spec, plan.representative_trials, data, views, adaptive=plan.search is not None)["big"]


class Watched(InlineKnowledge):
    """Notes in which view which kind was read."""

    def __init__(self, teacher: torch.nn.Module, knowledge: dict[str, Knowledge], seen: dict[str, set[int]]) -> None:
        super().__init__(teacher, knowledge)
        self._asked, self._seen = knowledge, seen
        self._now: tuple[int, Collection[str] | None] = (0, ())

    def begin_epoch(self, view: int, names: Collection[str] | None = None, reading: Reading | None = None) -> None:
        super().begin_epoch(view, names, reading)
        self._now = (view, names)

    def gather(self, indices: Tensor, images: Tensor) -> dict[str, Tensor]:
        view, names = self._now
        for name, kind in self._asked.items():
            if is_named(name, names):
                self._seen.setdefault(kind.id, set()).add(view)
        return super().gather(indices, images)


def read(sweep: Sweep, *seeds: int) -> dict[str, set[int]]:
    """The views of each kind that the plan's trials read when they are trained with these seeds."""
    data, plan = sweep.data(), sweep.plan()
    seen: dict[str, set[int]] = {}
    for trial in plan.trials:
        if trial.teacher is None:
            continue
        teacher = build_model("lenet", num_classes=10, input_shape=data.input_shape)
        method = make_method(trial.method, trial.hyperparameters)
        shape = {"input_shape": data.input_shape}
        architecture = blueprint("lenet", {}, 10, **shape).architecture
        student = blueprint(trial.student.model, trial.student.options, 10, **shape).architecture
        for seed in seeds:
            Trainer(
                new_student=partial(build_model, trial.student.model, num_classes=10, **shape, **trial.student.options),
                method=method,
                data=data,
                views=make_views(plan.spec, data),
                training=plan.spec.training,
                epochs=trial.epochs,
                seed=seed,
                teacher=Watched(teacher, dict(method.knowledge(architecture, student)), seen),
                teacher_architecture=architecture,
            ).fit()
    return seen


def test_a_kind_is_requested_in_the_views_in_which_trials_read_it_and_in_no_other(tmp_path: Path) -> None:
    sweep = make_sweep(tmp_path)
    demand = demand_of(sweep)
    assert {text: set(each.views) for text, each in demand.items()} == read(sweep, sweep.spec.search.seed)
    sizes = {len(each.views) for each in demand.values()}
    assert max(sizes) == 5, "all epochs of a method of one stage"
    assert min(sizes) < 5, "the hints of a first stage"


def test_trials_that_may_be_confirmed_count_with_those_seeds_too(tmp_path: Path) -> None:
    sweep = make_sweep(tmp_path, confirm_seeds=1)
    seed = sweep.spec.search.seed
    assert {text: set(each.views) for text, each in demand_of(sweep).items()} == read(sweep, seed, seed + 1)


@pytest.mark.parametrize("epochs", [5, 30])
def test_a_search_that_chooses_stages_as_it_goes_may_ask_everything_in_every_epoch(tmp_path: Path, epochs: int) -> None:
    sweep = make_sweep(tmp_path, algorithm="tpe", max_epochs=epochs)
    order = make_views(sweep.spec, sweep.data()).order(sweep.spec.search.seed)
    assert {each.views for each in demand_of(sweep).values()} == {frozenset(order[:epochs].tolist())}
