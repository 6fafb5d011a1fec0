"""Knowledge in float16: a value beyond its range is refused, never sealed as infinity."""

from pathlib import Path

import numpy as np
import pytest

from stillhouse.errors import UsageError
from stillhouse.knowledge.layout import Layout
from stillhouse.knowledge.number_format import check_range, in_format
from stillhouse.knowledge.writer import ViewWriter

# IEEE 754 binary16: the largest number is (2 - 2^-10) 2^15 = 65504; from 65520 on, half a step further, infinity is nearer.
LARGEST, FIRST_INFINITE = 65504.0, 65520.0


@pytest.mark.parametrize("sign", [1, -1])
def test_the_range_of_float16_ends_where_the_standard_says(sign: int) -> None:
    assert in_format(np.array([sign * LARGEST]), "float16", "logits").tolist() == [sign * LARGEST]
    with pytest.raises(UsageError, match=r"logits, whose values reach 6.55e\+04; float16 ends at 65504, set knowledge.dtype"):
        in_format(np.array([0.0, sign * FIRST_INFINITE]), "float16", "logits")
    assert in_format(np.array([sign * FIRST_INFINITE]), "float32", "logits").dtype == np.float32


def test_a_range_is_checked_before_anything_is_stored() -> None:
    check_range(LARGEST, "float16", "logits")
    check_range(1e30, "float32", "logits")
    with pytest.raises(UsageError, match="float16 ends at 65504"):
        check_range(1e30, "float16", "logits")


def test_a_view_never_takes_a_number_that_its_format_cannot_hold(tmp_path: Path) -> None:
    layout = Layout.make(identity={"view": 0}, rows=2, shape=(1,), dtype="float16", order=None)
    with ViewWriter(tmp_path / "view", layout, counted=lambda _token: True) as writer:
        with pytest.raises(UsageError, match="float16"):
            writer.put(np.arange(2), np.array([[1.0], [1e5]], dtype=np.float32))
        writer.put(np.arange(2), np.array([[1.0], [2.0]], dtype=np.float32))
        writer.commit()
        writer.seal()
