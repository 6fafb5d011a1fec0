"""The sentences of the page: the answer, how sure it is, what the teacher added, how far to trust the numbers."""

from collections.abc import Sequence

import numpy as np

from stillhouse.report.answer_cards import (
    against_teacher,
    budget_words,
    level_words,
    of_sweep,
    of_test_split,
    verdict,
    verdict_state,
)
from stillhouse.report.answers import Answer, best_student
from stillhouse.report.configurations import Configuration
from stillhouse.report.estimates import mean_with_interval
from stillhouse.report.formatting import counted, difference, duration, listed, percent, score, unit, without_interval
from stillhouse.report.gains import Gain
from stillhouse.report.report_data import ReportData
from stillhouse.spec.collapse import collapse_remedy, collapse_words, trivial_value
from stillhouse.spec.metric import Metric
from stillhouse.spec.preference import TIE_WORDS
from stillhouse.spec.records import SweepFacts
from stillhouse.spec.teacher_comparison import outdone_teachers

_SHOWN_CLASSES = 12
_UNJUDGED = (
    "The data set has no validation split (dataset.validation: 0), so nothing is chosen: there is no best student and no "
    "Pareto front. Each trial counts with its last epoch."
)
_SAMPLING_WORDS = (
    "The interval by the size of the test split is Wilson's 95% interval: what drawing other test samples would change. It "
    "does not shrink with more seeds. Two students are judged on the same samples, so their difference may be clearer than "
    "these intervals suggest."
)


def lead(data: ReportData) -> list[str]:
    """The first sentences of the page: the first answer, how sure it is, what the methods gained."""
    records, found = data.records, data.answers
    answered = [answer for answer in found if answer.best is not None]
    if not records:
        return [f"No trial has ended yet, of {counted(data.facts.planned, 'trial')} planned: there is nothing to report."]
    if not answered:
        if data.tradeoff.winners and not any(each.judged for each in data.tradeoff.winners):
            return [_UNJUDGED, *_collapsed(data), _gained(data), *_gained_over_untrained(data)]
        failed = sum(record.status == "failed" for record in records)
        if failed == len(records):
            every = "The only trial" if failed == 1 else f"All {counted(failed, 'trial')}"
            return [f"{every} failed, so there is no answer; the reasons are below."]
        if found and not data.collapsed_trials:
            return [f"No finished student fits {listed([budget_words(each.budget) for each in found if each.budget])}."]
        ended = counted(len(records), "trial")
        if data.collapsed_trials:
            return [*_collapsed(data), "So there is no answer."]
        return [f"Of {ended}, none finished with a test {data.metric.label}, so there is no answer yet."]
    answer = [_best_sentence(answered[0]), _certainty(answered[0])]
    return [*answer, *_outdone(data), *_collapsed(data), _gained(data), *_gained_over_untrained(data)]


def _collapsed(data: ReportData) -> list[str]:
    """How many students learned nothing, and what to change."""
    count, metric = len(data.collapsed_trials), data.metric
    if not count:
        return []
    finished = counted(sum(record.status == "finished" for record in data.records), "finished trial")
    whose = "its student is" if count == 1 else "their students are"
    words = collapse_words(metric, trivial_value(data.facts, "validation"))
    return [f"{count} of {finished} collapsed: {whose} {words}. {remedy_of_collapse(data.facts)}"]


def remedy_of_collapse(facts: SweepFacts) -> str:
    """What collapsed trials count for, and which settings to change."""
    remedy = collapse_remedy(facts.spec.get("training", {}))
    return f"Collapsed students are no gain, no base for one, and on no Pareto front. To avoid it: {remedy}."


def _outdone(data: ReportData) -> list[str]:
    """The teachers that are worse than the best student: what such a teacher adds is less than it could be."""
    best = best_student(data.tradeoff.winners)
    if best is None:
        return []
    metric, column = data.metric, data.metric.column("validation")
    return [
        f"The teacher {teacher.name} is worse than the best student: on validation data {score(teacher.value(column), metric)} "
        f"against {score(best.validation.mean, metric)}. Train it longer, or choose a larger one."
        for teacher in outdone_teachers(data.facts.teachers, best.validation.mean, metric)
    ]


def compared_lead(
    names: Sequence[str], metric: Metric, found: Sequence[Answer], apart: Sequence[str], budgets: Sequence[tuple[str, int]]
) -> list[str]:
    """The first sentences of a comparison.

    Args:
        found: answers over all sweeps; empty where they cannot be compared.
        apart: why the sweeps cannot be compared, as sentences.
        budgets: trials of each sweep, by its name.
    """
    if apart:
        return [*apart, "So the page names no winner over all of them; each sweep has its own answers below."]
    answered = [answer for answer in found if answer.best is not None]
    if not answered:
        if wanted := [budget_words(each.budget) for each in found if each.budget]:
            return [f"In none of {listed(list(names))} does a finished student fit {listed(wanted)}."]
        return [f"No trial of {listed(list(names))} finished with a test {metric.label}, so there is no answer."]
    tried = listed([f"{name} {counted(count, 'trial')}" for name, count in budgets])
    fair = "" if len({count for _, count in budgets}) == 1 else ". A sweep with more trials has more chances of a lucky one"
    return [_best_sentence(answered[0]), _certainty(answered[0]), f"The sweeps ran: {tried}{fair}."]


