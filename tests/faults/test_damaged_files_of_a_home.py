"""Every kind of file of a home, damaged in every way: nothing hides the other sweeps, and the same spec completes the sweep."""

import json
import os
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import ray
from typer.testing import CliRunner

from stillhouse.cli import app
from stillhouse.durable import write_checked
from stillhouse.errors import StillhouseError
from stillhouse.spec.load import validate
from stillhouse.sweep.home.status import StatusReader
from stillhouse.sweep.home.sweep_home import SweepHome
from stillhouse.sweep.results.results import Results
from stillhouse.sweep.sweep import Sweep
from stillhouse.workers import environment_of_workers

pytestmark = pytest.mark.ray

SPEC: dict[str, Any] = {
    "name": "hurt",
    "dataset": {"name": "digits", "validation": 80, "options": {"limit": 240}},
    "views": {"policy": [{"crop": {"padding": 1}}], "count": 2},
    "teachers": {"big": {"model": "lenet", "train": {"epochs": 2}}},
    "students": [{"model": "mlp", "hidden": [16]}],
    "methods": {"scratch": {}, "kd": {"temperature": 4.0}},
    "search": {"algorithm": "tpe", "trials_per_method": 1, "max_epochs": 2},
    "knowledge": {"way": "cached"},
    "tracking": {"uri": "http://127.0.0.1:9"},
}
STATUS = ("state", "planned", "done", "finished", "failed")
SMALL = {"name": "whole", "dataset": SPEC["dataset"], "students": SPEC["students"], "methods": {"scratch": {}}}
FILES = {
    "spec": "sweeps/hurt/spec.json",
    "facts": "sweeps/hurt/facts",
    "state": "sweeps/hurt/state.json",
    "lock": "sweeps/hurt/lock",
    "record": "sweeps/hurt/ledger/*.record",
    "latencies": "sweeps/hurt/latencies.json",
    "suggestions": "sweeps/hurt/suggestions",
    "weights of a student": "sweeps/hurt/students/*.safetensors",
    "card": "teachers/*/card",
    "weights of a teacher": "teachers/*/weights.safetensors",
    "lock of a teacher": "teachers/*/lock",
    "manifest of a view": "knowledge/*/manifest",
    "part of a view": "knowledge/*/part-000.arrow",
    "log of fills": "knowledge/fills.jsonl",
}


