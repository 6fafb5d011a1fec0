"""Generation: images from noise, judged by the Frechet distance of a classifier's features from those of real images.

    critic:    min  E_x softplus(-D(x)) + E_z softplus(D(G(z)))
    generator: min  E_z softplus(-D(G(z)))                                  (Goodfellow et al., arXiv 1406.2661, section 3)

A sample is an index: its input is noise z(view, index), normal and independent of all others (`_noise`), the same for teacher
and students. A view has as many samples as the training split. The images of the data set serve the critic, which is trained
beside the generator, and the metric. Validation and test inputs are the noise of two reserved views, as many samples as these
splits have, the same for all generators.

The metric is the classifier FID: of a LeNet that the sweep trains on the data set's own classes (`_judging`), between as many
generated images as the split has samples and the real images of the training split. Values of two data sets, or of two
numbers of samples, do not compare; values of published work with Inception features are others.
"""

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any, ClassVar, Final

import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor, nn

from stillhouse.data.images import ImageData, Images, Split
from stillhouse.data.targets import CLASS_LABELS, TargetRule
from stillhouse.data.views import Views
from stillhouse.models.architecture import Architecture
from stillhouse.models.gan import NOISE, critic
from stillhouse.models.layers import Shape
from stillhouse.spec.measure import Measure
from stillhouse.spec.metric import Metric
from stillhouse.spec.training import Training
from stillhouse.tasks import _judging as judging
from stillhouse.tasks._frechet import FrechetDistance, inception_score, sharpness
from stillhouse.tasks._noise import Source, drawn_classes, normal_noise
from stillhouse.tasks._pictures import as_pixels, strip
from stillhouse.tasks.task import (
    Evaluator,
    Evidence,
    Judge,
    Reduction,
    SplitOutputs,
    SupervisedStep,
    Task,
)

IMAGE: Final = "image"
CRITIC: Final = "critic"

_KEPT = 64
"""Generated images of a split that are kept, for the page and for the comparison with the teacher."""
_SHOWN = 12

_JUDGE_TRAINING = Training(batch_size=64, optimizer="adam", learning_rate=1e-3, weight_decay=0.0)
_JUDGE_SAMPLES, _JUDGE_EPOCHS = 160_000, 30
"""How many samples the judge's training reads, rounded up to whole epochs, and the most epochs; three epochs of MNIST."""

MEASURES = (
    Measure(
        name="inception_score",
        label="Inception score by the classifier",
        direction="max",
        digits=3,
        description="exp of the mean KL divergence of the classifier's probabilities from their mean, over the test noise",
    ),
    Measure(
        name="sharpness",
        label="Variance of the Laplacian",
        digits=0,
        description="mean over the test noise of the variance of each image's Laplacian, with pixels from 0 to 255",
    ),
    Measure(
        name="teacher_mse",
        label="Squared difference from the teacher's images",
        direction="min",
        digits=4,
        of_teacher=True,
        description=f"mean squared difference from the teacher's images of the same noise, in [-1, 1], over {_KEPT} samples",
    ),
)


def critic_loss(real: Tensor, made: Tensor) -> Tensor:
    """The critic's loss from its numbers for real and generated images, [B] each: 2 log 2 where all are 0."""
    return F.softplus(-real).mean() + F.softplus(made).mean()


