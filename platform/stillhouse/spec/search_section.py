"""The spec's key `search`: how trials are chosen and how long they run."""

from collections.abc import Mapping
from typing import Annotated, Any, Literal

from pydantic import Field, PlainValidator

from stillhouse.spec.display import show
from stillhouse.spec.size_bound import bound_problem, parse_number
from stillhouse.spec.values import Section, invalid

ADAPTIVE = ("tpe", "nsga2")
"""Search algorithms that choose a trial by the results of earlier ones."""


DEFAULTS = "defaults"
"""In `search.start`: the search starts at the methods' defaults."""


class SearchBudget(Section):
    """What all runs of a sweep may spend together. When it is spent, no trial is started and running trials are stopped.

    Attributes:
        trials: trials that are started.
        epochs: epochs of all trials.
        hours: the time during which the sweep runs.
        gpu_hours: hours of trials times the GPUs of each.
        trial_hours: hours of trials; trials that run at the same time all count.
    """

    trials: Annotated[int, Field(ge=1)] | None = None
    epochs: Annotated[int, Field(ge=1)] | None = None
    hours: Annotated[float, Field(gt=0)] | None = None
    gpu_hours: Annotated[float, Field(gt=0)] | None = None
    trial_hours: Annotated[float, Field(gt=0)] | None = None


def _parse_limits(value: Any) -> dict[str, float]:
    if not isinstance(value, Mapping):
        raise invalid(f"must be a mapping such as {{parameters: 100k}}, got {show(value)}")
    limits = {}
    for name, limit in value.items():
        if isinstance(limit, bool) or not isinstance(limit, int | float | str):
            raise invalid(f"must be a number such as 100k, got {show(limit)}", below=name)
        number = parse_number(str(limit).removesuffix("B"))
        if number is None:
            raise invalid(f"must be a number such as 100k, got {show(limit)}", below=name)
        if problem := bound_problem(str(name), number):
            raise invalid(problem.message, below=name)
        limits[name] = number
    return limits


class SearchSpec(Section):
    """How trials are chosen and how long they run.

    Attributes:
        algorithm: `random` draws `trials_per_method` stratified samples of the priors, the same students for every method;
            `grid` runs every combination of the choices that the spec lists, other hyper-parameters at their defaults;
            `tpe` and `nsga2` begin like `random`, and then choose the trials of each method and student by the `objectives` of
            its earlier ones.
        trials_per_method: assigned to the students in turn; not used by `grid`.
        start: the first trial of each method and student: `defaults` has the method's default hyper-parameters, which are the
            paper's, where the spec sets no others, and a student in the middle of its priors; `random` draws it as well, as the
            first release did. In a spec file the default is `defaults` (`spec.recipes`).
        scheduler: `none` runs every trial to its end. `asha` stops trials that are worse than others of similar size, `median`
            those whose best epoch is worse than the median of the others' means so far. Which trials are stopped depends on the
            order in which they report, so two runs of the same spec may stop different trials.
        max_epochs: epochs of a trial.
        confirm_seeds: number of new seeds with which each method's best trial per student is repeated.
        seed: determines every draw of the sweep.
        grace_epochs: epochs that every trial runs before a scheduler may stop it.
        reduction_factor: at each rung, asha continues one trial in this many.
        startup_trials: trials of each method and student that are drawn at random before results are used; the
            population size of `nsga2`.
        trials_ahead: trials of one method and student that may run at the same time, without each other's results. A larger
            number keeps more machines busy and makes the search less efficient.
        limits: sizes that no student may exceed, such as `{parameters: 100k, latency_ms: 2}`.
        budget: what the sweep may spend.
    """

    algorithm: Literal["random", "grid", "tpe", "nsga2"] = "random"
    trials_per_method: Annotated[int, Field(ge=1, le=100_000)] = 8
    start: Literal["defaults", "random"] = "random"
    scheduler: Literal["none", "asha", "median"] = "none"
    max_epochs: Annotated[int, Field(ge=1)] = 20
    confirm_seeds: Annotated[int, Field(ge=0, le=1000)] = 0
    seed: Annotated[int, Field(ge=0)] = 0
    grace_epochs: Annotated[int, Field(ge=1)] = 1
    reduction_factor: Annotated[float, Field(gt=1)] = 3.0
    startup_trials: Annotated[int, Field(ge=2, le=1000)] = 8
    trials_ahead: Annotated[int, Field(ge=1, le=1000)] = 4
    limits: Annotated[dict[str, float], PlainValidator(_parse_limits)] = Field(default_factory=dict)
    budget: SearchBudget = Field(default_factory=SearchBudget)