def cut(path: Path) -> None:
    path.write_bytes(path.read_bytes()[: max(1, path.stat().st_size // 2)])


def empty(path: Path) -> None:
    path.write_bytes(b"")


def other_shape(path: Path) -> None:
    """Valid JSON, with a valid checksum where the file has one, of which nothing is as expected."""
    text = b'[{"metric": 3, "running": 5, "planned": "x", "layout": [], "trial": null}]'
    if path.read_bytes().startswith(b"stillhouse1 "):
        write_checked(path, text)
    else:
        path.write_bytes(text)


def other_values(path: Path) -> None:
    text = b'{"metric": 3, "running": 5, "planned": "x", "layout": [], "trial": null, "name": [], "search": 1}'
    if path.read_bytes().startswith(b"stillhouse1 "):
        write_checked(path, text)
    else:
        path.write_bytes(text)


def binary(path: Path) -> None:
    path.write_bytes(bytes(range(256)) * 4)


def folder(path: Path) -> None:
    path.unlink()
    (path / "inside").mkdir(parents=True)


def link_loop(path: Path) -> None:
    path.unlink()
    path.symlink_to(path)


def no_rights(path: Path) -> None:
    path.chmod(0)


DAMAGES: list[Callable[[Path], None]] = [cut, empty, other_shape, other_values, binary, folder, link_loop]
by_name = pytest.mark.parametrize("damage", DAMAGES, ids=lambda damage: damage.__name__)


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Results]:
    """A home with the sweep, and Ray for the module."""
    ray.init(
        address="local",
        num_cpus=2,
        include_dashboard=False,
        log_to_driver=False,
        namespace="stillhouse",
        runtime_env={"env_vars": dict(environment_of_workers())},
    )
    home = tmp_path_factory.mktemp("finished") / "home"
    results = Sweep(validate(SPEC), home=home).run()
    SweepHome(home, "whole").write_spec(SMALL)
    yield results
    ray.shutdown()


@pytest.fixture
def home(finished: Results, tmp_path: Path) -> Path:
    return Path(shutil.copytree(finished.home, tmp_path / "home", symlinks=True))


def first(home: Path, kind: str) -> Path:
    """The first file of its kind."""
    found = sorted(home.glob(FILES[kind]))
    assert found, f"the home has no {kind}"
    return found[0]


def command(*words: str, home: Path) -> tuple[int, str]:
    """The exit code and stdout of a command that ends with at most one sentence on stderr."""
    result = CliRunner().invoke(app, [*words, "--home", str(home)])
    assert result.exception is None or isinstance(result.exception, SystemExit), result.exception
    assert "Traceback" not in result.stderr
    return result.exit_code, result.stdout


@by_name
@pytest.mark.parametrize("kind", FILES)
def test_one_damaged_file_breaks_no_list_and_no_report(home: Path, kind: str, damage: Callable[[Path], None]) -> None:
    damage(first(home, kind))
    code, text = command("ls", "--json", home=home)
    assert code == 0
    listed = {each["sweep"]: each for each in json.loads(text)}
    assert {*listed} == {"hurt", "whole"}
    assert listed["whole"]["state"] == "unfinished"
    for words in (("status", "hurt", "--json"), ("report", "hurt"), ("teachers", "ls", "--json"), ("ls",)):
        code, _ = command(*words, home=home)
        assert code in (0, 2, 4), words


@pytest.mark.slow
@pytest.mark.parametrize("damage", [cut, other_values, folder, link_loop], ids=lambda damage: damage.__name__)
def test_a_sweep_with_all_kinds_of_files_damaged_is_completed_by_its_spec(
    finished: Results, home: Path, damage: Callable[[Path], None]
) -> None:
    for kind in FILES:
        damage(first(home, kind))
    results = Sweep(validate(SPEC), home=home).run()
    assert {record.trial.key for record in results.records} == {record.trial.key for record in finished.records}
    assert all(record.status == "finished" for record in results.records)
    undisturbed, completed = (StatusReader(SweepHome(each, "hurt")).read() for each in (finished.home, home))
    assert {key: completed[key] for key in STATUS} == {key: undisturbed[key] for key in STATUS}


@by_name
def test_a_damaged_spec_is_replaced_by_that_of_the_facts(home: Path, damage: Callable[[Path], None]) -> None:
    before = SweepHome(home, "hurt").read_spec()
    damage(first(home, "spec"))
    assert SweepHome(home, "hurt").read_spec() == before


@by_name
def test_without_facts_a_damaged_spec_is_one_sentence_with_the_remedy(home: Path, damage: Callable[[Path], None]) -> None:
    first(home, "facts").unlink()
    damage(first(home, "spec"))
    with pytest.raises(StillhouseError, match=r"spec.json is damaged .*; run the sweep with its YAML file again"):
        Sweep.named("hurt", home=home)


@pytest.mark.skipif(os.geteuid() == 0, reason="root reads everything")
@pytest.mark.parametrize("kind", FILES)
def test_a_file_without_rights_is_named_and_hides_no_other_sweep(home: Path, kind: str) -> None:
    path = first(home, kind)
    no_rights(path)
    try:
        code, text = command("ls", "--json", home=home)
        assert code == 0
        assert len(json.loads(text)) == 2
    finally:
        path.chmod(0o600)


def test_a_sweep_that_cannot_be_read_does_not_hide_the_others(home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """As a file without rights is for users who are not root."""
    read = SweepHome.is_running

    def refuse(self: SweepHome) -> bool:
        if self.name == "hurt":
            raise PermissionError(13, "Permission denied", str(self.folder / "lock"))
        return read(self)

    monkeypatch.setattr(SweepHome, "is_running", refuse)
    code, text = command("ls", "--json", home=home)
    assert code == 0
    hurt, whole = json.loads(text)
    assert hurt["state"] == "unreadable"
    assert hurt["problem"] == f"cannot read {home / 'sweeps/hurt/lock'}: Permission denied"
    assert whole["state"] == "unfinished"
    assert "cannot read" in command("ls", home=home)[1]
