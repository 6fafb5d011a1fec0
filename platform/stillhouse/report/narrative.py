"""What the page says in words: the answer, how sure it is, what the teacher cost."""

import re
from collections.abc import Mapping, Sequence
from typing import Any
from urllib.parse import urlsplit

import numpy as np

from stillhouse.report.answers import Answer, TeacherCost
from stillhouse.report.formatting import (
    counted,
    duration,
    listed,
    milliseconds,
    percent,
    points,
    ratio,
    redacted,
    short,
    size,
    value_text,
    whole,
)
from stillhouse.report.statistics import Configuration, Estimate, Gain, mean_with_interval
from stillhouse.spec.records import SweepFacts, TrialRecord
from stillhouse.spec.size_bound import Budget

_MAX_NAMES = 4
# A teacher's `reason` has a part for each kind, "logits cached: 40 B per sample; ..."; a part may hold semicolons itself.
_NEXT_KIND = re.compile(r"; (?=[^;:]+ (?:cached|served|inline): )")
_PLAIN_TITLES = {
    "most accurate": "Most accurate of all",
    "knee": "At a knee of the front",
    "smallest": "Smallest on the front",
}


def budget_words(budget: Budget) -> str:
    """A budget as people say it: "100k parameters", "1.5 MB"."""
    match budget.metric:
        case "size_bytes":
            return size(budget.limit)
        case "latency_ms":
            return f"{milliseconds(budget.limit)} per sample"
        case "macs":
            return f"{short(budget.limit)} multiply-accumulates"
        case _:
            return f"{short(budget.limit)} parameters"


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
    taught = f"{where} {name} {best.choice} taught with {best.method}{_of_sweep(best)}"
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


def verdict_state(answer: Answer) -> str:
    """`clear`: surely ahead of every rival of its size; `single`: too few seeds to say; `tied` otherwise."""
    if answer.tied or answer.ahead:
        return "tied"
    if answer.unsure or (answer.best is not None and answer.best.test.half_width is None):
        return "single"
    return "clear"


def verdict_tag(answer: Answer) -> str:
    return {"clear": "clear", "tied": "no clear winner", "single": "single seed"}[verdict_state(answer)]


def _certainty(answer: Answer) -> str:
    said = verdict(answer)
    return said if verdict_state(answer) == "clear" else f"No winner is named: {said[0].lower()}{said[1:]}"


def verdict(answer: Answer) -> str:
    """How sure the choice is among all students and methods of its size."""
    parts = []
    if answer.ahead:
        parts.append(f"on test data {_names(answer.ahead)} did better, though validation data ranked it lower")
    if answer.tied:
        parts.append(f"it can not be told apart from {_names(answer.tied)} (the 95% interval of the difference holds zero)")
    if answer.unsure and answer.best is not None:
        if answer.best.test.half_width is None:
            parts.append(
                f"it ran with one seed, and so did most of the {counted(len(answer.unsure), 'rival')} of its size: "
                "luck may order them (search.confirm_seeds runs winners again)"
            )
        else:
            rivals = (
                counted(len(answer.unsure), "other student and method")
                if len(answer.unsure) == 1
                else (f"{len(answer.unsure):,} other students and methods")
            )
            parts.append(f"{rivals} of its size share one seed with it, too few to compare")
    if not parts:
        if answer.behind:
            rivals = "the one other" if answer.behind == 1 else f"all {answer.behind} others"
            return f"The 95% interval of its difference from {rivals} of its size lies above zero."
        if answer.best is not None and answer.best.test.half_width is None:
            return "It ran with one seed and has no rival of its size."
        return "It has no rival of its size."
    text = "; ".join(parts)
    return f"{text[0].upper()}{text[1:]}."


def _names(others: Sequence[Configuration]) -> str:
    return listed([f"{each.method} on {each.choice}{_of_sweep(each)}" for each in others], _MAX_NAMES)


def _of_sweep(each: Configuration) -> str:
    return f" of {each.sweep}" if each.sweep else ""


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


def card_title(answer: Answer) -> str:
    return f"Best with at most {budget_words(answer.budget)}" if answer.budget else _PLAIN_TITLES[answer.title]


def nothing_fits(answer: Answer) -> str:
    """What the budget would have to be."""
    if answer.budget is None or answer.least is None:
        return "No student finished."
    return f"The finished student that comes nearest takes {budget_words(Budget(answer.budget.metric, answer.least))}."


def card_facts(facts: SweepFacts, answer: Answer) -> list[tuple[str, str]]:
    rows = []
    if answer.drop is not None and answer.teacher is not None:
        spread = "" if answer.drop.half_width is None else f" ± {points(answer.drop.half_width)}"
        side = "drop" if answer.drop.mean >= 0 else "gain"
        rows.append((f"Accuracy {side}", f"{points(abs(answer.drop.mean))}{spread} points from {answer.teacher.name}"))
    if answer.compression is not None:
        rows.append(("Compression", f"{ratio(answer.compression)} fewer parameters"))
    if answer.gain is not None:
        rows.append((f"Over {facts.baseline}", _gain_words(answer)))
    if answer.best is not None:
        rivals = len(answer.tied) + len(answer.ahead) + len(answer.unsure) + answer.behind
        tried = f"{counted(answer.best.considered, 'trial')} of this method on it"
        rows.append(("Chosen from", f"{tried}, then {counted(rivals + 1, 'winner')} of its size" if rivals else tried))
    return rows


