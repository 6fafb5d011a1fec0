"""The trainer: against closed forms, and the promises that a sweep rests on."""

import gc
import shutil
import subprocess
import sys
import weakref
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from stillhouse.data.datasets import ImageData
from stillhouse.data.views import Views
from stillhouse.distill.checkpoint import load_checkpoint, save_checkpoint
from stillhouse.distill.method import Helper, Method, Setup, Stage, StageStart, Step
from stillhouse.distill.trainer import Trainer
from stillhouse.durable import Damaged
from stillhouse.errors import TrialError
from stillhouse.models.architecture import Architecture

MakeTrainer = Callable[..., Trainer]

BUSY_RECIPE = {"optimizer": "adamw", "gradient_clip": 1.0, "warmup_epochs": 0.5, "batchnorm_statistics": "recomputed"}


class BusyStudent(nn.Module):
    """Everything that carries state or draws numbers: BatchNorm, dropout."""

    def __init__(self) -> None:
        super().__init__()
        self.body = nn.Sequential(nn.Conv2d(1, 4, 3), nn.BatchNorm2d(4), nn.ReLU(), nn.Dropout(0.3))
        self.head = nn.Sequential(nn.Flatten(), nn.Linear(144, 10))

    def forward(self, images: Tensor) -> Tensor:
        logits: Tensor = self.head(self.body(images))
        return logits


@dataclass(frozen=True, kw_only=True)
class TwoStages(Method):
    """A stage for the lower half with a helper, then one for all of it; draws numbers of its own."""

    first_epochs: int = 2
    started: list[str] = field(default_factory=list, compare=False)

    def stages(self, setup: Setup) -> Sequence[Stage]:
        return [
            Stage(name="lower", epochs=self.first_epochs, until="body", comparable=False),
            Stage(name="whole", epochs=setup.epochs - self.first_epochs),
        ]

    def student_layers(self, teacher: Architecture | None, student: Architecture) -> Sequence[str]:
        return ["body"]

    def modules(self, setup: Setup) -> Mapping[str, Helper]:
        return {"guide": Helper(module=nn.Linear(144, 3), training={"optimizer": "adam", "learning_rate": 0.01})}

    def begin_stage(self, start: StageStart) -> None:
        self.started.append(f"{start.index} {start.stage.name}")

    def loss(self, step: Step) -> dict[str, Tensor]:
        guided = step.modules["guide"](step.student_features["body"].flatten(1))
        guide = (guided - step.normal(*guided.shape)).square().mean()
        if step.stage.name == "lower":
            assert not step.outputs
            return {"guide": guide}
        return {"cross_entropy": F.cross_entropy(step.logits, step.targets), "guide": guide}


@dataclass(frozen=True, kw_only=True)
class Watching(Method):
    """Plain training that keeps what each step was given."""

    steps: list[Step] = field(default_factory=list, compare=False)

    def loss(self, step: Step) -> dict[str, Tensor]:
        self.steps.append(step)
        return super().loss(step)


def busy(make_trainer: MakeTrainer, method: Method | None = None, **fields: Any) -> Trainer:
    wanted = {"policy": ("crop",), "epochs": 4, "views": 3, "seed": 1, "recipe": BUSY_RECIPE} | fields
    return make_trainer(method or TwoStages(), model=BusyStudent, **wanted)


def same(one: Any, other: Any) -> bool:
    """Whether nested data and tensors are equal bit for bit."""
    if isinstance(one, Tensor):
        return torch.equal(one, other)
    if isinstance(one, Mapping):
        return one.keys() == other.keys() and all(same(one[key], other[key]) for key in one)
    if isinstance(one, list | tuple):
        return len(one) == len(other) and all(map(same, one, other))
    return bool(one == other)


def state_of(trainer: Trainer) -> dict[str, Tensor]:
    return {name: tensor.clone() for name, tensor in trainer.student.state_dict().items()}


# The closed form


def linear() -> nn.Module:
    model = nn.Sequential(nn.Flatten(), nn.Linear(64, 10))
    for parameter in model.parameters():
        nn.init.zeros_(parameter)
    return model


