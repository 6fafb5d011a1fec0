"""What a sealed view and a trained teacher are addressed by: whatever decides their content, and no more."""

import dataclasses
import importlib
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from stillhouse.data import views as views_module
from stillhouse.data.datasets import ImageData
from stillhouse.data.views import Views
from stillhouse.device import Float32Precision
from stillhouse.knowledge import Knowledge, feature, input_gradient, logits
from stillhouse.knowledge.store import KnowledgeStore
from stillhouse.teachers.definition import TeacherDefinition, base_identity, view_identity

OWN_MODEL = """
from torch import nn

SLOPE = 0.1


class Own(nn.Sequential):
    pass


def large(*, num_classes, input_shape):
    return Own(nn.Flatten(), nn.Linear(64, num_classes), nn.LeakyReLU(SLOPE))


def another():
    return 1
"""


@pytest.fixture
def key_of(digits: ImageData, views: Views, make_definition: Callable[..., TeacherDefinition]) -> Callable[..., str]:
    """The key of a view of the digits' teacher, with changes."""

    def key(
        *,
        weights_hash: str = "w",
        definition: dict[str, Any] | None = None,
        data: dict[str, Any] | None = None,
        policy: tuple[Any, ...] | None = None,
        view_seed: int = 0,
        view_count: int = 3,
        dtype: str = "float32",
        precision: Float32Precision = "ieee",
        kind: Knowledge | None = None,
        view: int = 0,
    ) -> str:
        shown = (view_count, views.input_shape, views.num_samples, view_seed)
        base = base_identity(
            weights_hash=weights_hash,
            definition=make_definition(**definition or {}),
            data=dataclasses.replace(digits, **data or {}),
            views=Views(views.policy if policy is None else policy, *shown),
            dtype=dtype,
            precision=precision,
        )
        return KnowledgeStore.key(view_identity(base, kind or logits(), view))

    return key


@pytest.mark.parametrize(
    "change",
    [
        {"weights_hash": "x"},
        {"definition": {"model": "mlp"}},
        {"definition": {"options": {"width": 0.5}}},
        {"definition": {"num_classes": 11}},
        {"data": {"mean": (0.25,)}},
        {"data": {"std": (0.25,)}},
        {"data": {"fingerprint": "other"}},
        {"policy": ()},
        {"policy": ({"crop": {"padding": 3}},)},
        {"view_seed": 1},
        {"dtype": "float16"},
        {"precision": "tf32"},
        {"kind": feature("relu1")},
        {"kind": input_gradient()},
        {"view": 1},
    ],
    ids=str,
)
def test_whatever_decides_what_a_view_holds_decides_its_key(key_of: Callable[..., str], change: dict[str, Any]) -> None:
    assert key_of(**change) != key_of()


def test_another_version_of_the_code_that_makes_views_gives_other_keys(
    key_of: Callable[..., str], monkeypatch: pytest.MonkeyPatch
) -> None:
    before = key_of()
    monkeypatch.setattr(views_module, "POLICY_VERSION", views_module.POLICY_VERSION + 1)
    assert key_of() != before


@pytest.mark.parametrize(
    "change", [{"definition": {"name": "other"}}, {"definition": {"epochs": 9, "seed": 3}}, {"view_count": 8}], ids=str
)
def test_what_decides_nothing_of_it_does_not(key_of: Callable[..., str], change: dict[str, Any]) -> None:
    """Not how the weights came about, for one."""
    assert key_of(**change) == key_of()


@pytest.mark.parametrize(
    ("old", "new", "same"),
    [
        ("nn.LeakyReLU(SLOPE)", "nn.ReLU()", False),
        ("SLOPE = 0.1", "SLOPE = 0.2", False),
        ("    pass", "    def forward(self, images):\n        return -super().forward(images)", False),
        ("return 1", "return 2", True),
    ],
)
def test_an_edited_model_of_the_users_own_is_another_teacher_though_its_weights_fit(
    key_of: Callable[..., str],
    make_definition: Callable[..., TeacherDefinition],
    digits: ImageData,
    views: Views,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    old: str,
    new: str,
    same: bool,
) -> None:
    monkeypatch.syspath_prepend(str(tmp_path))
    keys = []
    for number, text in enumerate((OWN_MODEL, OWN_MODEL.replace(old, new))):
        # In the same module, as it is after an edit; the files' names keep the sources apart.
        (tmp_path / "own_model.py").write_text(f"# {number}{' ' * number}\n{text}")
        monkeypatch.delitem(sys.modules, "own_model", raising=False)
        importlib.invalidate_caches()
        definition = {"model": "own_model:large"}
        keys.append((key_of(definition=definition), make_definition(**definition).key(digits, views)))
    assert [one == other for one, other in zip(*keys, strict=True)] == [same, same]
