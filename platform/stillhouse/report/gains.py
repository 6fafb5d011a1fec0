"""What each method adds to a control on the same student: to the baseline, and to itself with an untrained teacher."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Literal

from stillhouse.durable import canonical_json
from stillhouse.report.configurations import Configuration, compare, grouped
from stillhouse.report.estimates import Estimate, mean_of_estimates
from stillhouse.spec.records import untrained_name

_MAX_STUDENT_COLUMNS = 12


@dataclass(frozen=True, kw_only=True)
class Gain:
    """By how much a method is better than a control, its base, on the test split, for one column of students.

    A student with a seed that collapsed gives no gain and is no base for one: the difference would measure the collapse.

    Attributes:
        difference: positive where the method is better; None where the base has no finished trial of the same student, or
            where a side of every comparison collapsed.
        collapsed: students that are left out since the method's seeds collapsed, all or some of them.
        base_collapsed: students that are left out since the base's did.
        kind: `paired` when both ran with the same student and seed.
        over: what its n counts: seeds of one concrete student, or the concrete students that a label pools.
        considered: trials that the search tried for the method's side.
    """

    method: str
    column: str
    difference: Estimate | None
    kind: Literal["paired", "unpaired"] = "paired"
    over: Literal["seeds", "students"] = "seeds"
    considered: int = 1
    collapsed: int = 0
    base_collapsed: int = 0


def gains(best: Sequence[Configuration], baseline: str) -> list[Gain]:
    """The gains over the baseline, one per method and column of students: see `_gains`.

    Args:
        best: the winners of every method and concrete student, those of the baseline included.
    """
    won = {(each.method, each.choice): each for each in best}
    return _gains(
        [each for each in won.values() if each.method != baseline], lambda each: won.get((baseline, each.choice)), best
    )


def untrained_controls(best: Sequence[Configuration], controls: Sequence[Configuration]) -> dict[str, Configuration]:
    """By the key of a winner, the same student with the same settings that an untrained teacher taught, where it ran.

    Args:
        controls: the configurations of the trials with untrained teachers.
    """
    known = {_settings(each, each.teacher): each for each in controls}
    pairs = ((each.key, known.get(_settings(each, untrained_name(each.teacher)))) for each in best if each.teacher is not None)
    return {key: control for key, control in pairs if control is not None}


def untrained_gains(best: Sequence[Configuration], controls: Mapping[str, Configuration]) -> list[Gain]:
    """The gains over the same method with an untrained teacher, of the winners that were compared with one: see `_gains`.

    Args:
        controls: as `untrained_controls` returns them.
    """
    return _gains([each for each in best if each.key in controls], lambda each: controls[each.key], best)


def _settings(each: Configuration, teacher: str | None) -> str:
    return canonical_json([each.method, each.choice, teacher, each.hyperparameters, each.records[0].trial.epochs])


def _gains(
    group_of: Sequence[Configuration], base_of: Callable[[Configuration], Configuration | None], best: Sequence[Configuration]
) -> list[Gain]:
    """One gain per method and column of students: per concrete student, or per label where there are many of a label.

    Every value is a difference between two configurations of the *same* concrete student. Where a label pools several of them,
    the interval comes from the seeds of each; there is none where a student has no seeds to compare.

    Args:
        group_of: the winners whose gain is wanted.
        base_of: what a winner is compared with; None if that has no result.
        best: all winners, whose students are the columns.
    """
    pooled = len({each.choice for each in best}) > _MAX_STUDENT_COLUMNS
    result = []
    for (method, column), group in grouped(
        group_of, lambda each: (each.method, each.student if pooled else each.choice)
    ).items():
        known = [(each, base) for each in group if (base := base_of(each)) is not None]
        pairs = [pair for pair in known if not any(each.num_collapsed for each in pair)]
        collapsed = sum(each.num_collapsed > 0 for each in group)
        base_collapsed = sum(base.num_collapsed > 0 and not each.num_collapsed for each, base in known)
        considered = max(each.considered for each in group)
        lost = Gain(
            method=method,
            column=column,
            difference=None,
            considered=considered,
            collapsed=collapsed,
            base_collapsed=base_collapsed,
        )
        if not pairs:
            result.append(lost)
            continue
        compared = [compare(*pair) for pair in pairs]
        difference = compared[0][0] if len(pairs) == 1 else mean_of_estimates([estimate for estimate, _ in compared])
        kind: Literal["paired", "unpaired"] = "paired" if all(how == "paired" for _, how in compared) else "unpaired"
        over: Literal["seeds", "students"] = "seeds" if len(pairs) == 1 else "students"
        result.append(replace(lost, difference=difference, kind=kind, over=over))
    return result
