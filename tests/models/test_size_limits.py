"""Limits that no student may exceed."""

from stillhouse.models.size import ModelSize
from stillhouse.models.size_limits import known_sizes, over_limit

SIZE = ModelSize(parameters=1200, trainable_parameters=1200, size_bytes=5000, macs=90_000)


def test_a_student_at_its_limit_keeps_it() -> None:
    assert over_limit({"parameters": 1200}, known_sizes(SIZE)) is None


def test_the_exceeded_limit_is_named_with_both_numbers() -> None:
    found = over_limit({"parameters": 2000, "macs": 80_000}, known_sizes(SIZE))
    assert found == "macs = 90,000 is over the limit of 80,000"


def test_a_limit_on_an_unknown_size_excludes_nothing() -> None:
    assert over_limit({"latency_ms": 0.001}, known_sizes(SIZE)) is None
