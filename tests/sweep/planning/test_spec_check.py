"""What only models, methods and data can judge is found before anything starts, together with the spec's own problems."""

import copy
import random
import textwrap
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch

from stillhouse import methods
from stillhouse.data.datasets import load_dataset
from stillhouse.errors import SpecError
from stillhouse.models.registry import build_model
from stillhouse.models.weights import save_weights
from stillhouse.spec.load import spec_to_dict
from stillhouse.spec.yaml_text import parse_yaml
from stillhouse.sweep.planning.spec_check import check, check_file, survey

SPEC: dict[str, Any] = {
    "name": "s",
    "dataset": {"name": "digits"},
    "teachers": {"big": {"model": "lenet"}},
    "students": ["mlp", "lenet"],
    "methods": {"kd": {}},
}


def problems_with(**sections: Any) -> dict[str, str]:
    """The messages by key; sections given as None are left out."""
    raw = {key: value for key, value in {**SPEC, **sections}.items() if value is not None}
    return {problem.key: problem.message for problem in survey(raw).problems}


@pytest.fixture
def method_folder(tmp_path: Path) -> Iterator[Path]:
    """A folder for a user's methods, forgotten afterwards."""
    paths = list(methods.__path__)
    folder = tmp_path / "mine"
    folder.mkdir()
    yield folder
    methods.__path__[:] = paths
    methods.find.cache_clear()


def test_a_sound_spec_comes_back_with_everything_spelled_out() -> None:
    spec = check(SPEC)
    assert spec.methods is not None
    assert list(spec.methods) == [methods.baseline(), "kd"]
    assert set(spec.methods["kd"]) == set(methods.find("kd").hyperparameters())
    assert check(spec_to_dict(spec)) == spec


def test_a_hyperparameter_that_is_not_mentioned_is_searched_over_the_methods_prior() -> None:
    rules = methods.find("kd").hyperparameters()
    spec = check({**SPEC, "methods": {"kd": {"kd_weight": 1}}})
    assert spec.methods is not None
    assert spec.methods["kd"]["temperature"] == rules["temperature"].prior
    assert spec.methods["kd"]["kd_weight"] == 1.0


@pytest.mark.parametrize("sections", [{"methods": {"kd": "defaults"}}, {"search": {"algorithm": "grid"}}])
def test_defaults_and_grids_fix_what_is_not_mentioned_at_the_papers_values(sections: dict[str, Any]) -> None:
    spec = check({**SPEC, **sections})
    assert spec.methods is not None
    assert spec.methods["kd"] == methods.find("kd").defaults()


def test_a_spec_without_methods_sweeps_all_that_serve_its_task() -> None:
    pair = {"teachers": {"big": {"model": "resnet14"}}, "students": ["resnet8"], "training": {"optimizer": "sgd"}}
    spec = check({key: value for key, value in (SPEC | pair).items() if key != "methods"})
    assert spec.methods is not None
    of_other_tasks = {
        "detection_hints",
        "detection_hints_own",
        "feature_mimic",
        "focal_global",
        "gan_compression",
        "hidden_states",
    }
    assert set(spec.methods) == set(methods.names()) - of_other_tasks


@pytest.mark.parametrize("teacher", ["mlp", "lenet"])
def test_the_spec_that_comes_back_stays_sound_whatever_was_left_out_of_it(teacher: str) -> None:
    raw = {**SPEC, "teachers": {"big": {"model": teacher}}, "students": ["mlp", "resnet8"]}
    del raw["methods"]
    first = survey(raw)
    assert first.spec is not None
    second = survey(first.spec)
    assert not second.problems
    assert (second.spec, second.draws) == (first.spec, first.draws)


def test_all_methods_are_left_to_the_plan_where_the_images_are_not_known() -> None:
    raw = {**SPEC, "dataset": {"name": "numpy:zeros"}}
    del raw["methods"]
    assert check(raw).methods is None
    found = survey(check(raw), load_dataset("digits"))
    assert found.spec is not None
    assert found.spec.methods
    assert not found.problems


def test_without_teachers_a_method_that_needs_one_is_a_problem_with_a_remedy() -> None:
    found = problems_with(teachers=None, methods=["kd", "mutual_learning"])
    assert found == {"methods.kd": "needs a teacher, and the spec has none; add one under teachers or remove kd"}


