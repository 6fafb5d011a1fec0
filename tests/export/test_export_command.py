"""`stillhouse export`: which trial, which folder, and one sentence for everything that cannot be exported."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner

from stillhouse.cli import app
from stillhouse.export import FILES
from stillhouse.spec.load import spec_to_dict, validate
from stillhouse.sweep.results.results import Results
from stillhouse.sweep.results.trained_students import find_trial

LENET, MLP, STOPPED, FAILED = "aa00000000000001", "ab00000000000002", "ac00000000000003", "fd00000000000004"
Refusal = Callable[..., str]
Exported = tuple[Any, Path, dict[str, Any]]
Change = Callable[..., None]


def test_the_command_writes_the_folder_and_prints_one_document(swept: Any, tmp_path: Path) -> None:
    folder = tmp_path / "out" / "small"
    done = CliRunner().invoke(app, ["export", "tiny", "ab", "--to", str(folder), "--home", str(swept.home), "--json"])
    assert done.exit_code == 0, done.output
    document = json.loads(done.stdout)
    assert document["trial"] == MLP
    assert document["folder"] == str(folder)
    assert document["registered"] is None
    assert sorted(path.name for path in folder.iterdir()) == sorted(FILES)


def test_the_command_prints_the_largest_difference(exported: Exported, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    _, _, document = exported
    monkeypatch.setattr("stillhouse.sweep.results.export.export_trial", lambda *_arguments, **_options: document)
    done = CliRunner().invoke(app, ["export", "tiny", "aa", "--to", str(tmp_path / "out")])
    assert done.exit_code == 0, done.output
    assert f"largest difference {document['agreement']['onnx']['largest_difference']:.3g}, same class 100 of 100" in done.stdout


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["tinny", "best"], "no sweep 'tinny'"),
        (["tiny", "123"], "has no trial '123'; give a key"),
        (["tiny", ""], "has no trial ''"),
        (["tiny", "a"], "'a' begins the keys of 3 trials"),
        (["tiny", FAILED], "failed (the loss is not finite)"),
        (["tiny", STOPPED], "was stopped after 1 epochs"),
        (["tiny", "best", "--register", "digits"], "--register must be MODEL@ALIAS"),
    ],
)
def test_what_cannot_be_exported_is_reported_in_one_sentence(
    swept: Any, tmp_path: Path, arguments: list[str], words: str
) -> None:
    done = CliRunner().invoke(app, ["export", *arguments, "--to", str(tmp_path / "out"), "--home", str(swept.home)])
    assert done.exit_code == 2
    assert words in done.stderr
    assert len(done.stderr.splitlines()) == 1
    assert not (tmp_path / "out").exists()


def test_best_is_the_most_accurate_of_the_front_on_the_validation_split(swept: Any, change_record: Change) -> None:
    change_record(
        LENET, collapsed=False, metrics=swept.record(LENET).metrics | {"validation_accuracy": 0.5, "test_accuracy": 0.9}
    )
    change_record(MLP, collapsed=False, metrics=swept.record(MLP).metrics | {"validation_accuracy": 0.75, "test_accuracy": 0.1})
    assert find_trial(Results.read(swept.home, "tiny"), "best").trial.key == MLP
    change_record(LENET, metrics=swept.record(LENET).metrics | {"validation_accuracy": 0.875})
    assert find_trial(Results.read(swept.home, "tiny"), "best").trial.key == LENET


def test_a_sweep_without_a_finished_trial_has_no_best(refusal: Refusal, swept: Any, tmp_path: Path) -> None:
    swept.sweep_home.ledger.set_aside(LENET)
    swept.sweep_home.ledger.set_aside(MLP)
    assert "no finished trial" in refusal(swept, "best", tmp_path / "out")


def test_a_damaged_record_says_how_to_make_it_again(refusal: Refusal, swept: Any, tmp_path: Path) -> None:
    path = swept.sweep_home.ledger.folder / f"{LENET}.record"
    path.write_bytes(path.read_bytes()[:-10])
    assert "stillhouse resume tiny" in refusal(swept, LENET, tmp_path / "out")


def test_a_single_flipped_bit_of_the_weights_is_found(refusal: Refusal, swept: Any, tmp_path: Path) -> None:
    path = swept.sweep_home.folder / swept.record().weights
    payload = bytearray(path.read_bytes())
    payload[-1] ^= 1
    path.write_bytes(payload)
    sentence = refusal(swept, LENET, tmp_path / "out")
    assert "is damaged" in sentence
    assert "to train it again, run: stillhouse resume tiny" in sentence


def test_cut_off_weights_are_found(refusal: Refusal, swept: Any, tmp_path: Path) -> None:
    path = swept.sweep_home.folder / swept.record().weights
    path.write_bytes(path.read_bytes()[:100])
    assert "cannot be read" in refusal(swept, LENET, tmp_path / "out")


def test_missing_weights_are_found(refusal: Refusal, swept: Any, tmp_path: Path) -> None:
    (swept.sweep_home.folder / swept.record().weights).unlink()
    assert "are missing" in refusal(swept, LENET, tmp_path / "out")


def test_weights_of_another_student_are_found(refusal: Refusal, swept: Any, tmp_path: Path) -> None:
    shutil.copy(swept.sweep_home.folder / swept.record(MLP).weights, swept.sweep_home.folder / swept.record(LENET).weights)
    assert "is damaged" in refusal(swept, LENET, tmp_path / "out")


def test_another_data_set_is_found(refusal: Refusal, swept: Any, tmp_path: Path) -> None:
    facts = swept.sweep_home.read_facts()
    swept.sweep_home.write_facts(facts.model_copy(update={"dataset": {"fingerprint": "0ther"}}))
    assert "its fingerprint was 0ther" in refusal(swept, LENET, tmp_path / "out")


def test_a_data_set_that_is_gone_is_named_and_not_fetched(refusal: Refusal, swept: Any, tmp_path: Path) -> None:
    spec = swept.sweep_home.read_spec() | {"dataset": {"name": "mnist", "root": str(tmp_path / "nowhere"), "download": True}}
    (swept.sweep_home.folder / "spec.json").write_text(json.dumps(spec_to_dict(validate(spec))))
    assert "must be a folder that exists" in refusal(swept, LENET, tmp_path / "out")


def test_a_missing_package_is_named_with_its_remedy(
    refusal: Refusal, swept: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("stillhouse.export.onnx.find_spec", lambda name: None if name == "onnxruntime" else object())
    assert refusal(swept, LENET, tmp_path / "out") == (
        "exporting needs onnxruntime, not installed here: pip install 'stillhouse[export]'"
    )
