"""The time that a shared teacher saves: the same trials without a teacher, with a shared one, and with one in every trial.

    python benchmarks/bench_sweep.py --pair mnist --root DIR        # LeNet teaches an MLP on MNIST
    python benchmarks/bench_sweep.py --pair cifar --root DIR        # a CIFAR ResNet teaches a narrower one
    python benchmarks/bench_sweep.py --pair text --root DIR         # a Transformer teaches a TextCNN on train.csv and test.csv
    python benchmarks/bench_sweep.py --pair generation --root DIR   # a generator teaches a narrower one on MNIST
    python benchmarks/bench_sweep.py --pair cifar --root DIR --curve 1,2,4,8,16 --picture curve.png
    python benchmarks/bench_sweep.py --pair cifar --root DIR --torchdistill PYTHON_OF_ITS_ENVIRONMENT

Every variant runs the same number of trials of the same student, on the same data, epochs, views and batches, through all of
`Sweep.run` on one Ray. The variants alternate within each repetition, and the results are medians. The wall clock runs from
the moment when trials may start (teachers are loaded, shared filling begins) to the end of the last trial. The shared
teacher runs cold (no sealed view exists) and warm (all exist).

R is T_t / T_s: the teacher's forward pass over the student's forward pass, backward pass and step, per sample, both measured
in this run. With v = V / E, the ideal ratio over student-only time is 1 + v R / N cold, 1 warm, and 1 + R with the teacher
inside. Prints one table and one JSON line. Without `--root` the images are random; no result depends on their content.
Texts need `--root`.
"""

import argparse
import json
import os
import platform
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import matplotlib as mpl
import numpy as np
import ray
from safetensors import safe_open

from stillhouse.spec.recipes import NEWEST
from stillhouse.spec.records import Trial, TrialRecord
from stillhouse.sweep.planning.plan import Plan
from stillhouse.sweep.planning.spec_check import check
from stillhouse.sweep.progress import Progress
from stillhouse.sweep.results.results import Results
from stillhouse.sweep.sweep import Sweep

mpl.use("Agg")
HERE = Path(__file__).resolve().parent
CONTENDERS = ("student only", "shared, cold", "shared, warm", "inside each trial")


Methods = tuple[str, Mapping[str, Any]]
"""A method and its settings, of which one prior does not change how long a training takes: it tells trials apart."""


@dataclass(frozen=True)
class Pair:
    """A teacher, its student and their data set.

    Attributes:
        taught: the method of the trials with a teacher.
        alone: that of the trials without: the same training apart from the knowledge.
    """

    dataset: Mapping[str, Any]
    shape: tuple[int, ...]
    teacher: Mapping[str, Any]
    student: Mapping[str, Any]
    policy: tuple[str, ...]
    views: int
    epochs: int
    batch_size: int
    taught: Methods = ("kd", {"temperature": {"uniform": [2.0, 6.0]}})
    alone: Methods = ("scratch", {"label_smoothing": {"uniform": [0.0, 0.1]}})
    task: str | None = None
    training: Mapping[str, Any] = field(default_factory=dict)


PAIRS = {
    "mnist": Pair(
        {"name": "mnist", "validation": 5000, "options": {"limit": 25_000, "limit_test": 2000}},
        (1, 28, 28),
        {"model": "lenet"},
        {"model": "mlp"},
        (),
        1,
        4,
        64,
    ),
    "cifar": Pair(
        {"name": "image_folder", "size": 32, "validation": 500, "options": {"limit": 3000, "limit_test": 500}},
        (3, 32, 32),
        {"model": "resnet32"},
        {"model": "resnet8", "width": 0.5},
        ("crop", "flip"),
        4,
        4,
        64,
    ),
    "text": Pair(
        {"name": "text_table", "validation": 500, "options": {"limit": 4000, "limit_test": 500, "length": 64}},
        (64,),
        {"model": "text_transformer"},
        {"model": "text_cnn", "width": 0.25},
        (),
        1,
        4,
        64,
    ),
    "generation": Pair(
        {"name": "mnist", "validation": 1000, "options": {"limit": 6000, "limit_test": 1000}},
        (1, 28, 28),
        {"model": "dcgan", "width": 1.0},
        {"model": "dcgan", "width": 0.125},
        (),
        4,
        4,
        64,
        taught=("gan_compression", {"image_weight": 1.0, "adversarial_weight": {"uniform": [0.02, 0.04]}}),
        alone=("gan_compression", {"image_weight": 0.0, "adversarial_weight": {"uniform": [0.9, 1.1]}}),
        task="generation",
        training={
            "optimizer": "adam",
            "learning_rate": 0.0005,
            "adam_beta1": 0.5,
            "weight_decay": 0.0,
            "schedule": "constant",
            "batchnorm_statistics": "running",
        },
    ),
}


