from collections.abc import Callable
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from stillhouse.distill.checkpoint import load_checkpoint
from stillhouse.distill.method import MethodError, Setup, Stage, StageStart
from stillhouse.methods.born_again import (
    BornAgain,
    Ensemble,
    Generations,
    confidence_weighted_loss,
    permute_non_argmax,
    soft_cross_entropy,
)
from stillhouse.models.architecture import Architecture
from stillhouse.testing import MethodTrial, ReferenceCase, make_step

Open = Callable[[str], ReferenceCase]
NET = Architecture(name="net", num_classes=3, input_shape=(1, 2, 2), shapes={})


def setup(epochs: int) -> Setup:
    return Setup(teacher=NET, student=NET, new_student=lambda: nn.Linear(4, 3), num_samples=10, epochs=epochs)


def test_the_confidence_weighted_loss_equals_the_papers_formula(open_case: Open) -> None:
    case = open_case("ban-CWTM-formula")
    loss = confidence_weighted_loss(case["in.s_logits"], case["in.t_logits"], case["in.labels"])
    case.check(loss)
    case.check_gradients(loss, "s_logits")


def test_the_loss_on_permuted_predictions_equals_the_papers_formula(open_case: Open) -> None:
    case = open_case("ban-DKPP-formula")
    permutations = torch.stack([case[f"rnd.perm{number}"] for number in case.numbers("rnd.perm")])
    case.check(permute_non_argmax(case["in.t_logits"].softmax(1), permutations), "aux.q")
    loss = soft_cross_entropy(case["in.s_logits"], case["in.t_logits"], permutations)
    case.check(loss)
    case.check_gradients(loss, "s_logits")


def test_the_soft_cross_entropy_of_equal_outputs_is_their_entropy() -> None:
    logits = torch.randn(4, 10, dtype=torch.float64)
    probabilities = logits.softmax(1)
    entropy = -(probabilities * probabilities.log()).sum(1).mean()
    torch.testing.assert_close(soft_cross_entropy(logits, logits), entropy)


def test_equal_confidence_gives_the_plain_cross_entropy() -> None:
    student, labels = torch.randn(4, 10), torch.tensor([1, 2, 3, 4])
    teacher = torch.zeros(4, 10).index_fill(1, torch.tensor([5]), 3.0)
    torch.testing.assert_close(confidence_weighted_loss(student, teacher, labels), F.cross_entropy(student, labels))


def test_a_sample_with_a_confident_teacher_has_more_weight() -> None:
    # confidences 1 and 1/2 up to rounding, so weights 2/3 and 1/3
    student, labels = torch.tensor([[1.0, 0.0], [0.0, 3.0]]), torch.tensor([0, 0])
    teacher = torch.tensor([[99.0, 0.0], [0.0, 0.0]])
    losses = F.cross_entropy(student, labels, reduction="none")
    expected = 2 / 3 * losses[0] + 1 / 3 * losses[1]
    torch.testing.assert_close(confidence_weighted_loss(student, teacher, labels), expected)


def test_a_permutation_keeps_the_maximum_in_place_and_the_set_of_values() -> None:
    probabilities = torch.rand(50, 10).softmax(1)
    permutations = torch.rand(50, 9).argsort(1)
    permuted = permute_non_argmax(probabilities, permutations)
    assert torch.equal(permuted.argmax(1), probabilities.argmax(1))
    assert torch.equal(permuted.sort(1).values, probabilities.sort(1).values)
    assert not torch.equal(permuted, probabilities)


def test_the_identity_permutation_changes_nothing() -> None:
    probabilities = torch.rand(4, 10).softmax(1)
    assert torch.equal(permute_non_argmax(probabilities, torch.arange(9).repeat(4, 1)), probabilities)


def test_permutations_come_from_the_steps_seed() -> None:
    student, teacher = torch.randn(8, 10), torch.randn(8, 10)
    method = BornAgain(variant="dkpp", generations=1)
    losses = [
        float(
            method.loss(
                make_step(
                    student_logits=student, teacher={"logits": teacher}, seed=seed, stage=Stage(name="generation_1", epochs=1)
                )
            )["soft_cross_entropy"]
        )
        for seed in (1, 1, 2)
    ]
    assert losses[0] == losses[1] != losses[2]