def test_one_step_of_softmax_regression_is_its_closed_form(make_trainer: MakeTrainer, digits: ImageData) -> None:
    """From zero weights all classes are equally likely: dL/dW = mean over samples of (1/10 - onehot) x^T."""
    recipe = {"batch_size": 160, "schedule": "constant", "momentum": 0.0, "weight_decay": 0.0, "learning_rate": 0.1}
    trainer = make_trainer(model=linear, epochs=1, recipe=recipe)
    entry = trainer.run_epoch()
    pixels = digits.train.images.double().flatten(1) / 255
    inputs = (pixels - digits.mean[0]) / digits.std[0]
    errors = 0.1 - F.one_hot(digits.train.labels, 10).double()
    torch.testing.assert_close(trainer.student[1].weight.double(), -0.1 * errors.T @ inputs / 160, rtol=1e-4, atol=1e-6)  # type: ignore[index]
    torch.testing.assert_close(trainer.student[1].bias.double(), -0.1 * errors.mean(0), rtol=1e-4, atol=1e-6)  # type: ignore[index]
    assert entry["cross_entropy"] == pytest.approx(np.log(10), rel=1e-5)
    assert entry["learning_rate"] == 0.1


def test_the_loss_of_an_epoch_is_the_mean_over_samples_not_over_batches(make_trainer: MakeTrainer) -> None:
    """Of batches of 100 and 60, with a rate too small to change anything."""
    recipe = {"batch_size": 100, "learning_rate": 1e-30, "weight_decay": 0.0}
    method = Watching()
    trainer = make_trainer(method, epochs=1, recipe=recipe)
    entry = trainer.run_epoch()
    assert [len(step.labels) for step in method.steps] == [100, 60]
    with torch.no_grad():
        losses = [float(F.cross_entropy(trainer.student(step.images), step.labels)) for step in method.steps]
    assert entry["train_loss"] == pytest.approx((100 * losses[0] + 60 * losses[1]) / 160, rel=1e-5)


def test_digits_are_learned(make_trainer: MakeTrainer) -> None:
    curve = make_trainer(epochs=10).fit()
    assert curve[-1]["validation_accuracy"] > 0.6
    assert curve[-1]["train_loss"] < 0.5 * curve[0]["train_loss"]


# Batches, views, targets


def test_every_sample_is_seen_once_an_epoch_in_another_order_each_time(make_trainer: MakeTrainer) -> None:
    method = Watching()
    make_trainer(method, epochs=2).fit()
    orders = [torch.cat([step.indices for step in method.steps if step.epoch == epoch]).tolist() for epoch in (0, 1)]
    assert sorted(orders[0]) == sorted(orders[1]) == list(range(160))
    assert orders[0] != orders[1]


def test_a_last_batch_of_one_is_left_out(make_trainer: MakeTrainer) -> None:
    method = Watching()
    busy(make_trainer, method, epochs=1, recipe={"batch_size": 53}).fit()
    assert [len(step.labels) for step in method.steps] == [53, 53, 53]


def test_batches_of_one_are_kept_where_all_are_so(make_trainer: MakeTrainer, digits: ImageData) -> None:
    one = one_sample(digits)
    method = Watching()
    make_trainer(method, epochs=1, data=one).fit()
    assert [len(step.labels) for step in method.steps] == [1]


def one_sample(digits: ImageData) -> ImageData:
    arrays, facts = digits.to_arrays()
    return ImageData.from_arrays(
        {**arrays, "train_images": arrays["train_images"][:1], "train_labels": arrays["train_labels"][:1]}, facts
    )


def test_an_epoch_trains_on_the_view_that_the_seeds_order_says(make_trainer: MakeTrainer, digits: ImageData) -> None:
    method = Watching()
    trainer = make_trainer(method, policy=("crop",), views=3, epochs=5, seed=4)
    trainer.fit()
    views = Views(("crop",), 3, digits.input_shape, 160)
    order = views.order(4)
    for step in method.steps:
        view = int(order[step.epoch % 3])
        expected = digits.normalise(views.augment(digits.train.images, step.indices, view))
        assert torch.equal(step.images, expected)


def test_progress_runs_from_zero_to_one_within_the_training_and_within_each_stage(make_trainer: MakeTrainer) -> None:
    @dataclass(frozen=True, kw_only=True)
    class Stages(Watching):
        def stages(self, setup: Setup) -> Sequence[Stage]:
            return [Stage(name="a", epochs=1), Stage(name="b", epochs=3)]

    method = Stages()
    make_trainer(method, epochs=4, recipe={"batch_size": 80}).fit()
    assert [step.progress for step in method.steps] == pytest.approx([number / 8 for number in range(8)])
    assert [step.stage_progress for step in method.steps] == pytest.approx([0, 0.5, *(number / 6 for number in range(6))])


