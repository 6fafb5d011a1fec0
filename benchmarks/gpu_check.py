"""Runs the GPU path of Stillhouse step by step, and reports what passes, what fails and how fast it is.

    python benchmarks/gpu_check.py                       # on a machine with a GPU: about ten minutes
    python benchmarks/gpu_check.py --steps 3,4           # some steps
    python benchmarks/gpu_check.py --device cpu          # tiny sizes on a CPU, two at a time: checks the script itself

Needs only a checkout and PyTorch with NumPy. Steps 1 to 6 and 9 run without Ray, pydantic and the other dependencies, by
replacements that suffice for them (`gpu_steps/replacements.py`); a step that needs the real package is skipped with its name.

Each step runs in its own process, so that a crash, a hang or a lost GPU ends that step alone, and prints one JSON line:
`step`, `name`, `status` (pass, fail, timeout, skipped), `seconds`, `figures`, and `reason` where it did not pass. A table
follows, then one JSON line with everything. The exit code is 1 if a step failed or took too long.
"""

import argparse
import contextlib
import json
import os
import signal
import subprocess
import sys
import tempfile
import time
import traceback
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

HERE = Path(__file__).resolve().parent
sys.path[:0] = [str(HERE), str(HERE.parent / "platform")]

import torch  # noqa: E402
from gpu_steps.plan import STEPS, Settings, Skip, Step  # noqa: E402
from gpu_steps.replacements import missing_package, replace_missing  # noqa: E402

_RESULT = "GPU_CHECK_RESULT "
_ENDED_BY_A_PROBLEM = ("fail", "timeout")


@dataclass
class Outcome:
    """What a step's process reports.

    Attributes:
        status: pass, fail, timeout or skipped.
        reason: why it did not pass.
    """

    step: int
    name: str
    status: str
    seconds: float = 0.0
    figures: dict[str, Any] = field(default_factory=dict)
    reason: str = ""


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--device", default="cuda", help="cuda, or cpu for tiny sizes")
    parser.add_argument("--steps", help="numbers of steps, such as 0,3,4; all without it")
    parser.add_argument("--limit-factor", type=float, default=1.0, help="multiplies the time limit of every step")
    parser.add_argument("--run-step", type=int, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    settings = Settings(device=arguments.device)
    if arguments.run_step is not None:
        return run_here(STEPS[arguments.run_step], settings)
    chosen = sorted(STEPS) if not arguments.steps else [int(number) for number in arguments.steps.split(",")]
    if unknown := [number for number in chosen if number not in STEPS]:
        parser.error(f"--steps must be among {sorted(STEPS)}, got {unknown[0]}")
    outcomes = []

    def run(number: int) -> Outcome:
        return run_apart(number, settings, STEPS[number].limit_s(settings) * arguments.limit_factor)

    # The times of tiny steps say nothing, so that two may run at once.
    with ThreadPoolExecutor(settings.size(1, 2)) as steps:
        for outcome in steps.map(run, chosen):
            outcomes.append(outcome)
            print(json.dumps(asdict(outcome)), flush=True)
    print_table(outcomes)
    print(json.dumps({"benchmark": "gpu_check", "device": settings.device, "steps": [asdict(each) for each in outcomes]}))
    return int(any(each.status in _ENDED_BY_A_PROBLEM for each in outcomes))


def run_apart(number: int, settings: Settings, limit_s: float) -> Outcome:
    """Runs the step in a process of its own, with all that the process starts, for at most `limit_s` seconds."""
    step, started = STEPS[number], time.perf_counter()
    with tempfile.TemporaryFile("w+") as output, tempfile.TemporaryDirectory(prefix="gpu-check-") as folder:
        process = subprocess.Popen(
            [sys.executable, str(HERE / "gpu_check.py"), "--device", settings.device, "--run-step", str(number)],
            stdout=output,
            stderr=subprocess.STDOUT,
            env={**os.environ, "TMPDIR": folder, "PYTHONPATH": os.pathsep.join(sys.path[:2])},
            start_new_session=True,
        )
        try:
            process.wait(timeout=limit_s)
        except subprocess.TimeoutExpired:
            pass
        finally:
            end_group(process)
        seconds = round(time.perf_counter() - started, 1)
        output.seek(0)
        text = output.read()
    reported = [line.removeprefix(_RESULT) for line in text.splitlines() if line.startswith(_RESULT)]
    if reported:
        return Outcome(number, step.name, seconds=seconds, **json.loads(reported[-1]))
    last = "\n".join(text.splitlines()[-15:])
    if process.returncode in (-signal.SIGKILL, -signal.SIGTERM) and seconds >= limit_s:
        return Outcome(number, step.name, "timeout", seconds, reason=f"took more than {limit_s:g} s; its last lines:\n{last}")
    return Outcome(number, step.name, "fail", seconds, reason=f"ended with exit code {process.returncode}:\n{last}")


def end_group(process: subprocess.Popen[str]) -> None:
    """Ends the process and those that it left in its session."""
    with contextlib.suppress(ProcessLookupError):
        os.killpg(process.pid, signal.SIGKILL)
    process.wait()


def run_here(step: Step, settings: Settings) -> int:
    """Runs the step in this process and prints its result as one line; a failure leaves its traceback too."""
    replaced = replace_missing()
    if settings.tiny:
        torch.set_num_threads(1)
    try:
        result = {"status": "pass", "figures": step.run(settings)}
    except Skip as reason:
        result = {"status": "skipped", "reason": str(reason)}
    except Exception as error:
        if (package := missing_package(error, replaced)) is not None:
            result = {"status": "skipped", "reason": f"needs {package}, which is not installed"}
        else:
            traceback.print_exc()
            result = {"status": "fail", "reason": "".join(traceback.format_exception(error)[-3:]).strip()}
            result["figures"] = getattr(error, "figures", {})
    print(f"\n{_RESULT}{json.dumps(result)}", flush=True)
    return 0


def print_table(outcomes: list[Outcome]) -> None:
    print("\n| step | name | status | seconds | figures, or why not |\n|---|---|---|---|---|")
    for each in outcomes:
        told = each.reason.splitlines()[-1] if each.reason else ""
        told = "; ".join(filter(None, (told, ", ".join(f"{name} {_short(value)}" for name, value in each.figures.items()))))
        print(f"| {each.step} | {each.name} | {each.status} | {each.seconds:.1f} | {told} |")
    counts = {status: sum(each.status == status for each in outcomes) for status in ("pass", "fail", "timeout", "skipped")}
    print("\n" + ", ".join(f"{count} {status}" for status, count in counts.items()))


def _short(value: Any) -> str:
    if isinstance(value, dict):
        return "(" + ", ".join(f"{name} {_short(each)}" for name, each in value.items()) + ")"
    return f"{value:.4g}" if isinstance(value, float) else str(value)


if __name__ == "__main__":
    sys.exit(main())
