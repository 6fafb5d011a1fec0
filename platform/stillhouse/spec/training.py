"""How a network is trained: optimiser, schedule, precision. Plain data for students and teachers alike."""

from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field

_BETA1 = 0.9
"""PyTorch's own, and that of releases without the key."""


class Training(BaseModel):
    """The recipe of one training run. Its defaults are those of the first release; `spec.recipes` has those of new sweeps.

    Attributes:
        batch_size: samples of one step; a last batch of one sample is left out of an epoch, since BatchNorm cannot train on it.
        optimizer: `sgd` has momentum; `adam` and `adamw` have their usual constants.
        learning_rate: the peak rate; null means 0.05 for sgd and 0.001 for adam and adamw.
        momentum: the momentum of `sgd`.
        adam_beta1: the decay of the mean of gradients of `adam` and `adamw`; generators train better with 0.5.
        nesterov: whether `sgd` uses Nesterov's momentum.
        weight_decay: the factor by which all parameters decay, those of biases and normalisation layers included.
        schedule: how the rate changes over the run: not at all, in steps, along a cosine to zero, or up and down (one cycle).
        milestones: fractions of the run after which the `step` schedule multiplies the rate by `gamma`.
        gamma: the factor of the `step` schedule.
        warmup_epochs: linear warm-up before the schedule, in epochs.
        gradient_clip: the largest global gradient norm of an optimiser's parameters; null does not clip.
        mixed_precision: autocast type of the forward pass; float16 scales the loss and needs a GPU.
        mixed_passes: which passes have that type: `student`: its passes in training steps; `all`: also those that a method
            makes itself, of the student and of other networks. Losses, and a teacher's passes, are computed in float32.
        channels_last: whether images and convolutions use that memory format, which is faster on many GPUs.
        micro_batch: the largest number of samples in a forward pass; the gradients of a larger batch are accumulated. `auto`
            begins with whole batches, and restarts a trial with half the size whenever memory runs out. BatchNorm normalises
            each micro-batch.
        batchnorm_statistics: by which BatchNorm normalises in evaluation mode: the `running` averages over past steps, or means
            that are `recomputed` after every epoch from up to 1,024 training images with the weights of then.
        compile: whether the student's forward pass goes through torch.compile.
        sync_batchnorm: whether several workers with a GPU each share the statistics of BatchNorm by PyTorch's SyncBatchNorm,
            which makes fewer collective calls than the default; results differ by rounding.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    batch_size: Annotated[int, Field(ge=2)] = 128
    optimizer: Literal["sgd", "adam", "adamw"] = "sgd"
    learning_rate: Annotated[float, Field(gt=0)] | None = None
    momentum: Annotated[float, Field(ge=0, lt=1)] = 0.9
    adam_beta1: Annotated[float, Field(ge=0, lt=1)] = _BETA1
    nesterov: bool = False
    weight_decay: Annotated[float, Field(ge=0)] = 5e-4
    schedule: Literal["constant", "step", "cosine", "one_cycle"] = "cosine"
    milestones: tuple[Annotated[float, Field(gt=0, lt=1)], ...] = (0.625, 0.75, 0.875)
    gamma: Annotated[float, Field(gt=0, le=1)] = 0.1
    warmup_epochs: Annotated[float, Field(ge=0)] = 0.0
    gradient_clip: Annotated[float, Field(gt=0)] | None = None
    mixed_precision: Literal["off", "bfloat16", "float16"] = "off"
    mixed_passes: Literal["student", "all"] = "student"
    channels_last: bool = False
    micro_batch: Annotated[int, Field(ge=1)] | Literal["auto"] | None = None
    batchnorm_statistics: Literal["running", "recomputed"] = "running"
    compile: bool = False
    sync_batchnorm: bool = False

    def identity(self) -> dict[str, Any]:
        """Plain data that is equal if and only if the recipes are."""
        plain = self.model_dump(mode="json")
        # Keeps the identity of recipes from before these keys existed.
        if self.micro_batch is None:
            del plain["micro_batch"]
        if self.batchnorm_statistics == "running":
            del plain["batchnorm_statistics"]
        if self.mixed_precision == "off" or self.mixed_passes == "student":
            del plain["mixed_passes"]
        if not self.sync_batchnorm:
            del plain["sync_batchnorm"]
        if self.adam_beta1 == _BETA1:
            del plain["adam_beta1"]
        return plain

    @property
    def peak_learning_rate(self) -> float:
        if self.learning_rate is not None:
            return self.learning_rate
        return 0.05 if self.optimizer == "sgd" else 0.001

    def words(self) -> str:
        """The settings that decide most how well a network learns, for people."""
        warmup = (
            f" after {self.warmup_epochs:g} epochs of warm-up" if self.warmup_epochs and self.schedule != "one_cycle" else ""
        )
        clip = "unbounded gradients" if self.gradient_clip is None else f"gradients up to {self.gradient_clip:g}"
        rate = f"{self.optimizer} at {self.peak_learning_rate:g} with {self.schedule}{warmup}"
        return f"{rate}, batches of {self.batch_size}, {clip}, {self.batchnorm_statistics} statistics of BatchNorm"