def _gain_words(answer: Answer) -> str:
    gain = answer.gain
    if gain is None:
        return ""
    spread = "" if gain.half_width is None else f" ± {points(gain.half_width)}"
    seeds = "one seed" if gain.half_width is None else f"n = {gain.n}"
    return f"{points(gain.mean, signed=True)}{spread} points ({answer.gain_kind}, {seeds})"


def card_settings(best: Configuration) -> list[tuple[str, str]]:
    return [
        *((name, value_text(value)) for name, value in sorted(best.hyperparameters.items())),
        ("trial", best.key),
        ("seeds", ", ".join(str(record.trial.seed) for record in best.reported)),
        ("validation", f"{percent(best.validation.mean, 2)} (search saw {percent(best.search_validation, 2)})"),
    ]


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


def teacher_sentences(cost: TeacherCost) -> list[str]:
    teacher = cost.teacher
    samples = counted(teacher.samples_forwarded, "sample")
    spent = f"Its forward passes took {duration(cost.forward_seconds)} ({samples})."
    if teacher.trained_now:
        spent += f" It was trained in this sweep, in {duration(teacher.train_seconds)}."
    else:
        spent += " It was not trained in this sweep."
    if cost.inside_seconds is None:
        return [spent, "What it would have cost inside every trial is not known: its time per sample was not measured."]
    inside = (
        f"Inside every trial it would have computed {whole(cost.samples_used)} samples over {counted(cost.trials, 'trial')}: "
        f"{duration(cost.inside_seconds)} of forward passes at {milliseconds(1000 * (teacher.seconds_per_sample or 0.0))} each."
    )
    if cost.saved_seconds is not None and cost.saved_seconds > 0:
        inside += f" Sharing saved {duration(cost.saved_seconds)} of device time"
        if cost.forward_seconds > 0:
            inside += f": the shared teacher worked {ratio(cost.inside_seconds / cost.forward_seconds)} less"
        inside += "."
    elif cost.saved_seconds is not None and cost.samples_used:
        inside += " Sharing it saved nothing here."
    return [spent, inside]


def teacher_facts(cost: TeacherCost) -> list[tuple[str, str]]:
    teacher = cost.teacher
    accuracies = f"test {percent(teacher.test_accuracy, 2)}, validation {percent(teacher.validation_accuracy, 2)}"
    return [
        ("Accuracy", accuracies),
        (
            "Size",
            f"{whole(teacher.parameters)} parameters, {size(teacher.size_bytes)}, {short(teacher.macs)} MACs, "
            f"{milliseconds(teacher.latency_ms)}",
        ),
        ("Way", teacher.way),
        ("Samples forwarded", whole(teacher.samples_forwarded)),
        ("Samples reused", whole(teacher.samples_reused)),
        ("Written", size(teacher.bytes_written)),
        ("Key", teacher.key),
    ]


def teacher_ways(cost: TeacherCost) -> list[str]:
    """Why each kind of its knowledge came the way it did."""
    return [redacted(kind) for kind in _NEXT_KIND.split(cost.teacher.reason) if kind]


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


def provenance(facts: SweepFacts) -> list[tuple[str, str]]:
    """Where the numbers come from, flat."""
    rows = [("Command", facts.command or "n/a"), ("Started", facts.started or "n/a"), ("Took", duration(facts.seconds))]
    rows += [(f"Data: {name}", _flat(value)) for name, value in facts.dataset.items()]
    rows += [(name, _flat(value)) for name, value in facts.environment.items()]
    rows += [(f"Teacher {teacher.name}", f"{teacher.model}, key {teacher.key}") for teacher in facts.teachers]
    rows += [(f"Tracking: {name}", _flat(value)) for name, value in facts.tracking.items() if value]
    if any(facts.tracking.values()):
        rows.append(("Open tracking", "stillhouse ui"))
    return [(name, redacted(text)) for name, text in rows]


def tracked(facts: SweepFacts, addresses: Mapping[str, str]) -> str:
    """Where links to MLflow lead, and what must run for them; nothing without links."""
    if not addresses:
        return ""
    served = any(urlsplit(address).hostname == "127.0.0.1" for address in addresses.values())
    how = f"; they open while `stillhouse ui {facts.name}` runs on this machine" if served else ""
    return f"Links of trials lead to their runs in MLflow{how}."


def _flat(value: Any) -> str:
    if isinstance(value, dict):
        return ", ".join(f"{name} {_flat(each)}" for name, each in value.items())
    if isinstance(value, list | tuple):
        return ", ".join(_flat(each) for each in value)
    return value_text(value)
