"""The time that a sweep adds to the training itself: between trials, per epoch, and while the first view is filled.

    python benchmarks/bench_turnover.py

Turnover: one worker runs many trials of one short epoch, one after the other; the wall clock per trial that is not training.
Epoch: the same with many epochs; the wall clock per epoch that is not training, without the first epoch.
Filling: one trial of one epoch in a view that is not filled yet, next to the same trial alone (`student only`) and the
filling alone; the ideal is the longer of the two. All times begin when trials may start. Repetitions alternate, and the
results are medians. The images are random. Prints one table and one JSON line.
"""

import argparse
import json
import os
import statistics
import sys
import tempfile
from dataclasses import replace
from pathlib import Path

from bench_sweep import PAIRS, Bench, GpuShares, add_gpu_options, add_recipe_option, start_ray

TRIALS = 12


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--limit", type=int, default=6000, help="images in the benchmark of the filling")
    add_gpu_options(parser)
    add_recipe_option(parser)
    arguments = parser.parse_args()
    shares = GpuShares(arguments.gpu, arguments.teacher_gpu)
    start_ray()
    small = {**PAIRS["cifar"].dataset, "options": {"limit": 1000, "limit_test": 100}}
    many = {**PAIRS["cifar"].dataset, "options": {"limit": arguments.limit, "limit_test": 100}}
    short = replace(PAIRS["cifar"], dataset=small, student={"model": "mlp"}, epochs=1, views=1)
    one_view = replace(PAIRS["cifar"], dataset=many, epochs=1, views=1)
    between, per_epoch, first, alone, filling, waits = [], [], [], [], [], []
    with tempfile.TemporaryDirectory(prefix="stillhouse-bench-") as folder:
        benches = {
            epochs: Bench(replace(short, epochs=epochs), None, Path(folder) / str(epochs), TRIALS, 1, shares, arguments.recipe)
            for epochs in (1, 21)
        }
        pair = Bench(one_view, None, Path(folder) / "pair", 1, 1, shares, arguments.recipe)
        pair.prepare()
        benches[1].run("student only")
        for repeat in range(arguments.repeats):
            idle = {}
            for epochs, bench in benches.items():
                run = bench.run("student only")
                training = run.student_seconds * TRIALS * epochs * bench.train_samples
                # The first trial waits for its worker to start, once in a sweep.
                idle[epochs] = (run.seconds - run.first_started - training) / TRIALS
            between.append(idle[1])
            per_epoch.append((idle[21] - idle[1]) / 20)
            cold, student = pair.run("shared, cold"), pair.run("student only")
            first.append(cold.seconds)
            alone.append(student.seconds)
            filling.append(cold.fill_seconds)
            waits.append(cold.wait_seconds)
            print(f"  {repeat + 1}/{arguments.repeats}", file=sys.stderr, flush=True)
    middle = {
        "P7_seconds_between_trials": statistics.median(between),
        "P8_ms_per_epoch": 1000 * statistics.median(per_epoch),
        "P12_cold_seconds": statistics.median(first),
        "P12_student_alone_seconds": statistics.median(alone),
        "P12_filling_seconds": statistics.median(filling),
        "P12_waited_seconds": statistics.median(waits),
    }
    longer = max(middle["P12_student_alone_seconds"], middle["P12_filling_seconds"])
    print("| what | measured | must | aim |\n|---|---|---|---|")
    rows = [
        ("between a trial's end and the next one's start", f"{middle['P7_seconds_between_trials']:.3f} s", "1", "0.25"),
        ("around the training, per epoch", f"{middle['P8_ms_per_epoch']:.1f} ms", "5", "1"),
        ("the trial alone, including its worker's start", f"{middle['P12_student_alone_seconds']:.1f} s", "", ""),
        ("filling its view", f"{middle['P12_filling_seconds']:.1f} s", "", ""),
        ("both at the same time", f"{middle['P12_cold_seconds']:.1f} s", "", f"{longer:.1f} s"),
        ("of this, the trial waited", f"{middle['P12_waited_seconds']:.1f} s", "", ""),
    ]
    for row in rows:
        print(f"| {' | '.join(row)} |")
    print(json.dumps({"benchmark": "turnover", "cpus": os.cpu_count(), "trials": TRIALS, **middle}))


if __name__ == "__main__":
    main()
