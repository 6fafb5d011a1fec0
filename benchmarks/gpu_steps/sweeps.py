"""Steps 7 and 8: whole sweeps through Ray, with trials and a teacher that share the GPU."""

import importlib.util
import json
import os
import signal
import subprocess
import sys
import tempfile
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from gpu_steps.plan import Settings, Skip, finish

_BENCHMARKS = Path(__file__).resolve().parents[1]
_WARM, _INSIDE, _COLD_MARGIN = 1.1, 0.85, 0.1
_RECOMPILE_LIMIT = "recompile_limit"


def sharing(settings: Settings) -> dict[str, Any]:
    """Trials beside their teacher, one of which loses its worker; compiled students; what the plan must refuse."""
    _need_packages()
    problems = _refused()
    with tempfile.TemporaryDirectory() as folder:
        _start_ray(settings)
        figures = _killed_trial(Path(folder), settings, problems)
        if not settings.tiny:
            figures |= _compiled(Path(folder), settings, problems)
    return finish(problems, figures)


def saving(settings: Settings) -> dict[str, Any]:
    """`bench_sweep.py` with trials and teacher on the GPU: a warm and a cold shared teacher, and one inside each trial."""
    _need_packages()
    script = [sys.executable, str(_BENCHMARKS / "bench_sweep.py"), "--repeats", "1"]
    script += settings.size(
        [
            "--pair",
            "cifar",
            "--trials",
            "4",
            "--epochs",
            "4",
            "--limit",
            "10500",
            "--gpu",
            "0.2",
            "--teacher-gpu",
            "0.2",
            "--concurrent",
            "4",
        ],
        [
            "--pair",
            "mnist",
            *["--trials", "1", "--epochs", "1", "--limit", "5200", "--contenders"],
            "student only",
            "shared, cold",
        ],
    )
    done = subprocess.run(script, capture_output=True, encoding="utf-8", check=False)
    if done.returncode:
        raise AssertionError(f"bench_sweep.py ended with exit code {done.returncode}: {done.stderr[-1500:]}")
    answer = json.loads(done.stdout.strip().splitlines()[-1])
    rows: dict[str, Any] = answer["contenders"]
    figures = {name: row["over_student_only"] for name, row in rows.items()}
    problems: list[str] = []
    if not settings.tiny:
        ideal = {name: row["ideal"] for name, row in rows.items()}
        if figures["shared, warm"] > _WARM:
            problems.append(f"a warm shared teacher costs {figures['shared, warm']:.2f} of the students alone, must be {_WARM}")
        if figures["shared, cold"] > ideal["shared, cold"] + _COLD_MARGIN:
            problems.append(f"a cold one costs {figures['shared, cold']:.2f}, ideal is {ideal['shared, cold']:.2f}")
        if figures["inside each trial"] < _INSIDE * ideal["inside each trial"]:
            problems.append(f"teachers inside cost {figures['inside each trial']:.2f}, ideal {ideal['inside each trial']:.2f}")
    return finish(problems, {"over_student_only": figures, "R": answer["R"]})


def _need_packages() -> None:
    for name in ("ray", "pydantic", "mlflow", "pyarrow", "optuna"):
        if importlib.util.find_spec(name) is None or (name in sys.modules and not hasattr(sys.modules[name], "__file__")):
            raise Skip(f"needs {name}, which is not installed")


def _start_ray(settings: Settings) -> None:
    import ray

    from stillhouse.workers import environment_of_workers

    os.environ.setdefault("OMP_NUM_THREADS", "1")
    paths = os.pathsep.join([str(_BENCHMARKS), str(_BENCHMARKS.parent / "platform")])
    ray.init(
        address="local",
        num_cpus=settings.size(None, 2),
        include_dashboard=False,
        logging_level="error",
        log_to_driver=False,
        runtime_env={"env_vars": {"PYTHONPATH": paths, "OMP_NUM_THREADS": "1", **environment_of_workers()}},
    )


