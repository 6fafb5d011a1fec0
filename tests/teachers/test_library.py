"""Teachers: trained once, found by content, resumed, loaded from what users give."""

import dataclasses
import fcntl
import shutil
import threading
import weakref
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from stillhouse.data.datasets import ImageData
from stillhouse.data.hashing import derive_seed
from stillhouse.data.normalisation import Normalisation
from stillhouse.data.views import Views
from stillhouse.distill.trainer import Trainer
from stillhouse.errors import UsageError
from stillhouse.models.registry import build_model
from stillhouse.models.weights import save_weights, weights_hash
from stillhouse.spec.training import Training
from stillhouse.teachers import library as library_module
from stillhouse.teachers.definition import TeacherDefinition
from stillhouse.teachers.library import LoadedTeacher, TeacherLibrary, score
from stillhouse.teachers.own_normalisation import OwnNormalisation

MakeDefinition = Callable[..., TeacherDefinition]
Trained = tuple[Path, LoadedTeacher]


@pytest.fixture
def no_training(monkeypatch: pytest.MonkeyPatch) -> None:
    def train(_self: Trainer) -> None:
        raise AssertionError("the teacher was trained")

    monkeypatch.setattr(Trainer, "run_epoch", train)


def test_a_teacher_is_trained_measured_and_frozen(trained: Trained, digits: ImageData) -> None:
    _, teacher = trained
    assert teacher.trained_now
    assert teacher.train_seconds > 0
    assert teacher.weights_hash == weights_hash(teacher.model)
    with torch.no_grad():
        right = teacher.model(digits.normalise(digits.validation.images)).argmax(1) == digits.validation.labels
    assert teacher.validation_value == pytest.approx(float(right.float().mean()))
    assert score(teacher.model, digits, "validation", "cpu") == teacher.validation_value
    assert not teacher.model.training
    assert not any(parameter.requires_grad for parameter in teacher.model.parameters())


@pytest.mark.usefixtures("no_training")
def test_a_teacher_is_found_by_its_content_whatever_its_name(
    trained: Trained, make_definition: MakeDefinition, digits: ImageData, views: Views
) -> None:
    root, teacher = trained
    found = TeacherLibrary(root).obtain(make_definition(name="other"), digits, views)
    assert not found.trained_now
    assert found.weights_hash == weights_hash(found.model) == teacher.weights_hash
    assert found.validation_value == teacher.validation_value
    assert found.train_seconds == teacher.train_seconds


@pytest.mark.parametrize(
    "change",
    [
        {"model": "mlp"},
        {"options": {"width": 0.5}},
        {"epochs": 4},
        {"seed": 1},
        {"training": Training(batch_size=65)},
    ],
    ids=str,
)
def test_whatever_decides_the_weights_decides_the_key(
    make_definition: MakeDefinition, digits: ImageData, views: Views, change: dict[str, Any]
) -> None:
    assert make_definition(**change).key(digits, views) != make_definition().key(digits, views)


def test_data_and_views_decide_the_key_and_the_count_of_views_does_not(
    make_definition: MakeDefinition, digits: ImageData, views: Views
) -> None:
    key = make_definition().key(digits, views)
    assert make_definition().key(dataclasses.replace(digits, fingerprint="other"), views) != key
    assert make_definition().key(digits, dataclasses.replace(views, policy=())) != key
    assert make_definition().key(digits, dataclasses.replace(views, count=9)) == key


def test_weights_decide_the_key_by_their_content_and_the_recipe_does_not(
    make_definition: MakeDefinition, digits: ImageData, views: Views, trained: Trained, tmp_path: Path
) -> None:
    here, there = tmp_path / "here.safetensors", tmp_path / "there.safetensors"
    shutil.copy(trained[1].path, here)
    shutil.copy(trained[1].path, there)
    key = make_definition(weights=str(here)).key(digits, views)
    assert make_definition(weights=str(there), epochs=99).key(digits, views) == key
    there.write_bytes(there.read_bytes() + b" ")
    assert make_definition(weights=str(there)).key(digits, views) != key


