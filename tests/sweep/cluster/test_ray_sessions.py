"""Which session folders of Ray remain after sweeps."""

import os
import subprocess
import sys
from pathlib import Path

from stillhouse.sweep.cluster.ray_sessions import KEPT, RaySession, remove_old_sessions


def make(base: Path, number: int) -> Path:
    folder = base / f"session_{number}"
    (folder / "logs").mkdir(parents=True)
    return folder


def names(base: Path) -> list[str]:
    return sorted(path.name for path in base.iterdir())


def test_a_sweep_that_ends_well_leaves_no_folder_and_no_link_to_it(tmp_path: Path) -> None:
    folder = make(tmp_path, 1)
    (tmp_path / "session_latest").symlink_to(folder)
    RaySession(folder).close(keep=False)
    assert names(tmp_path) == []


def test_folders_of_failed_sweeps_remain_until_newer_ones_replace_them(tmp_path: Path) -> None:
    for number in range(KEPT + 4):
        folder = make(tmp_path, number)
        session = RaySession(folder)
        session.close(keep=True)
        os.utime(folder, (number, number))
        assert (folder / "logs").is_dir()
    remove_old_sessions(tmp_path)
    assert names(tmp_path) == [f"session_{number}" for number in range(4, KEPT + 4)]


def test_folders_of_running_sweeps_and_of_other_programs_are_left_alone(tmp_path: Path) -> None:
    running, other = make(tmp_path, 0), make(tmp_path, 1)
    session = RaySession(running)
    for number in range(2, 2 + 2 * KEPT):
        RaySession(make(tmp_path, number)).close(keep=True)
    remove_old_sessions(tmp_path)
    assert running.is_dir()
    assert other.is_dir()
    assert len(names(tmp_path)) == 2 + KEPT
    session.close(keep=False)


def test_the_folder_of_a_killed_driver_counts_as_ended(tmp_path: Path) -> None:
    program = (
        "import os, pathlib, sys\n"
        "from stillhouse.sweep.cluster.ray_sessions import RaySession\n"
        "session = RaySession(pathlib.Path(sys.argv[1]))\n"
        "os.kill(os.getpid(), 9)"
    )
    killed = make(tmp_path, 0)
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(filter(None, sys.path))}
    assert subprocess.run([sys.executable, "-c", program, str(killed)], env=environment).returncode == -9
    os.utime(killed, (0, 0))
    for number in range(1, 1 + KEPT):
        RaySession(make(tmp_path, number)).close(keep=True)
    remove_old_sessions(tmp_path)
    assert "session_0" not in names(tmp_path)
