"""What the page says in words: the answer, how sure it is, what the teacher cost."""

from collections.abc import Sequence

import numpy as np

from stillhouse.report.answer_cards import budget_words, of_sweep, verdict, verdict_state
from stillhouse.report.answers import Answer
from stillhouse.report.configurations import Configuration
from stillhouse.report.estimates import Estimate, mean_with_interval
from stillhouse.report.formatting import (
    counted,
    duration,
    listed,
    percent,
    points,
    ratio,
)
from stillhouse.report.gains import Gain
from stillhouse.report.teacher_costs import TeacherCost
from stillhouse.spec.records import SweepFacts, TrialRecord


def lead(facts: SweepFacts, records: Sequence[TrialRecord], found: Sequence[Answer], gained: Sequence[Gain]) -> list[str]:
    """The first sentences of the page: the first answer, its certainty, what the teacher added overall."""
    answered = [answer for answer in found if answer.best is not None]
    if not records:
        return [f"No trial has ended yet, of {counted(facts.planned, 'trial')} planned: there is nothing to report."]
    if not answered:
        failed = sum(record.status == "failed" for record in records)
        if failed == len(records):
            return [f"All {counted(failed, 'trial')} failed, so there is no answer; the reasons are below."]
        if found:
            return [f"No finished student fits {listed([budget_words(each.budget) for each in found if each.budget])}."]
        return [f"Of {counted(len(records), 'trial')} none finished with a test accuracy, so there is no answer yet."]
    first = answered[0]
    return [_best_sentence(first), _certainty(first), _added(facts, gained)]


def compared_lead(
    names: Sequence[str], found: Sequence[Answer], apart: Sequence[str], budgets: Sequence[tuple[str, int]]
) -> list[str]:
    """The first sentences of a comparison.

    Args:
        found: answers over all sweeps; empty where their data differ.
        apart: what keeps the sweeps from being compared, as sentences.
        budgets: trials of each sweep by its name.
    """
    if apart:
        return [*apart, "So no winner is named over them; each sweep has its own answers below."]
    answered = [answer for answer in found if answer.best is not None]
    if not answered:
        if asked := [budget_words(each.budget) for each in found if each.budget]:
            return [f"In none of {listed(list(names))} does a finished student fit {listed(asked)}."]
        return [f"No trial of {listed(list(names))} finished with a test accuracy, so there is no answer."]
    tried = listed([f"{name} {counted(count, 'trial')}" for name, count in budgets])
    fair = "" if len({count for _, count in budgets}) == 1 else ": the sweep with more has more luck to choose from"
    return [_best_sentence(answered[0]), _certainty(answered[0]), f"What the sweeps tried: {tried}{fair}."]


def _best_sentence(answer: Answer) -> str:
    best = answer.best
    if best is None:
        return ""
    where = f"With at most {budget_words(answer.budget)}" if answer.budget else "Of all sizes"
    # Only a winner that its rivals do not reach is called the best.
    name = "the best student is" if verdict_state(answer) == "clear" else "validation data choose"
    taught = f"{where} {name} {best.choice} taught with {best.method}{of_sweep(best)}"
    return f"{taught}: {_accuracy(best.test)} on test data{_against(answer)}."


def _against(answer: Answer) -> str:
    drop, teacher = answer.drop, answer.teacher
    if drop is None or teacher is None:
        return ""
    side = "below" if drop.mean >= 0 else "above"
    spread = "" if drop.half_width is None else f" ± {points(drop.half_width)}"
    text = f", {points(abs(drop.mean))}{spread} points {side} its teacher {teacher.name} ({percent(teacher.test_accuracy)})"
    if answer.compression is not None:
        many = "fewer" if answer.compression >= 1 else "as many"
        text += f", with {ratio(answer.compression)} {many} parameters"
    return text


def _accuracy(estimate: Estimate) -> str:
    if estimate.half_width is None:
        return f"{percent(estimate.mean)} (one seed, so no interval)"
    return f"{percent(estimate.mean)} (95% interval {percent(estimate.low)} to {percent(estimate.high)}, n = {estimate.n})"


