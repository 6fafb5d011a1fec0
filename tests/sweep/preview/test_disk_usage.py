"""The room of sealed views by hand: 400 samples of ten classes, two views, 4 bytes a number; and what a teacher gives."""

import json
import shutil
from collections import namedtuple
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor
from typer.testing import CliRunner

from stillhouse import methods
from stillhouse.cli import app
from stillhouse.distill.sources import compute_knowledge, layers_of
from stillhouse.errors import UsageError
from stillhouse.knowledge.kinds import Knowledge, reduced
from stillhouse.knowledge.store import KnowledgeStore
from stillhouse.models.features import FeatureReader
from stillhouse.models.registry import build_model
from stillhouse.spec.load import spec_to_yaml, validate
from stillhouse.sweep.planning.knowledge_demand import knowledge_demand
from stillhouse.sweep.planning.trial_keys import make_views
from stillhouse.sweep.preview.disk_usage import DiskUsage, measure_disk_usage
from stillhouse.sweep.sweep import Sweep

SPEC: dict[str, Any] = {
    "name": "room",
    "dataset": {"name": "digits", "validation": 100, "options": {"limit": 500}},
    "views": {"policy": [{"crop": {"padding": 1}}], "count": 2},
    "teachers": {"big": {"model": "lenet"}},
    "students": [{"model": "mlp", "hidden": [16]}],
    "methods": {"kd": {"temperature": 4.0}},
    "search": {"trials_per_method": 1, "max_epochs": 3},
}
DISK = namedtuple("DISK", "total used free")


def make_sweep(home: Path, **changes: Any) -> Sweep:
    return Sweep(validate(SPEC | changes), home=home)


def volume_of(home: Path, **changes: Any) -> DiskUsage:
    sweep = make_sweep(home, **changes)
    return measure_disk_usage(sweep.plan(), sweep.data(), home)


@pytest.fixture(autouse=True)
def disk_of_a_megabyte(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(shutil, "disk_usage", lambda _folder: DISK(2_000_000, 1_000_000, 1_000_000))


def test_logits_of_four_hundred_samples_in_two_views(tmp_path: Path) -> None:
    volume = volume_of(tmp_path)
    (kind,) = volume.kinds
    assert (kind.bytes_per_sample, kind.view_bytes, kind.views, kind.total_bytes) == (40, 16_000, 2, 32_000)
    assert (volume.total_bytes, volume.budget_bytes, volume.free_bytes, volume.kept_bytes) == (32_000, 500_000, 1_000_000, 0)
    assert volume.lines() == [
        "knowledge of big: logits: 40 B per sample, 16.00 kB per view, 32.00 kB for 2 views",
        "sealed views: 32.00 kB in all, of the 500.00 kB that views may take (half of the disk's free space and what "
        "views take now); 1.00 MB of the disk are free, views take 0 B now",
    ]


def test_half_precision_takes_half_the_room(tmp_path: Path) -> None:
    assert volume_of(tmp_path, knowledge={"dtype": "float16"}).total_bytes == 16_000


def test_what_does_not_fit_is_said_with_the_remedy_and_is_no_error(tmp_path: Path) -> None:
    assert volume_of(tmp_path, knowledge={"max_bytes": 32_000}).kinds[0].way == "cached"
    volume = volume_of(tmp_path, knowledge={"max_bytes": 31_999})
    assert (volume.kinds[0].way, volume.kinds[0].for_want_of_room, volume.total_bytes) == ("inline", True, 0)
    assert "which does not fit: every trial computes it; raise knowledge.max_bytes" in volume.lines()[0]


def test_what_must_be_cached_and_cannot_fit_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match=r"2 views of logits take 32\.00 kB and 31\.00 kB are free"):
        volume_of(tmp_path, knowledge={"way": "cached", "max_bytes": 31_000})


def test_what_is_not_cached_takes_no_room(tmp_path: Path) -> None:
    volume = volume_of(tmp_path, knowledge={"way": "inline"})
    assert (volume.total_bytes, volume.kinds[0].for_want_of_room) == (0, False)
    assert volume.lines()[0].endswith("32.00 kB for 2 views if it were cached; it is inline")