def test_problems_of_every_kind_come_together() -> None:
    found = problems_with(
        dataset={"name": "digits", "validation": 1.5},
        views={"policy": [{"crop": {"padding": 40}}]},
        teachers={
            "unknown": {"model": "resnet2"},
            "classes": {"model": "lenet", "num_classes": 100},
            "weights": {"model": "lenet", "weights": "/nowhere/x"},
            "enum": {"model": "lenet", "weights": "torchvision:ResNet18_Weights.IMAGENET1K_V1"},
            "option": {"model": "lenet", "widht": 2},
        },
        students=["mpl", {"model": "lenet", "width": {"choice": [1, -1]}}, {"model": "mlp", "hiden": [3]}, "lenet"],
        methods={
            "kdd": {},
            "kd": {"temperature": {"uniform": [-1, 10]}, "kd_weight": "x", "temprature": 3},
            "fitnets": {"hint_layer": "nope"},
            "born_again": {"variant": "x", "generations": {"uniform": [1, 2]}},
        },
        search={"seed": -1},
    )
    assert set(found) == {
        "dataset.validation",
        "views.policy[0].crop.padding",
        "teachers.unknown.model",
        "teachers.classes.num_classes",
        "teachers.weights.weights",
        "teachers.enum.weights",
        "teachers.option.widht",
        "students[0].model",
        "students[1].width",
        "students[2].hiden",
        "students[3].name",
        "methods.kdd",
        "methods.kd.temperature",
        "methods.kd.kd_weight",
        "methods.kd.temprature",
        "methods.fitnets.hint_layer",
        "methods.born_again.variant",
        "methods.born_again.generations",
        "search.seed",
    }
    assert found["methods.kdd"].startswith("names no method 'kdd'; did you mean 'kd'?")
    assert found["methods.kd.temperature"] == "must be > 0, got -1.0 in {uniform: [-1.0, 10.0]}"
    assert found["methods.kd.kd_weight"] == "must be a number, got 'x'"
    assert found["teachers.classes.num_classes"] == "must be 10, the classes of digits, got 100"
    assert found["students[2].hiden"].startswith("is not an option of mlp; did you mean 'hidden'?")
    assert "lenet has no layer 'nope'" in found["methods.fitnets.hint_layer"]


def test_a_bad_option_is_found_where_the_data_set_is_unknown() -> None:
    found = problems_with(dataset={"name": "digitz"}, students=[{"model": "mlp", "width": -1}])
    assert set(found) == {"dataset.name", "students[0].width"}


def test_a_missing_data_root_is_a_problem() -> None:
    assert set(problems_with(dataset={"name": "mnist", "root": "/nowhere"})) == {"dataset.root"}
    assert set(problems_with(dataset={"name": "mnist"})) == {"dataset.root"}


def test_weights_of_another_shape_are_a_problem(tmp_path: Path) -> None:
    torch.manual_seed(0)
    save_weights(build_model("lenet", num_classes=7, input_shape=(1, 8, 8)), tmp_path / "seven")
    found = problems_with(teachers={"big": {"model": "lenet", "weights": str(tmp_path / "seven")}})
    assert set(found) == {"teachers.big.weights"}
    save_weights(build_model("lenet", num_classes=10, input_shape=(1, 8, 8)), tmp_path / "ten")
    assert problems_with(teachers={"big": {"model": "lenet", "weights": str(tmp_path / "ten")}}) == {}


def test_fewer_epochs_than_stages_are_a_problem_of_the_budget() -> None:
    found = problems_with(methods={"fitnets": {}}, students=["lenet"], search={"max_epochs": 1})
    assert set(found) == {"search.max_epochs"}
    assert "fitnets" in found["search.max_epochs"]


def test_a_method_requested_by_name_that_suits_no_student_is_a_problem() -> None:
    found = problems_with(methods=["attention_transfer"], students=["mlp"])
    assert set(found) == {"methods.attention_transfer"}


def test_a_prior_that_a_grid_cannot_list_is_a_problem() -> None:
    found = problems_with(
        methods={"kd": {"temperature": {"uniform": [1, 2]}}},
        students=["lenet", {"model": "mlp", "width": {"uniform": [1, 2]}}],
        search={"algorithm": "grid"},
    )
    assert found == {
        "students[1].width": "must be a value, choice or integers in a grid, got {uniform: [1.0, 2.0]}",
        "methods.kd.temperature": "must be a value, choice or integers in a grid, got {uniform: [1.0, 2.0]}",
    }


def test_a_grid_of_millions_is_refused_without_being_listed() -> None:
    found = problems_with(
        methods={"kd": {"temperature": {"integers": [1, 10**6]}, "kd_weight": {"choice": [0.1, 0.2]}}},
        search={"algorithm": "grid"},
    )
    assert set(found) == {"search.algorithm"}


def test_settings_without_effect_are_noted_and_no_problem() -> None:
    found = survey({**SPEC, "search": {"reduction_factor": 4}, "views": {"count": 3}, "training": {"gamma": 0.5}})
    assert not found.problems
    assert [note.split(" ")[0] for note in found.notes] == ["search.reduction_factor", "training.gamma", "views.count"]


def test_a_warning_of_a_method_becomes_a_note() -> None:
    found = survey({**SPEC, "methods": {"kd": {"variant": "soft_only", "kd_weight": 0.5}}})
    assert not found.problems
    assert "methods.kd: kd_weight has no effect with variant='soft_only'" in found.notes


def test_too_few_trials_to_try_every_student_are_noted() -> None:
    found = survey({**SPEC, "search": {"trials_per_method": 1}})
    assert any("search.trials_per_method = 1 is less than the 2 pairs" in note for note in found.notes)