def test_a_view_that_mixes_samples_gives_mixed_targets_and_whole_labels(make_trainer: MakeTrainer, digits: ImageData) -> None:
    method = Watching()
    make_trainer(method, policy=("mixup",), views=1, epochs=1).fit()
    views = Views(("mixup",), 1, digits.input_shape, 160)
    for step in method.steps:
        assert torch.equal(step.labels, digits.train.labels[step.indices])
        mixing = views.mixing(step.indices, 0)
        assert mixing is not None
        partners, shares = mixing
        torch.testing.assert_close(step.targets.sum(1), torch.ones(len(step.labels)))
        rows = torch.arange(len(step.labels))
        differ = digits.train.labels[partners] != step.labels
        torch.testing.assert_close(step.targets[rows, step.labels][differ], shares[differ])
        torch.testing.assert_close(step.targets[rows, digits.train.labels[partners]][differ], 1 - shares[differ])


# Everything is a function of the seed


def test_equal_seeds_give_equal_weights_and_others_do_not(make_trainer: MakeTrainer) -> None:
    states: list[dict[str, Tensor]] = []
    for seed in (1, 1, 2):
        trainer = busy(make_trainer, seed=seed)
        torch.manual_seed(seed + 100 * len(states))  # what else the process draws must not matter
        trainer.fit()
        states.append(state_of(trainer))
    assert same(states[0], states[1])
    assert not same(states[0], states[2])


def test_training_leaves_the_process_wide_generator_alone(make_trainer: MakeTrainer) -> None:
    before = torch.get_rng_state()
    busy(make_trainer).fit()
    assert torch.equal(torch.get_rng_state(), before)


def test_students_of_equal_seeds_begin_with_equal_weights_whatever_the_method(make_trainer: MakeTrainer) -> None:
    """Common random numbers: differences between methods are paired."""
    assert same(state_of(busy(make_trainer)), state_of(busy(make_trainer, Method())))


def test_methods_of_equal_seeds_see_equal_batches(make_trainer: MakeTrainer) -> None:
    one, other = Watching(), Watching()
    busy(make_trainer, one, epochs=1).fit()
    make_trainer(other, epochs=1, policy=("crop",), views=3, seed=1).fit()
    assert all(torch.equal(a.images, b.images) for a, b in zip(one.steps, other.steps, strict=True))


# Resuming


def resumed(make: Callable[[], Trainer], path: Path, stops: Sequence[int]) -> Trainer:
    """A training that was saved, dropped and loaded again after the epochs `stops`."""
    trainer = make()
    while not trainer.finished:
        trainer.run_epoch()
        if trainer.epoch in stops:
            trainer.save(path)
            trainer = make()
            trainer.load(path)
    return trainer


@pytest.mark.parametrize("stops", [[1], [2], [3], [4], [1, 2, 3, 4]], ids=str)
@pytest.mark.parametrize("schedule", ["cosine", "one_cycle"])
def test_a_resumed_training_is_the_same_bit_for_bit(
    make_trainer: MakeTrainer, tmp_path: Path, stops: list[int], schedule: str
) -> None:
    def make() -> Trainer:
        return busy(make_trainer, recipe={**BUSY_RECIPE, "schedule": schedule})

    straight = make()
    straight.fit()
    broken = resumed(make, tmp_path / "checkpoint", stops)
    straight.save(tmp_path / "straight")
    broken.save(tmp_path / "broken")
    one, other = load_checkpoint(tmp_path / "straight"), load_checkpoint(tmp_path / "broken")
    for timed in (one, other):
        for key in ("train_seconds", "wait_seconds"):
            del timed[key]
        for entry in timed["curve"]:
            del entry["seconds"]
    assert same(one, other)


def test_a_training_saved_before_its_first_epoch_goes_on(make_trainer: MakeTrainer, tmp_path: Path) -> None:
    straight, trainer = busy(make_trainer), busy(make_trainer)
    straight.fit()
    trainer.save(tmp_path / "checkpoint")
    trainer = busy(make_trainer)
    trainer.load(tmp_path / "checkpoint")
    trainer.fit()
    assert same(state_of(straight), state_of(trainer))


def test_a_stage_begins_once_also_when_training_is_resumed_in_it(make_trainer: MakeTrainer, tmp_path: Path) -> None:
    method = TwoStages()
    resumed(lambda: busy(make_trainer, method), tmp_path / "checkpoint", [1, 2, 3])
    assert method.started == ["0 lower", "1 whole"]