def _best_sentence(answer: Answer) -> str:
    best = answer.best
    if best is None:
        return ""
    within = f"With at most {budget_words(answer.budget)}" if answer.budget else "Of all sizes"
    name = f"{best.choice} trained with {best.method}{of_sweep(best)}"
    # Only a winner that no rival reaches is called the best.
    chosen = (
        f"{within}, the best student is {name}"
        if verdict_state(answer) == "clear"
        else f"{within if answer.budget else 'Of all students'}, {name} has the best validation {best.metric.label}"
    )
    return f"{chosen}: {_on_test_data(best)}{_against(answer)}."


def _against(answer: Answer) -> str:
    teacher = answer.teacher
    if teacher is None or not (compared := against_teacher(answer)):
        return ""
    reached = score(teacher.value(answer.metric.column("test")), answer.metric)
    whose = "its teacher" if answer.own_teacher else "the teacher"
    return f". Compared with {whose} {teacher.name} ({reached}), that is {', with '.join(compared)}"


def about_data(facts: SweepFacts) -> str:
    """How large the test split is, and what guessing would reach on it; nothing where this is not recorded."""
    if (count := facts.test_samples) is None:
        return ""
    dataset = facts.dataset
    text = f"The test split has {counted(count, 'sample')}"
    if names := dataset.get("class_names"):
        text += f" of {counted(len(names), 'class')} ({listed([str(name) for name in names], _SHOWN_CLASSES)})"
    train, validation = (f"{dataset.get(f'{split}_samples', 0):,}" for split in ("train", "validation"))
    text += f", next to {train} for training and {validation if dataset.get('validation_samples') else 'none'} for validation."
    if common := dataset.get("majority", {}).get("test"):
        text += f" Its most common class, {common['class']}, is {percent(common['share'])} of it."
    return text


def _on_test_data(best: Configuration) -> str:
    """The metric on test data with its interval, and its name where the number alone does not tell it."""
    metric, estimate = best.metric, best.test
    split = of_test_split(best)
    shown = score(estimate.mean, metric) if metric.percent else f"{metric.label} {score(estimate.mean, metric)}"
    if estimate.half_width is None:
        alone = f"{without_interval(estimate.n)}, so no interval"
        return f"{shown} on test data ({f'{alone} over seeds; {split}' if split else alone})"
    interval = f"95% interval {score(estimate.low, metric)} to {score(estimate.high, metric)}, n = {estimate.n}"
    return f"{shown} on test data ({f'{interval}; {split}' if split else interval})"


def _certainty(answer: Answer) -> str:
    sentence = f"{verdict(answer)} {level}" if (level := level_words(answer)) else verdict(answer)
    return sentence if verdict_state(answer) == "clear" else f"There is no clear winner: {sentence[0].lower()}{sentence[1:]}"


def _gained(data: ReportData) -> str:
    """What the methods gained over the baseline, overall."""
    metric, baseline = data.metric, data.facts.baseline
    differences = [gain.difference.mean for gain in data.gains if gain.difference is not None]
    if not differences:
        without = " and without a collapse" if data.collapsed_trials else ""
        return (
            f"The gain over {baseline} is not known: no student finished both with {baseline} and with another method{without}."
        )
    sure = [gain for gain in data.gains if gain.difference is not None and gain.difference.sign()]
    better = sum(gain.difference is not None and gain.difference.mean > 0 for gain in sure)
    unknown = sum(gain.difference is not None and gain.difference.half_width is None for gain in data.gains)
    low, high = (difference(value, metric, signed=True) for value in (min(differences), max(differences)))
    text = f"Compared with {baseline} on the same student, the other methods gained {low} to {high} {gain_unit(metric)}"
    if unknown == len(differences):
        alone = all(gain.difference is None or gain.difference.n == 1 for gain in data.gains)
        seeds = "one seed each" if alone else "one seed each, or equal ones"
        return f"{text}. With {seeds}, none of these gains has an interval."
    pairs = "pair" if len(differences) == 1 else "pairs"
    worse = len(sure) - better
    text += f". The 95% interval of the gain lies above zero for {better} of {len(differences)} {pairs} of method and student"
    return f"{text}{f', below zero for {worse}' if worse else ''}."


