"""What each method adds to the baseline on the same student."""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Literal

from stillhouse.report.configurations import Configuration, compare, grouped
from stillhouse.report.estimates import Estimate, mean_of_estimates

_MAX_STUDENT_COLUMNS = 12


@dataclass(frozen=True, kw_only=True)
class Gain:
    """By how much a method is better than the baseline on the test split, for one column of students.

    A student with a seed that collapsed gives no gain and is no base for one: the difference would measure the collapse.

    Attributes:
        difference: positive where the method is better; None where the baseline has no finished trial of the same student, or
            where a side of every comparison collapsed.
        collapsed: students that are left out since the method's seeds collapsed, all or some of them.
        base_collapsed: students that are left out since the baseline's did.
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
    """One gain per method and column of students: per concrete student, or per label where there are many of a label.

    Every value is a difference between two winners of the *same* concrete student. Where a label pools several of them, the
    interval comes from the seeds of each; there is none where a student has no seeds to compare.

    Args:
        best: the winners of every method and concrete student, those of the baseline included.
    """
    won = {(each.method, each.choice): each for each in best}
    pooled = len({each.choice for each in best}) > _MAX_STUDENT_COLUMNS
    result = []
    for (method, column), group in grouped(
        (each for each in won.values() if each.method != baseline),
        lambda each: (each.method, each.student if pooled else each.choice),
    ).items():
        known = [(each, won[baseline, each.choice]) for each in group if (baseline, each.choice) in won]
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