class Only(Sweep):
    """A sweep of one method's trials alone: a benchmark compares equal numbers, so the control is not added."""

    def __init__(self, *arguments: Any, method: str, **options: Any) -> None:
        super().__init__(*arguments, **options)
        self._method = method

    def plan(self) -> Plan:
        plan = super().plan()
        return replace(plan, trials=tuple(trial for trial in plan.trials if trial.method == self._method))


class Stopwatch(Progress):
    """Times the trials: from the last plan before the first one to the end of the last."""

    def __init__(self) -> None:
        super().__init__("benchmark", quiet=True)
        self.planned = self.started = self.ended = 0.0

    def plan(self, planned: int, reused: Iterable[TrialRecord] = ()) -> None:
        self.planned = time.perf_counter()
        super().plan(planned, reused)

    def trial_started(self, trial: Trial) -> None:
        self.started = self.started or time.perf_counter()
        super().trial_started(trial)

    def trial_done(self, record: TrialRecord) -> None:
        self.ended = time.perf_counter()
        super().trial_done(record)

    @property
    def seconds(self) -> float:
        return self.ended - self.planned


@dataclass(frozen=True)
class Run:
    """One sweep's times and counts.

    Attributes:
        seconds: from the moment that trials may start to the end of the last one.
        whole: of the whole sweep, with its report.
        student_seconds: of training, per sample, waiting for knowledge not counted.
        first_started: when the first trial's worker was there.
    """

    seconds: float
    whole: float
    student_seconds: float
    wait_seconds: float
    forwarded: int
    remote_calls: int
    teacher_seconds: float
    fill_seconds: float
    first_started: float


@dataclass(frozen=True)
class GpuShares:
    """The GPUs, or share of one, of each trial and of the teacher."""

    trial: float = 0.0
    teacher: float = 0.0


NO_GPU = GpuShares()


