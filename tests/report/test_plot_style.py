"""Colours, fills and shapes of methods and students."""

from collections.abc import Callable

from stillhouse.report.plot_style import PlotStyle
from stillhouse.spec.records import SweepFacts, TrialRecord

Make = Callable[..., TrialRecord]
Facts = Callable[..., SweepFacts]


def test_each_of_many_methods_looks_different_from_every_other(facts: Facts, record: Make) -> None:
    records = [record(f"m{number:02d}") for number in range(40)] + [record("control")]
    style = PlotStyle.of(facts(), records)
    assert len({(style.colours[name], style.fills[name]) for name in style.colours}) == 41
    assert len({(style.colours[name], style.symbol(name, "lenet")) for name in style.colours}) == 41
    assert len({(style.colours[name], style.dash(name)) for name in style.colours}) == 41


def test_colours_of_many_methods_never_fade_into_a_white_page(facts: Facts, record: Make) -> None:
    style = PlotStyle.of(facts(), [record(f"m{number:02d}") for number in range(40)])
    for colour in style.colours.values():
        assert min(int(colour[start : start + 2], 16) for start in (1, 3, 5)) < 190
