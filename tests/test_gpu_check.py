"""The script for machines with a GPU: its steps run on a CPU with tiny sizes, and no step ends the script."""

import importlib.util
import json
import os
import subprocess
import sys
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import torch

BENCHMARKS = Path(__file__).parents[1] / "benchmarks"


def check(*options: str) -> tuple[int, list[dict[str, Any]], str]:
    """The exit code, the outcomes of the steps, and everything that was printed."""
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    command = [sys.executable, str(BENCHMARKS / "gpu_check.py"), *options]
    done = subprocess.run(command, capture_output=True, text=True, check=False, env=environment, timeout=900)
    lines = [json.loads(line) for line in done.stdout.splitlines() if line.startswith("{")]
    assert lines, done.stderr
    assert lines[-1]["steps"] == lines[:-1]
    return done.returncode, lines[:-1], done.stdout


@pytest.mark.ray
@pytest.mark.slow
def test_every_step_passes_on_a_cpu_with_tiny_sizes() -> None:
    # Other tests run at the same time, and limits are for a quiet machine.
    code, outcomes, output = check("--device", "cpu", "--limit-factor", "5")
    assert {each["step"]: each["status"] for each in outcomes} == dict.fromkeys(range(10), "pass"), output
    assert code == 0


def test_a_step_that_takes_too_long_is_ended_and_the_next_one_runs() -> None:
    code, outcomes, output = check("--device", "cpu", "--steps", "0,1", "--limit-factor", "0.001")
    assert [each["status"] for each in outcomes] == ["timeout", "timeout"]
    assert "0 pass, 0 fail, 2 timeout, 0 skipped" in output
    assert code == 1


@pytest.mark.skipif(torch.cuda.is_available(), reason="needs a machine without a GPU")
def test_a_machine_without_a_gpu_fails_with_the_reason() -> None:
    code, outcomes, _ = check("--steps", "0")
    assert outcomes[0]["status"] == "fail"
    assert "PyTorch finds no GPU" in outcomes[0]["reason"]
    assert code == 1


@pytest.fixture
def replacements(monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    spec = importlib.util.spec_from_file_location("replacements", BENCHMARKS / "gpu_steps" / "replacements.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    monkeypatch.setattr(sys, "meta_path", list(sys.meta_path))
    return module


def test_a_package_that_is_not_installed_can_be_imported_and_is_named_where_it_is_used(replacements: ModuleType) -> None:
    assert replacements.replace_missing(["no_such_package", "json"]) == ["no_such_package"]
    module = importlib.import_module("no_such_package.part")
    try:
        assert issubclass(type("Own", (module.Base,), {}), Exception)
        with pytest.raises(ModuleNotFoundError) as caught:
            module.function(1)
        assert replacements.missing_package(caught.value, ["no_such_package"]) == "no_such_package"
        assert replacements.missing_package(ValueError("another"), ["no_such_package"]) is None
    finally:
        for name in [name for name in sys.modules if name.startswith("no_such_package")]:
            del sys.modules[name]


def test_the_replaced_models_of_pydantic_have_defaults_and_refuse_unknown_fields(replacements: ModuleType) -> None:
    class Recipe(replacements._Model):  # type: ignore[misc, name-defined]
        rate: float = 0.5
        steps: int

    assert Recipe(steps=3).model_dump() == {"rate": 0.5, "steps": 3}
    assert Recipe(steps=3) == Recipe.model_validate({"steps": 3, "rate": 0.5})
    assert Recipe(steps=3).model_copy(update={"rate": 1.0}).rate == 1.0
    with pytest.raises(ValueError, match="unknown fields"):
        Recipe(steps=3, rates=1)
    with pytest.raises(AttributeError):
        Recipe(steps=3).rate = 2.0