class Bench:
    """Runs the variants of one pair in fresh homes under `folder`."""

    def __init__(
        self,
        pair: Pair,
        root: str | None,
        folder: Path,
        trials: int,
        concurrent: int,
        shares: GpuShares = NO_GPU,
        recipe: int = NEWEST,
    ) -> None:
        self.pair = pair
        self._shares = shares
        self._recipe = recipe
        self._folder = folder
        self._concurrent = concurrent
        self._trials = trials
        self._dataset = {**pair.dataset, "root": root} if root else self._random_images()
        self._homes = 0
        self._weights: str | None = None
        self._judge: Path | None = None
        self.train_samples = 0

    def _random_images(self) -> dict[str, Any]:
        if len(self.pair.shape) != 3:
            raise SystemExit("this pair needs --root: there are no random texts")
        options: dict[str, Any] = {**self.pair.dataset["options"], "shape": list(self.pair.shape)}
        options["count"] = options.pop("limit")  # the test split takes `limit_test` as it is
        return {"name": "random_images:load", "validation": self.pair.dataset["validation"], "options": options}

    def _spec(self, methods: Methods, way: str, trials: int) -> dict[str, Any]:
        pair, (method, settings) = self.pair, methods
        teacher = {**pair.teacher, "train": {"epochs": 1, "batch_size": 128, **pair.training}}
        if self._weights:
            teacher = {**pair.teacher, "weights": self._weights}
        teacher["resources"] = {"gpu": self._shares.teacher}
        return {
            "name": "benchmark",
            "recipe": self._recipe,
            **({} if pair.task is None else {"task": pair.task}),
            "dataset": self._dataset,
            "views": {"policy": list(pair.policy), "count": pair.views},
            "teachers": {"teacher": teacher},
            "students": [dict(pair.student)],
            "methods": {method: dict(settings)},
            "search": {"trials_per_method": trials, "max_epochs": pair.epochs},
            "training": {"batch_size": pair.batch_size, **pair.training},
            "trial_resources": {"gpu": self._shares.trial},
            "max_concurrent_trials": self._concurrent,
            "knowledge": {"way": way},
        }

    def prepare(self) -> None:
        """Trains the teacher, once for all variants, and warms up Ray's workers."""
        home = self._home()
        self._sweep(self.pair.taught, "cached", home, 1)
        kept = self._folder / "teacher.safetensors"
        for found in (home / "teachers").rglob("*.safetensors"):
            with safe_open(found, "np") as file:
                own = file.metadata()["model"] == self.pair.teacher["model"]
            if own:
                shutil.copy(found, kept)
            else:
                self._judge = found.parent
        self._weights = str(kept)

    def run(self, contender: str, trials: int | None = None) -> Run:
        """One repetition of a variant."""
        trials = trials or self._trials
        home = self._home()
        match contender:
            case "student only":
                run = self._sweep(self.pair.alone, "auto", home, trials)
            case "inside each trial":
                run = self._sweep(self.pair.taught, "inline", home, trials)
            case "shared, cold":
                run = self._sweep(self.pair.taught, "cached", home, trials)
            case "shared, warm":
                self._sweep(self.pair.taught, "cached", home, 1)
                shutil.rmtree(home / "sweeps")
                run = self._sweep(self.pair.taught, "cached", home, trials)
            case _:
                raise AssertionError(contender)
        shutil.rmtree(home)
        return run

    def _home(self) -> Path:
        self._homes += 1
        home = self._folder / f"home-{self._homes}"
        if self._judge is not None:
            shutil.copytree(self._judge, home / "teachers" / self._judge.name)
        return home

    def _sweep(self, methods: Methods, way: str, home: Path, trials: int) -> Run:
        watch = Stopwatch()
        sweep = Only(check(self._spec(methods, way, trials)), home=home, progress=watch, method=methods[0])
        started = time.perf_counter()
        results = sweep.run()
        whole = time.perf_counter() - started
        self.train_samples = len(sweep.data().train.labels)
        finished = [record for record in results.records if record.status == "finished"]
        if len(finished) != trials:
            raise SystemExit(f"{len(finished)} of {trials} trials finished: {[record.reason for record in results.records]}")
        return self._counts(results, watch, whole)

    def _counts(self, results: Results, watch: Stopwatch, whole: float) -> Run:
        records = results.records
        samples = len(records) * self.pair.epochs * self.train_samples
        waited = sum(record.teaching.get("wait_seconds", 0.0) for record in records)
        teachers = results.facts.teachers
        return Run(
            seconds=watch.seconds,
            whole=whole,
            student_seconds=(sum(record.metrics["train_seconds"] for record in records) - waited) / samples,
            wait_seconds=waited,
            forwarded=sum(results.forwarded.values()),
            remote_calls=max((record.teaching.get("remote_calls", 0) for record in records), default=0),
            teacher_seconds=(teachers[0].seconds_per_sample or 0.0) if teachers else 0.0,
            fill_seconds=sum(teacher.fill_seconds or 0.0 for teacher in teachers),
            first_started=watch.started - watch.planned,
        )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--pair", choices=sorted(PAIRS), default="cifar")
    parser.add_argument("--root", help="folder of the data set; random images without it")
    parser.add_argument("--trials", type=int, default=8)
    parser.add_argument("--epochs", type=int)
    parser.add_argument("--limit", type=int, help="training images, validation included")
    parser.add_argument("--teacher", help="another model as the teacher, such as resnet14: a smaller R, in less time")
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--concurrent", type=int, default=os.cpu_count() or 1)
    parser.add_argument("--curve", help="numbers of trials, such as 1,2,4,8,16")
    parser.add_argument("--picture", type=Path)
    parser.add_argument("--contenders", nargs="+", choices=CONTENDERS, default=CONTENDERS, help="besides the first two")
    parser.add_argument("--torchdistill", help="a Python that can import torchdistill and this environment's packages")
    add_gpu_options(parser)
    add_recipe_option(parser)
    arguments = parser.parse_args()
    pair = PAIRS[arguments.pair]
    if arguments.epochs:
        pair = replace(pair, epochs=arguments.epochs, views=min(pair.views, arguments.epochs))
    if arguments.teacher:
        pair = replace(pair, teacher={"model": arguments.teacher})
    if arguments.limit:
        options = {**pair.dataset["options"], "limit": arguments.limit}
        pair = replace(pair, dataset={**pair.dataset, "options": options})
    start_ray()
    with tempfile.TemporaryDirectory(prefix="stillhouse-bench-") as folder:
        shares = GpuShares(arguments.gpu, arguments.teacher_gpu)
        bench = Bench(pair, arguments.root, Path(folder), arguments.trials, arguments.concurrent, shares, arguments.recipe)
        bench.prepare()
        if arguments.curve:
            answer = curve(bench, arguments.repeats, [int(number) for number in arguments.curve.split(",")], arguments.picture)
        else:
            chosen = [name for name in CONTENDERS if name in (*arguments.contenders, *CONTENDERS[:2])]
            answer = compare(bench, arguments.repeats, arguments.trials, chosen, arguments.torchdistill, Path(folder))
    facts = {
        "pair": arguments.pair,
        "teacher": pair.teacher,
        "student": pair.student,
        "epochs": pair.epochs,
        "views": pair.views,
        "samples": bench.train_samples,
    }
    facts |= {
        "gpu": arguments.gpu,
        "teacher_gpu": arguments.teacher_gpu,
        "concurrent": arguments.concurrent,
        "cpus": os.cpu_count(),
        "machine": platform.machine(),
    }
    print(json.dumps({"benchmark": "sweep", **facts, **answer}))


