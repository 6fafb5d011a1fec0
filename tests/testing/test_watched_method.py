"""The wrappers train the same student as the method inside."""

import pytest
import torch

from stillhouse import methods
from stillhouse.distill.method import Method
from stillhouse.testing import MethodTrial
from stillhouse.testing.watched_method import UnlabelledMethod, WatchedMethod


@pytest.mark.parametrize("name", ["scratch", "fitnets", "mutual_learning"])
def test_a_watched_method_trains_the_same_student(name: str) -> None:
    assert_same_student(methods.find(name)(), WatchedMethod(inner=methods.find(name)()))


@pytest.mark.parametrize("name", ["scratch", "fsp"])
def test_an_unlabelled_method_trains_the_same_student(name: str) -> None:
    assert_same_student(methods.find(name)(), UnlabelledMethod(inner=methods.find(name)()))


def assert_same_student(plain: Method, wrapped: Method) -> None:
    trainers = [MethodTrial(method, epochs=2).trainer() for method in (plain, wrapped)]
    for trainer in trainers:
        trainer.fit()
    one, other = (trainer.student.state_dict() for trainer in trainers)
    assert one.keys() == other.keys()
    assert all(torch.equal(one[key], other[key]) for key in one)
