"""The gains of a sweep over its controls as plain data, for documents and tracking."""

from collections.abc import Sequence
from typing import Any

from stillhouse.report.answers import answers
from stillhouse.report.fronts import sweep_configurations, sweep_winners
from stillhouse.report.gains import Gain, gains, untrained_controls, untrained_gains
from stillhouse.spec.records import SweepFacts, TrialRecord
from stillhouse.spec.schema import RANDOM_TEACHER


def gains_to_json(facts: SweepFacts, records: Sequence[TrialRecord]) -> list[dict[str, Any]]:
    """The gain of every method over each control, as on the page: one entry for each method and column of students."""
    best = sweep_winners(facts, records)
    untrained = untrained_controls(best, sweep_configurations(facts, records, controls=True))
    by_control = {facts.baseline: gains(best, facts.baseline), RANDOM_TEACHER: untrained_gains(best, untrained)}
    return [_gain_to_json(control, gain) for control, found in by_control.items() for gain in found]


def gains_of_best(facts: SweepFacts, records: Sequence[TrialRecord]) -> dict[str, float]:
    """`gain_over_...` of the student that validation data choose of all sizes, as far as its controls have results."""
    best = sweep_winners(facts, records)
    untrained = untrained_controls(best, sweep_configurations(facts, records, controls=True))
    answer = next((each for each in answers(facts, best, (), untrained) if each.question == "best"), None)
    if answer is None:
        return {}
    found = {facts.baseline: answer.gain, RANDOM_TEACHER: answer.untrained_gain}
    return {f"gain_over_{control}": gain.mean for control, gain in found.items() if gain is not None}


def _gain_to_json(control: str, gain: Gain) -> dict[str, Any]:
    known = gain.difference
    return {
        "control": control,
        "method": gain.method,
        "student": gain.column,
        "gain": None if known is None else known.mean,
        "interval": None if known is None or known.half_width is None else [known.low, known.high],
        "over": gain.over,
        "n": None if known is None else known.n,
        "kind": gain.kind,
    }
