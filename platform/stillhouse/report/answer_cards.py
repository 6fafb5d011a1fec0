"""An answer as a card of the page: its title, its facts, the verdict on it, its settings."""

from collections.abc import Sequence

from stillhouse.report.answers import Answer
from stillhouse.report.configurations import Configuration
from stillhouse.report.estimates import Estimate
from stillhouse.report.formatting import (
    against_parameters,
    counted,
    difference,
    listed,
    milliseconds,
    sample,
    score,
    score_range,
    short,
    size,
    unit,
    value_text,
    without_interval,
)
from stillhouse.spec.metric import Metric
from stillhouse.spec.preference import TIE_WORDS
from stillhouse.spec.size_bound import Budget

_MAX_NAMES = 4


def budget_words(budget: Budget) -> str:
    """A budget as people write it: "100k parameters", "1.5 MB"."""
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
    """`clear`: surely better than every rival of its size; `single`: its seeds give no interval; `tied` otherwise."""
    if answer.tied or answer.better:
        return "tied"
    if answer.unsure or (answer.best is not None and answer.best.test.half_width is None):
        return "single"
    return "clear"


def verdict_tag(answer: Answer) -> str:
    """The state in two or three words."""
    state = verdict_state(answer)
    if state == "single" and answer.best is not None and answer.best.test.n > 1:
        return "no interval"
    return {"clear": "clear winner", "tied": "no clear winner", "single": "single seed"}[state]


def verdict(answer: Answer) -> str:
    """How sure the choice is among all students and methods of its size."""
    parts = []
    if answer.better:
        parts.append(f"on test data {_names(answer.better)} did better, though validation data ranked it lower")
    if answer.tied:
        parts.append(f"it cannot be told apart from {_names(answer.tied)} (the 95% interval of the difference contains zero)")
    if answer.unsure and answer.best is not None:
        parts.append(_unsure(answer, single=answer.best.test.n == 1))
    if not parts:
        return _without_doubt(answer)
    text = "; ".join(parts)
    return f"{text[0].upper()}{text[1:]}."


def level_words(answer: Answer) -> str:
    """Which rivals validation data do not tell apart from it, and what decided then; nothing without such rivals."""
    if not answer.level:
        return ""
    return f"On validation data it ties with {_names(answer.level)}; of equal results the page takes {TIE_WORDS}."


def _unsure(answer: Answer, *, single: bool) -> str:
    """Why rivals that share too few seeds with it, or differ equally in all of them, cannot be compared."""
    number = len(answer.unsure)
    rivals = "its one rival" if number == 1 else f"{number:,} rivals"
    if single:
        return (
            f"it ran with one seed, so it cannot be compared with {rivals} of at most its size: luck may have decided their "
            "order (search.confirm_seeds runs winners again on fresh seeds)"
        )
    return (
        f"there is no interval of the difference from {rivals} of at most its size: they have fewer than two seeds in common, "
        "or the difference is the same in all of them"
    )


def _without_doubt(answer: Answer) -> str:
    if answer.worse:
        rivals = "its one rival" if answer.worse == 1 else f"all {answer.worse} rivals"
        return f"It is better than {rivals} of at most its size: the 95% interval of each difference lies above zero."
    if answer.best is not None and answer.best.test.half_width is None:
        seeds = answer.best.test.n
        ran = "ran with one seed" if seeds == 1 else f"gave the same value with {seeds} seeds"
        return f"It {ran} and has no rival of its size."
    return "It has no rival of its size."


def _names(others: Sequence[Configuration]) -> str:
    return listed([f"{each.method} on {each.choice}{of_sweep(each)}" for each in others], _MAX_NAMES)


def of_sweep(each: Configuration) -> str:
    """The sweep of a configuration where several are compared."""
    return f" in sweep {each.sweep}" if each.sweep else ""


def card_title(answer: Answer) -> str:
    """The question of the card."""
    match answer.question:
        case "best":
            return f"{answer.metric.superlative.capitalize()} of all sizes"
        case "knee":
            return "Good compromise (a knee of the Pareto front)"
        case "smallest":
            return "Smallest on the Pareto front"
        case "budget":
            return f"Best with at most {budget_words(answer.budget)}" if answer.budget else "Best"


def nothing_fits(answer: Answer) -> str:
    """What the budget would have to be."""
    if answer.budget is None or answer.least is None:
        return "No student finished."
    return f"The smallest finished student needs {budget_words(Budget(answer.budget.metric, answer.least))}."


def against_teacher(answer: Answer) -> list[str]:
    """The student compared with its teacher, in words: how much worse or better, and how much smaller."""
    words = []
    if (drop := answer.drop) is not None:
        spread = "" if drop.half_width is None else f" ± {difference(drop.half_width, answer.metric)}"
        side = "worse" if drop.mean >= 0 else "better"
        words.append(f"{difference(abs(drop.mean), answer.metric)}{spread}{unit(answer.metric)} {side}")
    if answer.compression is not None:
        words.append(against_parameters(answer.compression))
    return words


def of_test_split(best: Configuration) -> str:
    """The interval of its test value from the size of the test split; nothing where it is not known."""
    if best.test_samples is None or (interval := score_range(best.test_split_interval, best.metric)) == "":
        return ""
    return f"{interval} by the size of the test split, {best.test_samples:,}"


def card_facts(answer: Answer, baseline: str) -> list[tuple[str, str]]:
    """Terms and their words: against the teacher, over the baseline, from how many it was chosen."""
    rows = []
    if answer.teacher is not None and (compared := against_teacher(answer)):
        rows.append((f"Against {answer.teacher.name}", ", ".join(compared)))
    if answer.gain is not None:
        rows.append((f"Gain over {baseline}", _gain_words(answer.gain, answer.gain_kind, answer.metric)))
    elif answer.control is not None and answer.control.num_collapsed:
        rows.append((f"Gain over {baseline}", f"not known: {baseline} collapsed"))
    if answer.untrained_gain is not None:
        rows.append(("Gain over an untrained teacher", _gain_words(answer.untrained_gain, "paired", answer.metric)))
    if answer.best is not None and answer.best.num_collapsed:
        rows.append(("Collapsed", f"{answer.best.num_collapsed} of its {counted(len(answer.best.reported), 'seed')}"))
    if answer.best is not None:
        rivals = len(answer.tied) + len(answer.better) + len(answer.unsure) + answer.worse
        tried = f"{counted(answer.best.considered, 'trial')} of this method and student"
        rows.append(("Chosen from", f"{tried}, then {counted(rivals + 1, 'winner')} of at most this size" if rivals else tried))
    return rows


def _gain_words(gain: Estimate, kind: str, metric: Metric) -> str:
    spread = "" if gain.half_width is None else f" ± {difference(gain.half_width, metric)}"
    seeds = without_interval(gain.n) if gain.half_width is None else sample(gain.n)
    return f"{difference(gain.mean, metric, signed=True)}{spread}{unit(metric)} ({kind}, {seeds})"


def card_settings(best: Configuration) -> list[tuple[str, str]]:
    """The hyper-parameters and what else is needed to find or repeat the trial."""
    searched, reported = (score(value, best.metric, exact=True) for value in (best.search_validation, best.validation.mean))
    return [
        *((name, value_text(value)) for name, value in sorted(best.hyperparameters.items())),
        ("trial", best.key),
        ("seeds", ", ".join(str(record.trial.seed) for record in best.reported)),
        ("validation", f"{reported} on fresh seeds, {searched} in the search" if best.confirmed else reported),
    ]
