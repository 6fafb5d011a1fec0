from collections.abc import Callable

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from stillhouse.distill.method import MethodError, Setup
from stillhouse.methods.mutual_learning import MutualLearning, mimicry_loss, predict
from stillhouse.models.architecture import Architecture
from stillhouse.testing import MethodTrial, ReferenceCase, make_step

Open = Callable[[str], ReferenceCase]


class Descent:
    """Gradient descent on the named groups instead of the optimisers."""

    def __init__(self, networks: dict[str, nn.Module], rate: float) -> None:
        self.networks, self.rate = networks, rate
        self.updated: list[str] = []

    def minimise(self, loss: Tensor, *groups: str) -> None:
        (name,) = groups
        self.updated.append(name)
        parameters = list(self.networks[name].parameters())
        for parameter, gradient in zip(parameters, torch.autograd.grad(loss, parameters), strict=True):
            parameter.data -= self.rate * gradient


def test_two_peers_equal_a_published_implementation(open_case: Open) -> None:
    case = open_case("dml-kdzoo")
    loss = mimicry_loss(case["in.s_logits"], [case["in.t_logits"]])
    case.check(loss)
    case.check_gradients(loss, "s_logits")


@pytest.mark.parametrize("peer", [0, 1, 2])
def test_three_peers_equal_the_papers_form(open_case: Open, peer: int) -> None:
    case = open_case("dml-cohort3-formula")
    logits = [case[f"in.logits{number}"] for number in case.numbers("in.logits")]
    loss = F.cross_entropy(logits[peer], case["in.labels"]) + mimicry_loss(logits[peer], logits[:peer] + logits[peer + 1 :])
    case.check(loss, f"out.loss{peer}_paper")


def test_equal_predictions_have_no_mimicry_loss() -> None:
    logits = torch.randn(4, 10, dtype=torch.float64)
    assert float(mimicry_loss(logits, [logits, logits])) == pytest.approx(0.0, abs=1e-12)


def test_no_gradient_flows_into_the_other_peer() -> None:
    own, other = torch.randn(4, 10, requires_grad=True), torch.randn(4, 10, requires_grad=True)
    mimicry_loss(own, [other]).backward()
    assert own.grad is not None
    assert other.grad is None


def test_one_step_equals_algorithm_1_by_hand() -> None:
    torch.manual_seed(0)
    weights = [torch.randn(3, 4, dtype=torch.float64) for _ in range(2)]
    images, labels = torch.randn(5, 4, dtype=torch.float64), torch.tensor([0, 1, 2, 0, 1])

    def linear(weight: Tensor) -> nn.Linear:
        layer = nn.Linear(4, 3, bias=False, dtype=torch.float64)
        layer.weight.data = weight.clone()
        return layer

    student, peer = linear(weights[0]), linear(weights[1])
    update = Descent({"student": student, "peer_2": peer}, rate=0.5)
    step = make_step(student_logits=student(images), labels=labels, images=images, student=student, modules={"peer_2": peer})
    MutualLearning().step(step, update)

    # d/dlogits of CE(y, p) + KL(q || p) is (p - y) + (p - q), its mean over the batch
    def updated(weight: Tensor, q: Tensor) -> Tensor:
        p = (images @ weight.T).softmax(1)
        return weight - 0.5 * (2 * p - F.one_hot(labels, 3) - q).T @ images / 5

    first = updated(weights[0], (images @ weights[1].T).softmax(1))
    second = updated(weights[1], (images @ first.T).softmax(1))
    assert update.updated == ["student", "peer_2"]
    torch.testing.assert_close(student.weight.data, first)
    torch.testing.assert_close(peer.weight.data, second)


def test_predicting_again_does_not_change_batchnorm_statistics() -> None:
    network = nn.Sequential(nn.Linear(4, 3), nn.BatchNorm1d(3))
    before = {name: buffer.clone() for name, buffer in network.named_buffers()}
    images = torch.randn(8, 4)
    logits = predict(network, images)
    assert not logits.requires_grad
    for name, buffer in network.named_buffers():
        assert torch.equal(buffer, before[name])
    torch.testing.assert_close(logits, network(images))


def test_peers_start_from_different_weights_and_are_evaluated() -> None:
    architecture = Architecture(name="net", num_classes=3, input_shape=(1, 2, 2), shapes={})
    setup = Setup(teacher=None, student=architecture, new_student=lambda: nn.Linear(4, 3), num_samples=10, epochs=1)
    helpers = MutualLearning(num_peers=3).modules(setup)
    assert list(helpers) == ["peer_2", "peer_3"]
    assert all(helper.evaluate and helper.trainable for helper in helpers.values())
    first, second = (helper.module.get_parameter("weight") for helper in helpers.values())
    assert not torch.equal(first, second)


def test_peers_may_be_of_other_architectures() -> None:
    architecture = Architecture(name="net", num_classes=3, input_shape=(1, 8, 8), shapes={})
    setup = Setup(teacher=None, student=architecture, new_student=lambda: nn.Linear(4, 3), num_samples=10, epochs=1)
    helpers = MutualLearning(num_peers=4, peer_models=("mlp", "lenet"), peer_width=0.5).modules(setup)
    assert list(helpers) == ["peer_2", "peer_3", "peer_4"]
    mlp, lenet, like_student = (helper.module for helper in helpers.values())
    assert mlp.get_parameter("classifier.weight").shape == (3, 64)
    assert lenet.get_parameter("conv1.weight").shape[0] == 3
    assert like_student.get_parameter("weight").shape == (3, 4)


def test_peers_of_different_architectures_all_learn() -> None:
    trainer = MethodTrial(MutualLearning(num_peers=3, peer_models=("mlp", "resnet8")), epochs=1).trainer()
    before = {name: nn.utils.parameters_to_vector(peer.parameters()).detach() for name, peer in trainer.peers().items()}
    (entry,) = trainer.fit()
    assert {"validation_accuracy_peer_2", "validation_accuracy_peer_3"} <= entry.keys()
    for name, peer in trainer.peers().items():
        assert not torch.equal(nn.utils.parameters_to_vector(peer.parameters()).detach(), before[name])


def test_a_peer_that_cannot_be_built_is_named() -> None:
    with pytest.raises(MethodError, match="model 'resnet9' cannot be used"):
        MethodTrial(MutualLearning(peer_models=("resnet9",))).trainer()


def test_too_many_peer_models_and_a_width_without_models_are_rejected() -> None:
    with pytest.raises(ValueError, match="at most num_peers - 1 = 1, got 2"):
        MutualLearning(peer_models=("mlp", "lenet"))
    with pytest.warns(UserWarning, match="peer_width has no effect without peer_models"):
        MutualLearning(peer_width=2.0)


def test_it_needs_no_teacher() -> None:
    architecture = Architecture(name="net", num_classes=3, input_shape=(1, 2, 2), shapes={})
    assert MutualLearning().knowledge(architecture, architecture) == {}


def test_a_single_network_is_rejected() -> None:
    with pytest.raises(ValueError, match="num_peers must be >= 2, got 1"):
        MutualLearning(num_peers=1)


def test_every_peer_is_reported() -> None:
    (entry,) = MethodTrial(MutualLearning(num_peers=3), epochs=1).trainer().fit()
    assert {"validation_accuracy", "validation_accuracy_peer_2", "validation_accuracy_peer_3"} <= entry.keys()