def _gained_over_untrained(data: ReportData) -> list[str]:
    """How much of the gains an untrained teacher does not give, where the sweep has that control."""
    known = [gain.difference for gain in data.untrained_gains if gain.difference is not None]
    if not known:
        return []
    low, high = (
        difference(value, data.metric, signed=True) for value in (min(e.mean for e in known), max(e.mean for e in known))
    )
    sure = sum(estimate.sign() == 1 for estimate in known)
    pairs = "pair" if len(known) == 1 else "pairs"
    return [
        f"Compared with an untrained teacher of the same architecture, they gained {low} to {high} {gain_unit(data.metric)}: "
        f"what the teacher has learnt contributes this. The 95% interval lies above zero for {sure} of {len(known)} {pairs}."
    ]


def gain_unit(metric: Metric) -> str:
    """The words after a gain: "points of test accuracy", "in test mean error (positive is better)"."""
    if metric.direction == "max":
        return f"points of test {metric.label}" if metric.percent else f"in test {metric.label}"
    return f"{'points of' if metric.percent else 'in'} test {metric.label} (positive is better)"


def trust(metric: Metric, baseline: str, found: Sequence[Configuration], gained: Sequence[Gain]) -> list[str]:
    """How students were chosen, what an interval covers, and what it does not."""
    unpaired = sum(gain.kind == "unpaired" and gain.difference is not None for gain in gained)
    return [
        *_how_chosen(metric, found),
        "The interval after ± is Student's 95% interval over seeds. It covers the randomness of training, but not that of "
        "drawing the test set, and it is not corrected for the number of comparisons. The teacher was trained once and counts "
        "as fixed. With one seed, or with seeds that give equal values, there is no such interval.",
        *([_SAMPLING_WORDS] if metric.proportion else []),
        f"A gain over {baseline} is paired: it compares the same student with the same seed and the same views of the data"
        + (f"; {counted(unpaired, 'gain')} could not be paired and compare means." if unpaired else "."),
    ]


def _how_chosen(metric: Metric, found: Sequence[Configuration]) -> list[str]:
    if found and not any(each.judged for each in found):
        return [
            f"{_UNJUDGED} A trial reads the test split once, when it ends. Where a trial was run again on fresh seeds (the "
            "confirm phase), only those seeds are reported."
        ]
    best = "highest" if metric.direction == "max" else "lowest"
    return [
        "Everything is chosen on validation data and reported on test data. A trial reads the test split once, when it ends. "
        f"Of equal results on validation data, the page takes {TIE_WORDS}.",
        f"The {best} of many validation values is partly luck: the same student, trained again, will usually be worse. "
        "Where a winner was run again on fresh seeds (the confirm phase), only those seeds are reported.",
        _selection_effect(metric, found),
        "A student is on the Pareto front if no other student is both smaller and better on validation data. At a knee of the "
        "front, a larger student begins to gain less.",
    ]


def _selection_effect(metric: Metric, found: Sequence[Configuration]) -> str:
    """By how much the search saw its winners better than fresh seeds did."""
    flattered = [
        metric.gain(each.search_validation, each.validation.mean)
        for each in found
        if each.confirmed and len(each.records) > len(each.reported)
    ]
    if not flattered:
        return (
            "Here no winner was run again on fresh seeds, so each is reported on the seed that it won with, which flatters it."
        )
    effect = mean_with_interval(flattered)
    spread = "" if effect.half_width is None else f" ± {difference(effect.half_width, metric, exact=True)}"
    return (
        f"Here {counted(len(flattered), 'winner')} ran again. On validation data the search saw them better than the fresh "
        f"seeds did, by {difference(effect.mean, metric, exact=True, signed=True)}{spread}{unit(metric)}. "
        "That is the selection effect of this sweep."
    )


def strip(data: ReportData) -> list[tuple[str, str]]:
    """A few numbers under the answer: trials by status, time, what sharing saved."""
    records = data.records
    by_status = {name: sum(record.status == name for record in records) for name in ("finished", "stopped", "failed")}
    numbers = [(f"{data.facts.planned:,}", "trials planned")]
    if again := sum(record.trial.phase == "confirm" for record in records):
        numbers.append((f"{again:,}", "on fresh seeds"))
    if controls := sum(record.trial.is_control for record in records):
        numbers.append((f"{controls:,}", "with an untrained teacher"))
    numbers.append((f"{by_status['finished']:,}", "finished"))
    if data.collapsed_trials:
        numbers.append((f"{len(data.collapsed_trials):,}", "of them collapsed"))
    if by_status["stopped"]:
        numbers.append((f"{by_status['stopped']:,}", "stopped early"))
    if by_status["failed"]:
        numbers.append((f"{by_status['failed']:,}", "failed"))
    seconds = [record.metrics.get("train_seconds", 0.0) for record in records]
    numbers.append((duration(float(np.nansum(seconds))), "of student training"))
    saved = sum(cost.saved_seconds or 0.0 for cost in data.teacher_costs)
    if saved > 0:
        numbers.append((duration(saved), "of teacher time saved by sharing"))
    if data.facts.seconds:
        numbers.append((duration(data.facts.seconds), "from start to end"))
    return numbers
