"""The operators of one student, applied in order: from the entries of a spec or a record to a smaller network and its file."""

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import torch
from torch import nn

from stillhouse.compress import make_operator
from stillhouse.compress.operator import Context, Conversion, History, Moment, Operator, OperatorError, State
from stillhouse.errors import describe_error
from stillhouse.models.weights import state_bytes
from stillhouse.spec.records import FULL_BITS
from stillhouse.user_code import user_code

Entry = Mapping[str, Mapping[str, Any]]
"""One operator as a spec names it: `{prune: {ratio: 0.5}}`."""


class ChainError(OperatorError):
    """An operator of the list that cannot be applied.

    Attributes:
        place: which one, from 0.
        operator: its name.
    """

    def __init__(self, place: int, operator: str, error: OperatorError) -> None:
        super().__init__(f"{operator} {error}", option=error.option)
        self.place = place
        self.operator = operator
        self.phrase = str(error)


@dataclass(frozen=True)
class Chain:
    """The operators of a student, in the order in which they are applied.

    Attributes:
        names: the operators' names in the spec.
    """

    names: tuple[str, ...] = ()
    operators: tuple[Operator, ...] = ()

    @classmethod
    def of(cls, entries: Sequence[Entry]) -> "Chain":
        """The chain of the entries of a record, whose options are decided.

        Raises:
            UsageError: there is no such operator.
            ChainError: a value breaks its rule, or several one together.
        """
        pairs = [pair for entry in entries for pair in entry.items()]
        operators = []
        for place, (name, options) in enumerate(pairs):
            try:
                operators.append(make_operator(name, options))
            except ValueError as error:
                raise ChainError(place, name, OperatorError(str(error))) from error
        return cls(tuple(name for name, _ in pairs), tuple(operators))

    def __bool__(self) -> bool:
        return bool(self.operators)

    @property
    def readable(self) -> str:
        """`prune(ratio=0.5) + quantize(8/8)`; empty without operators."""
        return " + ".join(operator.readable for operator in self.operators)

    @property
    def weight_bits(self) -> int:
        return min((operator.weight_bits for operator in self.operators), default=FULL_BITS)

    @property
    def activation_bits(self) -> int:
        return min((operator.activation_bits for operator in self.operators), default=FULL_BITS)

    @property
    def sizes_are_estimates(self) -> bool:
        """Whether the sizes of the trained student may differ from those of the plan; see `Operator.weights_decide_sizes`."""
        return any(operator.weights_decide_sizes for operator in self.operators)

    def check_order(self) -> None:
        """Checks that levels do not fall.

        Raises:
            ChainError: an operator comes after one that it would undo.
        """
        for place in range(1, len(self.operators)):
            earlier, later = self.operators[place - 1], self.operators[place]
            if later.level < earlier.level:
                before = self.names[place - 1]
                message = f"must come before {before}: it changes {later.level}, {before} {earlier.level}; swap them"
                raise ChainError(place, self.names[place], OperatorError(message))

    def convert(self, model: nn.Module, context: Context) -> Conversion:
        """The network after all operators; its history is {"operators": [each one's]}, and channels kept are those of `model`.

        Raises:
            ChainError: an operator cannot change the network, or its code raises an error.
        """
        histories: list[History] = []
        notes: list[str] = []
        kept: dict[str, Sequence[int]] = {}
        for place, (name, operator) in enumerate(zip(self.names, self.operators, strict=True)):
            try:
                with user_code(), torch.random.fork_rng(devices=[]):
                    torch.manual_seed(context.seed)
                    converted = operator.convert(model, context)
            except OperatorError as error:
                raise ChainError(place, name, error) from error
            except Exception as error:
                raise ChainError(place, name, OperatorError(f"cannot change this network: {describe_error(error)}")) from error
            model = converted.model
            # What a record will hold: a history that JSON would change must not work until it is read back.
            histories.append(json.loads(json.dumps(converted.history)))
            notes += [f"{name}: {note}" for note in converted.notes]
            for layer, indices in converted.kept_channels.items():
                before = kept.get(layer)
                kept[layer] = [index if before is None else before[index] for index in indices]
        return Conversion(model=model, history={"operators": histories}, notes=notes, kept_channels=kept)

    def replay(self, model: nn.Module, history: History, context: Context) -> nn.Module:
        """The network that `convert` made, without the values of its weights."""
        for operator, own in zip(self.operators, self._each(history), strict=True):
            with user_code(), torch.random.fork_rng(devices=[]):
                torch.manual_seed(context.seed)
                model = operator.replay(model, own, context)
        return model

    def sketch(self, build: Callable[[], nn.Module], build_sketch: Callable[[], nn.Module], context: Context) -> Conversion:
        """The converted network without storage, as a plan needs it.

        Args:
            build: makes the network with fresh weights.
            build_sketch: makes it on the meta device.
        """
        if not self.sizes_are_estimates:
            return self.convert(build_sketch(), context)
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(0)
            converted = self.convert(build(), context)
        converted.model.to("meta")
        return converted

    def before_step(self, model: nn.Module, moment: Moment) -> None:
        for operator in self.operators:
            operator.before_step(model, moment)

    def after_step(self, model: nn.Module, moment: Moment) -> None:
        for operator in self.operators:
            operator.after_step(model, moment)

    def finalise(self, model: nn.Module) -> None:
        """Brings the network into the form in which it is judged and stored."""
        for operator in self.operators:
            operator.finalise(model)

    def pack(self, model: nn.Module, state: State, history: History) -> State:
        """The tensors of the stored file. The last operator packs first: what it made is what is stored."""
        for operator, own in reversed(list(zip(self.operators, self._each(history), strict=True))):
            state = operator.pack(model, state, own)
        return state

    def unpack(self, model: nn.Module, packed: State, history: History) -> State:
        """The state dictionary of the finalised network."""
        for operator, own in zip(self.operators, self._each(history), strict=True):
            packed = operator.unpack(model, packed, own)
        return packed

    def stored_bytes(self, model: nn.Module, history: History) -> int:
        """Length of the file of the finalised network, which may be on the meta device."""
        return state_bytes(self.pack(model, model.state_dict(), history))

    def _each(self, history: History) -> Sequence[History]:
        if not history:
            return [{}] * len(self.operators)
        each: Sequence[History] = history["operators"]
        return each

    @property
    def whole_batch_operator(self) -> str | None:
        """The name of an operator whose network notes something of each training batch; None if there is none."""
        pairs = zip(self.names, self.operators, strict=True)
        return next((name for name, operator in pairs if operator.needs_whole_batch), None)

    @cached_property
    def needs_hooks(self) -> bool:
        """Whether any operator acts during training."""
        base = Operator
        return any(
            type(each).before_step is not base.before_step or type(each).after_step is not base.after_step
            for each in self.operators
        )
