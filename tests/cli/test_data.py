"""`data pack`: what it prints, and that it can be interrupted."""

import json
from pathlib import Path

import pytest
from PIL import Image
from typer.testing import CliRunner

from stillhouse.cli import app


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