def interrupted(after: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """Training that dies before epoch `after` + 1, with a checkpoint after each epoch."""
    run_epoch = Trainer.run_epoch

    def run(self: Trainer) -> dict[str, Any]:
        if self.epoch == after:
            raise KeyboardInterrupt
        return run_epoch(self)

    monkeypatch.setattr(Trainer, "run_epoch", run)
    monkeypatch.setattr(library_module, "CHECKPOINT_INTERVAL_S", 0.0)


def test_interrupted_training_goes_on_and_gives_the_same_teacher(
    trained: Trained, make_definition: MakeDefinition, digits: ImageData, views: Views, tmp_path: Path
) -> None:
    told: list[str] = []
    with pytest.MonkeyPatch.context() as patch:
        interrupted(2, patch)
        with pytest.raises(KeyboardInterrupt):
            TeacherLibrary(tmp_path).obtain(make_definition(), digits, views, progress=told.append)
    again = TeacherLibrary(tmp_path).obtain(make_definition(), digits, views, progress=told.append)
    assert again.weights_hash == trained[1].weights_hash
    assert [text.split("epoch ")[1][0] for text in told if "epoch " in text] == ["1", "2", "3"]
    assert not (tmp_path / again.key / "checkpoint").exists()


def test_a_trained_teacher_holds_no_memory_of_its_training(
    make_definition: MakeDefinition, digits: ImageData, views: Views, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its actor stays for the whole sweep, beside trials on the same GPU."""
    trainers: list[weakref.ref[Trainer]] = []
    alive_when_freed: list[bool] = []
    run_epoch = Trainer.run_epoch

    def run(self: Trainer) -> dict[str, Any]:
        trainers.append(weakref.ref(self))
        return run_epoch(self)

    monkeypatch.setattr(Trainer, "run_epoch", run)
    monkeypatch.setattr(library_module, "free_memory", lambda: alive_when_freed.append(trainers[-1]() is not None))
    model = TeacherLibrary(tmp_path).obtain(make_definition(epochs=1), digits, views).model
    assert alive_when_freed == [False]
    assert all(parameter.grad is None for parameter in model.parameters())


@pytest.mark.parametrize("content", [b"", b"garbled"])
def test_a_damaged_checkpoint_costs_time_alone(
    trained: Trained, make_definition: MakeDefinition, digits: ImageData, views: Views, tmp_path: Path, content: bytes
) -> None:
    folder = tmp_path / trained[1].key
    folder.mkdir()
    (folder / "checkpoint").write_bytes(content)
    assert TeacherLibrary(tmp_path).obtain(make_definition(), digits, views).weights_hash == trained[1].weights_hash


def harm_card(folder: Path) -> None:
    (folder / "card").write_bytes(b"garbled")


def lose_weights(folder: Path) -> None:
    (folder / "weights.safetensors").unlink()


def cut_weights(folder: Path) -> None:
    path = folder / "weights.safetensors"
    path.write_bytes(path.read_bytes()[:-100])


def swap_weights(folder: Path) -> None:
    """Whole, readable, of the right shapes: and not the teacher's."""
    from stillhouse.models.registry import build_model

    save_weights(build_model("lenet", num_classes=10, input_shape=(1, 8, 8)), folder / "weights.safetensors")


@pytest.mark.parametrize("harm", [harm_card, lose_weights, cut_weights, swap_weights])
def test_a_damaged_teacher_is_made_again(
    trained: Trained,
    make_definition: MakeDefinition,
    digits: ImageData,
    views: Views,
    tmp_path: Path,
    harm: Callable[[Path], None],
) -> None:
    root, teacher = trained
    shutil.copytree(root, tmp_path / "copy")
    harm(tmp_path / "copy" / teacher.key)
    again = TeacherLibrary(tmp_path / "copy").obtain(make_definition(), digits, views)
    assert again.weights_hash == weights_hash(again.model) == teacher.weights_hash


@pytest.mark.usefixtures("no_training")
@pytest.mark.parametrize("form", ["safetensors", "state_dict", "wrapped", "parallel"])
def test_given_weights_are_loaded_in_every_usual_form(
    trained: Trained, make_definition: MakeDefinition, digits: ImageData, views: Views, tmp_path: Path, form: str
) -> None:
    state = trained[1].model.state_dict()
    path = tmp_path / "given"
    if form == "safetensors":
        shutil.copy(trained[1].path, path)
    elif form == "state_dict":
        torch.save(state, path)
    elif form == "wrapped":
        torch.save({"state_dict": state, "epoch": 3}, path)
    else:
        torch.save({f"module.{name}": value for name, value in state.items()}, path)
    teacher = TeacherLibrary(tmp_path / "library").obtain(make_definition(weights=str(path)), digits, views)
    assert teacher.weights_hash == trained[1].weights_hash
    assert teacher.validation_value == trained[1].validation_value
    assert (teacher.trained_now, teacher.train_seconds) == (False, 0.0)
    path.unlink()


@pytest.mark.usefixtures("no_training")
@pytest.mark.parametrize(
    ("weights", "change", "message"),
    [
        ("own", {"num_classes": 7}, r"teachers.big.weights .*; do classes, input channels and width agree\?"),
        ("own", {"options": {"width": 0.5}}, r"teachers.big.weights .*width agree"),
        ("own", {"model": "mlp"}, r"teachers.big.weights .*another architecture"),
        ("garbled", {}, r"teachers.big.weights .*damaged"),
        ("missing", {}, r"teachers.big.weights .*cannot be read"),
        ("torchvision:No_Weights.X", {}, r"teachers.big.weights .*torchvision has no weights 'No_Weights.X'"),
    ],
    ids=str,
)
def test_wrong_weights_are_one_sentence(
    trained: Trained,
    make_definition: MakeDefinition,
    digits: ImageData,
    views: Views,
    tmp_path: Path,
    weights: str,
    change: dict[str, Any],
    message: str,
) -> None:
    (tmp_path / "garbled").write_bytes(b"\x80\x02 no such thing")
    paths = {"own": str(trained[1].path), "garbled": str(tmp_path / "garbled"), "missing": str(tmp_path / "missing")}
    definition = make_definition(weights=paths.get(weights, weights), **change)
    with pytest.raises(UsageError, match=message) as caught:
        TeacherLibrary(tmp_path / "library").obtain(definition, digits, views)
    assert "\n" not in str(caught.value)


def test_two_sweeps_do_not_train_one_teacher_twice(
    trained: Trained, make_definition: MakeDefinition, digits: ImageData, views: Views, tmp_path: Path
) -> None:
    """While one holds the teacher's lock the other waits, and then finds what was made meanwhile."""
    root, teacher = trained
    folder = tmp_path / teacher.key
    folder.mkdir()
    found: list[LoadedTeacher] = []

    def obtain() -> None:
        found.append(TeacherLibrary(tmp_path).obtain(make_definition(), digits, views))

    with (folder / "lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        waiting = threading.Thread(target=obtain)
        waiting.start()
        waiting.join(0.5)
        assert waiting.is_alive()
        for name in ("weights.safetensors", "card"):
            shutil.copy(root / teacher.key / name, folder / name)
    waiting.join(60)
    assert not found[0].trained_now
    assert found[0].weights_hash == teacher.weights_hash


def test_stored_views_are_listed(trained: Trained) -> None:
    root, teacher = trained
    (entry,) = TeacherLibrary(root).entries()
    assert (entry["key"], entry["model"], entry["bytes"]) == (teacher.key, "lenet", teacher.path.stat().st_size)
    assert list(TeacherLibrary(root / "nowhere").entries()) == []


@pytest.mark.usefixtures("no_training")
def test_an_untrained_teacher_has_the_weights_that_its_training_would_begin_with(
    make_definition: MakeDefinition, digits: ImageData, views: Views, tmp_path: Path
) -> None:
    definition = make_definition(untrained=True)
    library = TeacherLibrary(tmp_path)
    teacher = library.obtain(definition, digits, views)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(derive_seed(definition.seed, "teacher"))
        assert teacher.weights_hash == weights_hash(definition.build())
    assert (teacher.trained_now, teacher.train_seconds) == (False, 0.0)
    assert library.content(definition, digits, views) == teacher.weights_hash
    assert library.obtain(definition, digits, views).weights_hash == teacher.weights_hash
    other = library.obtain(make_definition(untrained=True, seed=definition.seed + 1), digits, views)
    assert other.weights_hash != teacher.weights_hash
    assert len({each.key(digits, views) for each in (definition, make_definition(), other.definition)}) == 3


@pytest.mark.usefixtures("no_training")
def test_an_untrained_teacher_keeps_no_weight_that_a_users_function_brings(
    make_definition: MakeDefinition, digits: ImageData, views: Views, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "brings_weights.py").write_text(
        "import torch\nfrom torch import nn\n\n"
        "def net(num_classes, input_shape):\n"
        "    model = nn.Sequential(nn.Flatten(), nn.Linear(input_shape[1] * input_shape[2], num_classes))\n"
        "    nn.init.eye_(model[1].weight)\n"
        "    return model\n"
    )
    monkeypatch.syspath_prepend(tmp_path)
    definition = make_definition(model="brings_weights:net", options={}, untrained=True)
    teachers = [TeacherLibrary(tmp_path / name).obtain(definition, digits, views) for name in ("a", "b")]
    assert teachers[0].weights_hash == teachers[1].weights_hash
    layer = teachers[0].model.get_submodule("1")
    assert isinstance(layer, nn.Linear)
    assert not torch.equal(layer.weight, nn.init.eye_(torch.empty_like(layer.weight)))


@pytest.mark.parametrize("head", ["new", "kept"])
def test_given_weights_are_trained_further(
    trained: Trained, make_definition: MakeDefinition, digits: ImageData, views: Views, tmp_path: Path, head: str
) -> None:
    source = build_model("lenet", num_classes=7 if head == "new" else 10, input_shape=digits.input_shape)
    torch.save(source.state_dict(), tmp_path / "given.pth")
    definition = make_definition(weights=str(tmp_path / "given.pth"), head=head, epochs=1)
    library = TeacherLibrary(tmp_path / "library")
    assert library.content(definition, digits, views) is None
    teacher = library.obtain(definition, digits, views)
    assert teacher.trained_now
    assert teacher.train_seconds > 0
    assert teacher.model(digits.normalise(digits.validation.images[:2])).shape == (2, 10)
    again = TeacherLibrary(tmp_path / "library").obtain(definition, digits, views)
    assert (again.trained_now, again.weights_hash) == (False, teacher.weights_hash)
    fresh = make_definition(epochs=1)
    assert library.obtain(fresh, digits, views).weights_hash != teacher.weights_hash


def test_training_further_begins_with_the_weights_and_their_normalisation(
    trained: Trained, make_definition: MakeDefinition, digits: ImageData, views: Views, tmp_path: Path
) -> None:
    # One step of rate 0: what is stored is what was given, and the value is that under the own normalisation.
    own = OwnNormalisation(Normalisation((0.5,), (0.5,)), Normalisation.of(digits), "the spec")
    recipe = Training(batch_size=64, optimizer="sgd", learning_rate=1e-30, momentum=0.0, weight_decay=0.0)
    given = {"weights": str(trained[1].path), "normalisation": own}
    as_given = TeacherLibrary(tmp_path / "one").obtain(make_definition(**given), digits, views)
    further = make_definition(**given, head="kept", training=recipe, epochs=1)
    teacher = TeacherLibrary(tmp_path / "two").obtain(further, digits, views)
    assert teacher.weights_hash == as_given.weights_hash
    assert teacher.validation_value == as_given.validation_value


@pytest.mark.parametrize("change", [{"head": "kept"}, {"rename": {"^fc": "fc"}}, {"head": "kept", "epochs": 9}], ids=str)
def test_how_weights_are_used_decides_the_key(
    trained: Trained, make_definition: MakeDefinition, digits: ImageData, views: Views, change: dict[str, Any]
) -> None:
    weights = str(trained[1].path)
    keys = {make_definition(weights=weights, **each).key(digits, views) for each in ({}, {"head": "kept"}, change)}
    assert len(keys) == len({str(each) for each in ({}, {"head": "kept"}, change)})
