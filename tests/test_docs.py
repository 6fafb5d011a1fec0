"""What the pages under docs/ show works: their code and their specs are taken out of them and planned."""

import ast
import re
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import yaml
from PIL import Image
from safetensors.torch import save_model

from stillhouse.models.registry import build_model
from stillhouse.sweep.planning.spec_check import check
from stillhouse.sweep.sweep import Sweep

ROOT = Path(__file__).parents[1]
PACKAGE = ROOT / "platform" / "stillhouse"
PAGES = sorted((ROOT / "docs").glob("*.md"))
SPEC: dict[str, Any] = {
    "name": "tiny",
    "dataset": {"name": "digits"},
    "students": ["mlp"],
    "methods": {"kd": {}},
    "teachers": {"big": {"model": "resnet8", "train": {"epochs": 1}}},
    "search": {"trials_per_method": 1, "max_epochs": 1},
}


def blocks(page: str, language: str) -> list[str]:
    return re.findall(rf"```{language}\n(.*?)```", (ROOT / "docs" / page).read_text(), re.DOTALL)


@pytest.fixture
def beside(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """A folder in which a user's modules lie."""
    monkeypatch.syspath_prepend(tmp_path)
    yield tmp_path
    for name in ("mydata", "mynet", "half"):
        sys.modules.pop(name, None)


def planned(spec: dict[str, Any], home: Path) -> dict[str, Any]:
    return Sweep(check(spec), home=home).plan().to_dict()


def images(count: int, shape: tuple[int, ...]) -> np.ndarray[Any, np.dtype[np.uint8]]:
    return np.random.default_rng(0).integers(0, 256, (count, *shape), dtype=np.uint8)


def test_a_folder_of_images_is_planned_as_the_page_says(beside: Path) -> None:
    for name in ("cat", "dog"):
        (beside / "photos" / name).mkdir(parents=True)
        for number, pixels in enumerate(images(20, (70, 70, 3))):
            Image.fromarray(pixels).save(beside / "photos" / name / f"{number}.png")
    (dataset,) = (yaml.safe_load(block) for block in blocks("your-own-data.md", "yaml") if "image_folder" in block)
    dataset["dataset"]["root"] = str(beside / "photos")
    spec = SPEC | dataset | {"students": ["resnet8"]}
    assert len(planned(spec, beside / "home")["trials"]) == 2


def test_a_function_that_returns_arrays_is_planned_as_the_page_says(beside: Path) -> None:
    (code,) = blocks("your-own-data.md", "python")
    (beside / "mydata.py").write_text(code)
    labels = np.arange(60) % 3
    arrays: dict[str, Any] = {
        f"{part}_{what}": value
        for part in ("train", "test")
        for what, value in (("images", images(60, (1, 8, 8))), ("labels", labels))
    }
    np.savez(beside / "scans.npz", **arrays)
    (dataset,) = (yaml.safe_load(block) for block in blocks("your-own-data.md", "yaml") if "mydata" in block)
    dataset["dataset"]["root"] = str(beside)
    assert len(planned(SPEC | dataset, beside / "home")["trials"]) == 2


def test_a_student_of_the_users_own_is_planned_with_its_choices(beside: Path) -> None:
    (code,) = blocks("your-own-student.md", "python")
    (beside / "mynet.py").write_text(code)
    (students,) = map(yaml.safe_load, blocks("your-own-student.md", "yaml"))
    spec = SPEC | {"students": students["students"][:1], "search": {"trials_per_method": 12, "max_epochs": 1}}
    found = {each["parameters"] for each in planned(spec, beside / "home")["students"]}
    # A convolution of 3x3 weights and a bias on one channel, and ten classes behind it, for 8, 16 and 32 channels.
    assert found <= {10 * width + 10 * width + 10 for width in (8, 16, 32)}
    assert len(found) > 1


def test_the_routes_of_the_page_are_planned_with_their_sizes(beside: Path) -> None:
    (routes,) = map(yaml.safe_load, blocks("compressing.md", "yaml"))
    search = {"trials_per_method": len(routes["students"]), "max_epochs": 1}
    plan = planned(SPEC | routes | {"search": search}, beside / "home")
    whole = next(each for each in plan["teachers"] if each["name"] == "big")
    changed = {each["name"]: each for each in plan["students"] if each["compression"]}
    assert set(changed) == {"pruned", "factored", "low-bit", "both", "ghost"}
    assert all(each["size_bytes"] < whole["size_bytes"] for each in changed.values())


def test_a_user_defined_operator_is_planned_as_the_page_says(beside: Path) -> None:
    (beside / "half.py").write_text(blocks("your-own-operator.md", "python")[0])
    (students,) = map(yaml.safe_load, blocks("your-own-operator.md", "yaml"))
    plan = planned(SPEC | students, beside / "home")
    assert [each["compression"] for each in plan["students"]] == ["half:Half()"]


def test_a_teachers_weights_come_from_a_file_as_the_page_says(beside: Path) -> None:
    ours = next(yaml.safe_load(block) for block in blocks("your-own-teacher.md", "yaml") if "ours" in block)["teachers"]["ours"]
    path = beside / Path(ours["weights"]).with_suffix(".safetensors")
    path.parent.mkdir()
    save_model(build_model(ours["model"], num_classes=10, input_shape=(1, 8, 8)), str(path))
    spec = SPEC | {"teachers": {"ours": ours | {"weights": str(path)}}}
    (teacher,) = planned(spec, beside / "home")["teachers"]
    assert teacher["model"] == "resnet56"


def entry(page: str, name: str, section: str = "teachers") -> dict[str, Any]:
    """What a page's YAML has for a teacher or student of that name."""
    for block in blocks(page, "yaml"):
        part = yaml.safe_load(block).get(section) or {}
        entries = part if isinstance(part, dict) else {each.get("name"): each for each in part if isinstance(each, dict)}
        if name in entries:
            return dict(entries[name])
    raise AssertionError(f"{page} shows no {name}")


def test_weights_under_other_names_are_planned_as_the_page_says(beside: Path) -> None:
    public = entry("your-own-teacher.md", "public")
    net = build_model("resnet20", num_classes=10, input_shape=(1, 8, 8), shortcut=public["shortcut"])
    state = {f"module.{name.replace('fc.', 'linear.')}": value for name, value in net.state_dict().items()}
    torch.save({"state_dict": state | {"module.criterion.weight": torch.ones(10)}}, beside / "resnet20.th")
    spec = SPEC | {"teachers": {"public": public | {"weights": str(beside / "resnet20.th")}}}
    assert [each["trains"] for each in planned(spec, beside / "home")["teachers"]] == [False]


def test_weights_of_other_classes_are_planned_as_the_page_says(beside: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("timm")
    tuned, started = entry("your-own-teacher.md", "tuned"), entry("your-own-teacher.md", "started", "students")
    torch.save(build_model("resnet20", num_classes=100, input_shape=(1, 8, 8)).state_dict(), beside / "other.pth")
    cached = beside / "torch" / "hub" / "checkpoints" / "resnet18_a1_0-d63eafa0.pth"
    cached.parent.mkdir(parents=True)
    torch.save(build_model("timm:resnet18", num_classes=1000, input_shape=(1, 8, 8)).state_dict(), cached)
    monkeypatch.setenv("TORCH_HOME", str(beside / "torch"))
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(beside / "hub"))
    started["weights"] = str(beside / "other.pth")
    plan = planned(SPEC | {"teachers": {"tuned": tuned}, "students": [started]}, beside / "home")
    (teacher,) = plan["teachers"]
    assert (teacher["trains"], teacher["start"]) == (True, "starts with timm:resnet18.a1_in1k, new head")
    assert teacher["options"] == {"resize": 224}
    assert [each["start"] for each in plan["students"]] == [{"weights": started["weights"], "head": "new"}]


@pytest.mark.parametrize("page", [*PAGES, ROOT / "README.md", ROOT / "CONTRIBUTING.md"], ids=lambda path: path.name)
def test_links_lead_to_files_that_are_there(page: Path) -> None:
    for link in re.findall(r"\]\((?!https?://)([^)#\s]+)", page.read_text()):
        assert (page.parent / link).exists(), link


@pytest.mark.parametrize("page", [*PAGES, ROOT / "README.md"], ids=lambda path: path.name)
def test_commands_and_options_that_a_page_shows_exist(page: Path) -> None:
    import typer

    from stillhouse.cli import app

    commands: Any = typer.main.get_command(app)
    for line in re.findall(r"^(?:\$ )?(?:\.venv/bin/)?stillhouse (.*)$", page.read_text(), re.MULTILINE):
        words = line.partition("#")[0].split()
        command = commands
        while words and hasattr(command, "commands"):
            assert words[0] in command.commands, line
            command = command.commands[words.pop(0)]
        options = {option for parameter in command.params for option in parameter.opts}
        assert {word for word in words if word.startswith("--")} <= options, line


def _definitions(path: Path) -> set[str]:
    """What a module defines: `name` of classes, functions and constants, `Class.name` of methods."""
    found = set()
    for node in ast.parse(path.read_text()).body:
        if isinstance(node, ast.ClassDef):
            found |= {node.name, *(f"{node.name}.{each.name}" for each in node.body if isinstance(each, ast.FunctionDef))}
        elif isinstance(node, ast.FunctionDef):
            found.add(node.name)
        elif isinstance(node, ast.Assign):
            found |= {target.id for target in node.targets if isinstance(target, ast.Name)}
    return found


def _named_paths(page: str) -> list[tuple[str, str | None]]:
    """(path, name or None) of every `path.py`, `path.py:name` and `folder/` in the page."""
    return re.findall(r"`([\w./]+(?:\.py|/))(?::([\w.]+))?`", (ROOT / "docs" / page).read_text())


def test_files_and_functions_of_the_architecture_page_exist() -> None:
    named = _named_paths("architecture.md")
    assert len(named) > 80
    missing = []
    for path, name in named:
        file = next((base / path for base in (PACKAGE, ROOT) if (base / path).exists()), None)
        if file is None or (name and name not in _definitions(file)):
            missing.append(f"{path}:{name}" if name else path)
    assert not missing


def test_the_architecture_page_names_every_package() -> None:
    folders = {path.parent for path in PACKAGE.rglob("*.py")} - {PACKAGE}
    named = {path for path, _name in _named_paths("architecture.md")}
    assert {f"{folder.relative_to(PACKAGE)}/" for folder in folders} <= named


@pytest.mark.parametrize("page", [*PAGES, ROOT / "README.md", ROOT / "CONTRIBUTING.md"], ids=lambda path: path.name)
def test_a_page_begins_with_a_sentence(page: Path) -> None:
    title, beginning, *_rest = [line for line in page.read_text().splitlines() if line]
    assert title.startswith("# ")
    assert re.match(r"[A-Z][a-z]+ ", beginning), beginning


@pytest.mark.parametrize("page", [*ROOT.glob("*.md"), *(ROOT / "docs").rglob("*.md")], ids=lambda path: path.name)
def test_a_page_uses_the_plain_word(page: Path) -> None:
    prose = re.sub(r"```.*?```|`[^`\n]*`", "", page.read_text(), flags=re.DOTALL)
    assert not re.findall(r"\b(?:can not|whoever|in front of|of one's own|goes on with)\b", prose)


def test_every_decision_is_listed_with_its_title() -> None:
    folder = ROOT / "docs" / "decisions"
    titles = {path.name: path.read_text().partition("\n")[0].removeprefix("# ") for path in folder.glob("0*.md")}
    rows = re.findall(r"^\| \[(\d+)\]\((\S+)\) \| (.*) \|$", (folder / "README.md").read_text(), re.MULTILINE)
    assert {name: f"{number}. {title}" for number, name, title in rows} == titles
