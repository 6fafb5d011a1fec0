"""No secret of the user is in anything that a sweep writes: home, report, MLflow's store, Ray's session folder, output."""

import os
import re
import sqlite3
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from urllib.parse import quote, unquote

import pyarrow.parquet as parquet
import pytest
import yaml

from stillhouse.spec.load import spec_to_dict, validate
from stillhouse.sweep.home.sweep_home import SweepHome

MARK = "plantedS3cret"
"""What every planted secret contains, also in percent encoding."""
PASSWORD = f"p@{MARK}1/%?"
ENVIRONMENT = {
    "AWS_ACCESS_KEY_ID": f"AKIA{MARK}2",
    "AWS_SECRET_ACCESS_KEY": f"{MARK}3/+=",
    "AWS_SESSION_TOKEN": f"{MARK}4",
    "AWS_SECURITY_TOKEN": f"{MARK}5",
    "MLFLOW_TRACKING_PASSWORD": f"{MARK}6 with $ and '",
    "MLFLOW_TRACKING_TOKEN": f"{MARK}7",
    "OTEL_EXPORTER_OTLP_HEADERS": f"authorization=Bearer {MARK}8",
    "HF_TOKEN": f"hf_{MARK}9",
}
SPEC = """
name: secrets
dataset: {name: digits, options: {limit: 240}, validation: 80}
teachers: {big: {model: mlp, train: {epochs: 1}}}
students: [{model: mlp, hidden: [16]}]
methods: {kd: defaults}
search: {trials_per_method: 1, max_epochs: 1}
training: {batch_size: 80}
"""


def run(folder: Path, *arguments: str) -> "subprocess.CompletedProcess[str]":
    environment = os.environ | ENVIRONMENT | {"RAY_TMPDIR": str(folder / "ray"), "RAY_USAGE_STATS_ENABLED": "0"}
    environment["PYTHONPATH"] = os.pathsep.join(filter(None, sys.path))
    (folder / "ray").mkdir(exist_ok=True)
    command = [sys.executable, "-m", "stillhouse.cli", *arguments, "--home", str(folder / "home")]
    return subprocess.run(command, capture_output=True, text=True, env=environment, timeout=400, cwd=folder)


@pytest.fixture(scope="module")
def swept(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, str]:
    """The folder of a sweep whose tracking address does not answer, which is synchronised into the home's store later."""
    # Short, since the paths of Ray's sockets have a limit.
    folder = tmp_path_factory.mktemp("s")
    (folder / "spec.yaml").write_text(SPEC)
    address = f"http://me:{quote(PASSWORD, safe='')}@127.0.0.1:9/x?token={MARK}10&api_key={MARK}11"
    first = run(folder, "sweep", "spec.yaml", "--set", f"tracking.uri={address}")
    assert first.returncode == 0, first.stderr
    assert "tracking is not complete" in first.stderr
    second = run(folder, "sweep", "spec.yaml", "--set", "tracking.uri=null")
    assert second.returncode == 0, second.stderr
    (folder / "output").write_text(first.stdout + first.stderr + second.stdout + second.stderr)
    return folder, address


def texts(folder: Path) -> Iterator[tuple[Path, str]]:
    """Every file of the folder as text, with the content of SQLite stores and the metadata of Parquet files."""
    for path in sorted(folder.rglob("*")):
        if path.is_symlink() or not path.is_file():
            continue
        content = path.read_bytes().decode("latin-1")
        if path.suffix == ".db":
            with sqlite3.connect(path) as store:
                content += "\n".join(store.iterdump())
        if path.suffix == ".parquet":
            content += str(parquet.read_schema(path).metadata) + parquet.read_table(path).to_pandas().to_csv()
        yield path, content


@pytest.mark.ray
@pytest.mark.slow
def test_no_planted_secret_is_in_anything_that_a_sweep_writes(swept: tuple[Path, str]) -> None:
    folder, _ = swept
    found, seen = [], set()
    for path, text in texts(folder):
        seen.add(path.suffix)
        if re.search(f"{MARK}|{quote(PASSWORD, safe='')}", unquote(text)) or MARK.encode().hex() in text.lower():
            found.append(str(path.relative_to(folder)))
    assert found == []
    # It looked where secrets have been: the page, the table, MLflow's store and Ray's logs.
    assert {".html", ".parquet", ".db", ".log", ".out"} <= seen
    logs = [path for path, _ in texts(folder / "ray") if path.name == "runtime_env_agent.log"]
    assert logs
    assert "PL_DISABLE_FORK" in logs[0].read_text()


def test_the_stored_spec_with_the_address_is_readable_by_its_user_alone(tmp_path: Path) -> None:
    spec = yaml.safe_load(SPEC) | {"tracking": {"uri": f"https://me:{MARK}@host"}}
    home = SweepHome(tmp_path, "secrets")
    home.write_spec(spec_to_dict(validate(spec), secrets=True))
    holders = [path for path, text in texts(tmp_path) if MARK in text]
    assert [path.name for path in holders] == ["spec.json"]
    assert holders[0].stat().st_mode & 0o077 == 0
