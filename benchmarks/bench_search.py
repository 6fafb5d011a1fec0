"""The effect of limiting TPE's history: the best value found within up to 1,000 trials without training.

    python benchmarks/bench_search.py [--seeds 10] [--trials 1000]

Compares on the same objectives with the same seeds: random draws; the sweep's own TPE with its limit and with all results;
and Optuna's TPE through `study.optimize`, without Stillhouse. The objectives mix two log-uniform parameters, a uniform one,
and a choice that moves the optimum of the others; `rugged` adds ripples. The optimum is known, so the results are distances
from it. Prints one table and one JSON line.
"""

import argparse
import json
import math
import os
import statistics
import time
from collections.abc import Callable, Mapping
from typing import Any

os.environ.setdefault("OMP_NUM_THREADS", "1")

import optuna

from stillhouse.data.hashing import derive_key
from stillhouse.spec.priors import Choice, LogUniform, Prior, Uniform
from stillhouse.spec.records import StudentChoice, Trial, TrialRecord
from stillhouse.sweep.search.draws import Draw, stratified, value_at
from stillhouse.sweep.search.optuna_studies import Study, StudyPlan

STARTUP = 8
SETTINGS: dict[str, Prior] = {
    "weight": LogUniform(1e-3, 1e5),
    "rate": LogUniform(1e-4, 1.0),
    "temperature": Uniform(1, 10),
    "kernel": Choice(("linear", "poly", "gaussian", "bilinear")),
}
PLACES = {"linear": (0.0, -1.0, 0.03), "poly": (3.0, -3.0, 0.01), "gaussian": (2.0, -2.0, 0.0), "bilinear": (-1.0, -1.5, 0.02)}
"""For each kernel: the decades in which weight and rate are best, and its distance from the optimum even there."""
STUDENT = StudentChoice(name="s", model="mlp", options={})


def smooth(values: Mapping[str, Any]) -> float:
    """The distance from the optimum, which is 0."""
    weight, rate, lacks = PLACES[values["kernel"]]
    far = (
        0.01 * (math.log10(values["weight"]) - weight) ** 2
        + 0.03 * (math.log10(values["rate"]) - rate) ** 2
        + 0.002 * (values["temperature"] - 4) ** 2
    )
    return lacks + far


def rugged(values: Mapping[str, Any]) -> float:
    """The same with a ripple every quarter of a decade and every degree, none at the best."""
    weight, rate, _ = PLACES[values["kernel"]]
    places = (4 * (math.log10(values["weight"]) - weight), 4 * (math.log10(values["rate"]) - rate), values["temperature"] - 4)
    return smooth(values) + 0.005 * sum(1 - math.cos(2 * math.pi * place) for place in places)


OBJECTIVES = {"smooth": smooth, "rugged": rugged}
Contender = Callable[[Callable[[Mapping[str, Any]], float], int, int], list[float]]


def drawn(seed: int, count: int) -> list[dict[str, Any]]:
    columns = {name: stratified(derive_key("bench", seed, name), count) for name in SETTINGS}
    return [{name: value_at(prior, float(columns[name][row])) for name, prior in SETTINGS.items()} for row in range(count)]


def by_random(objective: Callable[[Mapping[str, Any]], float], trials: int, seed: int) -> list[float]:
    return [objective(values) for values in drawn(seed, trials)]


def by_study(history_limit: int) -> Contender:
    """The sweep's own search; each result is reported before the next trial is suggested."""

    def run(objective: Callable[[Mapping[str, Any]], float], trials: int, seed: int) -> list[float]:
        draws = tuple(Draw("m", STUDENT, None, values) for values in drawn(seed, STARTUP + 32))
        plan = StudyPlan(
            method="m",
            label="s",
            settings=SETTINGS,
            students=(STUDENT,),
            teachers=(None,),
            trials=trials,
            fixed=draws[:STARTUP],
            reserve=draws[STARTUP:],
        )
        study = Study(
            plan,
            algorithm="tpe",
            objectives={"validation_accuracy": "max"},
            seed=seed,
            startup_trials=STARTUP,
            ahead=1,
            make_trial=trial_of,
            history_limit=history_limit,
        )
        records: dict[str, TrialRecord] = {}
        found = []
        while (trial := study.advance(records)) is not None:
            found.append(objective(trial.hyperparameters))
            records[trial.key] = TrialRecord(
                trial=trial, status="finished", epochs_run=1, metrics={"validation_accuracy": 1 - found[-1]}
            )
        return found

    return run


def trial_of(draw: Draw) -> Trial:
    values = dict(draw.hyperparameters)
    return Trial(key=repr(sorted(values.items())), student=draw.student, method=draw.method, hyperparameters=values, epochs=1)


def by_optuna(objective: Callable[[Mapping[str, Any]], float], trials: int, seed: int) -> list[float]:
    found = []

    def score(trial: optuna.Trial) -> float:
        values = {
            "weight": trial.suggest_float("weight", 1e-3, 1e5, log=True),
            "rate": trial.suggest_float("rate", 1e-4, 1.0, log=True),
            "temperature": trial.suggest_float("temperature", 1, 10),
            "kernel": trial.suggest_categorical("kernel", list(PLACES)),
        }
        found.append(objective(values))
        return found[-1]

    sampler = optuna.samplers.TPESampler(multivariate=True, n_startup_trials=STARTUP, seed=seed)
    optuna.create_study(sampler=sampler).optimize(score, n_trials=trials)
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--seeds", type=int, default=10)
    parser.add_argument("--trials", type=int, default=1000)
    options = parser.parse_args()
    contenders: dict[str, Contender] = {
        "random": by_random,
        "TPE, at most 350 results": by_study(350),
        "TPE, all results": by_study(options.trials + 1),
        "Optuna's TPE": by_optuna,
    }
    marks = sorted({min(options.trials, mark) for mark in (100, 350, options.trials)})
    results: dict[str, Any] = {"seeds": options.seeds, "trials": options.trials}
    heads = [f"best of {mark}" for mark in marks]
    print("| objective | search | " + " | ".join(f"{head}: median (worst)" for head in heads) + " | last 100, mean | CPU s |")
    print("|---|---|" + "---|" * (len(marks) + 2))
    for name, objective in OBJECTIVES.items():
        runs: dict[str, list[list[float]]] = {contender: [] for contender in contenders}
        took = dict.fromkeys(contenders, 0.0)
        for seed in range(options.seeds):
            for contender, run in contenders.items():
                began = time.process_time()
                runs[contender].append(run(objective, options.trials, seed))
                took[contender] += time.process_time() - began
        for contender, found in runs.items():
            best = {mark: [min(values[:mark]) for values in found] for mark in marks}
            late = statistics.mean(statistics.mean(values[-100:]) for values in found)
            cells = [f"{statistics.median(best[mark]):.2g} ({max(best[mark]):.2g})" for mark in marks]
            seconds = took[contender] / options.seeds
            print(f"| {name} | {contender} | {' | '.join(cells)} | {late:.2g} | {seconds:.1f} |", flush=True)
            results[f"{name}, {contender}"] = {
                "best": {str(mark): best[mark] for mark in marks},
                "late": late,
                "cpu_s": seconds,
            }
    print(json.dumps(results))


if __name__ == "__main__":
    main()
