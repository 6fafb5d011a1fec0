"""DAFL: Data-Free Learning of Student Networks (Chen, Wang, Xu, Yang, Liu, Shi, Xu, Xu, Tian 2019, arXiv 1904.01186).

For images x = G(z) of a generator, z ~ N(0, 1), the teacher's logits t and its embedding f:

    generator: min  h CE(argmax t, t) + i sum_c p_c log10 p_c - a mean |f|,   p = the batch's mean of softmax(t)
    student:   min  T^2 KL(softmax(t / T) || softmax(s / T)) on the same images, with T = 1

The generator makes images of which the teacher is sure (one-hot), which excite its embedding (activation), and of all classes
alike (information entropy). The student learns the teacher's outputs on them; no image and no label of the data set is used.
The generator is that of `stillhouse.distill.generators`, shared with `data_free_adversarial`.

Deviations: any image size; a generator of 16 channels, batches of 256 and 2000 generator steps by default (64, 512 and 24000 in
the authors' code for MNIST); the student's optimiser is the trial's (the authors' code: Adam with 0.002 on MNIST, SGD with 0.1
on CIFAR); learning rates follow the trial's schedule. As in the authors' code, the entropy has the logarithm to base 10, and
the activation is a mean over elements.

Known from reports on the authors' code: the paper's accuracies on CIFAR are hard to reproduce, and small batches fail, since
the entropy of classes is that of one batch.

After 376 generator steps with batches of 128, a ResNet-8 of width 0.25 has 62.3 % validation accuracy (digits, taught by a
ResNet-14 of 98.3 %, a rate of 0.05, one seed).

A generator step costs 1.9 times a step of `kd` at batches of equal size (resnet8 taught by resnet20, digits, one thread).

Verified against the numbers of the authors' code (reference cases dafl-generator, kd-dafl), and against finite differences
through the teacher.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor

from stillhouse.distill.generators import GENERATOR, DataFreeMethod, Generator
from stillhouse.distill.method import Card, Helper, MethodError, Setup, Step, Update, hyperparameter
from stillhouse.knowledge.kinds import Knowledge
from stillhouse.methods.kd import kd_loss
from stillhouse.models.architecture import Architecture, UnknownLayer
from stillhouse.spec.priors import LogUniform


def one_hot_loss(teacher_logits: Tensor) -> Tensor:
    """CE(argmax t, t): the mean over the batch of logits [B, C]; 0 for a teacher that is sure."""
    return F.cross_entropy(teacher_logits, teacher_logits.argmax(dim=1))


def activation_loss(features: Tensor) -> Tensor:
    """-mean |f| over all elements of [B, ...]."""
    return -features.abs().mean()


def class_entropy_loss(teacher_logits: Tensor) -> Tensor:
    """sum_c p_c log10 p_c of the batch's mean probabilities, from logits [B, C]: between -log10 C, all classes alike, and 0."""
    shares = F.softmax(teacher_logits, dim=1).mean(dim=0)
    return (shares * shares.clamp_min(torch.finfo(shares.dtype).tiny).log10()).sum()


class LayerGenerator(Generator):
    """A generator that knows which layer of the teacher its images should excite."""

    def __init__(self, noise_size: int, num_channels: int, image_shape: tuple[int, ...], teacher_layer: str) -> None:
        super().__init__(noise_size, num_channels, image_shape)
        self.teacher_layer = teacher_layer


@dataclass(frozen=True, kw_only=True)
class DataFreeLearning(DataFreeMethod):
    """The student learns the teacher's outputs on images that a generator makes to be classified with confidence."""

    card: ClassVar[Card] = Card(
        title="DAFL: Data-Free Learning of Student Networks",
        arxiv="1904.01186",
        family="A",
        equations="the one-hot, activation and information-entropy losses; distillation on the generated images",
        deviations="any image size; a smaller generator, smaller batches and 2000 generator steps by default (64 channels, 512 "
        "images and 24000 steps in the paper on MNIST); the trial's optimiser",
        suggested="weights 1, 5 and 0.1 on MNIST; 0.05, 5 and 0.01 with 1024 images per step on CIFAR-10 (authors' code)",
        interactions="generated_batch must be several times the number of classes, since the entropy of classes is that of a "
        "batch; a generator step costs 1.9 times a step of kd at batches of equal size; views and labels have no effect; "
        "BatchNorm statistics of the student come from generated images",
    )

    generated_batch: int = hyperparameter(256, minimum=2, help="generated images per update; 512 to 1024 in the paper")
    generator_learning_rate: float = hyperparameter(
        0.2, above=0, prior=LogUniform(1e-3, 0.5), help="learning rate of the generator's optimiser, Adam"
    )
    one_hot_weight: float = hyperparameter(
        1.0, minimum=0, prior=LogUniform(0.03, 3), help="h, weight of the teacher's confidence"
    )
    entropy_weight: float = hyperparameter(
        5.0, minimum=0, prior=LogUniform(1, 20), help="i, weight of the entropy of classes in a batch"
    )
    activation_weight: float = hyperparameter(
        0.1, minimum=0, prior=LogUniform(0.003, 0.3), help="a, weight of the size of the teacher's embedding"
    )
    temperature: float = hyperparameter(1.0, above=0, help="T, softens both outputs in the student's loss")
    teacher_layer: str | None = hyperparameter(None, help="the teacher's layer that is excited; by default its embedding")

    def knowledge(self, teacher: Architecture, student: Architecture) -> dict[str, Knowledge]:
        self._layer(teacher)
        return {}

    def modules(self, setup: Setup) -> Mapping[str, Helper]:
        (helper,) = super().modules(setup).values()
        assert setup.teacher is not None, "a method that calls its teacher has one"
        shape = setup.student.input_shape
        generator = LayerGenerator(self.noise_size, self.generator_channels, shape, self._layer(setup.teacher))
        return {GENERATOR: Helper(module=generator, training=helper.training)}

    def step(self, step: Step, update: Update) -> dict[str, Tensor]:
        generator = step.modules[GENERATOR]
        images = self.generate(step)
        assert isinstance(generator, LayerGenerator)
        teacher_logits, features = step.call_teacher_for(images, generator.teacher_layer)
        terms = {
            "one_hot": self.one_hot_weight * one_hot_loss(teacher_logits),
            "class_entropy": self.entropy_weight * class_entropy_loss(teacher_logits),
            "activation": self.activation_weight * activation_loss(features),
        }
        update.minimise(torch.stack(list(terms.values())).sum(), GENERATOR)
        taught = kd_loss(step.run_network(step.student, images.detach()), teacher_logits.detach(), self.temperature)
        update.minimise(taught, "student")
        return {"kd": taught} | terms

    def _layer(self, teacher: Architecture) -> str:
        """The teacher's layer that is excited.

        Raises:
            MethodError: it does not exist, or the teacher has no embedding.
        """
        if self.teacher_layer is not None:
            try:
                teacher.shape(self.teacher_layer)
            except UnknownLayer as error:
                raise MethodError(f"teacher_layer: {error}", names=error.names) from error
            return self.teacher_layer
        if teacher.pooled is None or teacher.pooled not in teacher.shapes:
            raise MethodError(f"needs a layer before the classifier, teacher {teacher.name} has none; set teacher_layer")
        return teacher.pooled