def test_a_resumed_adam_counts_its_steps_on_the_cpu(make_trainer: MakeTrainer, tmp_path: Path) -> None:
    """Adam reads a step counter that is on the GPU at every step and for every parameter, and waits for the GPU each time."""
    trainer = busy(make_trainer)
    trainer.run_epoch()
    trainer.save(tmp_path / "checkpoint")
    trainer = busy(make_trainer)
    trainer.device = "meta"  # where tensors have no values: nothing of the file may go to the trainer's device unasked
    trainer.load(tmp_path / "checkpoint")
    assert trainer._current is not None
    states = [
        state for group in trainer._current.optimisers.state_dict()["groups"].values() for state in group["state"].values()
    ]
    assert states
    assert all(state["step"].is_cpu and int(state["step"]) > 0 for state in states)


@pytest.mark.parametrize("error", [torch.OutOfMemoryError("none left"), torch.AcceleratorError("CUDA error")])
def test_a_device_that_fails_while_a_checkpoint_is_loaded_does_not_make_it_a_damaged_one(
    make_trainer: MakeTrainer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, error: Exception
) -> None:
    def fail(*_arguments: object) -> None:
        raise error

    trainer = busy(make_trainer)
    trainer.run_epoch()
    trainer.save(tmp_path / "checkpoint")
    monkeypatch.setattr(BusyStudent, "load_state_dict", fail)
    with pytest.raises(type(error)):
        busy(make_trainer).load(tmp_path / "checkpoint")


def test_a_finished_training_stays_finished_when_loaded(make_trainer: MakeTrainer, tmp_path: Path) -> None:
    trainer = busy(make_trainer)
    trainer.fit()
    trainer.save(tmp_path / "checkpoint")
    again = busy(make_trainer)
    again.load(tmp_path / "checkpoint")
    assert again.finished
    assert again.fit() == trainer.curve


@pytest.mark.parametrize(
    "other",
    [
        {"seed": 2},
        {"epochs": 5},
        {"method": TwoStages(first_epochs=1)},
        {"method": Method()},
        {"model": "mlp", "method": Method()},
    ],
    ids=str,
)
def test_a_checkpoint_of_another_training_is_refused(make_trainer: MakeTrainer, tmp_path: Path, other: dict[str, Any]) -> None:
    trainer = busy(make_trainer)
    trainer.fit()
    trainer.save(tmp_path / "checkpoint")
    wanted = {"model": BusyStudent, "policy": ("crop",), "epochs": 4, "views": 3, "seed": 1, "recipe": BUSY_RECIPE, **other}
    stranger = make_trainer(wanted.pop("method", TwoStages()), **wanted)
    with pytest.raises(Damaged, match=r"another training|does not fit"):
        stranger.load(tmp_path / "checkpoint")


@pytest.mark.parametrize("key", ["student", "helpers", "optimisers", "stage", "epoch", "curve", "students_made"])
def test_a_checkpoint_that_lacks_a_part_is_refused(make_trainer: MakeTrainer, tmp_path: Path, key: str) -> None:
    trainer = busy(make_trainer)
    trainer.run_epoch()
    trainer.save(tmp_path / "checkpoint")
    state = load_checkpoint(tmp_path / "checkpoint")
    del state[key]
    save_checkpoint(tmp_path / "checkpoint", state)
    with pytest.raises(Damaged, match=f"does not fit.*{key}"):
        busy(make_trainer).load(tmp_path / "checkpoint")


# Stages


def test_after_until_nothing_is_computed_and_nothing_is_trained(make_trainer: MakeTrainer) -> None:
    calls = []
    trainer = busy(make_trainer)
    trainer.student.get_submodule("head").register_forward_hook(lambda *_: calls.append(trainer.student.training))
    before = state_of(trainer)
    trainer.run_epoch()
    after = state_of(trainer)
    assert True not in calls, "the head was only run to evaluate"
    assert all(torch.equal(before[name], after[name]) for name in before if name.startswith("head"))
    assert not torch.equal(before["body.0.weight"], after["body.0.weight"])