def add_recipe_option(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--recipe", type=int, default=NEWEST, help="training defaults; 1 to compare with release 0.1.0")


def add_gpu_options(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--gpu", type=float, default=0.0, help="GPUs, or share of one, of each trial")
    parser.add_argument("--teacher-gpu", type=float, default=0.0, help="GPUs, or share of one, of the teacher")


def start_ray() -> None:
    """One Ray for all variants, whose workers can import the benchmark's own data set."""
    os.environ.setdefault("OMP_NUM_THREADS", "1")
    sys.path.insert(0, str(HERE))
    os.environ["PYTHONPATH"] = os.pathsep.join([str(HERE), *filter(None, [os.environ.get("PYTHONPATH")])])
    ray.init(
        address="local",
        num_cpus=os.cpu_count(),
        include_dashboard=False,
        logging_level="error",
        log_to_driver=False,
        runtime_env={
            "env_vars": {"PYTHONPATH": os.environ["PYTHONPATH"], "OMP_NUM_THREADS": "1", "OMP_WAIT_POLICY": "PASSIVE"}
        },
    )


def compare(
    bench: Bench, repeats: int, trials: int, contenders: Sequence[str], torchdistill: str | None, folder: Path
) -> dict[str, Any]:
    """Runs the variants, alternating, and prints their table."""
    runs: dict[str, list[Run]] = {name: [] for name in contenders}
    others: list[float] = []
    for repeat in range(repeats):
        names = [*contenders[repeat % len(contenders) :], *contenders[: repeat % len(contenders)]]
        for name in names:
            runs[name].append(bench.run(name))
            print(f"  {repeat + 1}/{repeats} {name}: {runs[name][-1].seconds:.1f} s", file=sys.stderr, flush=True)
        if torchdistill:
            others.append(run_torchdistill(torchdistill, bench, trials, folder))
            print(f"  {repeat + 1}/{repeats} torchdistill: {others[-1]:.1f} s", file=sys.stderr, flush=True)
    seconds = {name: statistics.median(run.seconds for run in each) for name, each in runs.items()}
    alone = seconds["student only"]
    student = statistics.median(run.student_seconds for run in runs["student only"])
    teacher = statistics.median(run.teacher_seconds for run in runs["shared, cold"])
    ratio = teacher / student
    share = bench.pair.views / bench.pair.epochs
    ideal = dict(zip(CONTENDERS, (1.0, 1 + share * ratio / trials, 1.0, 1 + ratio), strict=True))
    print(f"\nR = {ratio:.2f}: teacher {1e6 * teacher:.1f} µs forward, student {1e6 * student:.1f} µs per step, per sample")
    print(f"{trials} trials, {bench.pair.epochs} epochs, {bench.pair.views} views, {bench.train_samples:,} samples\n")
    print("| variant | seconds (each) | median | over student only | ideal | fraction of ideal | forwarded | calls |")
    print("|---|---|---|---|---|---|---|---|")
    rows = {}
    for name, each in runs.items():
        over = seconds[name] / alone
        rows[name] = {"seconds": [run.seconds for run in each], "over_student_only": over, "ideal": ideal[name]}
        rows[name] |= {"fraction_of_ideal": ideal[name] / over, "forwarded": each[-1].forwarded, "calls": each[-1].remote_calls}
        listed = ", ".join(f"{run.seconds:.1f}" for run in each)
        print(
            f"| {name} | {listed} | {seconds[name]:.1f} | {over:.2f} | {ideal[name]:.2f} | {ideal[name] / over:.2f} "
            f"| {each[-1].forwarded:,} | {each[-1].remote_calls} |"
        )
    if others:
        median = statistics.median(others)
        rows["torchdistill"] = {"seconds": others, "over_student_only": median / alone}
        print(f"| torchdistill | {', '.join(f'{each:.1f}' for each in others)} | {median:.1f} | {median / alone:.2f} | | | | |")
    answer = {"R": ratio, "trials": trials, "contenders": rows}
    if "inside each trial" not in seconds:
        return answer
    gain = seconds["inside each trial"] / seconds["shared, cold"]
    best = (1 + ratio) / ideal["shared, cold"]
    print(f"\ninside each trial / shared, cold: {gain:.2f}, ideal {best:.2f}")
    return {**answer, "inline_over_cold": gain, "inline_over_cold_ideal": best}


def curve(bench: Bench, repeats: int, numbers: list[int], picture: Path | None) -> dict[str, Any]:
    """Wall clock over student-only time for growing numbers of trials, beside the ideal; medians of the repetitions."""
    names = ("student only", "shared, cold", "inside each trial")
    runs: dict[tuple[str, int], list[Run]] = {}
    for repeat in range(repeats):
        for trials in numbers:
            for name in names[repeat % len(names) :] + names[: repeat % len(names)]:
                runs.setdefault((name, trials), []).append(bench.run(name, trials))
                print(
                    f"  {repeat + 1}/{repeats} {trials} {name}: {runs[name, trials][-1].seconds:.1f} s",
                    file=sys.stderr,
                    flush=True,
                )
    points = []
    print("| trials | R | student only s | shared, cold s | ratio | ideal | inside each trial s | ratio | ideal |")
    print("|---|---|---|---|---|---|---|---|---|")
    for trials in numbers:
        alone, cold, inside = (statistics.median(run.seconds for run in runs[name, trials]) for name in names)
        student = statistics.median(run.student_seconds for run in runs["student only", trials])
        ratio = statistics.median(run.teacher_seconds for run in runs["shared, cold", trials]) / student
        point = {"trials": trials, "R": ratio, "cold": cold / alone, "inside": inside / alone}
        point["ideal"] = 1 + bench.pair.views / bench.pair.epochs * ratio / trials
        points.append(point)
        print(
            f"| {trials} | {ratio:.2f} | {alone:.1f} | {cold:.1f} | {point['cold']:.2f} | {point['ideal']:.2f} "
            f"| {inside:.1f} | {point['inside']:.2f} | {1 + ratio:.2f} |",
            flush=True,
        )
    if picture:
        draw(points, picture)
    return {"curve": points, "repeats": repeats}


def draw(points: list[dict[str, float]], path: Path) -> None:
    """The curve as a picture."""
    from matplotlib import pyplot as plt

    numbers = [point["trials"] for point in points]
    ratio = statistics.median(point["R"] for point in points)
    figure, axes = plt.subplots(figsize=(6, 3.6), layout="constrained")
    axes.plot(numbers, [point["inside"] for point in points], "s-", color="#d55e00", label="teacher inside each trial")
    axes.plot(numbers, [point["cold"] for point in points], "o-", color="#0072b2", label="shared teacher, cold")
    axes.plot(numbers, [point["ideal"] for point in points], "--", color="#56b4e9", label="shared, ideal 1 + vR/N")
    axes.axhline(1 + ratio, ls=":", color="#e69f00", label="inside, ideal 1 + R")
    axes.axhline(1, lw=0.8, color="0.6")
    axes.set(xscale="log", xlabel="trials in the sweep", ylabel="wall clock / student only", ylim=(0.8, None))
    axes.set_xticks(numbers, [str(int(number)) for number in numbers])
    axes.minorticks_off()
    axes.set_title(f"R = {ratio:.1f}", loc="right", fontsize=9)
    axes.legend(frameon=False, fontsize=8)
    figure.savefig(path, dpi=110)


def run_torchdistill(python: str, bench: Bench, trials: int, folder: Path) -> float:
    """The same number of trials with torchdistill, with as many processes at a time as the sweep has trials."""
    pair = bench.pair
    data = folder / "images.npz"
    if not data.exists():
        train = Only(check(bench._spec("kd", "cached", 1)), home=folder / "data", method="kd").data()
        np.savez(
            data,
            images=train.train.images.numpy(),
            labels=train.train.labels.numpy(),
            mean=np.array(train.mean),
            std=np.array(train.std),
            classes=train.num_classes,
        )
    job = {
        "data": str(data),
        "teacher": dict(pair.teacher),
        "student": dict(pair.student),
        "weights": str(folder / "teacher.safetensors"),
        "epochs": pair.epochs,
        "batch_size": pair.batch_size,
        "augment": bool(pair.policy),
    }
    script = [python, str(HERE / "torchdistill_trial.py"), json.dumps(job)]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    slots = max(1, bench._concurrent)
    shares = [trials // slots + (place < trials % slots) for place in range(slots)]
    running = [
        subprocess.Popen([*script, str(share)], env=environment, stdout=subprocess.PIPE, encoding="utf-8")
        for share in shares
        if share
    ]
    # Each process prints the seconds of its trials, without imports.
    return max(float(process.communicate()[0].splitlines()[-1]) for process in running)


if __name__ == "__main__":
    main()
