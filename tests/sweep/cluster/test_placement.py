"""What fits where, by hand-made nodes."""

import itertools
import random
from collections.abc import Sequence
from typing import Any

import pytest

from stillhouse.errors import SpecError
from stillhouse.spec.load import validate
from stillhouse.spec.schema import SweepSpec
from stillhouse.sweep.cluster.placement import NodeKind, labels_match, place_sweep, ray_options


def make_spec(trial: dict[str, Any], teacher: dict[str, Any] | None = None, **more: Any) -> SweepSpec:
    teachers = {"big": {"model": "lenet", "resources": teacher}} if teacher is not None else {}
    return validate(
        {
            "name": "placed",
            "dataset": {"name": "digits"},
            "students": ["mlp"],
            "methods": ["scratch"],
            "teachers": teachers,
            "trial_resources": trial,
            **more,
        }
    )


def node(cpu: float, gpu: float = 0, *, count: int = 1, labels: dict[str, str] | None = None, **custom: float) -> NodeKind:
    return NodeKind(name="n", resources={"CPU": cpu, "GPU": gpu, **custom}, labels=labels or {}, count=count)


def test_teachers_come_first_and_trials_get_what_is_left() -> None:
    found = place_sweep(make_spec({"cpu": 1, "gpu": 0.25}, {"gpu": 1}), [node(8, 1), node(8, 1)])
    assert (found.trials, found.problems) == (4, ())


def test_a_teacher_stands_where_it_leaves_room_for_most_trials_whatever_the_order_of_the_nodes() -> None:
    spec = make_spec({"cpu": 1, "labels": {"pool": "trial"}}, {"cpu": 1})
    nodes = [
        NodeKind(name=name, node_id=name, resources={"CPU": cpu}, labels={"pool": name})
        for name, cpu in (("head", 1), ("trial", 2), ("small", 0.5))
    ]
    for given in itertools.permutations(nodes):
        found = place_sweep(spec, given)
        assert (found.trials, found.teachers) == (2, {"big": ("head",)})


def test_a_teacher_that_fits_anywhere_leaves_its_node_to_one_that_does_not() -> None:
    spec = make_spec({"cpu": 1}, teachers={"any": cpu_teacher(1), "large": cpu_teacher(4)})
    assert place_sweep(spec, [node(4), node(2)]).problems == ()


def cpu_teacher(cpu: int) -> dict[str, Any]:
    return {"model": "lenet", "resources": {"cpu": cpu}}