def _certainty(answer: Answer) -> str:
    said = verdict(answer)
    return said if verdict_state(answer) == "clear" else f"No winner is named: {said[0].lower()}{said[1:]}"


def _added(facts: SweepFacts, gained: Sequence[Gain]) -> str:
    differences = [gain.difference.mean for gain in gained if gain.difference is not None]
    if not differences:
        return f"What the teacher added can not be said: no student finished both with {facts.baseline} and with a method."
    sure = [gain for gain in gained if gain.difference is not None and gain.difference.sign()]
    better = sum(gain.difference is not None and gain.difference.mean > 0 for gain in sure)
    unknown = sum(gain.difference is not None and gain.difference.half_width is None for gain in gained)
    text = (
        f"Against {facts.baseline} on the same student, methods changed test accuracy by "
        f"{points(min(differences), signed=True)} to {points(max(differences), signed=True)} points"
    )
    if unknown == len(differences):
        return f"{text}; with one seed each, none of these gains has an interval."
    pairs = "pair" if len(differences) == 1 else "pairs"
    worse = len(sure) - better
    text += f"; the 95% interval of the gain lies above zero for {better} of {len(differences)} {pairs} of method and student"
    return f"{text}{f', below zero for {worse}' if worse else ''}."


def trust(facts: SweepFacts, found: Sequence[Configuration], gained: Sequence[Gain]) -> list[str]:
    """Selection, intervals and their limits."""
    sentences = [
        "Everything is chosen on validation data and reported on test data; a trial reads the test split once, when it ends.",
        "The best of many validation accuracies is partly the luckiest, so it is higher than the same student will get again. "
        "Where a winner was run again on fresh seeds (the confirm phase) only those seeds are reported.",
    ]
    flattered = [
        each.search_validation - each.validation.mean
        for each in found
        if each.confirmed and len(each.records) > len(each.reported)
    ]
    if flattered:
        effect = mean_with_interval(flattered)
        spread = "" if effect.half_width is None else f" ± {points(effect.half_width, 2)}"
        sentences.append(
            f"Here {counted(len(flattered), 'winner')} ran again: the search saw "
            f"{points(effect.mean, 2, signed=True)}{spread} points "
            "of validation accuracy more than the fresh seeds gave. That is the selection effect of this sweep."
        )
    else:
        sentences.append(
            "No winner ran again on fresh seeds here, so each is reported on the seed it won with, which flatters it."
        )
    sentences.append(
        "An interval is Student's 95% interval over seeds: it holds the randomness of training, not that of drawing the "
        "test set, and it is not corrected for the number of comparisons. The teacher was trained once and counts as fixed. "
        "n = 1 has no interval."
    )
    unpaired = sum(gain.kind == "unpaired" and gain.difference is not None for gain in gained)
    sentences.append(
        f"A gain over {facts.baseline} is paired: same student, same seed, same views of the data"
        + (f"; {counted(unpaired, 'gain')} could not be paired and compare means." if unpaired else ".")
    )
    return sentences


def strip(facts: SweepFacts, records: Sequence[TrialRecord], costs: Sequence[TeacherCost]) -> list[tuple[str, str]]:
    """A few numbers under the answer: trials by status, time, what sharing saved."""
    by_status = {name: sum(record.status == name for record in records) for name in ("finished", "stopped", "failed")}
    numbers = [(f"{facts.planned:,}", "trials planned")]
    if again := sum(record.trial.phase == "confirm" for record in records):
        numbers.append((f"{again:,}", "on fresh seeds"))
    numbers.append((f"{by_status['finished']:,}", "finished"))
    if by_status["stopped"]:
        numbers.append((f"{by_status['stopped']:,}", "stopped early"))
    if by_status["failed"]:
        numbers.append((f"{by_status['failed']:,}", "failed"))
    seconds = [record.metrics.get("train_seconds", 0.0) for record in records]
    numbers.append((duration(float(np.nansum(seconds))), "of student training"))
    saved = sum(cost.saved_seconds or 0.0 for cost in costs)
    if saved > 0:
        numbers.append((duration(saved), "of teacher time saved by sharing"))
    if facts.seconds:
        numbers.append((duration(facts.seconds), "wall clock"))
    return numbers
