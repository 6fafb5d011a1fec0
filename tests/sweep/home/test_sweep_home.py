"""A sweep's folder: one driver at a time, and a spec that stays the same."""

import fcntl
import os
import stat
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import IO, Any

import pytest

from stillhouse.errors import InfrastructureError, UsageError
from stillhouse.spec.records import SweepFacts, TrialRecord
from stillhouse.sweep.home.manage import remove_sweep
from stillhouse.sweep.home.sweep_home import (
    HOME_VARIABLE,
    TRIALS_PER_METHOD,
    SweepHome,
    changed_keys,
    extended_spec,
    find_sweep,
    resolve_home,
    sweep_names,
)

SPEC: dict[str, Any] = {
    "name": "s",
    "students": [{"model": "mlp"}, {"model": "lenet"}],
    "search": {"max_epochs": 5},
    "trial_resources": {"cpu": 1},
    "tracking": {"uri": None},
}


def test_the_flag_goes_before_the_environment_and_that_before_the_default(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv(HOME_VARIABLE, str(tmp_path / "environment"))
    assert resolve_home(tmp_path / "flag") == tmp_path / "flag"
    assert resolve_home() == tmp_path / "environment"
    monkeypatch.delenv(HOME_VARIABLE)
    monkeypatch.setenv("HOME", str(tmp_path))
    assert resolve_home() == tmp_path / ".stillhouse"
    assert resolve_home("~/x") == tmp_path / "x"
    monkeypatch.chdir(tmp_path)
    assert resolve_home("relative") == tmp_path / "relative"


def test_another_process_cannot_hold_the_same_sweep(tmp_path: Path) -> None:
    program = (
        "import sys; from pathlib import Path; from stillhouse.sweep.home.sweep_home import SweepHome\n"
        "with SweepHome(Path(sys.argv[1]), sys.argv[2]).locked(): print('held')"
    )

    def hold(name: str) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            [sys.executable, "-c", program, str(tmp_path), name],
            env={**os.environ, "PYTHONPATH": os.pathsep.join(filter(None, sys.path))},
            capture_output=True,
            text=True,
            timeout=120,
        )

    with SweepHome(tmp_path, "s").locked():
        refused = hold("s")
        assert refused.returncode != 0
        assert "another process already runs sweep 's'; wait for it" in refused.stderr
        assert hold("t").stdout == "held\n"
    assert hold("s").stdout == "held\n"


def test_checking_whether_a_sweep_runs_does_not_block_its_driver(tmp_path: Path) -> None:
    home, looking = SweepHome(tmp_path, "s"), threading.Event()
    with home.locked():
        pass

    def look() -> None:
        with (home.folder / "lock").open() as file:
            fcntl.flock(file, fcntl.LOCK_SH)
            looking.set()
            time.sleep(0.1)

    thread = threading.Thread(target=look)
    thread.start()
    looking.wait()
    with home.locked():
        assert home.is_running()
    thread.join()