def most_trials(teachers: Sequence[int], trial: int, cores: Sequence[int]) -> int:
    """By trying every place of every teacher; -1 when they do not fit."""
    most = -1
    for places in itertools.product(range(len(cores)), repeat=len(teachers)):
        left = list(cores)
        for place_of, needs in zip(places, teachers, strict=True):
            left[place_of] -= needs
        if min(left) >= 0:
            most = max(most, sum(free // trial for free in left))
    return most


def test_no_other_places_of_the_teachers_leave_room_for_more_trials() -> None:
    generator = random.Random(0)
    for _ in range(200):
        cores = [generator.randint(1, 6) for _ in range(generator.randint(1, 4))]
        teachers = [generator.randint(1, 3) for _ in range(generator.randint(1, 4))]
        trial = generator.randint(1, 3)
        spec = make_spec({"cpu": trial}, teachers={f"t{number}": cpu_teacher(needs) for number, needs in enumerate(teachers)})
        found, most = place_sweep(spec, [node(each) for each in cores]), most_trials(teachers, trial, cores)
        if most < 0:
            assert any(problem.startswith("teachers.") for problem in found.problems)
        else:
            assert (found.trials, bool(found.problems)) == (most, most == 0), (cores, teachers, trial)


def test_a_teacher_that_holds_nothing_may_stand_anywhere() -> None:
    found = place_sweep(make_spec({"cpu": 1}, {}), [node(1)])
    assert (found.trials, found.teachers) == (1, {"big": ("",)})


def test_shares_of_a_gpu_add_up_in_spite_of_rounding() -> None:
    assert place_sweep(make_spec({"cpu": 0.1, "gpu": 0.1}), [node(1, 1)]).trials == 10


def test_a_trial_does_not_lie_across_nodes() -> None:
    found = place_sweep(make_spec({"cpu": 3}), [node(2), node(2)])
    assert found.trials == 0
    assert found.problems == ("trial_resources.cpu must be <= 2, which is what the largest node has, got 3",)


def test_a_teacher_that_leaves_nothing_for_trials_is_a_problem() -> None:
    (problem,) = place_sweep(make_spec({"cpu": 1}, {"cpu": 2}), [node(2)]).problems
    assert problem == (
        "trial_resources require 1 CPU on one node, which the cluster does not have free beside the teachers; "
        "lower it, or add a node"
    )


def test_an_autoscaler_adds_nodes_only_where_there_is_no_room() -> None:
    spec = make_spec({"cpu": 1}, {"gpu": 1}, max_concurrent_trials=6)
    found = place_sweep(spec, [node(4)], [node(4, 1, count=5)])
    # The teacher takes a new node, six trials its four cores and two of those that are there.
    assert (found.trials, found.added, found.problems) == (6, {"n": 1}, ())


def test_an_autoscalers_limit_is_the_clusters_limit() -> None:
    assert place_sweep(make_spec({"cpu": 2}), [], [node(4, count=3)]).trials == 6


def test_labels_and_resources_of_ones_own_decide_where() -> None:
    claim = {"cpu": 1, "labels": {"pool": "trial"}, "custom": {"fast_disk": 0.5}}
    nodes = [node(4, labels={"pool": "trial"}), node(4, fast_disk=1), node(4, labels={"pool": "trial"}, fast_disk=1)]
    assert place_sweep(make_spec(claim), nodes).trials == 2


@pytest.mark.parametrize(
    ("claim", "sentence"),
    [
        (
            {"cpu": 1, "labels": {"pool": "gold"}},
            "trial_resources.labels require a node with pool=gold, and the cluster has none",
        ),
        (
            {"cpu": 1, "custom": {"fast_disk": 2}},
            "trial_resources.custom.fast_disk must be <= 0, which is what the largest node",
        ),
        (
            {"cpu": 1, "gpu": 2, "labels": {"pool": "trial"}},
            "trial_resources.gpu must be <= 1, which is what the largest node with",
        ),
    ],
)
def test_an_impossible_request_is_one_sentence_that_names_the_key(claim: dict[str, Any], sentence: str) -> None:
    (problem,) = place_sweep(make_spec(claim), [node(8, 1, labels={"pool": "trial"})]).problems
    assert problem.startswith(sentence)
    assert "\n" not in problem


@pytest.mark.parametrize(
    ("condition", "matches"),
    [
        ("a", [True, False, False]),
        ("!a", [False, True, True]),
        ("in(a, b)", [True, True, False]),
        ("!in(a,b)", [False, False, True]),
    ],
)
def test_selectors_mean_what_they_mean_to_ray(condition: str, matches: list[bool]) -> None:
    assert [labels_match(labels, {"pool": condition}) for labels in ({"pool": "a"}, {"pool": "b"}, {})] == matches


def test_a_claim_becomes_rays_options_and_an_empty_one_none() -> None:
    spec = make_spec({"cpu": 1}, {"gpu": 1, "custom": {"teacher_node": 1}, "labels": {"pool": "teacher"}})
    assert ray_options(spec.trial_resources) == {}
    assert ray_options(spec.teachers["big"].resources) == {
        "resources": {"teacher_node": 1},
        "label_selector": {"pool": "teacher"},
    }


@pytest.mark.parametrize(
    ("claim", "problem"),
    [
        ({"custom": {"gpu": 1}}, "trial_resources.custom must name custom resources, such as teacher_node, got 'gpu'"),
        ({"custom": {"slot": 1.5}}, "trial_resources.custom.slot must be a fraction of one or a whole number, got 1.5"),
        ({"custom": 3}, "trial_resources.custom must be a mapping such as {teacher_node: 1}, got 3"),
        (
            {"labels": {"pool": 1}},
            "trial_resources.labels.pool must be text such as teacher, in quotes if YAML would read a number, got 1",
        ),
        ({"labels": ["pool"]}, "trial_resources.labels must be a mapping such as {pool: teacher}, got ['pool']"),
    ],
)
def test_a_claim_that_ray_would_not_take_is_said_in_the_specs_words(claim: dict[str, Any], problem: str) -> None:
    with pytest.raises(SpecError) as caught:
        make_spec({"cpu": 1, **claim})
    assert [str(each) for each in caught.value.problems] == [problem]