def _spec(settings: Settings, name: str, **changes: Any) -> dict[str, Any]:
    share = settings.size(0.2, 0.0)
    spec: dict[str, Any] = {
        "name": name,
        "dataset": {
            "name": "random_images:load",
            "validation": 100,
            "options": {"count": settings.size(6000, 300), "limit_test": 100},
        },
        "teachers": {
            "big": {"model": settings.size("resnet32", "lenet"), "train": {"epochs": 1}, "resources": {"gpu": share}},
        },
        "students": [{"model": settings.size("resnet8", "mlp")}],
        "methods": {"kd": {"temperature": {"uniform": [2.0, 6.0]}}},
        "search": {"trials_per_method": settings.size(4, 2), "max_epochs": settings.size(6, 3), "confirm_seeds": 0},
        "trial_resources": {"gpu": share},
        "max_concurrent_trials": settings.size(4, 2),
    }
    return {**spec, **changes}


def _run(spec: dict[str, Any], home: Path, progress: Any = None) -> Any:
    from stillhouse.spec.load import validate
    from stillhouse.sweep.progress import Progress
    from stillhouse.sweep.sweep import Sweep

    return Sweep(validate(spec), home=home, progress=progress or Progress(spec["name"], quiet=True)).run()


def _killed_trial(home: Path, settings: Settings, problems: list[str]) -> dict[str, Any]:
    from stillhouse.sweep.progress import Progress

    class Killer(Progress):
        """Kills the worker of one trial after the first epoch of any."""

        killed = 0

        def trial_epoch(self, key: str, epoch: int, value: float) -> None:
            super().trial_epoch(key, epoch, value)
            if not self.killed and (found := _workers(os.getpid())):
                self.killed = found[0]
                os.kill(self.killed, signal.SIGKILL)

    killer = Killer("sharing", quiet=True)
    results = _run(_spec(settings, "sharing"), home, killer)
    statuses = [record.status for record in results.records]
    if not killer.killed:
        problems.append("no trial's worker was found, so none was killed")
    if set(statuses) != {"finished"}:
        problems.append(f"after the death of a worker the trials are {statuses}: {[each.reason for each in results.records]}")
    devices = sorted({record.device for record in results.records})
    if devices != [settings.device]:
        problems.append(f"the trials ran on {devices}, not on {settings.device}")
    return {"trials": len(statuses)}


def _compiled(home: Path, settings: Settings, problems: list[str]) -> dict[str, Any]:
    """Six widths of a compiled student in reused workers; none may reach the limit of recompilations."""
    widths = [0.25, 0.5, 0.75, 1.0, 1.25, 1.5]
    spec = _spec(
        settings,
        "compiled",
        students=[{"model": "resnet8", "width": {"choice": widths}}],
        search={"algorithm": "grid", "max_epochs": 2, "confirm_seeds": 0},
        methods={"scratch": {}},
        teachers={},
        training={"compile": True},
        max_concurrent_trials=1,
    )
    results = _run(spec, home)
    if any(record.status != "finished" for record in results.records):
        problems.append(f"compiled students: {[record.reason for record in results.records]}")
    logs = Path("/tmp/ray/session_latest/logs")
    if any(_RECOMPILE_LIMIT in log.read_text(encoding="utf-8", errors="replace") for log in logs.glob("worker*.err")):
        problems.append("a worker reached the limit of recompilations, after which students run without being compiled")
    return {"compiled": len(results.records)}


def _refused() -> list[str]:
    """Workers of one trial that share a GPU must be refused, since NCCL refuses them at the first collective call."""
    from stillhouse.errors import SpecError
    from stillhouse.spec.load import validate

    spec = _spec(Settings("cuda"), "refused", trial_resources={"gpu": 1, "workers": 2})
    try:
        validate(spec)
    except SpecError as error:
        return [] if "trial_resources.workers" in str(error) else [f"gpu: 1, workers: 2 is refused for another reason: {error}"]
    return ["gpu: 1, workers: 2 is not refused"]


def _workers(root: int) -> list[int]:
    """The processes below `root` that run trials, by the titles that Ray gives its workers."""
    children: dict[int, list[int]] = {}
    titles: dict[int, str] = {}
    for folder in Path("/proc").glob("[0-9]*"):
        try:
            status = (folder / "stat").read_text(encoding="utf-8", errors="replace")
            titles[int(folder.name)] = (folder / "cmdline").read_text(encoding="utf-8", errors="replace")
        except OSError:
            continue
        children.setdefault(int(status.rpartition(")")[2].split()[1]), []).append(int(folder.name))
    return [pid for pid in _below(root, children) if titles.get(pid, "").startswith("ray::DistillTrial")]


def _below(root: int, children: dict[int, list[int]]) -> Iterable[int]:
    for pid in children.get(root, []):
        yield pid
        yield from _below(pid, children)