def test_each_stage_has_a_schedule_and_an_optimiser_of_its_own(make_trainer: MakeTrainer) -> None:
    trainer = busy(make_trainer, recipe={"warmup_epochs": 0, "learning_rate": 0.2, "batch_size": 160})
    curve = trainer.fit()
    # Of two epochs with one step each, the cosine's rates are 1 and 1/2 of the peak.
    assert [entry["learning_rate"] for entry in curve] == pytest.approx([0.2, 0.1, 0.2, 0.1])
    assert [entry["stage"] for entry in curve] == ["lower", "lower", "whole", "whole"]


@pytest.mark.parametrize(
    ("epochs", "message"),
    [([2, 3], "must take 4 epochs in all, they take 5"), ([4, 0], "at least one epoch"), ([], "4 epochs")],
)
def test_stages_that_do_not_fill_the_training_are_refused(make_trainer: MakeTrainer, epochs: list[int], message: str) -> None:
    class Stages(Method):
        def stages(self, setup: Setup) -> Sequence[Stage]:
            return [Stage(epochs=count) for count in epochs]

    with pytest.raises(ValueError, match=message):
        make_trainer(Stages(), epochs=4)


def test_a_new_generation_starts_from_other_weights_and_the_same_ones_after_a_resume(
    make_trainer: MakeTrainer, tmp_path: Path
) -> None:
    class Generations(Method):
        def stages(self, setup: Setup) -> Sequence[Stage]:
            return [Stage(name=str(number), epochs=2) for number in range(3)]

        def begin_stage(self, start: StageStart) -> None:
            start.student.load_state_dict(start.new_student().state_dict())

    def make() -> Trainer:
        return busy(make_trainer, Generations(), epochs=6)

    straight = make()
    straight.fit()
    assert same(state_of(straight), state_of(resumed(make, tmp_path / "checkpoint", [1, 2, 3, 5])))


# Helpers


class Helped(Method):
    """One frozen helper and one peer."""

    def modules(self, setup: Setup) -> Mapping[str, Helper]:
        return {
            "frozen": Helper(module=setup.new_student(), trainable=False),
            "peer": Helper(module=setup.new_student(), evaluate=True),
        }

    def loss(self, step: Step) -> dict[str, Tensor]:
        assert not step.modules["frozen"].training
        assert step.modules["peer"].training
        peer = F.cross_entropy(step.modules["peer"](step.images), step.targets)
        taught = F.mse_loss(step.logits, step.modules["frozen"](step.images))
        return {"cross_entropy": F.cross_entropy(step.logits, step.targets), "peer": peer, "taught": taught}


def test_frozen_helpers_stay_and_peers_are_trained_and_evaluated(make_trainer: MakeTrainer, digits: ImageData) -> None:
    trainer = busy(make_trainer, Helped(), epochs=1)
    modules = trainer._modules
    before = {name: {key: value.clone() for key, value in module.state_dict().items()} for name, module in modules.items()}
    entry = trainer.run_epoch()
    assert same(before["frozen"], dict(modules["frozen"].state_dict()))
    assert not same(before["peer"], dict(modules["peer"].state_dict()))
    assert set(trainer.peers()) == {"peer"}
    assert entry["validation_accuracy_peer"] == trainer.evaluate(digits.validation, modules["peer"])


def test_students_made_for_helpers_differ_from_the_student(make_trainer: MakeTrainer) -> None:
    trainer = busy(make_trainer, Helped())
    states = [state_of(trainer), *(dict(module.state_dict()) for module in trainer._modules.values())]
    assert not same(states[0], states[1])
    assert not same(states[1], states[2])


# Trouble


def test_a_loss_that_is_not_finite_ends_the_trial_with_one_sentence(make_trainer: MakeTrainer) -> None:
    class Diverging(Method):
        def loss(self, step: Step) -> dict[str, Tensor]:
            return {**super().loss(step), "extra": torch.tensor(float("nan"))}

    with pytest.raises(
        TrialError, match=r"diverged in epoch 1 of 2 \(stage 'train'\): extra is nan; set training.gradient_clip, lower"
    ) as caught:
        make_trainer(Diverging()).fit()
    assert "\n" not in str(caught.value)


def test_a_rate_that_is_too_high_ends_the_trial_too(make_trainer: MakeTrainer) -> None:
    with pytest.raises(TrialError, match=r"diverged in epoch \d+ of 20 .*learning_rate"):
        make_trainer(epochs=20, recipe={"learning_rate": 1e18, "schedule": "constant"}).fit()


# Evaluation


