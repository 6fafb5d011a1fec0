"""An answer as a card of the page: title, facts, verdict, settings."""

from collections.abc import Sequence

from stillhouse.report.answers import Answer
from stillhouse.report.configurations import Configuration
from stillhouse.report.formatting import (
    counted,
    listed,
    milliseconds,
    percent,
    points,
    ratio,
    short,
    size,
    value_text,
)
from stillhouse.spec.records import SweepFacts
from stillhouse.spec.size_bound import Budget

_MAX_NAMES = 4


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


def verdict_state(answer: Answer) -> str:
    """`clear`: surely ahead of every rival of its size; `single`: too few seeds to say; `tied` otherwise."""
    if answer.tied or answer.ahead:
        return "tied"
    if answer.unsure or (answer.best is not None and answer.best.test.half_width is None):
        return "single"
    return "clear"


def verdict_tag(answer: Answer) -> str:
    return {"clear": "clear", "tied": "no clear winner", "single": "single seed"}[verdict_state(answer)]


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
    return listed([f"{each.method} on {each.choice}{of_sweep(each)}" for each in others], _MAX_NAMES)


def of_sweep(each: Configuration) -> str:
    return f" of {each.sweep}" if each.sweep else ""


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
