"""Numbers beside the metric as people read them."""

import pytest
from pydantic import ValidationError

from stillhouse.spec.measure import Measure


def test_a_fraction_is_shown_as_a_percentage_and_its_difference_in_points() -> None:
    measure = Measure(name="ece", label="Calibration error", description="", percent=True, digits=1)
    assert (measure.format(0.0423), measure.format_difference(-0.0051)) == ("4.2 %", "-0.5")


def test_another_number_keeps_its_unit() -> None:
    measure = Measure(name="nll", label="Likelihood", description="")
    assert (measure.format(0.21349), measure.format_difference(0.02)) == ("0.213", "+0.020")


def test_a_direction_is_max_min_or_none() -> None:
    with pytest.raises(ValidationError):
        Measure.model_validate({"name": "a", "label": "a", "description": "", "direction": "up"})