def test_the_first_generation_learns_from_the_teacher_and_the_second_from_the_first() -> None:
    previous = nn.Linear(4, 3)
    generations = Generations([nn.Linear(4, 3)])
    generations.add(previous)
    images, teacher, student = torch.randn(5, 4), torch.randn(5, 3), torch.randn(5, 3)
    for number, taught_by in ((1, teacher), (2, previous(images).detach())):
        step = make_step(
            student_logits=student,
            images=images,
            teacher={"logits": teacher},
            modules={"generations": generations},
            stage=Stage(name=f"generation_{number}", epochs=1),
        )
        terms = BornAgain().loss(step)
        torch.testing.assert_close(terms["soft_cross_entropy"], soft_cross_entropy(student, taught_by))
        torch.testing.assert_close(terms["cross_entropy"], F.cross_entropy(student, step.labels))


def test_generations_share_the_epochs_and_the_last_one_has_the_remainder() -> None:
    stages = BornAgain(generations=3).stages(setup(11))
    assert [(stage.name, stage.epochs, stage.comparable) for stage in stages] == [
        ("generation_1", 3, False),
        ("generation_2", 3, False),
        ("generation_3", 5, True),
    ]


def test_fewer_epochs_than_generations_are_too_few() -> None:
    with pytest.raises(MethodError, match="each of its 3 generations, has 2"):
        BornAgain(generations=3).stages(setup(2))


def test_a_new_generation_has_new_weights_and_the_old_one_is_stored() -> None:
    method = BornAgain()
    student, helper = nn.Linear(4, 3), method.modules(setup(2))["generations"]
    assert not helper.trainable
    taught = student.weight.detach().clone()
    fresh = nn.Linear(4, 3)
    for index, stage in enumerate(method.stages(setup(2))):
        method.begin_stage(
            StageStart(
                stage=stage, index=index, student=student, modules={"generations": helper.module}, new_student=lambda: fresh
            )
        )
        if index == 0:
            assert torch.equal(student.weight, taught)
    assert torch.equal(helper.module.get_parameter("members.0.weight"), taught)
    assert torch.equal(student.weight, fresh.weight)


def test_one_generation_stores_no_copy() -> None:
    assert BornAgain(generations=1).modules(setup(2)) == {}


def test_the_second_generation_learns_from_the_final_weights_of_the_first(tmp_path: Path) -> None:
    trainer = MethodTrial(BornAgain(), epochs=4).trainer()
    trainer.run_epoch()
    trainer.run_epoch()
    taught = {name: tensor.clone() for name, tensor in trainer.student.state_dict().items()}
    trainer.fit()
    trainer.save(tmp_path / "checkpoint")
    kept = load_checkpoint(tmp_path / "checkpoint")["helpers"]["generations"]
    assert kept.keys() == {f"members.0.{name}" for name in taught} | {"num_complete"}
    assert all(torch.equal(kept[f"members.0.{name}"], tensor) for name, tensor in taught.items())


def test_the_ensemble_averages_the_probabilities_of_the_complete_generations() -> None:
    networks = [nn.Linear(4, 3, dtype=torch.float64) for _ in range(3)]
    generations = Generations([nn.Linear(4, 3, dtype=torch.float64) for _ in range(2)])
    images = torch.randn(5, 4, dtype=torch.float64)
    ensemble = Ensemble(networks[2], generations)
    torch.testing.assert_close(ensemble(images), networks[2](images).log_softmax(1))
    generations.add(networks[0])
    generations.add(networks[1])
    expected = sum(network(images).softmax(1) for network in networks) / 3
    torch.testing.assert_close(ensemble(images).exp(), expected)
    torch.testing.assert_close(generations(images), networks[1](images))


def test_the_ensemble_is_reported_and_does_not_change_the_student() -> None:
    trainer = MethodTrial(BornAgain(generations=3), epochs=3).trainer()
    curve = trainer.fit()
    assert curve[0]["validation_accuracy_ensemble"] == curve[0]["validation_accuracy"]
    assert list(trainer.peers()) == ["ensemble"]
    assert all(weight.requires_grad for weight in trainer.student.parameters())
    assert not any(weight.requires_grad for weight in trainer._modules["generations"].parameters())


def test_one_generation_has_no_ensemble() -> None:
    (entry,) = MethodTrial(BornAgain(generations=1), epochs=1).trainer().fit()
    assert "validation_accuracy_ensemble" not in entry
