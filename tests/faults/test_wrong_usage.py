"""Plain wrong usage: one bounded sentence and a documented exit code, never a traceback, never a hang."""

import os
import time
from pathlib import Path

import pytest
from typer.testing import CliRunner

from stillhouse.cli import app

CODES = {0, 2, 3, 4}
LONG = "x" * 100_000
DIGITS = "9" * 400
SIZES = ["", "-1", "inf", "nan", "1e400", DIGITS, f"{DIGITS}TB", "[/b]", "1e3GB", LONG]
PATHS = ["~nosuchuser/x", "loop/x", "pipe", "/dev/zero/x", "[/b]", os.fsdecode(b"caf\xe9"), LONG, "file/x"]
SPEC = "name: s\ndataset: {name: digits}\nstudents: [{model: mlp, hidden: [8]}]\nmethods: {scratch: {}}\n"


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "loop").symlink_to(tmp_path / "loop")
    os.mkfifo(tmp_path / "pipe")
    (tmp_path / "file").write_text("x")
    (tmp_path / "spec.yaml").write_text(SPEC)
    (tmp_path / "broken").mkdir()
    (tmp_path / "broken" / "unfinished.py").write_text("def (:\n")
    return tmp_path


def told(*arguments: str, codes: set[int] = CODES - {0}) -> str:
    """What the command prints to stderr, checked."""
    started = time.monotonic()
    done = CliRunner().invoke(app, list(arguments))
    assert done.exception is None or isinstance(done.exception, SystemExit), repr(done.exception)
    assert done.exit_code in codes, (done.exit_code, done.output[-500:])
    assert "Traceback" not in done.output
    assert all(len(line) <= 1_100 for line in done.stderr.splitlines() if "Usage" not in line and "│" not in line)
    assert time.monotonic() - started < 20
    return done.stderr


@pytest.mark.parametrize("path", [*PATHS, "/dev/zero", "broken"], ids=lambda path: ascii(path)[:14])
def test_a_spec_or_folder_that_cannot_be_read_is_a_sentence(path: str, folder: Path) -> None:
    assert "error:" in told("sweep", "--dry-run", "--home", str(folder / "home"), path)
    assert told("data", "pack", path, "--to", str(folder / "packed"))
    assert told("methods", "--folder", path)


@pytest.mark.parametrize("size", SIZES, ids=lambda size: size[:8])
def test_a_size_that_is_none_is_a_sentence(size: str, folder: Path) -> None:
    told("teachers", "prune", f"--keep={size}", "--home", str(folder / "home"))
    told("data", "pack", "broken", "--to", "packed", f"--shard-size={size}")
    told("sweep", "spec.yaml", "--dry-run", "--home", str(folder / "home"), "--set", f"knowledge.max_bytes={size or 'x'}")
    told("sweep", "spec.yaml", "--dry-run", "--set", f"search.limits.parameters={size or 'x'}", codes=CODES)


OVERRIDES = [
    "",
    "=",
    "a",
    ".=1",
    "name=[/b]",
    f"name={LONG}",
    "a.b.c=" + "[" * 900,
    ".".join("a" * 3000) + "=1",
    "a" + "[0]" * 3000 + "=1",
    f"{LONG}=1",
    f"search.trials_per_method={DIGITS}",
    "search.trials_per_method=1e400",
    "search.max_epochs=.inf",
    "students=[[/b]]",
    "students=['[/b]']",
    "methods={'[/b]': {}}",
    "dataset.name=[/b]",
    "search.algorithm='[/b]'",
    "dataset.name=os:system",
    "views.policy=['[/b]']",
    "students=[" + ",".join(["mlp"] * 10_000) + "]",
    "students=[{model: mlp, hidden: [" + ",".join(["1"] * 20_000) + "]}]",
    "method_paths=[broken]\n",
    "method_paths=['~nosuchuser/x']",
    "dataset={name: image_folder, root: ~nosuchuser/x}",
    "teachers={t: {model: mlp, weights: pipe}}",
    "teachers={t: {model: mlp, weights: /dev/zero}}",
    "teachers={t: {model: mlp, weights: loop}}",
]


@pytest.mark.parametrize("override", OVERRIDES, ids=lambda override: ascii(override)[:30])
def test_a_wrong_override_is_a_sentence(override: str, folder: Path) -> None:
    told("sweep", "spec.yaml", "--dry-run", "--home", str(folder / "home"), "--set", override)


def test_a_broken_method_file_is_named_with_its_line(folder: Path) -> None:
    message = told("methods", "--folder", "broken", "--", "unfinished")
    assert "unfinished.py cannot be loaded: SyntaxError" in message
    assert "line 1" in message


@pytest.mark.parametrize(
    ("change", "sentence"),
    [
        ("search={trials_per_method: 100000}", "must give at most 100,000 trials of all methods together, got 300,000"),
        (
            f"students=[{{model: mlp, hidden: {{choice: {[[n] for n in range(1, 1001)]}}}, "
            f"dropout: {{choice: {[n / 2000 for n in range(1000)]}}}}}]",
            "this grid has 2,000,000",
        ),
        (f"students=[{', '.join(['mlp'] * 1001)}]", "must list at most 1,000, got 1,001"),
    ],
)
def test_plans_that_are_too_large_are_counted_and_refused_at_once(change: str, sentence: str, folder: Path) -> None:
    options = ["--set", "methods={scratch: {}, label_smoothing: {}, self_kd: {}}"]
    if "grid" in sentence:
        options = ["--set", "search={algorithm: grid}", "--set", "methods={scratch: {}, label_smoothing: {}}"]
    started = time.monotonic()
    message = told("sweep", "spec.yaml", "--dry-run", *options, "--set", change)
    assert sentence in message
    assert time.monotonic() - started < 10


def test_thousands_of_unknown_keys_are_counted_not_listed(folder: Path) -> None:
    (folder / "many.yaml").write_text(SPEC + "".join(f"k{number}: 1\n" for number in range(20_000)))
    message = told("sweep", "many.yaml", "--dry-run")
    assert len(message.splitlines()) < 60
    assert "19,950 more values are wrong" in message or "and 1 more" in message
    (folder / "more.yaml").write_text(SPEC + "".join(f"k{number}: 1\n" for number in range(150_000)))
    assert "at most 500,000 are read" in told("sweep", "more.yaml", "--dry-run")


def test_a_key_of_the_recipe_is_pointed_to_its_section(folder: Path) -> None:
    message = told("sweep", "spec.yaml", "--dry-run", "--set", "teachers={t: {model: resnet20, epochs: 3}}")
    assert "teachers.t.epochs is not an option of resnet20; write it under train, teachers.t.train.epochs" in message
