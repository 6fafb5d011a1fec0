"""`ls`, `methods`, `operators` and `models`: a table for people, a document for scripts."""

import json
from pathlib import Path

import pytest
from typer.testing import CliRunner, Result

from stillhouse import compress, methods
from stillhouse.cli import app


def run(*arguments: str) -> Result:
    done = CliRunner().invoke(app, list(arguments))
    assert done.exit_code == 0, done.output
    return done


def test_methods_are_listed_with_what_they_need_from_the_teacher() -> None:
    heading, *rows = run("methods").stdout.splitlines()
    assert [part.strip() for part in heading.split("  ") if part.strip()] == [
        "method",
        "family",
        "arXiv",
        "needs from teacher",
        "title",
    ]
    assert {row.split()[0] for row in rows} >= set(methods.names())
    (control,) = [row for row in rows if row.startswith("scratch ")]
    assert "nothing" in control


def test_the_document_of_methods_has_one_entry_for_each() -> None:
    listed = json.loads(run("methods", "--json").stdout)
    assert [each["name"] for each in listed] == methods.names()
    names = {"name", "title", "arxiv", "family", "tasks", "knowledge", "hyperparameters", "equations", "deviations"}
    assert all(set(each) == names | {"suggested", "interactions"} for each in listed)


def test_one_method_is_shown_with_its_hyperparameters_and_priors() -> None:
    shown = run("methods", "kd").stdout
    assert "needs from teacher: logits" in shown
    assert "(arXiv 1503.02531)" in shown
    rows = {words[0]: words[1] for line in shown.splitlines() if len(words := line.split()) > 1}
    assert (rows["temperature"], rows["kd_weight"]) == ("4.0", "0.9")
    assert "loguniform: [1, 20]" in shown
    document = json.loads(run("methods", "kd", "--json").stdout)
    assert document["name"] == "kd"
    assert document["hyperparameters"][0]["name"] == "temperature"


def test_an_unknown_method_is_wrong_usage_with_a_suggestion() -> None:
    done = CliRunner().invoke(app, ["methods", "kdd"])
    assert done.exit_code == 2
    assert "no method 'kdd'; did you mean 'kd'" in done.stderr


def test_methods_of_a_users_folder_are_listed_too(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(methods, "__path__", list(methods.__path__))
    (tmp_path / "listed_method.py").write_text(
        "from dataclasses import dataclass\nfrom typing import ClassVar\nfrom stillhouse.distill.method import Card, Method\n"
        "@dataclass(frozen=True, kw_only=True)\nclass Listed(Method):\n"
        "    card: ClassVar[Card] = Card(title='Listed here', family='L', equations='none')\n"
        "    def loss(self, step):\n        return {}\n"
    )
    assert "Listed here" in run("methods", "listed_method", "--folder", str(tmp_path)).stdout
    methods.find.cache_clear()


def test_models_are_listed_with_their_sizes(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))  # no facts are stored there
    monkeypatch.setattr("stillhouse.models.registry.all_model_names", lambda: ["mlp", "resnet20"])
    heading, *rows, others = run("models").stdout.splitlines()
    assert heading.split() == ["model", "parameters", "MACs", "bytes"]
    assert others == (
        "further models by name: torchvision:<name>, timm:<name>, hf:<folder>, or package.module:function of your own"
    )
    assert [row.split()[0] for row in rows] == ["mlp", "resnet20"]
    sizes = {each["name"]: each["parameters"] for each in json.loads(run("models", "--json").stdout)}
    # CIFAR-100: the convolutions and BatchNorms of a ResNet-20 have 271,824 weights, its classifier 64 · 100 + 100.
    assert sizes["resnet20"] == 271_824 + 6_500


def test_one_model_is_shown_with_its_layers() -> None:
    document = json.loads(run("models", "resnet8", "--json").stdout)
    assert document["options"] == {"width": 1.0, "shortcut": "projection"}
    # Three stages of a CIFAR ResNet: 16, 32 and 64 channels at full, half and quarter resolution.
    assert list(document["stages"].values()) == [[16, 32, 32], [32, 16, 16], [64, 8, 8]]
    shown = run("models", "resnet8").stdout
    assert shown.splitlines()[0].split() == ["name", "resnet8"]


def test_a_model_of_timm_is_shown_with_its_stages() -> None:
    pytest.importorskip("timm")
    document = json.loads(run("models", "timm:convnext_atto", "--json").stdout)
    # ConvNeXt (arXiv 2201.03545): four stages at strides 4 to 32; the last one is a point on the catalogue's images.
    assert document["stages"] == {"stages.0": [40, 8, 8], "stages.1": [80, 4, 4], "stages.2": [160, 2, 2]}
    assert document["options"] == {"resize": None, "dropout": None, "drop_path": None}


def test_an_unknown_model_is_wrong_usage() -> None:
    done = CliRunner().invoke(app, ["models", "resnet9"])
    assert done.exit_code == 2
    assert "resnet9" in done.stderr


def test_a_home_without_sweeps_has_an_empty_list(tmp_path: Path) -> None:
    assert run("ls", "--home", str(tmp_path)).stdout.split() == [
        "sweep",
        "state",
        "trials",
        "failed",
        "best",
        "bytes",
        "last",
        "used",
    ]
    assert json.loads(run("ls", "--home", str(tmp_path), "--json").stdout) == []


def test_operators_are_listed_with_what_they_change() -> None:
    heading, *rows = run("operators").stdout.splitlines()
    assert heading.split()[:3] == ["operator", "arXiv", "changes"]
    assert {row.split()[0] for row in rows} >= set(compress.names())
    listed = json.loads(run("operators", "--json").stdout)
    assert [each["name"] for each in listed] == compress.names()
    assert all(each["does"] and each["effect"] for each in listed)


def test_one_operator_is_shown_with_its_options_and_priors() -> None:
    shown = run("operators", "prune").stdout
    assert "(arXiv 2301.12900)" in shown
    assert "uniform: [0.2, 0.8]" in shown
    assert {each["name"] for each in json.loads(run("operators", "prune", "--json").stdout)["options"]} >= {
        "ratio",
        "importance",
    }


def test_an_unknown_operator_is_wrong_usage_with_a_suggestion() -> None:
    done = CliRunner().invoke(app, ["operators", "prun"])
    assert done.exit_code == 2
    assert "no operator 'prun'; did you mean 'prune'" in done.stderr
