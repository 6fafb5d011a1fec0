"""The steps of one stage: how far a step is, which networks are in training mode, and what ends with the stage."""

from collections.abc import Callable, Sequence

import torch
from torch import Tensor, nn

from stillhouse.distill.method import Helper, Method, Setup, Stage, Step
from stillhouse.distill.stage_training import EpochPlace
from stillhouse.distill.trainer import Trainer

MakeTrainer = Callable[..., Trainer]


class TwoStages(Method):
    """One epoch of the first stage, then the second; reads a layer of the student, and has a trained and a frozen helper."""

    def stages(self, setup: Setup) -> Sequence[Stage]:
        return [Stage(name="first", epochs=1), Stage(name="second", epochs=setup.epochs - 1)]

    def modules(self, setup: Setup) -> dict[str, Helper]:
        return {"trained": Helper(module=nn.BatchNorm1d(10)), "frozen": Helper(module=nn.BatchNorm1d(10), trainable=False)}

    def loss(self, step: Step) -> dict[str, Tensor]:
        return {"cross_entropy": step.supervised()}


def test_a_step_knows_how_far_the_training_and_its_stage_are(make_trainer: MakeTrainer) -> None:
    trainer = make_trainer(TwoStages(), epochs=4, recipe={"batch_size": 40})
    trainer._enter_stage(0)
    current = trainer._enter_stage(1)
    batch = next(trainer.split.batches(2))
    step = current.make_step(batch, EpochPlace(epoch=2, stage_epoch=1, view=0), 2)
    # 160 images are 4 steps an epoch: step 10 of 16, and step 6 of the stage's 12.
    assert (step.epoch, step.progress, step.stage_progress) == (2, 10 / 16, 6 / 12)
    assert step.stage.name == "second"
    assert torch.equal(step.indices, torch.from_numpy(batch))


def test_only_networks_that_are_trained_are_in_training_mode(make_trainer: MakeTrainer) -> None:
    trainer = make_trainer(TwoStages())
    current = trainer._enter_stage(0)
    networks = [trainer.student, trainer._modules["trained"], trainer._modules["frozen"]]
    current.set_mode(training=True)
    assert [network.training for network in networks] == [True, True, False]
    current.set_mode(training=False)
    assert [network.training for network in networks] == [False, False, False]


def test_a_frozen_helper_has_no_optimiser_and_the_next_stage_begins_with_fresh_ones(make_trainer: MakeTrainer) -> None:
    trainer = make_trainer(TwoStages(), epochs=2, recipe={"optimizer": "adam"})
    trainer.run_epoch()
    assert trainer._current is not None
    after = trainer._current.optimisers.state_dict()["groups"]
    assert set(after) == {"student", "trained"}
    assert after["student"]["state"]
    assert not trainer._enter_stage(1).optimisers.state_dict()["groups"]["student"]["state"]


def test_a_stage_that_ended_leaves_no_hooks_on_the_student(make_trainer: MakeTrainer) -> None:
    class Reading(TwoStages):
        def student_layers(self, teacher: object, student: object) -> Sequence[str]:
            return ["hidden.relu1"]

    def num_hooks() -> int:
        return sum(len(module._forward_hooks) for module in trainer.student.modules())

    trainer = make_trainer(Reading(), epochs=2)
    counts = [num_hooks()]
    for index in (0, 1):
        trainer._enter_stage(index)
        counts.append(num_hooks())
    assert counts[0] < counts[1] == counts[2]