def test_a_lock_whose_folder_was_removed_meanwhile_is_not_held(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    home, flock, removals = SweepHome(tmp_path, "s"), fcntl.flock, [True]

    def remove_first(file: IO[str], kind: int) -> None:
        if removals:
            removals.clear()
            home.remove()
        flock(file, kind)

    monkeypatch.setattr(fcntl, "flock", remove_first)
    with home.locked():
        assert SweepHome(tmp_path, "s").is_running()


def test_a_home_that_cannot_be_written_is_one_sentence(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with (
        pytest.raises(InfrastructureError, match=r"cannot write the sweep's folder .*Not a directory; choose another"),
        SweepHome(tmp_path / "file", "s").locked(),
    ):
        pass


def test_the_same_spec_may_come_again(tmp_path: Path) -> None:
    home = SweepHome(tmp_path, "s")
    assert home.read_spec() is None
    home.write_spec(SPEC)
    home.write_spec(SPEC)
    assert home.read_spec() == SPEC
    assert stat.S_IMODE((home.folder / "spec.json").stat().st_mode) == 0o600


def begun(home: Path, make_record: Callable[..., TrialRecord], spec: Mapping[str, Any] = SPEC) -> SweepHome:
    """A sweep with one trial."""
    sweep_home = SweepHome(home, "s")
    sweep_home.write_spec(spec)
    sweep_home.ledger.write(make_record("a"))
    return sweep_home


def test_a_changed_spec_is_refused_with_the_keys_that_changed(tmp_path: Path, make_record: Callable[..., TrialRecord]) -> None:
    home = begun(tmp_path, make_record)
    changed = {**SPEC, "students": [{"model": "mlp"}, {"model": "resnet8"}], "search": {"max_epochs": 6}, "views": {"count": 2}}
    with pytest.raises(UsageError, match=r"with another spec: search.max_epochs, students\[1\].model, views changed") as caught:
        home.write_spec(changed)
    assert "--fork NAME" in str(caught.value)
    assert home.read_spec() == SPEC


def test_before_any_trial_has_left_something_the_spec_may_change_and_not_after_that(
    tmp_path: Path, make_record: Callable[..., TrialRecord]
) -> None:
    mended = {**SPEC, "students": ["mlp"]}
    home = SweepHome(tmp_path, "s")
    home.write_spec(SPEC)
    home.write_latencies({"mlp()": {"latency_ms": 1.0}})
    home.write_spec(SPEC)
    assert home.read_latencies(), "the same spec goes on where it was"
    home.write_spec(mended)
    assert home.read_spec() == mended
    assert not home.read_latencies(), "of another one nothing holds"
    (home.folder / "trials" / "a").mkdir(parents=True)
    (checkpoint := home.folder / "trials" / "a" / "checkpoint").touch()
    with pytest.raises(UsageError, match="another spec: students changed"):
        home.write_spec(SPEC)
    checkpoint.unlink()
    home.ledger.write(make_record("a"))
    home.ledger.set_aside("a")
    with pytest.raises(UsageError, match="another spec: students changed"):
        home.write_spec(SPEC)


def test_what_decides_no_result_may_change(tmp_path: Path, make_record: Callable[..., TrialRecord]) -> None:
    home = begun(tmp_path, make_record)
    changed = {**SPEC, "trial_resources": {"cpu": 2}, "tracking": {"uri": "sqlite:///x"}, "max_concurrent_trials": 1}
    changed["search"] = {**SPEC["search"], "scheduler": "asha", "grace_epochs": 2, "reduction_factor": 4}
    home.write_spec(changed)
    assert home.read_spec() == changed


def test_where_teachers_run_and_how_their_knowledge_travels_may_change_and_nothing_else_of_them(
    tmp_path: Path, make_record: Callable[..., TrialRecord]
) -> None:
    teacher = {"model": "lenet", "train": {"epochs": 3}, "resources": {"cpu": 64, "custom": {}}, "replicas": 1}
    knowledge: dict[str, Any] = {"way": "cached", "ways": {}, "dtype": "float32", "max_bytes": None}
    kept = {**SPEC, "teachers": {"big": teacher}, "knowledge": knowledge}
    home = begun(tmp_path, make_record, kept)
    placed = {**teacher, "resources": {"cpu": 1, "custom": {"slot": 1}}, "replicas": 2}
    moved = {**knowledge, "way": "auto", "ways": {"logits": "inline"}, "max_bytes": 1000}
    changed = {**kept, "teachers": {"big": placed}, "knowledge": moved}
    home.write_spec(changed)
    assert home.read_spec() == changed
    other = {**changed, "teachers": {"big": {**placed, "model": "mlp"}}, "knowledge": {**moved, "dtype": "float16"}}
    with pytest.raises(UsageError, match=r"another spec: knowledge\.dtype, teachers\.big\.model changed"):
        home.write_spec(other)


def test_only_a_sweep_that_is_extended_may_have_more_trials(tmp_path: Path, make_record: Callable[..., TrialRecord]) -> None:
    home = begun(tmp_path, make_record)
    longer = extended_spec(SPEC, 16)
    assert longer["search"] == {"max_epochs": 5, "trials_per_method": 16}
    with pytest.raises(UsageError, match=r"search.trials_per_method changed; use `stillhouse extend NAME --trials N`"):
        home.write_spec(longer)
    home.write_spec(longer, may_change={TRIALS_PER_METHOD})
    assert home.read_spec() == longer
    with pytest.raises(UsageError, match="--trials must be >= 16, which the sweep has, got 8"):
        extended_spec(longer, 8)
    with pytest.raises(UsageError, match="a grid runs every combination"):
        extended_spec({"search": {"algorithm": "grid"}}, 8)


def test_a_sweep_runs_for_as_long_as_its_lock_is_held(tmp_path: Path) -> None:
    home = SweepHome(tmp_path, "s")
    assert not home.is_running()
    with home.locked():
        assert SweepHome(tmp_path, "s").is_running()
        with pytest.raises(InfrastructureError, match=r"another process already runs sweep .*; wait for it, or stop it with: "):
            SweepHome(tmp_path, "s").locked().__enter__()
    assert not home.is_running()


def test_a_removed_sweep_is_gone_and_nothing_else(tmp_path: Path) -> None:
    for name in ("going", "staying"):
        SweepHome(tmp_path, name).write_spec(SPEC)
    SweepHome(tmp_path, "going").remove()
    assert sweep_names(tmp_path) == ["staying"]
    assert [path.name for path in (tmp_path / "sweeps").iterdir()] == ["staying"]


def test_a_sweep_that_is_half_removed_is_none(tmp_path: Path) -> None:
    SweepHome(tmp_path, ".removed-s-1").write_spec(SPEC)
    assert sweep_names(tmp_path) == []


def test_a_damaged_spec_is_one_sentence_until_the_yaml_file_replaces_it(tmp_path: Path) -> None:
    home = SweepHome(tmp_path, "s")
    home.write_spec(SPEC)
    (home.folder / "spec.json").write_text('{"name": ')
    with pytest.raises(UsageError, match=r"spec.json is damaged .*; run the sweep with its YAML file again, which replaces it"):
        home.read_spec()
    home.write_spec(SPEC)
    assert home.read_spec() == SPEC
    assert (home.folder / "spec.json.damaged-1").read_text() == '{"name": '


def test_the_rm_of_a_sweep_whose_folder_is_a_link_removes_the_link_and_names_what_stays(tmp_path: Path) -> None:
    elsewhere = tmp_path / "elsewhere"
    SweepHome(tmp_path / "home", "s").write_spec(SPEC)
    (tmp_path / "home/sweeps/s").rename(elsewhere)
    (tmp_path / "home/sweeps/s").symlink_to(elsewhere)
    assert remove_sweep(tmp_path / "home", "s") == {"removed": "s", "bytes": 0, "kept": str(elsewhere)}
    assert sweep_names(tmp_path / "home") == []
    assert (elsewhere / "spec.json").exists()


def test_keys_that_differ_are_named_by_their_place() -> None:
    old = {"a": {"b": 1, "c": [1, {"d": 2}]}, "e": [1], "f": 7}
    new = {"a": {"b": 2, "c": [1, {"d": 3}]}, "e": [1, 2], "g": 8}
    assert sorted(changed_keys(old, new)) == ["a.b", "a.c[1].d", "e", "f", "g"]
    assert list(changed_keys(old, old)) == []


def test_facts_come_back_and_damaged_ones_are_none(tmp_path: Path) -> None:
    home = SweepHome(tmp_path, "s")
    assert home.read_facts() is None
    facts = SweepFacts(name="s", spec=SPEC, dataset={"name": "digits"}, baseline="scratch", planned=3)
    home.write_facts(facts)
    assert home.read_facts() == facts
    path = home.folder / "facts"
    path.write_bytes(path.read_bytes()[:-1])
    assert home.read_facts() is None


def test_a_checkpoint_goes_with_its_trial_and_no_other(tmp_path: Path) -> None:
    sweep_home = SweepHome(tmp_path, "s")
    for key in ("ended", "running"):
        (sweep_home.folder / "trials" / key).mkdir(parents=True)
        (sweep_home.folder / "trials" / key / "checkpoint").write_bytes(b"state")
    sweep_home.drop_checkpoints(["ended", "without"])
    assert [path.name for path in (sweep_home.folder / "trials").iterdir()] == ["running"]


def test_sweeps_are_found_by_name(tmp_path: Path) -> None:
    for name in ("beta", "alpha"):
        SweepHome(tmp_path, name).write_spec(SPEC)
    (tmp_path / "sweeps" / "never-started").mkdir()
    assert sweep_names(tmp_path) == ["alpha", "beta"]
    assert find_sweep(tmp_path, "beta").folder == tmp_path / "sweeps" / "beta"
    with pytest.raises(UsageError, match=r"no sweep 'betta' .*did you mean 'beta'\? available: alpha, beta"):
        find_sweep(tmp_path, "betta")
    with pytest.raises(UsageError, match="available: none"):
        find_sweep(tmp_path / "nowhere", "beta")


def test_suggestions_are_read_back_and_a_damaged_file_is_none(tmp_path: Path) -> None:
    sweep_home = SweepHome(tmp_path, "s")
    assert sweep_home.read_suggestions() == {}
    sweep_home.write_suggestions({"kd lenet 3 ff": {"method.temperature": 2.5, "student": 1}})
    assert sweep_home.read_suggestions() == {"kd lenet 3 ff": {"method.temperature": 2.5, "student": 1}}
    path = sweep_home.folder / "suggestions"
    path.write_bytes(path.read_bytes()[:-1])
    assert sweep_home.read_suggestions() == {}
