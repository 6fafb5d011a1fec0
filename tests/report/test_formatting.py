"""How the report writes numbers."""

import math

import pytest

from stillhouse.report import formatting as write
from stillhouse.spec.metric import ACCURACY, Metric

ERROR = Metric(name="mean_absolute_error", direction="min", label="mean absolute error")


def test_values_of_a_metric_are_percentages_only_where_they_are_fractions() -> None:
    assert (write.score(0.9123, ACCURACY), write.score(0.9123, ACCURACY, exact=True)) == ("91.2%", "91.23%")
    assert write.score(3.2149, ERROR) == "3.21"
    assert write.difference(0.01234, ACCURACY, signed=True) + write.unit(ACCURACY) == "+1.2 points"
    assert write.difference(-0.5, ERROR, signed=True) + write.unit(ERROR) == "-0.50"


def test_a_difference_that_rounds_to_zero_has_no_minus() -> None:
    assert write.points(-0.0001) == "0.0"
    assert write.difference(-0.00001, ERROR) == "0.00"


def test_a_small_difference_of_a_metric_with_a_unit_is_not_shown_as_zero() -> None:
    assert write.difference(0.0042, ERROR, signed=True) == "+0.0042"
    assert write.score(0.003, ERROR) == "0.003"


@pytest.mark.parametrize("value", [None, math.nan, math.inf])
def test_what_is_not_known_is_written_as_missing(value: float | None) -> None:
    numbers = (
        write.percent,
        write.points,
        write.whole,
        write.short,
        write.size,
        write.milliseconds,
        write.duration,
        write.ratio,
    )
    assert {number(value) for number in numbers} == {write.MISSING}
    assert {write.score(value, metric) for metric in (ACCURACY, ERROR)} == {write.MISSING}
    assert {write.difference(value, metric) for metric in (ACCURACY, ERROR)} == {write.MISSING}


@pytest.mark.parametrize(
    ("value", "text"),
    [(0, "0"), (999, "999"), (999.6, "1k"), (12_345, "12.3k"), (1_999_999, "2M"), (3e9, "3G"), (-4200, "-4.2k")],
)
def test_short_numbers_have_three_digits_and_a_letter(value: float, text: str) -> None:
    assert write.short(value) == text


@pytest.mark.parametrize(("value", "text"), [(0, "0 B"), (999, "999 B"), (12_345, "12.3 kB"), (2.5e9, "2.5 GB")])
def test_sizes_are_in_decimal_units(value: float, text: str) -> None:
    assert write.size(value) == text


@pytest.mark.parametrize(
    ("seconds", "text"), [(0.1234, "0.123 s"), (59, "59 s"), (60, "1 min 0 s"), (3599, "59 min 59 s"), (3700, "1 h 1 min")]
)
def test_durations_are_in_the_units_that_people_read(seconds: float, text: str) -> None:
    assert write.duration(seconds) == text


def test_a_time_is_shortened_and_anything_else_stays() -> None:
    assert write.moment("2026-01-05T10:00:31+00:00") == "2026-01-05 10:00 UTC"
    assert write.moment("yesterday") == "yesterday"


@pytest.mark.parametrize(
    ("compression", "words"),
    [
        (8.0, f"8{write.TIMES} fewer parameters"),
        (0.5, f"2{write.TIMES} more parameters"),
        (1.02, "about as many parameters"),
        (123.4, f"123{write.TIMES} fewer parameters"),
    ],
)
def test_a_student_is_never_a_fraction_of_times_smaller(compression: float, words: str) -> None:
    assert write.against_parameters(compression) == words


def test_values_of_hyperparameters() -> None:
    assert [write.value_text(value) for value in (None, 0.123456, 3, True, "code")] == ["none", "0.1235", "3", "True", "code"]


@pytest.mark.parametrize(
    ("number", "noun", "text"), [(1, "trial", "1 trial"), (2, "study", "2 studies"), (1200, "day", "1,200 days")]
)
def test_nouns_are_counted(number: int, noun: str, text: str) -> None:
    assert write.counted(number, noun) == text


@pytest.mark.parametrize(
    ("words", "text"),
    [
        ([], ""),
        (["a"], "a"),
        (["a", "b"], "a and b"),
        (["a", "b", "c"], "a, b and c"),
        (list("abcdef"), "a, b, c, d and 2 more"),
    ],
)
def test_words_are_listed(words: list[str], text: str) -> None:
    assert (write.listed(words) if words else "") == text


def test_ticks_of_an_axis_have_the_format_of_the_metric() -> None:
    assert (write.tick_format(ACCURACY), write.tick_format(ACCURACY, exact=True)) == (".1%", ".2%")
    assert (write.tick_format(ERROR), write.tick_format(ERROR, exact=True, signed=True)) == ("~g", "+.2f")