class Generation(Task):
    """Images [B, channels, H, W] in [-1, 1] from noise [B, 100]; targets of a training step are real images in [-1, 1].

    Attributes:
        conditional: whether a class is drawn for each sample and follows the noise, one number for each class.
        noise: how many numbers of noise a sample has.
        critic_width: of the critic of every student, so that students of all widths have equal opponents. 0.25 are 16 maps in
            its first layer; a critic of width 1 takes nine times as long, and most of the training's time is the critic's.
    """

    metric: ClassVar[Metric] = Metric(name="fid", direction="min", label="classifier FID")
    targets: ClassVar[TargetRule] = CLASS_LABELS
    output: ClassVar[str] = IMAGE
    input_name: ClassVar[str] = "noise"
    draws: ClassVar[bool] = True
    separable: ClassVar[bool] = False
    measures: ClassVar[tuple[Measure, ...]] = MEASURES
    conditional: ClassVar[bool] = False
    noise: ClassVar[int] = NOISE
    critic_width: ClassVar[float] = 0.25

    def sample_shape(self, num_outputs: int, input_shape: Shape) -> Shape:
        return (self.noise + (num_outputs if self.conditional else 0),)

    def output_shapes(self, num_outputs: int, input_shape: Shape) -> dict[str, tuple[int, ...]]:
        return {IMAGE: input_shape}

    def model_problem(self, model: Architecture) -> str | None:
        """A generator reads the task's noise and returns images of the data set's shape."""
        if model.reads == model.input_shape and len(model.returns) == 1:
            return "reads images, and a generator makes them from noise; name a generator, such as dcgan"
        if (problem := super().model_problem(model)) is not None:
            return f"{problem}; set conditional to {str(self.conditional).lower()} if it has that option"
        if model.returns != model.input_shape:
            made, wanted = ("x".join(map(str, shape)) for shape in (model.returns, model.input_shape))
            return f"makes images of {made}, those of the data set are {wanted}; correct what it returns"
        return None

    def inputs(self, data: ImageData, views: Views, images: Images, indices: Tensor, view: int) -> Tensor:
        return self._drawn(("view", views.seed, view), data, indices).to(images.device)

    def evaluation_inputs(self, data: ImageData, images: Tensor, indices: Tensor) -> Tensor:
        return self._drawn(("split", "train"), data, indices)

    def split_inputs(self, data: ImageData, split: Split, images: Tensor, indices: Tensor) -> Tensor:
        return self._drawn(("split", split.name), data, indices)

    def training_targets(
        self, data: ImageData, views: Views, images: Images, indices: Tensor, view: int, labels: Tensor
    ) -> Tensor:
        """The real images of the batch, augmented by the view, in [-1, 1]: what the critic compares the generated ones with."""
        return views.augment(images, indices, view).to(torch.float32).div_(127.5).sub_(1)

    def losses(self, outputs: Mapping[str, Tensor], targets: Tensor, reduction: Reduction = "mean") -> dict[str, Tensor]:
        """`adversarial`, from the critic's numbers for the images: the output `verdict` [B], which `step_terms` adds."""
        terms = F.softplus(-outputs["verdict"])
        return {"adversarial": terms.mean() if reduction == "mean" else terms.sum()}

    def step_terms(self, step: SupervisedStep) -> dict[str, Tensor]:
        opponent = step.modules[CRITIC]
        with _fixed(opponent):
            verdict = opponent(step.outputs[IMAGE], self._classes(step.images))
        return self.losses({**step.outputs, "verdict": verdict}, step.targets)

    def helpers(self, num_outputs: int, input_shape: Shape) -> Mapping[str, nn.Module]:
        classes = num_outputs if self.conditional else 0
        return {CRITIC: critic(input_shape=input_shape, width=self.critic_width, num_classes=classes)}

    def helper_terms(self, step: SupervisedStep) -> Mapping[str, Tensor]:
        opponent = step.modules[CRITIC]
        made_of = self._classes(step.images)
        own = None if made_of is None else F.one_hot(step.labels, made_of.shape[1]).to(made_of.dtype)
        real, made = opponent(step.targets, own), opponent(step.outputs[IMAGE].detach(), made_of)
        return {CRITIC: critic_loss(real, made)}

    def split_problem(self, data: ImageData, split: Split) -> str | None:
        """The covariance of D features needs more than D samples."""
        features = judging.num_features(data)
        if len(split) > features:
            return None
        remedy = f"set dataset.validation to {features + 1} or more" if split.name == "validation" else "use a larger data set"
        return (
            f"the {split.name} split has {len(split)} samples, and the classifier FID needs more than its {features} features; "
            f"{remedy}"
        )

    def drawn_input(self, data: ImageData) -> dict[str, int]:
        return {"noise": self.noise, "classes": data.num_classes if self.conditional else 0}

    def judge(self, data: ImageData) -> Judge:
        epochs = min(_JUDGE_EPOCHS, -(-_JUDGE_SAMPLES // len(data.train)))
        return Judge(model=judging.MODEL, training=_JUDGE_TRAINING, epochs=epochs)

    def prepare(self, data: ImageData, judge: nn.Module, score: float) -> Mapping[str, NDArray[Any]]:
        return judging.prepared(data, judge, score)

    def prepared_notes(self, data: ImageData) -> Sequence[str]:
        accuracy, score, variance = judging.numbers_of(data)
        return (
            f"The classifier FID compares features of a LeNet with {100 * accuracy:.2f} % validation accuracy: those of "
            f"{len(data.test):,} generated images for test values, of {len(data.validation):,} for validation values, each "
            f"with those of the {len(data.train):,} real images of the training split. These have an inception score of "
            f"{score:.3f} by the same classifier and a variance of the Laplacian of {variance:.0f}.",
        )

    def evaluator(self) -> Evaluator:
        raise NotImplementedError(f"{self.name} judges by a data set: evaluator_for")

    def evaluator_for(self, data: ImageData) -> Evaluator:
        return FrechetDistance(judging.statistics_of(data))

    def judged(self, data: ImageData, outputs: Mapping[str, Tensor], first: int) -> Mapping[str, Tensor]:
        """What the classifier finds in the images, rounded to 8 bits, and their sharpness; only the first images themselves."""
        pixels = as_pixels(outputs[IMAGE])
        verdict = judging.judge(data, pixels)
        return {
            "features": verdict.features,
            "probabilities": verdict.probabilities,
            "sharpness": sharpness(pixels),
            IMAGE: outputs[IMAGE][: max(0, _KEPT - first)],
        }

    def evidence(self, validation: SplitOutputs, test: SplitOutputs, teacher: SplitOutputs | None) -> Evidence:
        """Inception score, sharpness, the distance from the teacher's images; pictures of the same noise for the page."""
        numbers = {
            "inception_score": inception_score(test.outputs["probabilities"]),
            "sharpness": float(test.outputs["sharpness"].double().mean()),
        }
        pictures = [["student", strip(test.outputs[IMAGE][:_SHOWN])]]
        if teacher is not None:
            numbers["teacher_mse"] = float(F.mse_loss(test.outputs[IMAGE], teacher.outputs[IMAGE]))
            pictures.insert(0, ["teacher", strip(teacher.outputs[IMAGE][:_SHOWN])])
        return Evidence(numbers=numbers, details={"pictures": pictures})

    def _drawn(self, source: Source, data: ImageData, indices: Tensor) -> Tensor:
        noise = normal_noise(source, indices, self.noise)
        return torch.cat([noise, drawn_classes(source, indices, data.num_classes)], 1) if self.conditional else noise

    def _classes(self, inputs: Tensor) -> Tensor | None:
        return inputs[:, self.noise :] if self.conditional else None


@contextmanager
def _fixed(network: nn.Module) -> Iterator[None]:
    """A context in which no gradient is computed for the network's weights; those for its inputs are."""
    trained = [weight for weight in network.parameters() if weight.requires_grad]
    for weight in trained:
        weight.requires_grad_(False)
    try:
        yield
    finally:
        for weight in trained:
            weight.requires_grad_(True)
