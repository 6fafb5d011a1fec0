"""Operators in a spec: their options spelled out, and every problem at plan time, in sentences."""

import importlib
import re
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_model

from stillhouse import compress
from stillhouse.data.datasets import ImageData, load_dataset
from stillhouse.models.registry import build_model
from stillhouse.spec.priors import Choice, Uniform
from stillhouse.spec.records import StudentChoice
from stillhouse.sweep.planning.plan import Plan, make_plan
from stillhouse.sweep.planning.spec_check import check, survey

ROOT = Path(__file__).parents[3]


@pytest.fixture(scope="module")
def data() -> ImageData:
    return load_dataset("digits", validation=100, options={"limit": 400})


@pytest.fixture
def half(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """The operator of docs/your-own-operator.md, which stores weights in 16 bits; yields its file."""
    page = (ROOT / "docs" / "your-own-operator.md").read_text()
    file = tmp_path / "half.py"
    file.write_text(re.findall(r"```python\n(.*?)```", page, re.DOTALL)[0])
    monkeypatch.syspath_prepend(str(tmp_path))
    monkeypatch.delitem(sys.modules, "half", raising=False)
    importlib.invalidate_caches()
    compress.find.cache_clear()
    yield file
    compress.find.cache_clear()
    sys.modules.pop("half", None)


def spec(*students: Any, **sections: Any) -> dict[str, Any]:
    return {
        "name": "routes",
        "dataset": {"name": "digits", "validation": 100, "options": {"limit": 400}},
        "teachers": {"big": {"model": "resnet8", "train": {"epochs": 1}}},
        "students": list(students),
        "methods": {"kd": {"temperature": 4.0, "kd_weight": 0.9}},
        "search": {"trials_per_method": len(students), "max_epochs": 1},
        **sections,
    }


def pruned(*operators: Any, **fields: Any) -> dict[str, Any]:
    return {"name": "pruned", "from": "big", "compress": list(operators), **fields}


def problems(raw: dict[str, Any], data: ImageData | None = None) -> list[str]:
    return [str(problem) for problem in survey(raw, data).problems]


def plan_of(data: ImageData, *students: Any, **sections: Any) -> Plan:
    return make_plan(check(spec(*students, **sections), data), data)


def test_a_derived_student_has_the_model_of_its_teacher_and_every_option(data: ImageData) -> None:
    student = plan_of(data, pruned({"prune": {"ratio": 0.25}})).students[0].student
    assert (student.model, student.options, student.derived_from) == ("resnet8", {}, "big")
    assert student.compress == [
        {
            "prune": {
                "ratio": 0.25,
                "of": "channels",
                "importance": "l2",
                "scope": "layer",
                "round_to": 1,
                "pattern": "channels",
            }
        }
    ]


def test_an_option_without_a_value_has_the_operators_prior_and_in_a_grid_its_default(data: ImageData) -> None:
    searched = check(spec(pruned("prune")), data).students[0].settings
    assert searched["compress[0].prune.ratio"] == Uniform(0.2, 0.8)
    assert searched["compress[0].prune.importance"] == "l2"
    grid = check(spec(pruned("prune"), search={"algorithm": "grid", "max_epochs": 1}), data).students[0].settings
    assert grid["compress[0].prune.ratio"] == 0.5


def test_priors_of_operators_are_drawn_and_listed(data: ImageData) -> None:
    choice = {"choice": [0.25, 0.5, 0.75]}
    grid = plan_of(data, pruned({"prune": {"ratio": choice}}), search={"algorithm": "grid", "max_epochs": 1})
    assert {trial.student.compress[0]["prune"]["ratio"] for trial in grid.trials} == {0.25, 0.5, 0.75}
    drawn = plan_of(data, pruned({"prune": {"ratio": choice}}), search={"trials_per_method": 9, "max_epochs": 1})
    assert {trial.student.compress[0]["prune"]["ratio"] for trial in drawn.trials} == {0.25, 0.5, 0.75}
    stored = check(spec(pruned({"prune": {"ratio": choice}})), data).students[0]
    assert stored.settings["compress[0].prune.ratio"] == Choice((0.25, 0.5, 0.75))


def test_sizes_are_known_before_training(data: ImageData) -> None:
    plan = plan_of(
        data,
        "resnet8",
        pruned({"prune": {"ratio": 0.5}}),
        {"name": "sparse", "model": "resnet8", "compress": [{"prune": {"ratio": 0.75, "pattern": "unstructured"}}]},
    )
    whole, small, sparse = (planned.size for planned in plan.students)
    # Half of the channels on both sides of a convolution: about a quarter of its weights and of its work.
    assert 0.2 < small.parameters / whole.parameters < 0.3
    assert 0.2 < small.macs / whole.macs < 0.3
    assert (sparse.parameters, sparse.macs) == (whole.parameters, whole.macs)
    # A bit for each weight and a quarter of the values: 1/32 + 1/4 of the bytes, and what is not pruned.
    assert 0.28 < sparse.size_bytes / whole.size_bytes < 0.35
    assert any("MACs and latency stay those of the dense network" in note for note in plan.notes)


def test_the_teacher_of_derived_students_is_needed_by_trials_that_it_does_not_teach(data: ImageData) -> None:
    plan = plan_of(data, pruned({"prune": {"ratio": 0.5}}), methods={"scratch": {}})
    assert [trial.teacher for trial in plan.trials] == [None]
    assert [trial.loaded_teachers for trial in plan.trials] == [("big",)]
    assert [(teacher.trials, teacher.derived, teacher.is_needed) for teacher in plan.teachers] == [(0, 1, True)]
    assert plan.cost.teacher_training > 0
    assert not any("no trial needs teacher" in note for note in plan.notes)


@pytest.mark.parametrize(
    ("student", "sentence"),
    [
        (pruned({"prun": {}}), r"students\[0\]\.compress\[0\] names no operator 'prun'; did you mean 'prune'"),
        (
            pruned({"prune": {"rate": 0.5}}),
            r"students\[0\]\.compress\[0\]\.prune\.rate is not an option of prune; did you mean",
        ),
        (pruned({"prune": {"ratio": 1.5}}), r"students\[0\]\.compress\[0\]\.prune\.ratio must be < 1, got 1\.5"),
        (pruned({"prune": {"ratio": "half"}}), r"students\[0\]\.compress\[0\]\.prune\.ratio must be a number"),
        (
            pruned({"prune": {"ratio": {"uniform": [0.5, 1.5]}}}),
            r"students\[0\]\.compress\[0\]\.prune\.ratio must be < 1, got 1\.5 in \{uniform",
        ),
        (
            pruned({"prune": {"ratio": 0.99}}),
            r"students\[0\]\.compress\[0\]\.prune\.ratio leaves no channel of .*; lower ratio",
        ),
        (
            pruned({"prune": {"ratio": 0.5, "pattern": "2:4", "of": "macs"}}),
            r"students\[0\]\.compress\[0\]\.prune of has no meaning with pattern 2:4",
        ),
        (
            {"name": "shuffled", "model": "shufflenet_v1", "compress": [{"prune": {"ratio": 0.5}}]},
            r"students\[0\]\.compress\[0\]\.prune cannot follow the channels of this network",
        ),
        (
            pruned({"quantize": {"weight_bits": 1}}),
            r"students\[0\]\.compress\[0\]\.quantize\.weight_bits must be one of 2, 3, 4, 5, 6, 7, 8, 32, got 1",
        ),
        (
            pruned({"quantize": {}}, {"prune": {"ratio": 0.5}}),
            r"students\[0\]\.compress\[1\]\.prune must come before quantize: it changes the layers, quantize the",
        ),
        (
            {"name": "flat", "model": "mlp", "compress": [{"compact": {}}]},
            r"students\[0\]\.compress\[0\]\.compact needs a convolution, and this network has none",
        ),
        (pruned(width=2), r"students\[0\]\.width must not be given with from: big"),
        (pruned(model="resnet8"), r"students\[0\]\.model must not be given with from: big"),
        ({"from": "big"}, r"students\[0\]\.name must be given to a student with from"),
        ({"name": "x", "from": "bug"}, r"students\[0\]\.from must name a teacher of the spec, got 'bug'; did you mean 'big'"),
    ],
    ids=lambda value: value[:40] if isinstance(value, str) else "",
)
def test_a_wrong_entry_is_one_sentence(student: dict[str, Any], sentence: str, data: ImageData) -> None:
    found = problems(spec(student, "mlp"), data)
    assert len(found) == 1, found
    assert re.match(sentence, found[0]), found[0]


def test_all_problems_are_reported_at_once(data: ImageData) -> None:
    found = problems(
        spec(pruned({"prune": {"ratio": 2.0}}), {"name": "other", "model": "mlp", "compress": [{"prune": {"rate": 1}}]}), data
    )
    assert len(found) == 2


def test_an_order_that_cannot_work_is_refused(half: Path, data: ImageData) -> None:
    (found,) = problems(spec(pruned("half:Half", {"prune": {"ratio": 0.5}})), data)
    assert found.endswith(
        "students[0].compress[1].prune must come before half:Half: it changes the layers, half:Half the precision; swap them"
    )


def test_a_teacher_with_pixels_of_its_own_gives_no_student_its_weights(tmp_path: Path, data: ImageData) -> None:
    torch.manual_seed(0)
    save_model(build_model("resnet8", num_classes=10, input_shape=(1, 8, 8)), str(tmp_path / "big.safetensors"))
    teachers = {"big": {"model": "resnet8", "weights": str(tmp_path / "big.safetensors"), "normalization": "0..255"}}
    (found,) = problems(spec(pruned({"prune": {"ratio": 0.5}}), "mlp", teachers=teachers), data)
    assert "students[0].from must name a teacher that sees pixels as the students do, got 'big'" in found


def test_a_teacher_of_other_classes_is_reported_once_where_it_is(tmp_path: Path, data: ImageData) -> None:
    save_model(build_model("resnet8", num_classes=7, input_shape=(1, 8, 8)), str(tmp_path / "big.safetensors"))
    teachers = {"big": {"model": "resnet8", "weights": str(tmp_path / "big.safetensors")}}
    found = problems(spec(pruned({"prune": {"ratio": 0.5}}), "mlp", teachers=teachers), data)
    assert len(found) == 1
    assert found[0].startswith("teachers.big.weights cannot be used: 'fc.")


def test_a_student_without_operators_keeps_its_key(data: ImageData) -> None:
    alone = {trial.key for trial in plan_of(data, "resnet8").trials}
    beside = plan_of(data, "resnet8", pruned({"prune": {"ratio": 0.5}})).trials
    assert alone == {trial.key for trial in beside if trial.student.name == "resnet8"}
    assert len({trial.key for trial in beside}) == len(beside) == 4


def test_operators_their_options_and_the_teacher_decide_the_key(data: ImageData) -> None:
    def keys(*operators: Any, epochs: int = 1, **fields: Any) -> set[str]:
        teachers = {"big": {"model": "resnet8", "train": {"epochs": epochs}}}
        plan = plan_of(data, pruned(*operators, **fields), teachers=teachers, methods={"scratch": {}})
        return {trial.key for trial in plan.trials}

    half_pruned = keys({"prune": {"ratio": 0.5}})
    assert keys({"prune": {"ratio": 0.5, "importance": "l2"}}, name="other") == half_pruned, "the default, spelled out"
    for other in (
        keys({"prune": {"ratio": 0.25}}),
        keys(),
        keys({"prune": {"ratio": 0.5}}, epochs=2),
    ):
        assert not other & half_pruned


def test_the_text_of_a_user_defined_operator_decides_the_key(half: Path, data: ImageData) -> None:
    def keys() -> set[str]:
        compress.find.cache_clear()
        sys.modules.pop("half", None)
        importlib.invalidate_caches()
        student = {"name": "half", "model": "mlp", "compress": ["half:Half"]}
        return {trial.key for trial in plan_of(data, student, methods={"scratch": {}}).trials}

    first = keys()
    assert keys() == first
    half.write_text(half.read_text().replace("weight.copy_(weight.half())", "weight.copy_(weight.half() * 1)"))
    assert not keys() & first


def test_the_label_of_a_student_is_no_part_of_its_network() -> None:
    plain = StudentChoice(name="a", model="mlp")
    assert plain.variant == '["a","mlp",{}]', "as in the first release"
    assert StudentChoice(name="a", model="mlp", derived_from="big").variant != plain.variant
