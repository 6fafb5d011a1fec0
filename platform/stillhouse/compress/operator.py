"""The operator contract: one change that makes a network smaller, before a method trains it.

An operator is a frozen, keyword-only dataclass of options with a card and as few hooks as it needs. A student has a list of
operators, which are applied in order. In a trial they run like this:

    convert        once, before training: changes the network, and returns what it decided as plain data (its history)
    before_step    before each training step, after_step after it: masks, rounding, the freezing of ranges
    finalise       once, after training, before the network is judged and stored
    pack           when the weights are stored: the tensors of the file; `unpack` reverses it

A stored student is loaded by `replay` with the stored history in place of `convert`, then `finalise`, then its weights. The
plan calls `convert` and `finalise` on the meta device to learn each student's sizes. An operator has no state of its own:
whatever changes during training belongs to the network as parameters or buffers, so that checkpoints contain it.
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from enum import IntEnum
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from stillhouse.models.example_input import example_input
from stillhouse.models.layers import Shape
from stillhouse.spec.display import show
from stillhouse.spec.hyperparameter import Configured
from stillhouse.spec.hyperparameter import hyperparameter as option

__all__ = ["Calibration", "Card", "Context", "Conversion", "History", "Level", "Moment", "Operator", "OperatorError", "option"]

SHIPPED = "stillhouse.compress"

History = Mapping[str, Any]
"""What `convert` decided, as JSON has it: numbers, text, booleans, lists and mappings."""

State = Mapping[str, Tensor]


class OperatorError(ValueError):
    """An operator that cannot change this network as requested; the message is a phrase that follows the operator's name.

    Example: `OperatorError("leaves no channel of layer1.0.conv1; lower ratio", option="ratio")`.

    Attributes:
        option: the option that the error is about; empty for the operator as a whole.
    """

    def __init__(self, message: str, *, option: str = "") -> None:
        super().__init__(message)
        self.option = option


class Level(IntEnum):
    """What an operator changes. In a list of operators the levels must not fall: pruning cannot follow quantization."""

    ARCHITECTURE = 1
    """Which layers there are, and their shapes."""
    ZEROS = 2
    """Which weights are zero, under a mask."""
    VALUES = 3
    """Which values the other weights may have, such as those of a codebook."""
    PRECISION = 4
    """With how many bits weights and activations are represented."""

    def __str__(self) -> str:
        return {1: "the layers", 2: "which weights are zero", 3: "the values of weights", 4: "the precision"}[self]


@dataclass(frozen=True, kw_only=True)
class Card:
    """What a user should know of an operator before using it.

    Attributes:
        does: what it does to a network, in a sentence.
        effect: what becomes smaller, and what does not: parameters, stored bytes, MACs, latency.
        suggested: values that the paper or practice found useful.
        interactions: known bad interactions with settings, methods or other operators.
    """

    title: str
    arxiv: str | None = None
    does: str = ""
    effect: str = ""
    deviations: str = ""
    suggested: str = ""
    interactions: str = ""


@dataclass(frozen=True, kw_only=True)
class Calibration:
    """Samples of the training split, not augmented and always the same: they depend on nothing but the data set.

    Attributes:
        batches: batches(count) returns the inputs [B, channels, H, W] and targets of `count` samples (or all, if there are
            fewer), on the network's device, in batches of at most 64.
        loss: the task's supervised loss, a scalar, of what the network returned and the targets.
    """

    batches: Callable[[int], Iterator[tuple[Tensor, Tensor]]]
    loss: Callable[[Tensor, Tensor], Tensor]


@dataclass(frozen=True, kw_only=True)
class Context:
    """What an operator knows when it converts a network.

    Attributes:
        num_classes: how many numbers the network returns for each sample.
        input_shape: (channels, height, width).
        seed: of the trial; for random choices, through `generator`.
        trained: whether the weights are those of a trained teacher (`from`); otherwise they are fresh.
        calibration: None while a sweep is planned, when weights are fresh or absent too; every trial has it.
    """

    num_classes: int
    input_shape: Shape
    seed: int = 0
    trained: bool = False
    calibration: Calibration | None = None

    @property
    def generator(self) -> torch.Generator:
        """A new CPU generator: the same numbers in every run and in every worker of the trial."""
        return torch.Generator().manual_seed(self.seed)

    def example(self, model: nn.Module, count: int = 1) -> Tensor:
        """Zeros [count, *input_shape] for the model, on its device: `models/example_input.py`."""
        return example_input(model, count, self.input_shape)


@dataclass(frozen=True, kw_only=True)
class Conversion:
    """The changed network.

    Attributes:
        model: the network that was passed in, changed in place, or another one.
        history: what was decided, so that `replay` can build the same network again; {} if the options tell everything.
        notes: sentences for the reader, such as which layers were left as they are and why.
        kept_channels: of each layer with weights that lost channels of its output, the indices of those that remain,
            ascending. Methods then compare a student with the teacher that it began as, channel by channel.
    """

    model: nn.Module
    history: History = field(default_factory=dict)
    notes: Sequence[str] = ()
    kept_channels: Mapping[str, Sequence[int]] = field(default_factory=dict)


@dataclass(frozen=True, kw_only=True)
class Moment:
    """A moment of the training.

    Attributes:
        progress: fraction of the whole training that is done, in [0, 1).
        epoch: from 0.
        step: training steps done before this one, over all epochs.
        full_precision: whether the method trains the student in full precision now, so that operators round nothing yet.
    """

    progress: float
    epoch: int
    step: int
    full_precision: bool = False


def options_shown(options: Mapping[str, Any]) -> list[str]:
    """`ratio=0.5` for each option."""
    return [f"{name}={value if isinstance(value, str) else show(value)}" for name, value in options.items()]


@dataclass(frozen=True, kw_only=True)
class Operator(Configured):
    """Changes nothing; the base class of every operator.

    Each option is a field `option(default, prior=..., minimum=..., help=...)`, with the rules that hyper-parameters have.

    Raises:
        ValueError: an option breaks its rule.
    """

    card: ClassVar[Card] = Card(title="No change")
    revision: ClassVar[int] = 1
    """Raised whenever a release changes what a shipped operator computes or its defaults. It is part of the keys of trials;
    user-defined operators have the version of their text instead."""
    neutral: ClassVar[Mapping[str, Any]] = {}
    """Options with which the operator changes nothing: the converted network computes bit for bit what it did before."""
    examples: ClassVar[Sequence[Mapping[str, Any]]] = ({},)
    """Small settings that the conformance suite tries, one for each kind of the operator."""
    main_options: ClassVar[Sequence[str]] = ()
    """The options that tables show even at their defaults, since they decide how much smaller the network becomes."""

    @property
    def level(self) -> Level:
        """What the operator changes with these options; see `Level`."""
        return Level.ARCHITECTURE

    @property
    def weights_decide_sizes(self) -> bool:
        """Whether shapes of the converted network depend on the values of its weights.

        The plan then converts a network with fresh weights in place of one on the meta device, and calls its sizes estimates.
        """
        return False

    @property
    def needs_whole_batch(self) -> bool:
        """Whether the network notes something of each training batch, such as the range of its values.

        Its students are then trained neither by micro-batches nor by several workers, which see parts of it.
        """
        return False

    @property
    def weight_bits(self) -> int:
        """Bits of a stored weight, in the layers that the operator changes."""
        return 32

    @property
    def activation_bits(self) -> int:
        """Bits of the layers' inputs when the network runs."""
        return 32

    @property
    def readable(self) -> str:
        """As tables show it: `prune(ratio=0.5)`, with the main options and those that are not at their defaults."""
        return self.name_with({name: getattr(self, name) for name in self.main_options} | self.changed_options())

    def changed_options(self) -> dict[str, Any]:
        """The options that are not at their defaults."""
        defaults = self.defaults()
        return {name: getattr(self, name) for name in defaults if getattr(self, name) != defaults[name]}

    def name_with(self, options: Mapping[str, Any]) -> str:
        """The operator's name with some of its options: `prune(ratio=0.5)`."""
        return f"{self.name}({', '.join(options_shown(options))})"

    @property
    def name(self) -> str:
        """As a spec names the operator: its file's name for a shipped one, `module:Class` for a user-defined one."""
        kind = type(self)
        package, _, file = kind.__module__.rpartition(".")
        return file if package == SHIPPED else f"{kind.__module__}:{kind.__qualname__}"

    def convert(self, model: nn.Module, context: Context) -> Conversion:
        """The changed network, with weights that follow from those of `model`.

        The model is on the meta device, where weights have shapes but no values and nothing may be read from them, or has real
        weights on the CPU. Both give the same shapes, unless `weights_decide_sizes`. The same weights, context and options
        give the same result bit for bit. The names of layers that remain must not change, since methods address layers by
        them, and the network must be able to train.

        Raises:
            OperatorError: the network cannot be changed so; the plan reports it, if it happens on the meta device too.
        """
        return Conversion(model=model)

    def replay(self, model: nn.Module, history: History, context: Context) -> nn.Module:
        """The network that `convert` made when it returned `history`: the same layers, shapes and buffers, any values.

        `model` is a new network, maybe on the meta device; the caller then loads the stored weights. Operators whose
        conversion follows from the options alone need not override this.
        """
        return self.convert(model, context).model

    def before_step(self, model: nn.Module, moment: Moment) -> None:
        """Called before each training step of the student; changes `model` in place."""

    def after_step(self, model: nn.Module, moment: Moment) -> None:
        """Called after each training step, when the weights have changed, such as to apply a mask again."""

    def finalise(self, model: nn.Module) -> None:
        """Brings the trained network into the form in which it is judged, stored and exported; changes `model` in place.

        It works on the meta device too. Submodules may be replaced, removed or folded; `model` itself remains. What only
        training needed, such as masks, should go.
        """

    def pack(self, model: nn.Module, state: State, history: History) -> State:
        """The tensors of the stored file for those of a state dictionary, which is that of the finalised network.

        The length of the file is the student's `size_bytes`, so this is where fewer bits become fewer bytes: an operator
        replaces tensors such as `conv.weight` by smaller ones such as `conv.weight.packed` and passes on the others. If the
        state lacks a tensor that the operator would replace, another operator has packed it already. On the meta device the
        shapes and dtypes of the result are the real ones.
        """
        return state

    def unpack(self, model: nn.Module, packed: State, history: History) -> State:
        """The state dictionary from what `pack` returned, bit for bit."""
        return packed
