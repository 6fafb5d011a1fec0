"""No secret of the user is in anything that a sweep writes: home, report, MLflow's store, Ray's session folder, output."""

import os
import re
import sqlite3
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import suppress
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


def run(folder: Path, *arguments: str) -> str:
    """What a command that succeeds prints; the files of Ray's session stay in `session`, which ends with the command."""
    environment = os.environ | ENVIRONMENT | {"RAY_TMPDIR": str(folder / "ray"), "RAY_USAGE_STATS_ENABLED": "0"}
    environment["PYTHONPATH"] = os.pathsep.join(filter(None, sys.path))
    for name in ("ray", "session"):
        (folder / name).mkdir(exist_ok=True)
    command = [sys.executable, "-m", "stillhouse.cli", *arguments, "--home", str(folder / "home")]
    printed = folder / f"printed-{len(arguments[-1])}"
    with printed.open("w") as file:
        process = subprocess.Popen(command, stdout=file, stderr=subprocess.STDOUT, env=environment, cwd=folder)
        deadline = time.monotonic() + 300
        while process.poll() is None and time.monotonic() < deadline:
            keep_files(folder / "ray", folder / "session")
            time.sleep(0.2)
        process.kill()
        process.wait()
    assert process.returncode == 0, printed.read_text()
    return printed.read_text()


def keep_files(source: Path, target: Path) -> None:
    """Links the files below `source`: a link has what is written later too, and stays when the file is removed."""
    for path in source.rglob("*"):
        kept = target / "-".join(path.relative_to(source).parts[1:])
        with suppress(OSError):
            if not kept.exists() and path.is_file() and not path.is_symlink():
                kept.hardlink_to(path)


@pytest.fixture(scope="module")
def swept() -> Iterator[Path]:
    """The folder of a sweep whose tracking address does not answer, which is synchronised into the home's store later."""
    # Not pytest's folder, whose path may be too long for Ray's sockets.
    with tempfile.TemporaryDirectory(prefix="secrets-") as name:
        folder = Path(name)
        (folder / "spec.yaml").write_text(SPEC)
        address = f"http://me:{quote(PASSWORD, safe='')}@127.0.0.1:9/x?token={MARK}10&api_key={MARK}11"
        assert "tracking is not complete" in run(folder, "sweep", "spec.yaml", "--set", f"tracking.uri={address}")
        run(folder, "sweep", "spec.yaml", "--set", "tracking.uri=null")
        yield folder


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
def test_no_planted_secret_is_in_anything_that_a_sweep_writes(swept: Path) -> None:
    folder = swept
    found, seen = [], set()
    for path, text in texts(folder):
        seen.add(path.suffix)
        if re.search(f"{MARK}|{quote(PASSWORD, safe='')}", unquote(text)) or MARK.encode().hex() in text.lower():
            found.append(str(path.relative_to(folder)))
    assert found == []
    # It looked where secrets have been: the page, the table, MLflow's store and Ray's logs.
    assert {".html", ".parquet", ".db", ".log", ".out"} <= seen
    logs = [path for path, _ in texts(folder / "session") if path.name.endswith("runtime_env_agent.log")]
    assert logs
    assert "PL_DISABLE_FORK" in logs[0].read_text()


def test_the_stored_spec_with_the_address_is_readable_by_its_user_alone(tmp_path: Path) -> None:
    spec = yaml.safe_load(SPEC) | {"tracking": {"uri": f"https://me:{MARK}@host"}}
    home = SweepHome(tmp_path, "secrets")
    home.write_spec(spec_to_dict(validate(spec), secrets=True))
    holders = [path for path, text in texts(tmp_path) if MARK in text]
    assert [path.name for path in holders] == ["spec.json"]
    assert holders[0].stat().st_mode & 0o077 == 0