def test_views_of_others_that_will_go_are_announced(tmp_path: Path) -> None:
    store = KnowledgeStore(tmp_path / "knowledge")
    with store.writer({"of": "another"}, rows=100, shape=(100,), dtype="float32") as writer:
        writer.put(np.arange(100), np.zeros((100, 100), np.float32))
        writer.commit()
        writer.seal()
    kept = sum(entry["bytes"] for entry in store.entries())
    volume = volume_of(tmp_path, knowledge={"max_bytes": 32_000 + kept})
    assert volume.kept_bytes == kept
    assert len(volume.lines()) == 2
    volume = volume_of(tmp_path, knowledge={"max_bytes": 22_000 + kept})
    assert volume.lines()[-1] == "note: up to 10.00 kB of the stored views will be removed"


def test_a_sweep_without_teachers_has_nothing_to_say(tmp_path: Path) -> None:
    assert volume_of(tmp_path, teachers={}, methods={"scratch": {}}).lines() == []


def test_sizes_are_those_of_what_a_teacher_gives_whatever_the_method_asks(tmp_path: Path) -> None:
    """Every shipped method's knowledge of a real network, number by number."""
    shipped = [name for name in methods.names() if methods.find(name).__module__.startswith(methods.__name__)]
    names = [name for name in shipped if methods.find(name).shortened().serves("classification")]
    sweep = make_sweep(
        tmp_path,
        teachers={"big": {"model": "resnet8", "width": 0.5}},
        students=[{"model": "resnet8", "width": 0.25}],
        methods={name: {} for name in names},
        search={"algorithm": "grid", "max_epochs": 4},
        training={"optimizer": "sgd"},  # one method splits its momentum
    )
    plan, data = sweep.plan(), sweep.data()
    views = make_views(plan.spec, data)
    demand = knowledge_demand(plan.spec, plan.representative_trials, data, views, adaptive=False)["big"]
    kinds = {text: each.kind for text, each in demand.items()}
    teacher = build_model("resnet8", width=0.5, num_classes=data.num_classes, input_shape=data.input_shape).eval()
    images = data.normalise(data.train.images[:2])
    with FeatureReader(teacher, layers_of(kinds)) as reader:
        given = compute_knowledge(reader, kinds, images, data.train.labels[:2], (0, torch.arange(2)))
    assert len(given) > 10
    measured = [each.bytes_per_sample for each in measure_disk_usage(plan, data, tmp_path).kinds]
    assert measured == [4 * given[text][0].numel() for text in demand]


def looks_at_numbers(output: Tensor) -> Tensor:
    return output[:, : int(output.abs().max()) + 1]


def test_a_size_that_only_numbers_tell_is_said_to_be_open(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    kind: Knowledge = reduced(looks_at_numbers)
    monkeypatch.setattr(methods.find("kd"), "knowledge", lambda *_: {"logits": kind})
    volume = volume_of(tmp_path)
    assert (volume.kinds[0].bytes_per_sample, volume.total_bytes) == (None, 0)
    assert volume.lines()[0] == "knowledge of big: looks_at_numbers(logits): size unknown until the teacher runs"


def test_the_command_tells_it_and_writes_it_down(tmp_path: Path) -> None:
    spec = tmp_path / "room.yaml"
    spec.write_text(spec_to_yaml(validate(SPEC)))
    command = ["sweep", str(spec), "--home", str(tmp_path / "home"), "--dry-run"]
    said = CliRunner().invoke(app, command)
    assert "sealed views: 32.00 kB in all" in said.stdout
    document = json.loads(CliRunner().invoke(app, [*command, "--json"]).stdout)["knowledge"]
    assert (document["total_bytes"], document["budget_bytes"], document["max_bytes"]) == (32_000, 500_000, None)
    assert document["kinds"][0]["view_bytes"] == 16_000
    refused = CliRunner().invoke(app, [*command, "--set", "knowledge.way=cached", "--set", "knowledge.max_bytes=30kB"])
    assert (refused.exit_code, refused.stdout) == (2, "")
    assert not (tmp_path / "home" / "knowledge").exists()
