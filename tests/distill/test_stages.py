import pytest

from stillhouse.distill.method import MethodError
from stillhouse.distill.stages import epochs_of_first_stage, generations


@pytest.mark.parametrize(
    ("epochs", "share", "first"), [(10, 0.3, 3), (12, 0.25, 3), (10, 0.01, 1), (2, 0.99, 1), (240, 0.5, 120)]
)
def test_the_first_of_two_stages_takes_its_share_and_leaves_an_epoch(epochs: int, share: float, first: int) -> None:
    assert epochs_of_first_stage(epochs, share) == first


def test_two_stages_need_two_epochs() -> None:
    with pytest.raises(MethodError, match="needs an epoch for each of its 2 stages, has 1"):
        epochs_of_first_stage(1, 0.5)


def test_the_last_generation_takes_what_is_left_over_and_is_compared_alone() -> None:
    stages = generations(8, 3)
    assert [stage.epochs for stage in stages] == [2, 2, 4]
    assert [stage.comparable for stage in stages] == [False, False, True]
    assert [stage.name for stage in stages] == ["generation_1", "generation_2", "generation_3"]


def test_only_the_first_generation_reads_the_teachers_knowledge() -> None:
    assert [stage.knowledge for stage in generations(3, 3)] == [None, (), ()]


def test_each_generation_needs_an_epoch() -> None:
    with pytest.raises(MethodError, match="each of its 3 generations, has 2"):
        generations(2, 3)
