"""Recipes: what decides a result and what is at its default."""

from typing import Any

import pytest
from pydantic import ValidationError

from stillhouse.spec.training import Training


@pytest.mark.parametrize(("optimizer", "rate"), [("sgd", 0.05), ("adam", 0.001), ("adamw", 0.001)])
def test_the_learning_rate_without_a_value_is_that_of_the_optimiser(optimizer: Any, rate: float) -> None:
    assert Training(optimizer=optimizer).peak_learning_rate == rate
    assert Training(optimizer=optimizer, learning_rate=0.3).peak_learning_rate == 0.3


def test_equal_recipes_have_equal_identities_and_others_have_not() -> None:
    assert Training(batch_size=128).identity() == Training().identity()
    for changed in ({"batch_size": 64}, {"learning_rate": 0.05}, {"micro_batch": 16}, {"compile": True}):
        assert Training(**changed).identity() != Training().identity()


def test_an_identity_without_micro_batches_is_that_of_versions_that_had_none() -> None:
    assert not {"micro_batch", "sync_batchnorm", "mixed_passes"} & Training().identity().keys()
    assert "mixed_passes" not in Training(mixed_passes="all").identity(), "without mixed precision it changes nothing"
    assert "mixed_passes" not in Training(mixed_precision="bfloat16").identity(), "as the first release did"
    assert Training(mixed_precision="bfloat16", mixed_passes="all").identity()["mixed_passes"] == "all"
    assert Training(sync_batchnorm=True).identity()["sync_batchnorm"] is True
    assert Training(micro_batch="auto").identity()["micro_batch"] == "auto"


@pytest.mark.parametrize(
    "wrong",
    [
        *[{"batch_size": 0}, {"learning_rate": 0}, {"momentum": 1}, {"milestones": [1.0]}, {"gamma": 0}, {"micro_batch": 0}],
        *[{"schedule": "linear"}, {"mixed_precision": "half"}, {"weight_decay": -1}, {"rate": 1}],
    ],
)
def test_wrong_recipes_are_refused(wrong: dict[str, Any]) -> None:
    with pytest.raises(ValidationError):
        Training(**wrong)
