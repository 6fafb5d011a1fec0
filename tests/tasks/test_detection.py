import dataclasses

import pytest
import torch

from stillhouse import tasks
from stillhouse.data.images import ImageData, Split
from stillhouse.data.views import Views
from stillhouse.distill.evaluation import evaluate, split_outputs
from stillhouse.distill.method import Method
from stillhouse.distill.trainer import Trainer
from stillhouse.models.blueprint import blueprint
from stillhouse.models.registry import build_model
from stillhouse.spec.training import Training
from stillhouse.tasks.detection import VISIBLE_SHARE, Detection
from stillhouse.testing.grounds.detection import GROUND, data


def test_data_sets_of_boxes_declare_it() -> None:
    assert tasks.of(data()).name == "detection"


def test_boxes_of_a_view_are_those_that_are_still_visible() -> None:
    split = data()
    views = Views(({"crop": {"padding": 12}},), 4, split.input_shape, len(split.train))
    places = torch.arange(len(split.train))
    for view in range(4):
        targets = Detection().training_targets(split, views, split.train.images, places, view, split.train.labels)
        _, share = views.move_boxes(split.train.labels[..., :4], places, view)
        real = split.train.labels[..., 4] >= 0
        assert torch.equal(targets[..., 4] >= 0, real & (share >= VISIBLE_SHARE))
        assert bool((targets[targets[..., 4] < 0][:, :4] == 0).all())


def test_the_sum_of_the_loss_is_the_mean_times_the_batch() -> None:
    student = GROUND.build("fasterrcnn").train()
    images = torch.randn(4, 3, 32, 48, generator=torch.Generator().manual_seed(0))
    outputs, targets = student(images), data().train.labels[:4]
    task = Detection()
    mean, total = (task.supervised_terms(student, outputs, targets, each) for each in ("mean", "sum"))
    for name, term in mean.items():
        torch.testing.assert_close(4 * term, total[name])


@pytest.mark.slow
def test_a_detector_learns_eight_images_by_heart() -> None:
    split = data()
    eight = dataclasses.replace(split, train=_first(split), validation=_first(split))
    torch.manual_seed(0)
    trainer = Trainer(
        new_student=lambda: build_model(
            "fasterrcnn",
            num_classes=2,
            input_shape=split.input_shape,
            width=0.5,
            neck_channels=16,
            hidden_units=64,
            proposals=12,
            stride=2,
        ),
        method=Method(),
        data=eight,
        views=Views((), 1, split.input_shape, 8),
        training=Training(
            batch_size=8, optimizer="adamw", learning_rate=0.005, batchnorm_statistics="recomputed", gradient_clip=5.0
        ),
        epochs=180,
    )
    for _ in range(180):
        trainer.run_epoch()
    assert trainer.curve[-1]["validation_map"] > 0.95
    evidence = Detection().evidence(
        split_outputs(trainer.student, eight, eight.validation, "cpu"),
        split_outputs(trainer.student, eight, eight.train, "cpu"),
        None,
    )
    assert evidence.numbers["map_50"] > 0.95
    assert evidence.numbers["map_low"] <= evidence.numbers["map_high"] <= 1
    boxes = split.train.labels[:8, :, 4].flatten()
    assert evidence.details["class_boxes"] == [int((boxes == place).sum()) for place in range(2)]
    assert min(evidence.details["class_precision"]) == pytest.approx(evidence.numbers["worst_class_ap"])
    # What only training is for does not reach the evaluation.
    assert evaluate(trainer.student, eight, eight.train, "cpu") == pytest.approx(trainer.curve[-1]["validation_map"])


def _first(split: ImageData) -> Split:
    return dataclasses.replace(split.train, images=split.train.images[:8], labels=split.train.labels[:8])


def test_a_classifier_cannot_be_trained_for_it_nor_a_detector_for_classification() -> None:
    shape = (3, 32, 48)
    classifier, detector = (blueprint(name, {}, 2, shape).architecture for name in ("resnet8", "fasterrcnn"))
    problem = Detection().model_problem(classifier)
    assert problem == "detects nothing; use fasterrcnn with backbone: resnet8"
    assert Detection().model_problem(detector) is None
    assert tasks.find("classification").model_problem(detector) == (
        "returns more than one tensor, task classification reads one"
    )


def test_a_model_without_boxes_is_no_better_than_a_trivial_one() -> None:
    assert Detection().trivial_value(data().train.labels) == 0
