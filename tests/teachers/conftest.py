"""A few digits and a small teacher that is trained once."""

import dataclasses
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from stillhouse.data.datasets import ImageData, load_dataset
from stillhouse.data.views import Views
from stillhouse.spec.training import Training
from stillhouse.teachers.definition import TeacherDefinition
from stillhouse.teachers.library import LoadedTeacher, TeacherLibrary

MakeDefinition = Callable[..., TeacherDefinition]


@pytest.fixture(scope="session")
def digits() -> ImageData:
    """160 images to train on, 40 to validate."""
    return load_dataset("digits", options={"limit": 200}, validation=40)


@pytest.fixture(scope="session")
def views(digits: ImageData) -> Views:
    return Views(("crop",), 3, digits.input_shape, len(digits.train))


@pytest.fixture(scope="session")
def make_definition(digits: ImageData) -> MakeDefinition:
    base = TeacherDefinition(
        name="big",
        model="lenet",
        training=Training(batch_size=64),
        epochs=3,
        num_classes=digits.num_classes,
        input_shape=digits.input_shape,
    )

    def make(**changes: Any) -> TeacherDefinition:
        return dataclasses.replace(base, **changes)

    return make


@pytest.fixture(scope="session")
def trained(
    tmp_path_factory: pytest.TempPathFactory, make_definition: MakeDefinition, digits: ImageData, views: Views
) -> tuple[Path, LoadedTeacher]:
    """A library's folder and the teacher in it; not to be written to."""
    root = tmp_path_factory.mktemp("library")
    return root, TeacherLibrary(root).obtain(make_definition(), digits, views)
