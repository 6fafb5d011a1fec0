"""The folder of an export: foreign files stay, an earlier export is replaced as a whole."""

import json
import re
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from stillhouse.errors import InfrastructureError, UsageError
from stillhouse.export import FILES, check_target

LENET, MLP = "aa00000000000001", "ab00000000000002"
Refusal = Callable[..., str]
Exported = tuple[Any, Path, dict[str, Any]]


def test_a_folder_with_foreign_files_is_left_alone(refusal: Refusal, swept: Any, tmp_path: Path) -> None:
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "thesis.tex").write_text("years of work")
    assert "is not empty (thesis.tex)" in refusal(swept, LENET, tmp_path / "mine")
    assert (tmp_path / "mine" / "thesis.tex").read_text() == "years of work"


def test_an_export_beside_which_somebody_put_a_file_is_left_alone(refusal: Refusal, exported: Exported, tmp_path: Path) -> None:
    swept, folder, _ = exported
    shutil.copytree(folder, tmp_path / "out")
    (tmp_path / "out" / "notes.txt").write_text("mine")
    assert "notes.txt" in refusal(swept, LENET, tmp_path / "out")


def test_files_of_our_names_that_are_no_export_are_left_alone(refusal: Refusal, swept: Any, tmp_path: Path) -> None:
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "README.md").write_text("mine")
    assert "no earlier export" in refusal(swept, LENET, tmp_path / "out")


def test_a_file_is_no_folder(swept: Any, tmp_path: Path) -> None:
    (tmp_path / "out").write_text("")
    with pytest.raises(UsageError, match="is a file"):
        swept.export(LENET, tmp_path / "out")


def test_the_working_folder_is_not_replaced_under_its_user(
    refusal: Refusal, swept: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "here").mkdir()
    monkeypatch.chdir(tmp_path / "here")
    assert "the folder you work in" in refusal(swept, LENET, Path())


def test_a_folder_that_cannot_be_made_is_an_error_of_the_machine(swept: Any, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(InfrastructureError, match="cannot write the export") as caught:
        swept.export(LENET, tmp_path / "file" / "out")
    assert caught.value.exit_code == 4


def test_an_export_that_breaks_leaves_the_earlier_one_whole(
    exported: Exported, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    swept, folder, _ = exported
    shutil.copytree(folder, tmp_path / "out")
    before = {path.name: path.read_bytes() for path in (tmp_path / "out").iterdir()}

    def break_off(*_arguments: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr("stillhouse.export.onnx.save_onnx", break_off)
    with pytest.raises(KeyboardInterrupt):
        swept.export(LENET, tmp_path / "out")
    assert {path.name: path.read_bytes() for path in (tmp_path / "out").iterdir()} == before
    assert [path.name for path in tmp_path.iterdir()] == ["out"]


def test_an_earlier_export_is_replaced_whole(exported: Exported, tmp_path: Path) -> None:
    swept, folder, _ = exported
    shutil.copytree(folder, tmp_path / "out")
    swept.export(MLP, tmp_path / "out")
    assert json.loads((tmp_path / "out" / "export.json").read_text())["trial"] == MLP
    assert [path.name for path in tmp_path.iterdir()] == ["out"]


def test_an_export_with_more_files_than_the_next_one_is_replaced(exported: Exported, tmp_path: Path) -> None:
    """As after `--with-preprocessing`, or of a text student, which has its vocabulary."""
    _, folder, _ = exported
    shutil.copytree(folder, tmp_path / "out")
    mark = json.loads((tmp_path / "out" / "export.json").read_text())
    (tmp_path / "out" / "vocabulary.txt").write_text("words")
    with pytest.raises(UsageError, match=re.escape("is not empty (vocabulary.txt)")):
        check_target(tmp_path / "out", FILES)
    mark["files"]["vocabulary.txt"] = {"bytes": 5}
    (tmp_path / "out" / "export.json").write_text(json.dumps(mark))
    assert check_target(tmp_path / "out", FILES) == tmp_path / "out"
