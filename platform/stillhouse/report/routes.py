"""Which route to a smaller student is best at equal size: small networks, or a teacher that operators made smaller.

A route is the operators of a student and where its weights began. Routes are compared within a bound that each of them can
meet: the largest of their smallest students. Validation data choose each route's student; test data compare them.
"""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Literal

from stillhouse.report.configurations import Configuration, compare, grouped, preferred
from stillhouse.report.estimates import Estimate
from stillhouse.report.formatting import difference, listed, score, unit, without_interval
from stillhouse.report.plot_style import colours
from stillhouse.spec.records import StudentChoice
from stillhouse.spec.size_bound import Budget

PLAIN = "a network without operators"
MEASURES = ("size_bytes", "latency_ms")
_MAX_NAMES = 4

Pairing = Literal["paired", "unpaired"]


@dataclass(frozen=True, kw_only=True)
class RouteResult:
    """The student that validation data choose of one route, within the bound.

    Attributes:
        behind: by how much the leader is better on test data; None for the leader.
        gain: over the control on the same student, positive where the student is better; None without one.
    """

    route: str
    best: Configuration
    behind: Estimate | None = None
    behind_kind: Pairing = "paired"
    control: Configuration | None = None
    gain: Estimate | None = None
    gain_kind: Pairing = "paired"


@dataclass(frozen=True, kw_only=True)
class RouteComparison:
    """All routes within one bound; the leader, whom validation data prefer, comes first."""

    bound: Budget
    results: tuple[RouteResult, ...]

    @property
    def state(self) -> Literal["clear", "tied", "single"]:
        """`clear`: the leader is surely better than every other route; `single`: some difference has no interval."""
        signs = [each.behind.sign() for each in self.results if each.behind is not None]
        if any(sign is None for sign in signs):
            return "single"
        return "clear" if all(sign == 1 for sign in signs) else "tied"


def route_of(student: StudentChoice) -> str:
    """The route in words: `prune + quantize of big`, by the operators' names."""
    names = [name.rpartition(":")[2] for entry in student.compress for name in entry]
    origin = f" of {student.derived_from}" if student.derived_from else ""
    return f"{' + '.join(names) or 'weights'}{origin}" if names or origin else PLAIN


def configuration_route(each: Configuration) -> str:
    """The route of a configuration's student."""
    return route_of(each.records[0].trial.student)


def route_colours(found: Iterable[Configuration]) -> dict[str, str]:
    """The colour of each route of these configurations, in their order; {} if all took the same one."""
    routes = list(dict.fromkeys(map(configuration_route, found)))
    return colours(routes) if len(routes) > 1 else {}


def compare_routes(winners: Sequence[Configuration]) -> list[RouteComparison]:
    """The routes within each of `MEASURES` that all of them have; none if the sweep has one route only.

    Args:
        winners: of every method and concrete student.
    """
    sound = [each for each in winners if not each.collapsed]
    routes = grouped(sound, configuration_route)
    if len(routes) < 2:
        return []
    found = []
    for measure in MEASURES:
        smallest = [_smallest(each, measure) for each in routes.values()]
        known = [size for size in smallest if size is not None]
        if len(known) == len(smallest):
            found.append(_within(Budget(measure, max(known)), routes.items(), winners))
    return found


def route_verdict(comparison: RouteComparison) -> str:
    """What can be concluded, in a sentence."""
    leader, *others = comparison.results
    unknown = [each.route for each in others if each.behind is not None and each.behind.sign() is None]
    if unknown:
        return (
            f"Nothing can be concluded: there is no interval of the difference from {listed(unknown, _MAX_NAMES)}, since these "
            "students have fewer than two seeds in common, or differ equally in all of them (search.confirm_seeds)."
        )
    level = [each.route for each in others if each.behind is not None and each.behind.sign() == 0]
    better = [each.route for each in others if each.behind is not None and each.behind.sign() == -1]
    words = []
    if better:
        words.append(f"on test data {listed(better, _MAX_NAMES)} did better, though validation data ranked it lower")
    if level:
        words.append(
            f"{leader.route} cannot be told apart from {listed(level, _MAX_NAMES)}: the 95% interval of the difference "
            "contains zero"
        )
    if not words:
        return f"The best route at this size is {leader.route}: the 95% interval of each difference lies above zero."
    return f"There is no best route at this size: {'; '.join(words)}."


def behind_words(result: RouteResult) -> str:
    """By how much the best student of the route is worse than the best of all routes."""
    if result.behind is None:
        return "chosen on validation data"
    return _difference_words(result.behind, result.behind_kind, result.best)


def gain_words(result: RouteResult) -> str:
    """The gain over the control on the same student."""
    if result.gain is None:
        return "is the control" if result.best.control else "no control"
    return _difference_words(result.gain, result.gain_kind, result.best, signed=True)


def test_words(result: RouteResult) -> str:
    """The value on the test split with its interval."""
    test = result.best.test
    spread = f" ± {difference(test.half_width, result.best.metric)}" if test.half_width is not None else ""
    return f"{score(test.mean, result.best.metric)}{spread}"


def _difference_words(estimate: Estimate, kind: Pairing, best: Configuration, *, signed: bool = False) -> str:
    spread = "" if estimate.half_width is None else f" ± {difference(estimate.half_width, best.metric)}"
    seeds = without_interval(estimate.n) if estimate.half_width is None else f"n = {estimate.n}"
    return f"{difference(estimate.mean, best.metric, signed=signed)}{spread}{unit(best.metric)} ({kind}, {seeds})"


def _smallest(configurations: Iterable[Configuration], measure: str) -> float | None:
    return min((size for each in configurations if (size := each.median(measure)) is not None), default=None)


def _within(
    bound: Budget, routes: Iterable[tuple[str, list[Configuration]]], winners: Sequence[Configuration]
) -> RouteComparison:
    chosen = []
    for route, configurations in routes:
        fitting = [each for each in configurations if (size := each.median(bound.metric)) is not None and size <= bound.limit]
        chosen.append((route, min(fitting, key=preferred)))
    chosen.sort(key=lambda item: preferred(item[1]))
    leader = chosen[0][1]
    return RouteComparison(bound=bound, results=tuple(_result(route, each, leader, winners) for route, each in chosen))


def _result(route: str, best: Configuration, leader: Configuration, winners: Sequence[Configuration]) -> RouteResult:
    control = next((each for each in winners if each.control and each.choice == best.choice and each is not best), None)
    comparable = control is not None and not (control.num_collapsed or best.num_collapsed)
    behind = None if best is leader else compare(leader, best)
    gain = compare(best, control) if control is not None and comparable else None
    return RouteResult(
        route=route,
        best=best,
        behind=behind[0] if behind else None,
        behind_kind=behind[1] if behind else "paired",
        control=control,
        gain=gain[0] if gain else None,
        gain_kind=gain[1] if gain else "paired",
    )
