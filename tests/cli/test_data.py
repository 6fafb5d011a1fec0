"""`data pack` and `data prune`: what they print and remove, and that packing can be interrupted."""

import json
import os
from pathlib import Path

import pytest
from PIL import Image
from typer.testing import CliRunner

from stillhouse.cli import app
from stillhouse.data.datasets import load_dataset


@pytest.fixture
def command(tmp_path: Path) -> list[str]:
    """Packs ten images of two classes."""
    for number in range(10):
        folder = tmp_path / "images" / ("cat" if number % 2 else "dog")
        folder.mkdir(parents=True, exist_ok=True)
        Image.new("RGB", (8, 8), (number * 20, 0, 0)).save(folder / f"{number}.png")
    return ["data", "pack", str(tmp_path / "images"), "--to", str(tmp_path / "pack")]


def test_the_command_prints_what_it_did(command: list[str], tmp_path: Path) -> None:
    done = CliRunner().invoke(app, command)
    assert done.exit_code == 0, done.stderr
    assert done.stdout.startswith("8 train, 2 test images of 2 classes in 2 shards, ")
    assert f"root: {tmp_path / 'pack'}" in done.stdout
    assert "packed 10 of 10 images" in done.stderr


def test_the_document_has_the_folder_and_the_counts(command: list[str], tmp_path: Path) -> None:
    document = json.loads(CliRunner().invoke(app, [*command, "--json"]).stdout)
    assert (document["root"], document["images"]) == (str(tmp_path / "pack"), {"train": 8, "test": 2})


def test_a_folder_that_does_not_exist_is_one_sentence(tmp_path: Path) -> None:
    done = CliRunner().invoke(app, ["data", "pack", str(tmp_path / "none"), "--to", str(tmp_path / "pack")])
    assert done.exit_code == 2
    assert done.stderr.startswith("error: ")
    assert "does not exist" in done.stderr
    assert len(done.stderr.strip().splitlines()) == 1


def test_an_interrupted_pack_tells_that_the_same_command_continues(command: list[str], monkeypatch: pytest.MonkeyPatch) -> None:
    def interrupt(*_arguments: object, **_options: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr("stillhouse.data.packing.pack_folder", interrupt)
    done = CliRunner().invoke(app, command)
    assert done.exit_code == 130
    assert done.stderr == "interrupted; complete shards are stored, the same command continues\n"


def test_a_wrong_shard_size_names_its_option(command: list[str]) -> None:
    done = CliRunner().invoke(app, [*command, "--shard-size", "big"])
    assert done.exit_code == 2
    assert "--shard-size must be a size" in done.stderr


@pytest.fixture
def home(tmp_path: Path) -> Path:
    """A home with the decoded images of two folders, of which `new` was decoded last and `old` was used last."""
    for name, grey in (("old", 10), ("new", 200)):
        for number in range(10):
            folder = tmp_path / name / ("cat" if number % 2 else "dog")
            folder.mkdir(parents=True, exist_ok=True)
            Image.new("L", (8, 8), grey + number).save(folder / f"{number}.png")
    cache = tmp_path / "home" / "data"
    for name in ("old", "new"):
        decoded(tmp_path / name, cache)
        for entry in cache.iterdir():
            for path in (entry, *entry.iterdir()):
                os.utime(path, (1_000_000, 1_000_000))
    decoded(tmp_path / "old", cache)
    return tmp_path / "home"


def decoded(folder: Path, cache: Path) -> None:
    load_dataset("image_folder", root=folder, cache=cache, validation=2)


def prune(home: Path, *options: str) -> dict[str, dict[str, int]]:
    done = CliRunner().invoke(app, ["data", "prune", "--home", str(home), "--json", *options])
    assert done.exit_code == 0, done.stderr
    counts: dict[str, dict[str, int]] = json.loads(done.stdout)
    return counts


def test_decoded_images_that_were_not_used_for_longest_are_removed_first(home: Path, tmp_path: Path) -> None:
    assert prune(home, "--keep", "1GB") == {
        "removed": {"data_sets": 0, "bytes": 0},
        "kept": prune(home, "--keep", "1GB")["kept"],
    }
    both = prune(home, "--keep", "1GB")["kept"]
    assert both["data_sets"] == 2
    counts = prune(home, "--keep", str(both["bytes"] - 1))
    assert (counts["removed"]["data_sets"], counts["kept"]["data_sets"]) == (1, 1)
    assert counts["removed"]["bytes"] + counts["kept"]["bytes"] == both["bytes"]
    (left,) = (home / "data").iterdir()
    decoded(tmp_path / "old", home / "data")
    assert list((home / "data").iterdir()) == [left], "the entry of the folder that was used last is still there"


def test_entries_of_earlier_releases_are_removed_and_nothing_else_is(home: Path) -> None:
    earlier = home / "data" / "0123456789abcdef"
    earlier.mkdir()
    (earlier / "images.npy").write_bytes(bytes(100))
    (home / "data" / "key.traits").write_text("{}")
    assert prune(home)["removed"]["data_sets"] == 3
    assert [path.name for path in (home / "data").iterdir()] == ["key.traits"]


def test_a_home_without_decoded_images_is_in_order(tmp_path: Path) -> None:
    done = CliRunner().invoke(app, ["data", "prune", "--home", str(tmp_path / "none")])
    assert (done.exit_code, done.stdout) == (0, "removed 0 data sets, 0 bytes; kept 0 data sets, 0 bytes\n")
