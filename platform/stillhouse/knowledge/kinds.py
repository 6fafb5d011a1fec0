"""Knowledge: what a method needs from a teacher for each sample."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from torch import Tensor

from stillhouse.durable import canonical_json
from stillhouse.knowledge.code_version import code_version
from stillhouse.knowledge.output_names import LOGITS as LOGITS
from stillhouse.spec.priors import Scalar

Reduction = Callable[..., Tensor]


@dataclass(frozen=True, kw_only=True)
class Knowledge:
    """One tensor per sample: an output such as the logits, a layer's output, or a reduction of them computed at the teacher.

    Build one with `logits()`, `output(name)`, `feature(layer)`, `reduced(function, *layers, **options)` or `input_gradient()`.

    Attributes:
        layers: names of the modules whose outputs are read; if empty, the model's output `output` is read.
        output: the name of one of the task's outputs.
        of_input: reads the gradient of the teacher's cross-entropy with respect to the sample's pixels instead.
        reduction: a module-level function `reduction(*outputs, *weights, **options)` of tensors [B, ...] that returns [B, ...]
            and treats samples independently. It is sent to the teacher by its import path.
        options: keyword arguments of the reduction.
        weights: names of the teacher's parameters and buffers that the reduction reads (a BatchNorm's, say).
        draws: how many random numbers in [0, 1) per sample the reduction receives after outputs and weights, as one tensor
            [B, draws]; they are a function of the view and the sample.
        restoration: a module-level function `restoration(stored, **options)` that computes what a method receives.
    """

    layers: tuple[str, ...] = ()
    reduction: Reduction | None = None
    options: tuple[tuple[str, Scalar], ...] = ()
    weights: tuple[str, ...] = ()
    of_input: bool = False
    draws: int = 0
    restoration: Reduction | None = None
    output: str = LOGITS

    def __post_init__(self) -> None:
        if self.reduction is not None and "<locals>" in getattr(self.reduction, "__qualname__", "<locals>"):
            raise ValueError(f"a reduction must be a function of a module, so that workers can import it, got {self.reduction}")

    def compute(
        self, output: Tensor, features: Mapping[str, Tensor], weights: Sequence[Tensor] = (), draws: Tensor | None = None
    ) -> Tensor:
        """The knowledge [B, ...] from the named output (logits [B, C], say), the layers' outputs and the named weights.

        For a kind `of_input`, `output` is the gradient [B, channels, H, W].
        """
        outputs = [features[layer] for layer in self.layers] or [output]
        random = [] if draws is None else [draws]
        return outputs[0] if self.reduction is None else self.reduction(*outputs, *weights, *random, **dict(self.options))

    def restore(self, stored: Tensor) -> Tensor:
        """What a method receives, from the result [B, ...] of `compute`, on any device."""
        return stored if self.restoration is None else self.restoration(stored, **dict(self.options))

    def identity(self) -> dict[str, Any]:
        """Plain data that is equal if and only if the knowledge and its code are; part of a sealed view's key."""
        identity: dict[str, Any] = {"layers": list(self.layers)} | ({"of": "input gradient"} if self.of_input else {})
        if not self.layers and self.output != LOGITS:
            identity["output"] = self.output
        if self.reduction is not None:
            identity["reduction"] = f"{self.reduction.__module__}:{self.reduction.__qualname__}"
            identity["source"] = code_version(self.reduction)
            identity["options"] = dict(self.options)
            if self.weights:
                identity["weights"] = list(self.weights)
            if self.draws:
                identity["draws"] = self.draws
        return identity

    @property
    def id(self) -> str:
        """Text that is equal if and only if the knowledge is: `identity` as canonical JSON."""
        return canonical_json(self.identity())

    def __str__(self) -> str:
        what = "input_gradient" if self.of_input else ", ".join(self.layers) or self.output
        return what if self.reduction is None else f"{self.reduction.__name__}({what})"


def logits() -> Knowledge:
    """The teacher's logits [B, C], never probabilities, so that any temperature can be used."""
    return output(LOGITS)


def output(name: str) -> Knowledge:
    """The teacher's output `name`, [B, ...], one of those that the task names."""
    return Knowledge(output=name)


def feature(layer: str) -> Knowledge:
    """The output of `layer`, [B, K] or [B, K, H, W]."""
    return Knowledge(layers=(layer,))


def reduced(reduction: Reduction, *layers: str, weights: Sequence[str] = (), **options: Scalar) -> Knowledge:
    """`reduction(*outputs of layers, *weights, **options)`, computed at the teacher: only the result is stored and sent."""
    return Knowledge(layers=layers, reduction=reduction, options=tuple(sorted(options.items())), weights=tuple(weights))


def input_gradient(reduction: Reduction | None = None, **options: Scalar) -> Knowledge:
    """The gradient d CE(softmax(z(x)), y) / dx of each sample alone, [B, channels, H, W], or a reduction of it.

    x are the normalised pixels that the student sees, y is the sample's own class, even if a view mixes samples. The
    teacher is in evaluation mode, so that no sample's gradient depends on the others.
    """
    return Knowledge(of_input=True, reduction=reduction, options=tuple(sorted(options.items())))