def test_a_users_method_is_checked_like_any_other(method_folder: Path) -> None:
    (method_folder / "my_method.py").write_text(
        textwrap.dedent("""
        from dataclasses import dataclass
        from stillhouse.distill.method import Method, hyperparameter

        @dataclass(frozen=True, kw_only=True)
        class Mine(Method):
            sizes: tuple[int, ...] = hyperparameter((1, 2))
            rate: float = hyperparameter(0.5, above=0)

            def modules(self, setup):
                raise RuntimeError("no room")
        """)
    )
    wrong = problems_with(methods={"my_method": {"sizes": 3, "rate": 0}}, method_paths=[str(method_folder)])
    assert wrong == {"methods.my_method.sizes": "must be a list, got 3", "methods.my_method.rate": "must be > 0, got 0"}
    found = problems_with(methods={"my_method": {"sizes": [3]}}, method_paths=[str(method_folder)])
    assert set(found) == {"methods.my_method"}
    assert "RuntimeError: no room" in found["methods.my_method"]


def test_a_file_with_a_syntax_error_among_a_users_methods_is_a_problem(method_folder: Path) -> None:
    (method_folder / "broken_method.py").write_text("def")
    found = problems_with(methods=["broken_method"], method_paths=[str(method_folder)])
    assert "methods.broken_method" in found
    assert "SyntaxError" in found["methods.broken_method"]


def test_a_folder_of_methods_that_is_not_there_is_a_problem() -> None:
    assert set(problems_with(method_paths=["/nowhere"])) == {"method_paths[0]"}


def test_a_users_data_set_is_checked_once_it_is_read() -> None:
    raw = {**SPEC, "teachers": {"big": {"model": "lenet", "num_classes": 3}}, "dataset": {"name": "numpy:zeros"}}
    assert not survey(raw).problems
    assert [problem.key for problem in survey(raw, load_dataset("digits")).problems] == ["teachers.big.num_classes"]


def test_a_data_set_of_a_module_that_is_not_there_is_a_problem() -> None:
    assert set(problems_with(dataset={"name": "nowhere_at_all:load"})) == {"dataset.name"}


def test_a_spec_file_is_read_and_checked_in_one_go(tmp_path: Path) -> None:
    path = tmp_path / "spec.yaml"
    path.write_text(
        "name: s\ndataset: {name: digits}\nteachers: {big: {model: lenet}}\nstudents: [mlp]\nmethods: {kdd: {}}\nserch: {}\n"
    )
    with pytest.raises(SpecError) as error:
        check_file(path, ["students[0].width=-1"])
    assert {problem.key for problem in error.value.problems} == {"serch", "students[0].width", "methods.kdd"}


def test_checking_never_raises_whatever_stands_in_the_spec() -> None:
    values: list[Any] = [None, 0, -1, 2.5, "x", "kd", "lenet", [], {}, {"choice": [1, "a"]}, {"integers": [1, 3]}, "a:b", True]
    raw, _ = parse_yaml("""
    {name: s, dataset: {name: digits, size: 9, options: {limit: 50}}, views: {policy: [crop, {cutout: {size: 2}}], count: 2},
    teachers: {big: {model: lenet, width: 1, num_classes: 10, weights: null}}, students: [mlp, {model: lenet, width: 2}],
    methods: {kd: {temperature: 2, variant: weighted}, fitnets: {hint_layer: null}, mutual_learning: {num_peers: 2}},
    search: {trials_per_method: 3, max_epochs: 4, algorithm: random}}
    """)
    for seed in range(80):
        draw = random.Random(seed)
        spec = copy.deepcopy(raw)
        for _ in range(draw.randint(1, 3)):
            place: Any = spec
            while True:
                key = draw.choice(list(place) if isinstance(place, dict) else range(len(place)))
                if isinstance(place[key], dict | list) and place[key] and draw.random() < 0.8:
                    place = place[key]
                else:
                    place[key] = draw.choice(values)
                    break
        survey(spec)


def test_an_error_is_a_problem_of_the_hyper_parameter_that_names_what_it_is_about(method_folder: Path) -> None:
    (method_folder / "named_method.py").write_text(
        textwrap.dedent("""
        from dataclasses import dataclass
        from stillhouse.distill.method import Method, MethodError, hyperparameter

        @dataclass(frozen=True, kw_only=True)
        class Named(Method):
            layers: tuple[str, ...] = hyperparameter(("fc",))
            note: str = hyperparameter("")

            def modules(self, setup):
                raise MethodError("'quoted' is not what it is about", names=[self.layers[-1]])
        """)
    )

    def found(**settings: Any) -> set[str]:
        return set(problems_with(methods={"named_method": settings}, method_paths=[str(method_folder)]))

    assert found(layers=["fc1", "fc2"], note="quoted") == {"methods.named_method.layers"}
    assert "methods.named_method.note" not in found(note="quoted")