def test_the_test_split_is_not_read_by_training(make_trainer: MakeTrainer, digits: ImageData) -> None:
    def forbidden() -> Any:
        raise AssertionError("the test split was read")

    arrays, facts = digits.to_arrays()
    held = {name: array for name, array in arrays.items() if not name.startswith("test")}
    make_trainer(data=ImageData.from_arrays(held, facts, read_test=forbidden)).fit()


def test_validation_is_on_the_images_as_they_are(make_trainer: MakeTrainer, digits: ImageData) -> None:
    trainer = make_trainer(policy=("crop", {"cutout": {"size": 3}}), epochs=1)
    entry = trainer.run_epoch()
    logits = trainer.student.eval()(digits.normalise(digits.validation.images))
    assert entry["validation_accuracy"] == float((logits.argmax(1) == digits.validation.labels).float().mean())


# Formats


def test_channels_last_trains_the_same_student_up_to_rounding(make_trainer: MakeTrainer) -> None:
    trainers = [make_trainer(model="lenet", epochs=1, recipe={"channels_last": flag}) for flag in (False, True)]
    for trainer in trainers:
        trainer.fit()
    assert trainers[0].curve[0]["train_loss"] == pytest.approx(trainers[1].curve[0]["train_loss"], rel=1e-3)
    weight = next(value for value in trainers[1].student.parameters() if value.ndim == 4 and value.shape[1] > 1)
    assert weight.is_contiguous(memory_format=torch.channels_last)


def test_bfloat16_trains_and_hands_float32_to_the_method(make_trainer: MakeTrainer) -> None:
    method = Watching()
    trainer = make_trainer(method, model="lenet", epochs=6, recipe={"mixed_precision": "bfloat16"})
    curve = trainer.fit()
    assert {step.logits.dtype for step in method.steps} == {torch.float32}
    assert all(parameter.dtype == torch.float32 for parameter in trainer.student.parameters())
    assert curve[-1]["train_loss"] < curve[0]["train_loss"]


@pytest.mark.slow
@pytest.mark.skipif(shutil.which("g++") is None, reason="torch.compile needs a C++ compiler")
def test_a_compiled_student_trains_and_resumes_as_any_other(make_trainer: MakeTrainer, tmp_path: Path) -> None:
    def make() -> Trainer:
        return make_trainer(epochs=2, options={"hidden": [16]}, recipe={"compile": True})

    straight = make()
    straight.fit()
    plain = make_trainer(epochs=2, options={"hidden": [16]})
    plain.fit()
    assert same(state_of(straight), state_of(resumed(make, tmp_path / "checkpoint", [1])))
    assert straight.student.state_dict().keys() == plain.student.state_dict().keys()
    assert straight.curve[-1]["train_loss"] == pytest.approx(plain.curve[-1]["train_loss"], rel=1e-3)


# Memory


@pytest.mark.parametrize("method", [Method(), TwoStages()], ids=["plain", "reads a layer"])
def test_a_trainer_that_is_dropped_is_freed_at_once_with_its_student(make_trainer: MakeTrainer, method: Method) -> None:
    """Without the garbage collector: a worker makes the next trainer on the same GPU."""
    gc.disable()
    try:
        trainer = busy(make_trainer, method)
        trainer.run_epoch()
        watched = weakref.ref(trainer), weakref.ref(trainer.student)
        del trainer
        assert [each() for each in watched] == [None, None]
    finally:
        gc.enable()


# In a notebook


def test_training_needs_no_ray_and_no_sweep() -> None:
    program = """
import sys
from stillhouse.data.datasets import load_dataset
from stillhouse.data.views import Views
from stillhouse.distill.method import Method
from stillhouse.distill.trainer import Trainer
from stillhouse.models.registry import build_model
from stillhouse.spec.training import Training

data = load_dataset("digits", options={"limit": 120})
trainer = Trainer(
    new_student=lambda: build_model("mlp", num_classes=data.num_classes, input_shape=data.input_shape),
    method=Method(),
    data=data,
    views=Views((), 1, data.input_shape, len(data.train)),
    training=Training(),
    epochs=1,
)
trainer.fit()
assert trainer.evaluate(data.test) >= 0
print(sorted({"ray", "mlflow", "stillhouse.sweep", "stillhouse.teachers"} & set(sys.modules)))
"""
    answer = subprocess.run(
        [sys.executable, "-c", program], capture_output=True, text=True, timeout=120, check=True, env={"PYTHONPATH": "platform"}
    )
    assert answer.stdout.strip() == "[]"
