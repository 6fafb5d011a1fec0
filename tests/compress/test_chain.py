"""Several operators in order: conversion, the stored file, and an order that cannot work."""

import copy
from dataclasses import dataclass

import pytest
import torch
from safetensors.torch import save
from torch import nn

from stillhouse.compress.chain import Chain, ChainError
from stillhouse.compress.operator import Context, Conversion, History, Level, Operator, OperatorError, State, option

CONTEXT = Context(num_classes=4, input_shape=(1, 1, 8), seed=3)


@dataclass(frozen=True, kw_only=True)
class Cut(Operator):
    """Removes the last outputs of the first layer; the history names those that remain."""

    keep: int = option(4, minimum=1)

    def convert(self, model: nn.Module, context: Context) -> Conversion:
        if self.keep > 6:
            raise OperatorError("keeps more than there are", option="keep")
        model.get_parameter("0.weight")  # the layer must be there
        self._resize(model)
        return Conversion(model=model, history={"kept": (*range(self.keep),)}, notes=["1 layer left as it is"])

    def _resize(self, model: nn.Module) -> None:
        assert isinstance(model, nn.Sequential)
        first, last = model
        model[0] = nn.Linear(8, self.keep, device=first.weight.device)
        model[1] = nn.Linear(self.keep, 4, device=last.weight.device)


@dataclass(frozen=True, kw_only=True)
class Halve(Operator):
    """Stores every weight in 16 bits."""

    @property
    def level(self) -> Level:
        return Level.PRECISION

    @property
    def weight_bits(self) -> int:
        return 16

    def finalise(self, model: nn.Module) -> None:
        with torch.no_grad():
            for weight in model.parameters():
                weight.copy_(weight.half())

    def pack(self, model: nn.Module, state: State, history: History) -> State:
        return {f"{name}.half": value.half() for name, value in state.items()}

    def unpack(self, model: nn.Module, packed: State, history: History) -> State:
        return {name.removesuffix(".half"): value.float() for name, value in packed.items()}


def network(device: str = "cpu") -> nn.Sequential:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(8, 6, device=device), nn.Linear(6, 4, device=device))


def chain(*operators: Operator) -> Chain:
    return Chain(tuple(type(each).__name__.lower() for each in operators), operators)


def test_a_chain_reads_from_left_to_right() -> None:
    both = chain(Cut(keep=3), Halve())
    assert both.readable.count(" + ") == 1
    assert (both.weight_bits, both.activation_bits) == (16, 32)
    assert (Chain().weight_bits, Chain().readable, bool(Chain())) == (32, "", False)


def test_the_history_is_what_json_returns_of_it() -> None:
    converted = chain(Cut(keep=3), Halve()).convert(network(), CONTEXT)
    assert converted.history == {"operators": [{"kept": [0, 1, 2]}, {}]}
    assert converted.notes == ["cut: 1 layer left as it is"]


def test_the_stored_file_has_the_planned_length_and_gives_the_network_back() -> None:
    both = chain(Cut(keep=3), Halve())
    converted = both.convert(network(), CONTEXT)
    both.finalise(converted.model)
    content = save(dict(both.pack(converted.model, converted.model.state_dict(), converted.history)))
    # 8 x 3 + 3 + 3 x 4 + 4 weights of 2 bytes
    assert len(content) - int.from_bytes(content[:8], "little") - 8 == 43 * 2
    planned = both.sketch(network, lambda: network("meta"), CONTEXT)
    assert both.stored_bytes(planned.model, planned.history) == len(content)
    again = both.replay(network(), converted.history, CONTEXT)
    packed = both.pack(converted.model, converted.model.state_dict(), converted.history)
    again.load_state_dict(both.unpack(again, packed, converted.history))
    inputs = torch.randn(5, 8)
    assert torch.equal(again(inputs), converted.model(inputs))


def test_a_refusal_names_the_operator_and_its_place() -> None:
    with pytest.raises(ChainError, match=r"^cut keeps more than there are$") as raised:
        chain(Cut(keep=2), Cut(keep=7)).convert(network(), CONTEXT)
    assert (raised.value.place, raised.value.option) == (1, "keep")


def test_an_error_of_an_operators_code_is_a_refusal_too() -> None:
    with pytest.raises(ChainError, match="cut cannot change this network: AttributeError"):
        chain(Cut()).convert(nn.Sequential(), CONTEXT)


def test_an_operator_that_undoes_an_earlier_one_is_refused() -> None:
    chain(Cut(), Halve()).check_order()
    with pytest.raises(ChainError, match="cut must come before halve: it changes the layers, halve the precision; swap them"):
        chain(Halve(), Cut()).check_order()


def test_conversions_leave_torchs_random_numbers_alone() -> None:
    before = torch.random.get_rng_state()
    chain(Cut()).convert(copy.deepcopy(nn.Sequential(nn.Linear(8, 6), nn.Linear(6, 4))), CONTEXT)
    model = network()
    before = torch.random.get_rng_state()
    chain(Cut()).convert(model, CONTEXT)
    assert torch.equal(torch.random.get_rng_state(), before)


@dataclass(frozen=True, kw_only=True)
class Without(Operator):
    """Reports that the first layer's outputs lost one channel, whose place `Without` knows."""

    place: int = option(0, minimum=0)

    def convert(self, model: nn.Module, context: Context) -> Conversion:
        assert isinstance(model, nn.Sequential)
        first, last = model
        weight, bias = first.get_parameter("weight"), first.get_parameter("bias")
        kept = [channel for channel in range(len(weight)) if channel != self.place]
        first.weight, first.bias = nn.Parameter(weight[kept]), nn.Parameter(bias[kept])
        last.weight = nn.Parameter(last.get_parameter("weight")[:, kept])
        return Conversion(model=model, kept_channels={"0": kept})


def test_channels_that_remain_are_those_of_the_first_network() -> None:
    whole = network()
    converted = chain(Without(place=1), Halve(), Without(place=2), Without(place=0)).convert(copy.deepcopy(whole), CONTEXT)
    # Without 1: 0 2 3 4 5. Without the third of these, 3: 0 2 4 5. Without the first: 2 4 5.
    assert dict(converted.kept_channels) == {"0": [2, 4, 5]}
    assert torch.equal(converted.model.get_parameter("0.weight"), whole.get_parameter("0.weight")[[2, 4, 5]])
