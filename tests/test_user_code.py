"""User-defined code: where it may come from, and what happens when it ends the process or lies where nobody named it."""

import os
import subprocess
import sys
import threading
from pathlib import Path

import pytest

from stillhouse.data.datasets import load_dataset
from stillhouse.errors import SpecError, UsageError, UserCodeExit, describe_error
from stillhouse.models.registry import build_model
from stillhouse.sweep.planning.spec_check import check
from stillhouse.user_code import import_user_module, make_importable, modules_of, user_code

SPEC = "name: s\ndataset: {name: digits}\nstudents: [mlp]\nmethods: {scratch: {}}\nsearch: {trials_per_method: 1}\n"


class GivesUp(BaseException):
    """An exception that `except Exception` does not catch."""


@pytest.mark.parametrize("raised", [SystemExit(0), SystemExit("bye"), GivesUp("now")])
def test_an_exception_that_would_end_the_process_becomes_an_error_at_the_border(raised: BaseException) -> None:
    with pytest.raises(UserCodeExit) as caught, user_code():
        raise raised
    assert describe_error(caught.value) == f"{type(raised).__name__}: {raised}"


@pytest.mark.parametrize("raised", [KeyboardInterrupt(), ValueError("x"), GeneratorExit()])
def test_ctrl_c_and_ordinary_errors_pass_the_border_unchanged(raised: BaseException) -> None:
    with pytest.raises(type(raised)) as caught, user_code():
        raise raised
    assert caught.value is raised


def test_the_end_of_a_worker_that_ray_stops_is_no_error_of_the_users_code() -> None:
    ended = SystemExit(1)
    ended.ray_terminate_msg = "The process receives a SIGTERM."  # type: ignore[attr-defined]
    with pytest.raises(SystemExit), user_code():
        raise ended


@pytest.mark.parametrize("name", ["os:system", "subprocess:run", "shutil:rmtree", "builtins:print", "importlib.util:find_spec"])
def test_functions_of_the_standard_library_are_no_data_sets_models_or_tasks(name: str, tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="standard library"):
        load_dataset(name)
    with pytest.raises(UsageError, match="standard library"):
        build_model(name, num_classes=10, input_shape=(1, 8, 8))
    spec = {"name": "s", "dataset": {"name": "digits"}, "students": ["mlp"]}
    for change in ({"task": name}, {"dataset": {"name": name, "options": {"command": f"touch {tmp_path}/ran"}}}):
        with pytest.raises(SpecError, match="standard library"):
            check(spec | change)
    assert not list(tmp_path.iterdir())


def test_a_module_that_passes_on_a_function_of_the_standard_library_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "passes_on.py").write_text("from os import system\nfrom subprocess import Popen\n")
    monkeypatch.syspath_prepend(str(tmp_path))
    for name in ("system", "Popen"):
        with pytest.raises(UsageError, match="of Python's standard library"):
            load_dataset(f"passes_on:{name}", options={"command": f"touch {tmp_path}/ran"})
    assert not (tmp_path / "ran").exists()


def test_a_module_that_is_not_found_names_both_places(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match=r"beside the spec, or put the folder of its file on PYTHONPATH"):
        import_user_module("no_such_module_at_all", "model 'no_such_module_at_all:f'")


def test_the_modules_of_a_spec_are_named_once_and_libraries_have_none() -> None:
    assert modules_of(["a:b", "torchvision:resnet18", "mlp", None, "a:c", "d.e:f"]) == ["a", "d.e"]


def test_user_code_is_found_after_installed_packages(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "path", ["/installed"])
    make_importable(tmp_path)
    make_importable(tmp_path)
    assert sys.path == ["/installed", str(tmp_path)]


ENDS = "import sys\ndef load(**options):\n    sys.exit(0)\ndef net(num_classes, input_shape):\n    sys.exit(0)\n"
FILES = {
    "ends.py": ENDS,
    "ends_at_once.py": "import sys\nsys.exit(0)\n",
    "own/ends_method.py": "import sys\nsys.exit(0)\n",
}


@pytest.mark.parametrize(
    "change",
    [
        "dataset={name: ends:load}",
        "dataset={name: ends_at_once:load}",
        "students=[ends:net]",
        "students=[ends_at_once:net]",
        "teachers={t: {model: ends:net}}",
        "teachers={t: {model: ends_at_once:net}}",
        "task=ends_at_once:Task",
        "methods={ends_method: {}}",
    ],
)
def test_code_that_calls_sys_exit_is_a_problem_of_the_spec(change: str, tmp_path: Path) -> None:
    for name, text in FILES.items():
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_text(text)
    (tmp_path / "spec.yaml").write_text(SPEC)
    done = run(tmp_path, "sweep", "spec.yaml", "--dry-run", "--set", change, "--set", "method_paths=[own]")
    assert done.returncode == 2, done.stdout + done.stderr
    assert "SystemExit: 0" in done.stderr
    assert "Traceback" not in done.stderr


def test_no_file_of_the_working_folder_runs_unless_the_spec_names_code(tmp_path: Path) -> None:
    """`dill` is a library that others import if there is one; the others are installed ones."""
    for name in ("dill", "typer", "torch", "yaml", "mlflow", "sitecustomize_of_nobody"):
        (tmp_path / f"{name}.py").write_text(f"open({str(tmp_path / 'ran')!r}, 'a').write({name!r})\n")
    (tmp_path / "spec.yaml").write_text(SPEC)
    (tmp_path / "home").mkdir()
    for arguments in (["sweep", "spec.yaml", "--dry-run"], ["models"], ["ls"], ["methods", "kd"]):
        done = run(tmp_path, *arguments, safe=True)
        assert done.returncode == 0, done.stderr
    assert not (tmp_path / "ran").exists()


def test_a_module_beside_the_spec_is_found_from_another_working_folder(tmp_path: Path) -> None:
    (tmp_path / "specs").mkdir()
    (tmp_path / "specs" / "beside.py").write_text(
        "from torch import nn\n\n"
        "def net(num_classes, input_shape):\n    return nn.Sequential(nn.Flatten(), nn.Linear(64, num_classes))\n"
    )
    (tmp_path / "specs" / "spec.yaml").write_text(SPEC)
    done = run(tmp_path, "sweep", "specs/spec.yaml", "--dry-run", "--set", "students=[beside:net]")
    assert done.returncode == 0, done.stderr


def test_an_error_that_would_end_a_thread_reaches_the_caller() -> None:
    caught: list[Exception] = []

    def work() -> None:
        try:
            with user_code():
                sys.exit(3)
        except Exception as error:
            caught.append(error)

    thread = threading.Thread(target=work)
    thread.start()
    thread.join()
    assert [str(error) for error in caught] == ["SystemExit: 3"]


def run(folder: Path, *arguments: str, safe: bool = False) -> "subprocess.CompletedProcess[str]":
    environment = os.environ | {"STILLHOUSE_HOME": str(folder / "home")}
    environment["PYTHONPATH"] = os.pathsep.join(filter(None, sys.path))
    command = [sys.executable, *(["-P"] if safe else []), "-m", "stillhouse.cli", *arguments]
    return subprocess.run(command, capture_output=True, text=True, env=environment, timeout=120, cwd=folder)
